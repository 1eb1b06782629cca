"""What a stage's process must not import: each of these costs every stage of a run its seconds."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from tasks.runtime.startup import uncollected
from tests.efface.conftest import model, processor  # noqa: F401
from tests.tiny_project import PROJECT, make_root

NEEDLESS = {"scipy", "pandas", "sklearn", "mlflow", "datasets", "prefect", "dvc", "matplotlib"}

CODE = """
import runpy, sys
sys.argv = ["tasks", *sys.argv[1:]]
try:
    runpy.run_module("tasks", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
print(*{name.split(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize("stage", ["importance"])
def test_a_stage_imports_nothing_it_does_not_use(stage, tmp_path, model, processor):  # noqa: F811
    (tmp_path / "data").mkdir()
    make_root(tmp_path / "data", model, processor)
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CODE, stage],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "transformers" in loaded and not loaded & NEEDLESS


@pytest.mark.parametrize("on", [True, False])
def test_imports_are_not_collected_then_or_later_and_what_was_on_is_on_again(on):
    before = gc.isenabled()
    gc.enable() if on else gc.disable()
    try:
        with pytest.raises(ImportError, match="no_such_module"), uncollected():
            assert not gc.isenabled()
            import no_such_module  # noqa: F401
        assert gc.isenabled() is on
        assert (frozen := gc.get_freeze_count()) > 10_000
        with uncollected(freeze=False):
            kept = [[i] for i in range(1000)]
        assert gc.isenabled() is on and gc.get_freeze_count() < frozen + len(kept)
    finally:
        gc.enable() if before else gc.disable()
