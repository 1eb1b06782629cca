"""Finished score tables get today's scores, whatever version wrote them."""

from __future__ import annotations

import pandas as pd
import pytest

from efface.errors import ArtifactError
from efface.evaluation.goals import unlearning_score
from tasks.rescore import run
from tests.study_results import small_study


@pytest.fixture(scope="module")
def old_scores(tmp_path_factory):
    """Tables as versions wrote them that called the set `unseen` `test`."""
    root = small_study(tmp_path_factory.mktemp("study") / "data")
    for path in (root / "scores").glob("*.parquet"):
        table = pd.read_parquet(path)
        table.assign(set=table["set"].replace({"unseen": "test"})).to_parquet(path, index=False)
    return root / "scores"


def test_tables_of_earlier_versions_are_scored(old_scores, capsys):
    run(old_scores)
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "|" in line}
    tables = {path.stem: pd.read_parquet(path) for path in old_scores.glob("*.parquet")}
    tables = {
        name: table.assign(set=table["set"].replace({"test": "unseen"})) for name, table in tables.items()
    }
    references = {name: tables[name] for name in ("base", "vanilla", "retrained")}
    expected = unlearning_score(tables["mmunlearner"], **references, goal="visual").value
    assert f"**{expected:.1f}**" in rows["mmunlearner"]
    assert "**0.0**" in rows["vanilla"] and "**0.0**" in rows["base"]


def test_a_missing_reference_model_and_a_damaged_table_are_named(old_scores, tmp_path):
    with pytest.raises(ArtifactError) as error:
        run(tmp_path)
    assert "base, vanilla, retrained" in str(error.value)
    for path in old_scores.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manu.parquet").write_bytes(b"half")
    with pytest.raises(ArtifactError) as error:
        run(tmp_path)
    assert "manu.parquet" in str(error.value)
