"""Stage importance: how much every neuron matters for the forget people, and for the others."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import Sample, read_samples
from tasks.artifacts import digest, recording, writing
from tasks.params import Params
from tasks.params.attribution import Importance

if TYPE_CHECKING:
    from efface.importance import ActivationStatistics
    from efface.models import MLP, LoadedModel


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure activations on the vanilla model and write `masks/importance.safetensors`."""
    from efface.importance import neuron_importance
    from efface.importance.files import save_importance
    from efface.models import anatomy, load_model, weights_digest

    section = params.importance
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    path = root / "masks" / "importance.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla}
    with recording(
        "importance", section, root=root, seed=params.seed, inputs=inputs, outputs={"importance": path}
    ) as record:
        loaded = load_model(vanilla)
        mlps = anatomy(loaded.model).mlps
        statistics = {}
        for split in ("forget", "retain"):
            pairs = _pairs(table, split, params)
            statistics |= {
                f"{split}.{modality}": values
                for modality, values in _measure(loaded, mlps, pairs, section, split).items()
            }
        importance = {
            split: neuron_importance(statistics[f"{split}.multimodal"], statistics[f"{split}.text"])
            for split in ("forget", "retain")
        }
        metadata = {
            "variant": section.variant,
            "active_above": section.active_above,
            "vision_text_reference": section.vision_text_reference,
            "mlps": [asdict(mlp) for mlp in mlps],
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
        }
        with writing(path) as partial:
            save_importance(partial, statistics=statistics, importance=importance, metadata=metadata)
        counts = {name: next(iter(values.values())).count for name, values in statistics.items()}
        record.summary = {"samples": counts}
    units = sum(mlp.width for mlp in mlps)
    typer.echo(f"importance: {path} scores {units} neurons in {len(mlps)} MLP blocks")


def _pairs(table: Path, split: str, params: Params) -> list[tuple[Sample, Sample]]:
    """Multimodal samples, each with the text rendering of the same fact."""
    from efface.data.encoding import draw

    text = {s.pair_id: s for s in read_samples(table, split=split, part="train", modality="text")}
    pictured = read_samples(table, split=split, part="train", modality="multimodal")
    paired = [(sample, text[sample.pair_id]) for sample in pictured if sample.pair_id in text]
    return [paired[i] for i in draw(len(paired), params.importance.samples, params.seed)]


def _measure(
    loaded: LoadedModel, mlps: list[MLP], pairs: list[tuple[Sample, Sample]], section: Importance, split: str
) -> dict[str, dict[str, ActivationStatistics]]:
    """Statistics of both renderings; a mid-grey picture stands in for the picture that text does not have."""
    from efface.data.encoding import Encoder
    from efface.importance import activation_statistics

    def measure(samples: list[Sample], blocks: list[MLP], label: str) -> dict[str, ActivationStatistics]:
        batches = Encoder(loaded.processor, samples).batches(section.batch_size, label=label)
        return activation_statistics(loaded.model, batches, mlps=blocks, active_above=section.active_above)

    multimodal, text = [pictured for pictured, _ in pairs], [written for _, written in pairs]
    vision = [mlp for mlp in mlps if mlp.tower == "vision"]
    blank = replace(multimodal[0], image_bytes=_grey_picture())
    grey = measure([blank], vision, f"blank picture, {split}")
    return {
        "multimodal": measure(multimodal, mlps, f"pictures, {split}"),
        "text": {name: value.repeated(len(text)) for name, value in grey.items()}
        | measure(text, [mlp for mlp in mlps if mlp.tower != "vision"], f"text, {split}"),
    }


def _grey_picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()
