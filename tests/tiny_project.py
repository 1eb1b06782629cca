"""A data folder with a dozen samples and the tiny model as vanilla, for running single stages in a second."""

from __future__ import annotations

from pathlib import Path

from efface.data.samples import write_samples
from efface.data.splits import without_split
from efface.models import save_model
from tasks.config import Params, load_params
from tasks.runtime.artifacts import write_json
from tests.efface.conftest import sample

PROJECT = Path(__file__).resolve().parents[1]


def make_root(folder: Path, model, processor) -> Path:
    """Write `prepared` (forget people 0 and 1, retain people 2 to 7) and `models/vanilla`."""
    (folder / "prepared").mkdir()
    rows = [sample(i, pictured=pictured) for i in range(8) for pictured in (True, False)]
    write_samples(without_split(rows), folder / "prepared" / "samples.parquet")
    entities = {
        split: sorted({row.entity_id for row in rows if row.split == split}) for split in ("forget", "retain")
    }
    write_json(folder / "prepared" / "splits.json", {"entities": entities})
    (folder / "models" / "vanilla").mkdir(parents=True)
    save_model(model, processor, folder / "models" / "vanilla")
    return folder


def params_with(section: str, **changes: object) -> Params:
    """The project's parameters with some keys of one section replaced, checked as always."""
    data = load_params(PROJECT / "params.yaml").model_dump(mode="json", exclude_unset=True)
    data[section] |= changes
    return Params.model_validate(data)
