"""The notebooks and the README's Python run on a small project; they need nbclient, of the extra `test`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.small_run import parameters, run_stages

PROJECT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    params = parameters(folder, {"unlearn": {"methods": {}}, "prune": {"methods": {}}})
    run_stages(params, folder / "data")
    return folder / "data"


@pytest.mark.parametrize("name", ["forget_one_person", "read_a_study"])
def test_the_notebook_runs(data, name, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("EFFACE_DATA", str(data))
    monkeypatch.setenv("EFFACE_STUDY", str(data))
    monkeypatch.setenv("EFFACE_EPOCHS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(PROJECT), os.environ.get("PYTHONPATH", ""))))
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()


def test_the_python_of_the_readme_runs(data, monkeypatch, capsys):
    monkeypatch.chdir(data.parent)
    code = re.search(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[
        1
    ]
    exec(compile(code, "README.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
