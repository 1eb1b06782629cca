"""Importance files: every ranking of every unit, so that other fractions need no new forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.masks import METADATA_KEY, read_metadata
from efface.neurons.statistics import Units


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
        tables: table name -> module name -> values, from ``paper_tables`` or ``official_tables``.
        units: the modules, in the order of the model.
        metadata: what it was made from, stored with the units as one JSON entry.
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


def load_tables(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[Units], dict[str, Any]]:
    """Read the tables (table name -> module name -> (N,) float32, modules in order), units and metadata.

    Raises:
        ArtifactError: if the file is damaged or holds something else.
    """
    metadata = read_metadata(path, kind="neuron_importance")
    units = [Units(**unit) for unit in metadata["units"]]
    order = {unit.name: index for index, unit in enumerate(units)}
    tables: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        name, _, table = key.rpartition("/")
        tables.setdefault(table, {})[name] = tensor
    in_order = {
        table: dict(sorted(v.items(), key=lambda item: order[item[0]])) for table, v in tables.items()
    }
    return in_order, units, metadata
