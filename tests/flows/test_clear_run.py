"""The quick profile from end to end on CLEAR's published layout, imported as a user would."""

import json

import pandas as pd
import pytest

from efface.data.samples import read_samples
from efface.evaluation.benchmarks.clear import forget_quality
from tasks import report
from tests.efface.data.clear_fixture import write_clear
from tests.small_run import imported, parameters, run_stages

pytestmark = pytest.mark.slow


def test_the_quick_profile_runs_on_the_published_layout(tmp_path):
    changes = imported("clear", data=write_clear(tmp_path / "download"))
    changes |= {"evaluate": {"prompts": "published"}, "prepare": {"on_bad_row": "skip"}}
    params = parameters(tmp_path, changes)
    root = tmp_path / "data"
    run_stages(params, root)
    report.run(params, root)

    splits = json.loads((root / "prepared" / "splits.json").read_text())
    assert splits["benchmark"] == "clear" and len(splits["validation"]) == 2
    assert json.loads((root / "prepared" / "left_out.json").read_text()) == []
    assert {s.part for s in read_samples(root / "prepared")} == {"train", "validation", "test"}
    index = json.loads((root / "benchmarks" / "clear" / "index.json").read_text())
    assert "forget10_perturbed/train-00000-of-00001.parquet" in index["roots"]["data"]["files"]
    for model in params.models:
        scores = pd.read_parquet(root / "scores" / f"{model}.parquet")
        assert set(scores["set"]) == {"forget", "retain", "real", "utility"}
        published = json.loads((root / "scores" / f"{model}.json").read_text())["published"]
        assert set(published["tasks"]) == {
            "real_faces", "real_world", "retain", "retain_face_recognition", "forget",
            "forget_face_recognition",
        }  # fmt: skip
        assert all(0 <= cell["value"] <= 1 and cell["n"] for cell in published["metrics"].values())
        assert set(published["mmunlearner"]) == {"vqa", "vgen", "qa"}
    tables = [pd.read_parquet(root / "scores" / f"{name}.parquet") for name in ("vanilla", "retrained")]
    quality = forget_quality(*(table[table["part"] == "test"] for table in tables))
    assert 0 <= quality["ks_p"] <= 1 and quality["n"] >= 2
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "Published numbers" in page and "forget quality · js_quality" in page
