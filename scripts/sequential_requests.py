"""Successive forget requests, compared with one request for all of their people.

    python -m scripts.sequential_requests [--rounds 5] [--people 2] [--set unlearn.methods.npo.epochs=4]

Two clones of the project in .scripts/requests, with this project's parameters and cache, go through the real
flow. In one, requests for a few people each are carried out and promoted one after another; in the other, one
request names all of them. The gates of params.yaml decide, and a refused round ends the sequence. Finished
work is not repeated, so a stopped run can be started again. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from efface.evaluation.gates import Gate

GATE = ("name", "about", "value", "limit", "holds")
COLUMNS = (
    *("request", "forget, these: seen / unseen", "forget, earlier: mean / worst", "by name, these"),
    *("retain, share", "utility, share", "gates", "in production", "chain"),
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Requests that come one after the other.")] = 5,
    people: Annotated[int, typer.Option(min=1, help="People in each.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder of the two clones.")] = Path(".scripts/requests"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A value of params.yaml; repeatable.")
    ] = None,
) -> None:
    """Print a row per round, and one for all at once."""
    sequence, at_once = (clone_project(work / name, settings or []) for name in ("one-by-one", "at-once"))
    entities = json.loads((sequence / "data/prepared/splits.json").read_text())["entities"]
    candidates = sorted([*entities["forget"], *entities["retain"]])
    subjects = random.Random(0).sample(candidates, rounds * people)
    typer.echo(f"| {' | '.join(COLUMNS)} |\n|---|" + "---:|" * (len(COLUMNS) - 1))
    for number in range(rounds):
        cells = carry_out(sequence, f"round-{number + 1}", subjects[number * people : (number + 1) * people])
        typer.echo(f"| {' | '.join(cells)} |")
        if cells[COLUMNS.index("in production")] == "no":
            break
    typer.echo(f"| {' | '.join(carry_out(at_once, 'all-at-once', subjects))} |")


def clone_project(folder: Path, settings: Sequence[str]) -> Path:
    """A clone with its vanilla model, in which requests that pass go straight into production.

    A request may name any number of people there: confirming one would drop its gate on similar people.
    """
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    for setting in ["requests.auto_promote=true", "requests.largest_share=1.0", *settings]:
        set_value(params, setting)
    yaml.dump(params, folder / "params.yaml")
    run(folder, "dvc", "config", "--local", "cache.dir", str(Path(".dvc/cache").absolute()))
    run(folder, "dvc", "repro", "vanilla", "split")
    return folder


def set_value(params: dict[str, Any], setting: str) -> None:
    """Set one value, as in ``unlearn.methods.npo.epochs=4``."""
    key, _, value = setting.partition("=")
    *sections, last = key.split(".")
    for section in sections:
        params = params[section]
    params[last] = YAML(typ="safe").load(value)


def carry_out(folder: Path, request: str, people: Sequence[str]) -> list[str]:
    """One request from intake to certificate, and its row of the table."""
    if not (folder / f"data/requests/{request}.yaml").exists():
        subjects = [word for person in people for word in ("--subject", person)]
        about = ["--reason", "measurement", "--legal-basis", "none", "--requester", "none"]
        run(folder, "flows.requests", "add", "--id", request, *subjects, *about, "--due", "2099-01-01")
    state = folder / f"data/requests/state/{request}.json"
    if status_of(state) == "pending":  # also where an earlier run was killed
        run(folder, "flows.requests", "run", "--request", request, expected=state)
    if status_of(state) == "pending":
        raise typer.BadParameter(f"{folder}: request {request} was not carried out; the reason is above")
    outcome = json.loads(state.read_text())
    valid = run(folder, "flows.requests", "verify", expected=state) == 0
    version = outcome["version"] if outcome["status"] == "done" else None
    return row(request, people, result(folder, request, outcome), version, valid)


def status_of(state: Path) -> str:
    """Status in the file of a request's state, which the first run writes."""
    return str(json.loads(state.read_text())["status"]) if state.exists() else "pending"


def result(folder: Path, request: str, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Gates and scores: of the certificate, or of the run that was refused."""
    if outcome["certificate"] is None:
        if not outcome["run"]:  # it ended before the gates
            raise typer.BadParameter(f"{folder}: request {request}: {'; '.join(outcome['reasons'])}")
        return dict(json.loads((folder / ".requests" / outcome["run"] / "gates.json").read_text()))
    for path in (folder / "data/requests/certificates").glob(f"*-{request}.json"):
        certificate = json.loads(path.read_text())
        if certificate["digest"] == outcome["certificate"]:
            return dict(certificate)
    raise typer.BadParameter(f"{folder} has no certificate of {request}")


def row(
    request: str, people: Sequence[str], outcome: Mapping[str, Any], version: int | None, valid: bool
) -> list[str]:
    """The cells of one request."""
    scores = {name: models["after"] for name, models in outcome["scores"]["requests"].items()}
    request_scores = scores.pop(request)
    by_picture = [[v for v in (s["seen"], s["unseen"]) if v is not None] for s in scores.values()]
    earlier = [max(values) for values in by_picture if values]
    shares = {gate["name"]: gate["value"] for gate in outcome["gates"] if gate["about"] is None}
    gates = [Gate(*(gate[key] for key in GATE)) for gate in outcome["gates"]]
    failed = [str(gate) for gate in gates if not gate.passed]
    return [
        f"{request} ({len(people)} people)",
        f"{two_digits(request_scores['seen'])} / {two_digits(request_scores['unseen'])}",
        f"{two_digits(sum(earlier) / len(earlier))} / {two_digits(max(earlier))}" if earlier else "–",
        two_digits(request_scores["by_name"]),
        *(two_digits(shares.get(name)) for name in ("retain", "utility")),
        "failed: " + "; ".join(failed) if failed else "passed",
        "no" if version is None else f"version {version}",
        "valid" if valid else "broken",
    ]


def two_digits(value: float | None) -> str:
    """Two digits; a dash for what could not be measured."""
    return "–" if value is None else f"{value:.2f}"


def run(folder: Path, *command: str, expected: Path | None = None) -> int:
    """Run a module in a clone; a failure ends the script unless the expected file exists."""
    local = ("PYTHONPATH", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in local}
    environment["PREFECT_HOME"] = str((folder / ".prefect").absolute())
    process = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=False)
    if process.returncode and not (expected and expected.exists()):
        raise typer.Exit(process.returncode)
    return process.returncode


if __name__ == "__main__":
    typer.run(main)
