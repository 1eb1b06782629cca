"""The quick profile from end to end on MLLMU-Bench's published layout, imported as a user would."""

import json

import pandas as pd
import pytest
from pyarrow import parquet

from efface.data.samples import read_samples
from tasks import report
from tests.efface.data.mllmu_fixture import FILE, MllmuFiles, change
from tests.small_run import imported, parameters, run_stages

pytestmark = pytest.mark.slow


def test_the_quick_profile_runs_on_the_published_layout(tmp_path):
    files = MllmuFiles(tmp_path / "download").write()
    first = parquet.read_table(files.train_root / "retain_90")["ID"][0].as_py()
    change(
        files.eval_root / "retain_90" / FILE,
        lambda row: row | {"biography": "{"} if row["ID"] == first else row,
    )
    roots = imported("mllmu", eval=files.eval_root, train=files.train_root)
    params = parameters(tmp_path, roots | {"prepare": {"on_bad_row": "skip"}})
    root = tmp_path / "data"
    run_stages(params, root)
    report.run(params, root)

    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert splits["benchmark"] == "mllmu"
    assert {split: len(ids) for split, ids in splits["entities"].items()} == {
        "forget": 2, "retain": 17, "real": 4, "holdout": 0, "utility": 0,
    }  # fmt: skip
    (left_out,) = json.loads((root / "prepared" / "left_out.json").read_text())
    assert left_out["row"] == f"ID {first}"
    assert {s.part for s in read_samples(root / "prepared")} == {"train", "validation", "test"}
    for model in params.models:
        scores = pd.read_parquet(root / "scores" / f"{model}.parquet")
        assert set(scores["benchmark"]) == {"mllmu"}
        assert set(scores["set"]) == {"forget", "unseen", "retain", "real"}
        assert set(scores["task"]) == {"choice", "cloze", "generation"}
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "Published numbers" in page and "accuracy_first_letter" in page
    for method in (*params.unlearn.methods, *params.prune.methods):
        assert (root / "models" / "unlearned" / method / "config.json").is_file()
