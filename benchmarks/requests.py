"""Does forgetting hold when requests come one after the other? And against forgetting everybody at once?

    python -m benchmarks.requests [--rounds 5] [--people 2]

Two projects in .benchmarks/requests, with the chosen profile's world and this project's cache, go through the
real flow: in one a request for so many people comes, is carried out and goes into production, and then the
next; in the other one request asks for all of them. The gates of params.yaml decide; where they stop a round,
the table says so and ends. What is finished is not run again, so a run that was stopped can be started anew.
"""

from __future__ import annotations

import configparser
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

FILES = ("params.yaml", "dvc.yaml", "pyproject.toml", ".dvcignore", "data/masks/none.safetensors")
CODE = ("efface", "tasks", "flows")
COLUMNS = (
    *("asked", "forget, these: seen / unseen", "forget, earlier: mean / worst", "by name, these"),
    *("retain, share", "utility, share", "gates", "chain"),
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Requests that come one after the other.")] = 5,
    people: Annotated[int, typer.Option(min=1, help="People in each.")] = 2,
    work: Annotated[Path, typer.Option(help="Where the two projects are made.")] = Path(
        ".benchmarks/requests"
    ),
    cache: Annotated[Path, typer.Option(help="DVC's cache that they use.")] = Path(".dvc/cache"),
) -> None:
    """Print a table with a line per round, and one for all at once."""
    sequence, at_once = (make_project(work / name, cache) for name in ("one-by-one", "at-once"))
    chosen = draw(sequence, rounds * people)
    groups = [chosen[i * people : (i + 1) * people] for i in range(rounds)]
    lines = []
    for number, group in enumerate(groups, 1):
        lines.append(carry_out(sequence, f"round-{number}", group))
        show(lines[-1:])
        if "failed" in lines[-1][-2]:
            break
    lines.append(carry_out(at_once, "all-at-once", chosen))
    show(lines, heading=True)


def make_project(folder: Path, cache: Path) -> Path:
    """The project's copy with its vanilla model; requests that pass go straight into production there."""
    for name in (*CODE, *FILES):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(name).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(name, target)
    params = folder / "params.yaml"
    text, count = re.subn(
        r"^  auto_promote: \w+", "  auto_promote: true", params.read_text(), flags=re.MULTILINE
    )
    if count != 1:
        raise typer.BadParameter("params.yaml has no requests.auto_promote")
    params.write_text(text)
    config = configparser.ConfigParser()
    config.read(".dvc/config")
    config["core"].update({"no_scm": "true", "autostage": "false"})
    config["cache"] = {"dir": str(cache.absolute())}
    (folder / ".dvc").mkdir(exist_ok=True)
    with open(folder / ".dvc" / "config", "w", encoding="utf-8") as handle:
        config.write(handle)
    run(folder, "dvc", "repro", "vanilla")
    return folder


def draw(folder: Path, count: int) -> list[str]:
    """People to forget, drawn from all that vanilla was fine-tuned on."""
    entities = json.loads((folder / "data/prepared/splits.json").read_text())["entities"]
    return random.Random(0).sample(sorted([*entities["forget"], *entities["retain"]]), count)


def carry_out(folder: Path, request: str, people: list[str]) -> list[str]:
    """One request from intake to certificate, and its line of the table."""
    if not (folder / f"data/requests/{request}.yaml").exists():
        named = [word for person in people for word in ("--subject", person)]
        asked = (
            "--reason",
            "benchmark",
            "--legal-basis",
            "none",
            "--requester",
            "none",
            "--due",
            "2099-01-01",
        )
        run(folder, "flows.requests", "add", "--id", request, *named, *asked)
    state = folder / f"data/requests/state/{request}.json"
    if not state.exists():
        run(folder, "flows.requests", "run", "--request", request, must=state)
    outcome = json.loads(state.read_text())
    found = result(folder, request, outcome)
    chain = run(folder, "flows.requests", "verify", must=state) == 0
    return line(request, people, found, chain)


def result(folder: Path, request: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Gates and scores: of the certificate, or of the run that was refused."""
    if outcome["certificate"] is None:
        return dict(json.loads((folder / ".requests" / outcome["run"] / "gates.json").read_text()))
    for path in (folder / "data/requests/certificates").glob(f"*-{request}.json"):
        certificate = json.loads(path.read_text())
        if certificate["digest"] == outcome["certificate"]:
            return dict(certificate)
    raise typer.BadParameter(f"{folder} has no certificate of {request}")


def line(request: str, people: list[str], found: dict[str, Any], chain: bool) -> list[str]:
    """A line of the table."""
    scores = {name: models["after"] for name, models in found["scores"]["requests"].items()}
    own = scores.pop(request)
    earlier = [max(models["seen"], models["unseen"]) for models in scores.values()]
    shares = {gate["name"]: gate["value"] for gate in found["gates"] if gate["about"] is None}
    failed = [
        gate["name"] + (f" of {gate['about']}" if gate["about"] else "")
        for gate in found["gates"]
        if not gate["passed"]
    ]
    before = f"{sum(earlier) / len(earlier):.2f} / {max(earlier):.2f}" if earlier else "–"
    return [
        f"{request} ({len(people)} people)",
        f"{own['seen']:.2f} / {own['unseen']:.2f}",
        before,
        f"{own['by_name']:.2f}",
        *(f"{shares[name]:.2f}" for name in ("retain", "utility")),
        "failed: " + ", ".join(failed) if failed else "passed",
        "valid" if chain else "broken",
    ]


def show(lines: list[list[str]], *, heading: bool = False) -> None:
    """Print lines as Markdown."""
    if heading:
        typer.echo("\n| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1))
    for each in lines:
        typer.echo("| " + " | ".join(each) + " |")


def run(folder: Path, *command: str, must: Path | None = None) -> int:
    """Run a module in the project; a bad end is one, unless the file that must be there is there."""
    names = {"PREFECT_HOME": str((folder / ".prefect-home").absolute())}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    unwanted = ("PYTHONPATH", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment | names | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode and not (must and must.exists()):
        typer.echo(done.stdout[-3000:], err=True)
        raise typer.Exit(done.returncode)
    return done.returncode


if __name__ == "__main__":
    typer.run(main)
