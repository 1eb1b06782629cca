"""Stage importance: how much every neuron matters for the forget people, and for the others."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import typer

from efface.data.samples import read_samples
from tasks.artifacts import digest, recording, writing
from tasks.params import Params


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
                for modality, values in _measure(loaded, mlps, pairs, params, split).items()
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


def _pairs(table: Path, split: str, params: Params):  # type: ignore[no-untyped-def]
    """Multimodal samples and the text rendering of the same facts, equally many and in the same order."""
    from efface.data.encoding import draw

    text = {s.pair_id: s for s in read_samples(table, split=split, part="train", modality="text")}
    pictured = read_samples(table, split=split, part="train", modality="multimodal")
    paired = [(sample, text[sample.pair_id]) for sample in pictured if sample.pair_id in text]
    return [paired[i] for i in draw(len(paired), params.importance.samples, params.seed)]


def _measure(loaded, mlps, pairs, params: Params, split: str):  # type: ignore[no-untyped-def]
    """Statistics of both renderings; a mid-grey picture stands in for the picture that text does not have."""
    from PIL import Image

    from efface.importance import activation_statistics

    multimodal = [pictured for pictured, _ in pairs]
    text = [written for _, written in pairs]
    blank = replace(multimodal[0], image_bytes=_png(Image.new("RGB", (64, 64), (128, 128, 128))))

    def measure(samples, blocks, label):  # type: ignore[no-untyped-def]
        return activation_statistics(
            loaded.model,
            _batches(loaded.processor, samples, params.importance.batch_size, label),
            mlps=blocks,
            active_above=params.importance.active_above,
        )

    vision = [mlp for mlp in mlps if mlp.tower == "vision"]
    grey = measure([blank], vision, f"blank picture, {split}")
    return {
        "multimodal": measure(multimodal, mlps, f"pictures, {split}"),
        "text": {name: value.repeated(len(text)) for name, value in grey.items()}
        | measure(text, [mlp for mlp in mlps if mlp.tower != "vision"], f"text, {split}"),
    }


def _batches(processor, samples, size: int, label: str):  # type: ignore[no-untyped-def]
    from tqdm import tqdm

    from efface.data.encoding import Encoder

    with tqdm(total=len(samples), desc=label, unit="sample", mininterval=0.5) as bar:
        for batch in Encoder(processor, samples).batches(size):
            yield batch
            bar.update(len(batch["input_ids"]))


def _png(picture) -> bytes:  # type: ignore[no-untyped-def]
    import io

    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
