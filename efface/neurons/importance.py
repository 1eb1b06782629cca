"""Measuring the neuron importance of a model, as a variant defines it, and the files that hold it.

An importance file has every ranking of every unit, so other fractions need no new forward pass.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from efface.data.samples import Sample
from efface.encoding import Encoder
from efface.masks import METADATA_KEY, read_metadata
from efface.models.anatomy import MLP, anatomy
from efface.neurons.official_code import TokenStatistics, official_tables, output_statistics, output_units
from efface.neurons.scores import Tables, paper_tables
from efface.neurons.statistics import ActivationStatistics, Units, activation_statistics, neuron_units
from efface.processes import share

Pairs = Sequence[tuple[Sample, Sample]]
"""Facts with a picture, each with the same fact in text."""
TextReference = Literal["blank_image", "variance_only"]


def measure_importance(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    forget: Pairs,
    retain: Pairs,
    variant: Literal["paper", "official_code"] = "paper",
    active_above: float = 0.1,
    vision_text_reference: TextReference = "blank_image",
    batch_size: int = 32,
) -> tuple[Tables, list[Units]]:
    """The tables of an importance file, from one forward pass per sample and rendering.

    Args:
        model: the vanilla model.
        processor: the model's processor.
        forget: facts about the people to forget.
        retain: facts about the others.
        variant: ``paper`` compares the two renderings of both sets, neuron by neuron; ``official_code``
            measures the vision tower on pictures and the decoder on text, output row by output row.
        active_above: see ``activation_statistics``.
        vision_text_reference: what the vision tower sees for text, in the paper variant: ``blank_image`` is a
            grey picture; ``variance_only`` scores its neurons by their variance over pictures alone.
        batch_size: samples per forward pass; does not change the result.

    Returns:
        Table name -> module name -> one value per unit (``paper_tables`` or ``official_tables``), and the
        units.

    Raises:
        ModelError: if the model has no MLP blocks whose neurons can be measured.
    """
    mlps = anatomy(model).require_mlps()
    sets = {"forget": forget, "retain": retain}
    if variant == "official_code":
        units = output_units(model, mlps)
        by_split: dict[str, dict[str, TokenStatistics]] = {}
        for split, pairs in sets.items():
            by_split[split] = {}
            for tower, rendering in (("vision", 0), ("language", 1)):
                batches = Encoder(processor, [pair[rendering] for pair in pairs]).batches(
                    batch_size, label=f"{tower} tower, {split}", share=share
                )
                measured = [unit for unit in units if unit.tower == tower]
                by_split[split] |= output_statistics(
                    model, batches, units=measured, active_above=active_above
                )
        return official_tables(by_split["forget"], by_split["retain"]), units

    def measure(samples: Sequence[Sample], blocks: list[MLP], label: str) -> dict[str, ActivationStatistics]:
        batches = Encoder(processor, samples).batches(batch_size, label=label, share=share)
        return activation_statistics(model, batches, mlps=blocks, active_above=active_above)

    vision = [mlp for mlp in mlps if mlp.tower == "vision"]
    language = [mlp for mlp in mlps if mlp.tower != "vision"]
    statistics = {}
    for split, pairs in sets.items():
        pictured, text = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        statistics[f"{split}.multimodal"] = measure(pictured, mlps, f"pictures, {split}")
        statistics[f"{split}.text"] = measure(text, language, f"text, {split}")
        if vision_text_reference == "blank_image":
            blank = replace(pictured[0], image_bytes=_grey_picture())
            grey = measure([blank], vision, f"blank picture, {split}")
            repeated = {name: values.repeated(len(text)) for name, values in grey.items()}
            statistics[f"{split}.text"] = repeated | statistics[f"{split}.text"]
    variance_only = [] if vision_text_reference == "blank_image" else [mlp.name for mlp in vision]
    return paper_tables(statistics, variance_only=variance_only), neuron_units(mlps)


def save_importance(
    path: Path,
    tables: Mapping[str, Mapping[str, Tensor]],
    *,
    units: Iterable[Units],
    metadata: Mapping[str, Any],
) -> None:
    """Write tables of one value per unit, as float32.

    Args:
        path: the safetensors file.
        tables: table name -> module name -> values.
        units: the modules, in the order of the model.
        metadata: what the tables were made from, stored with the units as one JSON entry.
    """
    tensors = {
        f"{name}/{table}": value.float() for table, values in tables.items() for name, value in values.items()
    }
    record = {"kind": "neuron_importance", **metadata, "units": [asdict(unit) for unit in units]}
    save_file(
        {key: tensors[key].clone() for key in sorted(tensors)},
        path,
        metadata={METADATA_KEY: json.dumps(record, sort_keys=True)},
    )


def load_importance(path: Path) -> tuple[Tables, list[Units], dict[str, Any]]:
    """Read the tables (table name -> module name -> (N,) float32, modules in order), units and metadata.

    Raises:
        ArtifactError: if the file is damaged or holds something else.
    """
    metadata = read_metadata(path, kind="neuron_importance")
    units = [Units(**unit) for unit in metadata["units"]]
    order = {unit.name: index for index, unit in enumerate(units)}
    tables: Tables = {}
    for key, tensor in sorted(load_file(path).items(), key=lambda item: order[item[0].rpartition("/")[0]]):
        name, _, table = key.rpartition("/")
        tables.setdefault(table, {})[name] = tensor
    return tables, units, metadata


def _grey_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()
