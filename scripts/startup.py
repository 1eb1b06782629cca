"""What a stage's process spends before it works: python -m scripts.startup

Runs stages on a model of 40,000 weights and a dozen samples, so that next to nothing but starting is left,
and prints the processor seconds of each and what it imports for how long. Counting imports one by one makes
them somewhat slower; their shares are what to look at.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ("vanilla", "saliency", "importance", "unlearn npo")
PACKAGES = ("torch", "transformers", "sympy", "accelerate", "scipy", "pandas", "pyarrow", "pydantic")
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", re.MULTILINE)


def make(folder: Path) -> None:
    """Write a project with the tests' tiny model."""
    import torch

    from efface import sandbox
    from efface.models import save_model
    from tests.efface.conftest import SHAPE, sample
    from tests.tiny_root import make_root

    facts = [sample(i, pictured=pictured) for i in range(8) for pictured in (True, False)]
    tokenizer = sandbox.build_tokenizer(text for fact in facts for text in (fact.question, fact.answer))
    processor = sandbox.build_processor(tokenizer, **SHAPE)
    torch.manual_seed(0)
    shape = {"width": 32, "mlp_width": 48, "vision_layers": 2, "language_layers": 2, "heads": 2}
    model = sandbox.build_model(tokenizer, **SHAPE, **shape)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    save_model(model, processor, make_root(folder / "data", model, processor) / "models" / "base")
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^  steps: 1000", "  steps: 2", text, count=1, flags=re.MULTILINE)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def run(stage: str, folder: Path, *options: str) -> tuple[float, str]:
    """Processor seconds of a stage, and what it wrote to standard error."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *options, "-m", "tasks", *stage.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each stage; the fastest counts.")] = 3,
    workspace: Annotated[Path, typer.Option(help="Where to write.")] = Path(".benchmarks/startup"),
) -> None:
    """Run the stages and print the table."""
    make(workspace.resolve())
    typer.echo("| stage | processor seconds | imports | " + " | ".join(PACKAGES) + " | other |")
    typer.echo("|---|---:|" + "---:|" * (len(PACKAGES) + 2))
    for stage in STAGES:
        seconds = min(run(stage, workspace)[0] for _ in range(rounds))
        imports: Counter[str] = Counter()
        for own, name in _LINE.findall(run(stage, workspace, "-X", "importtime")[1]):
            package = name.split(".")[0]
            imports[package if package in PACKAGES else "other"] += int(own)
        cells = [f"{imports[package] / 1e6:.2f}" for package in (*PACKAGES, "other")]
        typer.echo(f"| {stage} | {seconds:.1f} | {sum(imports.values()) / 1e6:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
