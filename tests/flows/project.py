"""A copy of the project with a tiny sandbox, and commands run in it as processes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
COPIED = (
    *("efface", "tasks", "flows", "profiles", "params.yaml", "dvc.yaml", "pyproject.toml"),
    *(".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"),
    *("data/masks/none.safetensors", "data/attacks/.gitkeep", "data/requests/purged.txt"),
)
TINY = {
    "avatars.people": 10,
    "avatars.real": 2,
    "avatars.holdout": 2,
    "avatars.train_views": 1,
    "avatars.test_views": 1,
    "avatars.stranger_pictures": 60,
    "avatars.skill_samples": 30,
    "base.vision_steps": 4,
    "base.steps": 4,
    "base.batch_size": 4,
    "base.vision_layers": 2,
    "base.language_layers": 1,
    "finetune.batch_size": 4,
    "finetune.checkpoint_every": 5,
    "vanilla.steps": 60,
    "retrained.steps": 10,
    "saliency.fisher_samples": None,
    "saliency.batch_size": 1,
    "evaluate.max_people": 2,
}


@dataclass
class Project:
    """A copy of the project.

    Attributes:
        folder: where it is, a git repository with one commit.
        environment: of the commands.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *module: str, success: bool = True, seconds: float = 800) -> str:
        """Output of ``python -m MODULE ARGUMENTS``."""
        process = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert (process.returncode == 0) is success, process.stdout[-4000:]
        return process.stdout

    def start(self, *module: str, log: Path) -> subprocess.Popen[bytes]:
        """Start ``python -m MODULE ARGUMENTS`` in a session of its own, as a terminal would."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def repro(self, *targets: str) -> str:
        """Output of ``dvc repro``."""
        return self.run("dvc", "repro", *targets)

    def flow(self, target: str, success: bool = True) -> dict[str, str]:
        """Stage to outcome, from the table of the pipeline."""
        output = self.run("flows.pipeline", "--target", target, success=success)
        outcomes = table(output)
        cached = set(re.findall(r"Task run '([^']+)' - Finished in state Cached", output))
        assert cached == {stage for stage, outcome in outcomes.items() if outcome == "cached"}
        return outcomes

    def set(self, values: Mapping[str, Any]) -> None:
        """Set dotted keys in params.yaml; a section that is absent is added."""
        yaml, path = YAML(), self.folder / "params.yaml"
        params = yaml.load(path)
        for key, value in values.items():
            *sections, last = key.split(".")
            section = params
            for name in sections:
                section = section[name]
            section[last] = value
        yaml.dump(params, path)

    def hashes(self) -> dict[str, str]:
        """Path to hash of every output in dvc.lock."""
        stages = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}

    def read(self, name: str) -> str:
        """Text of a file."""
        return (self.folder / name).read_text()

    def processes(self) -> list[str]:
        """Command lines of the processes that run DVC or stages in the project."""
        commands = []
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(str(self.folder)):
                    commands.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return [line for line in commands if "dvc" in line or " tasks " in line]


def table(output: str) -> dict[str, str]:
    """Name to outcome, from the table that a flow prints."""
    return dict(re.findall(r"^│ (\S.*?) +│ (cached|restored|ran|failed|not run) +│", output, re.MULTILINE))


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those it started, also those in sessions of their own, as the runs of a worker."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def make_project(folder: Path, values: Mapping[str, Any] | None = None) -> Project:
    """Copy the project, with params.yaml for a tiny sandbox."""
    for name in COPIED:
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    unwanted = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PYTHONPATH", "DVC_ROOT", "DVC_STAGE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "PREFECT_HOME": str(folder.parent / "prefect"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    project = Project(folder, environment)
    project.set({**TINY, **(values or {})})
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a copy"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return project
