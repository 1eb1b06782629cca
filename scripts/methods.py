"""All methods on the embedded benchmark, three seeds, attacks: python -m scripts.methods

Runs the study that params.yaml describes (python -m flows.study; what is finished is not run again) and puts
its tables into docs/results-sandbox.md, with commit, machine and versions. What the page says about them is
written by hand.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from tasks.runtime.artifacts import read_json, writing

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "results-sandbox.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def main(
    page: Annotated[Path, typer.Option(help="The page between whose marks the tables go.")] = PAGE,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells side by side.")] = None,
) -> None:
    """Run the study and write its tables."""
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise typer.BadParameter(f"{page} has no lines {BEGIN!r} and {END!r}, between which the tables go")
    extra = [] if workers is None else ["--workers", str(workers)]
    started = time.time()
    done = subprocess.run([sys.executable, "-m", "flows.study", *extra], check=False)
    summary = Path("data/study/summary.md")
    if not summary.is_file() or summary.stat().st_mtime < started:
        typer.echo(f"methods: the study did not come to an end (above), so {page} stays as it is", err=True)
        raise typer.Exit(done.returncode or 1)
    tables = summary.read_text(encoding="utf-8")
    with writing(page) as partial:
        partial.write_text(f"{before}{BEGIN}{circumstances()}\n\n{tables}{END}{after}", encoding="utf-8")
    typer.echo(f"methods: {page} holds the tables")
    raise typer.Exit(done.returncode)


def circumstances() -> str:
    """Command, commit, profile, machine and versions, one line."""
    provenance = read_json(Path("data/study/results.json"))["provenance"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    facts = ", ".join(f"{label} {value}" for label, value in provenance.items() if label != "command")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"`python -m scripts.methods`: {facts}; {machine}, {versions}."


if __name__ == "__main__":
    typer.run(main)
