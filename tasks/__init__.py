"""One pipeline stage per module: read, call the library once, save, record."""

import sys
from importlib.util import find_spec

if find_spec("typer") is None:  # another Python, or the library alone
    sys.exit(
        f"error: {sys.executable} lacks the packages of the pipeline: activate the environment (source "
        ".venv/bin/activate), or install them: pip install -c constraints.txt -e '.[pipeline]'"
    )
