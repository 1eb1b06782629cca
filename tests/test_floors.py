"""Imports only go down, and help imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "efface": {"tasks", "flows", "prefect", "mlflow", "dvc"},
    "tasks": {"flows", "prefect"},
    "flows": {"torch", "transformers", "datasets", "mlflow"},
}
ALLOWED_FILES = {
    # A purge deletes by hash, and an error names who holds DVC's lock: DVC has no command for either.
    "dvc": {"tasks/requests/storage.py", "flows/commands.py"},
    "mlflow": {
        "tasks/tracking/client.py",
        "tasks/tracking/registry.py",
        "tasks/tracking/runs.py",
    },
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


@pytest.mark.parametrize("module", ALLOWED_FILES)
def test_only_these_files_import_it(module):
    users = {
        path.relative_to(PROJECT).as_posix()
        for floor in FORBIDDEN
        for path in files(floor)
        if module in imported(path)
    }
    assert users == ALLOWED_FILES[module]


def loaded_by(code: str) -> set[str]:
    completed = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in completed.stderr.split()}


def test_the_library_imports_no_orchestrator():
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
    }
    assert not loaded_by(code) & heavy
