"""Imports go down only, and what is light stays light."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "efface": {"tasks", "flows", "prefect", "mlflow", "dvc"},
    "tasks": {"flows", "prefect", "dvc"},
    "flows": {"torch", "transformers", "datasets", "mlflow"},
}
ONLY_HERE = {
    "mlflow": {
        "tasks/tracking/client.py",
        "tasks/tracking/registry.py",
        "tasks/tracking/runs.py",
    }
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def files(floor: str) -> list[Path]:
    return sorted((PROJECT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_go_down_only(floor):
    assert files(floor), floor
    up = {
        path.relative_to(PROJECT).as_posix(): sorted(imported(path) & FORBIDDEN[floor])
        for path in files(floor)
    }
    assert {path: names for path, names in up.items() if names} == {}


@pytest.mark.parametrize("module", ONLY_HERE)
def test_a_heavy_tool_is_used_in_few_places(module):
    users = {
        path.relative_to(PROJECT).as_posix()
        for floor in FORBIDDEN
        for path in files(floor)
        if module in imported(path)
    }
    assert users == ONLY_HERE[module]


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stderr.split()}


def test_the_library_brings_no_orchestrator():
    assert not loaded_by("import efface") & {"prefect", "mlflow", "dvc", "torch", "transformers"}


def test_help_loads_nothing_heavy():
    code = (
        "import runpy\nsys.argv = ['tasks', '--help']\n"
        "try: runpy.run_module('tasks', run_name='__main__')\nexcept SystemExit: pass"
    )
    heavy = {
        "torch",
        "transformers",
        "datasets",
        "mlflow",
        "prefect",
        "dvc",
        "pandas",
        "matplotlib",
        "pydantic",
    }
    assert not loaded_by(code) & heavy


def test_help_answers_within_a_second():
    def seconds() -> float:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tasks", "--help"], cwd=PROJECT, capture_output=True, check=True
        )
        assert b"unlearn" in done.stdout
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 1.0  # the best of five: the machine may be busy
