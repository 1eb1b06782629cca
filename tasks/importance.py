"""Stage importance: how much every neuron matters for the forget people, and for the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import Sample, read_samples
from efface.errors import DataError
from tasks.config import Params
from tasks.config.attribution import Importance
from tasks.runtime.artifacts import digest, recording, writing
from tasks.runtime.sharing import is_first

if TYPE_CHECKING:
    from efface.models import MLP, LoadedModel
    from efface.neurons import ActivationStatistics
    from efface.neurons.scores import Tables
    from efface.neurons.statistics import Units

Pairs = dict[str, list[tuple[Sample, Sample]]]
"""Per split, facts with a picture and the same facts in words."""


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure activations on the vanilla model and write `masks/importance.safetensors`."""
    from efface.models import anatomy, load_model, weights_digest
    from efface.neurons.files import save_importance

    section = params.importance
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    path = root / "masks" / "importance.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla}
    with recording(
        "importance", section, root=root, seed=params.seed, inputs=inputs, outputs={"importance": path}
    ) as record:
        loaded = load_model(vanilla)
        mlps = anatomy(loaded.model).mlps
        pairs = {split: _pairs(table, split, params) for split in ("forget", "retain")}
        score = _paper if section.variant == "paper" else _official_code
        tables, units = score(loaded, mlps, pairs, section)
        if not is_first():
            return
        metadata = {
            "variant": section.variant,
            "active_above": section.active_above,
            "vision_text_reference": section.vision_text_reference,
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
        }
        with writing(path) as partial:
            save_importance(partial, tables, units=units, metadata=metadata)
        record.summary = {"samples": {split: len(drawn) for split, drawn in pairs.items()}}
    count = sum(unit.width for unit in units)
    typer.echo(f"importance: {path} scores {count} units in {len(units)} modules")


def _pairs(table: Path, split: str, params: Params) -> list[tuple[Sample, Sample]]:
    """Multimodal samples, each with the text rendering of the same fact."""
    from efface.encoding import draw

    text = {s.pair_id: s for s in read_samples(table, split=split, part="train", modality="text")}
    pictured = read_samples(table, split=split, part="train", modality="multimodal")
    paired = [(sample, text[sample.pair_id]) for sample in pictured if sample.pair_id in text]
    if not paired:
        raise DataError(
            f"the {split} set has no training fact with a picture and in words; see prepare.forget_fraction"
        )
    return [paired[i] for i in draw(len(paired), params.importance.samples, params.seed)]


def _paper(
    loaded: LoadedModel, mlps: list[MLP], pairs: Pairs, section: Importance
) -> tuple[Tables, list[Units]]:
    """Both renderings of both sets compared, neuron by neuron."""
    from efface.neurons.scores import paper_tables
    from efface.neurons.statistics import neuron_units

    statistics = {}
    for split, drawn in pairs.items():
        statistics |= {
            f"{split}.{modality}": values
            for modality, values in _measure(loaded, mlps, drawn, section, split).items()
        }
    blank = section.vision_text_reference == "blank_image"
    lacking = [] if blank else [mlp.name for mlp in mlps if mlp.tower == "vision"]
    return paper_tables(statistics, variance_only=lacking), neuron_units(mlps)


def _measure(
    loaded: LoadedModel, mlps: list[MLP], pairs: list[tuple[Sample, Sample]], section: Importance, split: str
) -> dict[str, dict[str, ActivationStatistics]]:
    """Statistics of both renderings; a mid-grey picture stands in for the picture that text does not have."""
    from efface.encoding import Encoder
    from efface.neurons import activation_statistics
    from efface.processes import share

    def measure(samples: list[Sample], blocks: list[MLP], label: str) -> dict[str, ActivationStatistics]:
        batches = Encoder(loaded.processor, samples).batches(section.batch_size, label=label, share=share)
        return activation_statistics(loaded.model, batches, mlps=blocks, active_above=section.active_above)

    multimodal, text = [pictured for pictured, _ in pairs], [written for _, written in pairs]
    vision = [mlp for mlp in mlps if mlp.tower == "vision"]
    pictured = measure(multimodal, mlps, f"pictures, {split}")
    written = measure(text, [mlp for mlp in mlps if mlp.tower != "vision"], f"text, {split}")
    if section.vision_text_reference == "blank_image":
        blank = replace(multimodal[0], image_bytes=_grey_picture())
        grey = measure([blank], vision, f"blank picture, {split}")
        written = {name: value.repeated(len(text)) for name, value in grey.items()} | written
    return {"multimodal": pictured, "text": written}


def _official_code(
    loaded: LoadedModel, mlps: list[MLP], pairs: Pairs, section: Importance
) -> tuple[Tables, list[Units]]:
    """The vision tower on pictures, the decoder on words, output row by output row."""
    from efface.encoding import Encoder
    from efface.neurons.official_code import official_tables, output_statistics, output_units
    from efface.processes import share

    units = output_units(loaded.model, mlps)
    statistics = {}
    for split, drawn in pairs.items():
        statistics[split] = {}
        for tower, rendering in (("vision", 0), ("language", 1)):
            batches = Encoder(loaded.processor, [pair[rendering] for pair in drawn]).batches(
                section.batch_size, label=f"{tower} tower, {split}", share=share
            )
            measured = [unit for unit in units if unit.tower == tower]
            statistics[split] |= output_statistics(
                loaded.model, batches, units=measured, active_above=section.active_above
            )
    return official_tables(statistics["forget"], statistics["retain"]), units


def _grey_picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()
