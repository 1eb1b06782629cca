"""A Python without the pipeline's packages says so, whatever is started first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", ["tasks", "flows.pipeline", "flows.requests"])
def test_a_python_without_the_packages_names_the_remedy_in_one_line(module):
    bare = [sys.executable, "-S", "-m", module]  # -S: without site-packages
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(bare, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert sys.executable in done.stderr and ".venv/bin/activate" in done.stderr
