"""Does forgetting hold when requests come one after the other? And against forgetting everybody at once?

    python -m scripts.requests [--rounds 5] [--people 2]

Two projects in .benchmarks/requests, with the chosen profile's world and this project's cache, go through the
real flow: in one a request for so many people comes, is carried out and goes into production, and then the
next; in the other one request asks for all of them. The gates of params.yaml decide; where they stop a round,
the table says so and ends. What is finished is not run again, so a run that was stopped can be started anew.
The table goes into docs/requests.md; what the page says about it is written by hand.
"""

from __future__ import annotations

import configparser
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from efface.evaluation.gates import Gate
from scripts.methods import PACKAGES
from tasks.runtime.artifacts import writing

PAGE = Path("docs/requests.md")
BEGIN, END = "<!-- rounds{} -->\n", "<!-- end of rounds{} -->\n"
GATE = ("name", "about", "value", "limit", "holds")
FILES = ("params.yaml", "dvc.yaml", "pyproject.toml", ".dvcignore", "data/masks/none.safetensors")
CODE = ("efface", "tasks", "flows")
COLUMNS = (
    *("asked", "forget, these: seen / unseen", "forget, earlier: mean / worst", "by name, these"),
    *("retain, share", "utility, share", "gates", "in production", "chain"),
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Requests that come one after the other.")] = 5,
    people: Annotated[int, typer.Option(min=1, help="People in each.")] = 2,
    work: Annotated[Path, typer.Option(help="Where the two projects are made.")] = Path(
        ".benchmarks/requests"
    ),
    cache: Annotated[Path, typer.Option(help="DVC's cache that they use.")] = Path(".dvc/cache"),
    changed: Annotated[
        list[str] | None,
        typer.Option("--set", help="A value of params.yaml, as unlearn.methods.npo.epochs=4; repeatable."),
    ] = None,
    page: Annotated[Path, typer.Option(help="The page between whose marks the table goes.")] = PAGE,
) -> None:
    """Make a table with a line per round, and one for all at once."""
    settings = sorted(changed or [])
    name = f" with {', '.join(settings)}" if settings else ""
    work = work / "+".join(settings)
    parts(page, name)  # that the marks are missing is said now, not at the end
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # takes its child with it
    sequence, at_once = (make_project(work / each, cache, settings) for each in ("one-by-one", "at-once"))
    chosen = draw(sequence, rounds * people)
    groups = [chosen[i * people : (i + 1) * people] for i in range(rounds)]
    lines = []
    for number, group in enumerate(groups, 1):
        lines.append(carry_out(sequence, f"round-{number}", group))
        typer.echo(row(lines[-1]))
        if lines[-1][COLUMNS.index("in production")] == "no":
            break
    lines.append(carry_out(at_once, "all-at-once", chosen))
    write(page, name, lines, circumstances(rounds, people, settings, sequence))


def make_project(folder: Path, cache: Path, settings: Sequence[str]) -> Path:
    """The project's copy with its vanilla model; requests that pass go straight into production there."""
    for name in (*CODE, *FILES):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(name).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(name, target)
    (folder / "params.yaml").write_text(json.dumps(parameters(settings), indent=1))
    config = configparser.ConfigParser()
    config.read(".dvc/config")
    config["core"].update({"no_scm": "true", "autostage": "false"})
    config["cache"] = {"dir": str(cache.absolute())}
    (folder / ".dvc").mkdir(exist_ok=True)
    with open(folder / ".dvc" / "config", "w", encoding="utf-8") as handle:
        config.write(handle)
    run(folder, "dvc", "repro", "vanilla")
    return folder


def parameters(settings: Sequence[str]) -> dict[str, Any]:
    """What params.yaml holds, with these values in place of its own, and what passes promoted at once."""
    document: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for setting in ["requests.auto_promote=true", *settings]:
        key, _, value = setting.partition("=")
        *sections, last = key.split(".")
        section = document
        for name in sections:
            section = section[name]
        section[last] = yaml.safe_load(value)
    return document


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
    version = outcome["version"] if outcome["status"] == "done" else None
    return line(request, people, found, version, chain)


def result(folder: Path, request: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Gates and scores: of the certificate, or of the run that was refused."""
    if outcome["certificate"] is None:
        return dict(json.loads((folder / ".requests" / outcome["run"] / "gates.json").read_text()))
    for path in (folder / "data/requests/certificates").glob(f"*-{request}.json"):
        certificate = json.loads(path.read_text())
        if certificate["digest"] == outcome["certificate"]:
            return dict(certificate)
    raise typer.BadParameter(f"{folder} has no certificate of {request}")


def line(
    request: str, people: list[str], found: dict[str, Any], version: int | None, chain: bool
) -> list[str]:
    """A line of the table."""
    scores = {name: models["after"] for name, models in found["scores"]["requests"].items()}
    own = scores.pop(request)
    by_picture = [[v for v in (each["seen"], each["unseen"]) if v is not None] for each in scores.values()]
    earlier = [max(values) for values in by_picture if values]
    shares = {gate["name"]: gate["value"] for gate in found["gates"] if gate["about"] is None}
    gates = [Gate(*(gate[key] for key in GATE)) for gate in found["gates"]]
    failed = [str(gate) for gate in gates if not gate.passed]
    return [
        f"{request} ({len(people)} people)",
        f"{two(own['seen'])} / {two(own['unseen'])}",
        f"{two(sum(earlier) / len(earlier))} / {two(max(earlier))}" if earlier else "–",
        two(own["by_name"]),
        *(two(shares.get(name)) for name in ("retain", "utility")),
        "failed: " + "; ".join(failed) if failed else "passed",
        "no" if version is None else f"version {version}",
        "valid" if chain else "broken",
    ]


def two(value: float | None) -> str:
    """Two digits; a dash for what could not be measured."""
    return "–" if value is None else f"{value:.2f}"


def row(cells: Sequence[str]) -> str:
    """A line in Markdown."""
    return "| " + " | ".join(cells) + " |"


def parts(page: Path, name: str) -> tuple[str, str]:
    """The page up to the table, and from its end."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise typer.BadParameter(f"{page} has no lines {begin!r} and {end!r}, between which the table goes")
    return before + begin, end + after


def write(page: Path, name: str, lines: Sequence[Sequence[str]], about: str) -> None:
    """Put the table into the page, and print it."""
    before, after = parts(page, name)
    table = "\n".join([row(COLUMNS), "|---|" + "---:|" * (len(COLUMNS) - 1), *map(row, lines)])
    with writing(page) as partial:
        partial.write_text(f"{before}{about}\n\n{table}\n{after}", encoding="utf-8")
    typer.echo(f"\n{about}\n\n{table}\n\nrequests: {page} holds the table")


def circumstances(rounds: int, people: int, settings: Sequence[str], folder: Path) -> str:
    """Command, method, commit, profile, machine and versions, one line."""
    from tasks.config import load_params

    params = load_params(folder / "params.yaml")
    extra = "".join(f" --set {each}" for each in settings)
    asked = ("git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*")
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return (
        f"`python -m scripts.requests --rounds {rounds} --people {people}{extra}`: "
        f"{params.requests.method}, seed {params.seed}, commit {commit}; "
        f"{machine}, {versions}."
    )


def run(folder: Path, *command: str, must: Path | None = None) -> int:
    """Run a module in the project; a bad end is one, unless the file that must be there is there."""
    names = {"PREFECT_HOME": str((folder / ".prefect-home").absolute())}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    unwanted = ("PYTHONPATH", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "EFFACE_REMOTE")
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
