"""The commands of README and docs: their programs accept them, and the cheap ones run.

A block of commands (```sh) is parsed, not run, by the program that each line names. A comment in front of it
says otherwise: `<!-- run -->` runs it in a copy of the project, `<!-- not tested: REASON -->` leaves it out.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.exceptions import TyperException

from tests.flows.project import make_project

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    PROJECT / "README.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
    *sorted((PROJECT / ".github").glob("*.md")),
]
BLOCK = re.compile(r"(?:<!-- (run|not tested: .*?) -->\n)?```sh\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python -m|dvc|make|prefect) [^`]+)`", re.DOTALL)
UNPARSED = {"git", "export", "source", "pip", "uv", "docker"}  # of other projects; pip's extras are checked


def commands(text: str) -> list[list[str]]:
    """Commands of a block, one a line, without variables set in front of them and redirections."""
    result = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        parts = " \0 ".join(words).split(" \0 && \0 ")
        result += [part.split(" \0 ") for part in parts if part]
    return result


def documented() -> list[object]:
    cases = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [body for mark, body in BLOCK.findall(text) if not mark.startswith("not tested")]
        lines = [line for body in blocks for line in commands(body)]
        lines += [
            words
            for line in INLINE.findall(BLOCK.sub("", text))
            for words in commands(" ".join(line.split()))
        ]
        for words in lines:
            if words[0] not in UNPARSED:
                cases.setdefault(
                    " ".join(words), pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
                )
    return list(cases.values())


def accept(command: Any, words: list[str]) -> None:
    """Parse a command's arguments, and those of the subcommand they name, with click or Typer."""
    if words == ["--help"]:
        return
    if not hasattr(command, "commands"):
        command.make_context("command", list(words))
        return
    assert words[0] in command.commands, f"no command {words[0]}"
    accept(command.commands[words[0]], words[1:])


def of_module(words: list[str]) -> None:
    if words[0] == "pytest":
        assert all((PROJECT / path).exists() for path in words[1:])
        return
    name = words[0] + ".__main__" if (PROJECT / words[0].replace(".", "/")).is_dir() else words[0]
    module = importlib.import_module(name)
    if not hasattr(module, "app"):
        module.app = typer.Typer(add_completion=False)
        module.app.command()(module.main)
    accept(typer.main.get_command(module.app), words[1:])


def of_make(words: list[str]) -> None:
    environment = {**os.environ, "MAKEFLAGS": ""}
    subprocess.run(
        ["make", "-n", *words], cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL
    )


def of_dvc(words: list[str]) -> None:
    from dvc.cli import parse_args

    parse_args(words)


def of_prefect(words: list[str]) -> None:
    from prefect.cli._app import _app, _normalize_top_level_flags

    _app.parse_args(_normalize_top_level_flags(words), exit_on_error=False, print_error=False)


def of_mlflow(words: list[str]) -> None:
    from mlflow.cli import cli

    accept(cli, words)


def of_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)
    of_module([arguments.training_script, *arguments.training_script_args])


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "dvc": of_dvc,
    "make": of_make,
    "mlflow": of_mlflow,
    "prefect": of_prefect,
    "torchrun": of_torchrun,
}


@pytest.mark.parametrize("words", documented())
def test_the_program_accepts_the_command(words, monkeypatch):
    monkeypatch.chdir(PROJECT)
    if words[:2] == ["python", "-m"]:
        of_module(words[2:])
    else:
        PROGRAMS[words[0]](words[1:])


@pytest.mark.parametrize(
    "words", [["tasks", "stag"], ["tasks", "params", "--all"], ["flows.requests", "add", "--subjet", "x"]]
)
def test_a_misspelt_command_is_refused(words):
    with pytest.raises((AssertionError, TyperException)):
        of_module(words)


def test_the_extras_exist():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in re.findall(r"-e '?\"?\.\[(\w+)\]", page.read_text())}
    assert named and named <= extras.keys()


@pytest.mark.slow
def test_the_cheap_commands_run(tmp_path):
    project = make_project(tmp_path / "project")
    blocks = [body for page in PAGES for mark, body in BLOCK.findall(page.read_text()) if mark == "run"]
    assert blocks
    for block in dict.fromkeys(blocks):
        subprocess.run(["bash", "-ec", block], cwd=project.folder, env=project.environment, check=True)


def test_every_metric_is_in_the_reference():
    from efface.evaluation.metrics import METRICS

    text = (PROJECT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    missing = [name for name in METRICS if f"`{name}`" not in text and not name.endswith("_recall")]
    assert not missing


def test_every_method_and_section_is_in_the_parameters():
    from efface.unlearning import METHODS

    text = (PROJECT / "docs" / "reference" / "parameters.md").read_text(encoding="utf-8")
    modules = {f"tasks.config.{name}" for name in ("data", "models", "attribution", "unlearning", "pruning")}
    modules |= {f"efface.unlearning.methods.{name}" for name in METHODS}
    assert not {module for module in modules if f"::: {module}\n" not in text}


@pytest.mark.parametrize(
    "page", [PAGES[0], *sorted((PROJECT / ".github").glob("*.md"))], ids=lambda page: page.name
)
def test_the_links_outside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (page.parent / link).exists()]
