"""Whole runs of real stages in a copy of the project: by DVC, by Prefect, changed, damaged, killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest

from flows.watcher import MARK, marked

PROJECT = Path(__file__).resolve().parents[2]
COPIED = (
    *("efface", "tasks", "flows", "params.yaml", "dvc.yaml", "pyproject.toml"),
    *(".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", "data/masks/none.safetensors"),
)
TINY = {
    r"^  profile: \w+": "  profile: quick",
    r"    avatars: \{people: 20.*": "    avatars: {people: 10, real: 2, holdout: 2, stranger_pictures: 60, "
    "skill_samples: 30, train_views: 1, test_views: 1}",
    r"    base: \{vision_steps.*": "    base: {vision_steps: 4, steps: 4, batch_size: 4, "
    "vision_layers: 2, language_layers: 1}",
    r"    vanilla: \{steps.*": "    vanilla: {steps: 60, batch_size: 4, checkpoint_every: 5}",
    r"    saliency: \{fisher_samples.*": "    saliency: {fisher_samples: null, batch_size: 1}",
}
pytestmark = pytest.mark.slow


@dataclass
class Copy:
    """A copy of the project and how to run things in it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, good: bool = True, seconds: float = 280) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert (done.returncode == 0) is good, done.stdout[-4000:]
        return done.stdout

    def repro(self, *targets: str) -> str:
        return self.run("dvc", "repro", *targets)

    def flow(self, target: str, good: bool = True) -> dict[str, str]:
        """Stage to outcome, from the table at the end."""
        output = self.run("flows.pipeline", "--target", target, good=good)
        rows = dict(re.findall(r"^│ (\S+) +│ (cached|restored|ran|failed|not run) +│", output, re.MULTILINE))
        cached = set(re.findall(r"Task run '([^']+)' - Finished in state Cached", output))
        assert cached == {stage for stage, outcome in rows.items() if outcome == "cached"}
        return rows

    def edit(self, name: str, pattern: str, text: str) -> None:
        path = self.folder / name
        edited, count = re.subn(pattern, text, path.read_text(), count=1, flags=re.MULTILINE)
        assert count == 1, f"{pattern} is not in {name}"
        path.write_text(edited)

    def hashes(self) -> dict[str, str]:
        return dict(re.findall(r"- path: (\S+)\n      hash: md5\n      md5: (\S+)", self.read("dvc.lock")))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def kill_when(self, ready: Callable[[], bool], *command: str, all_of_it: bool = False) -> None:
        """Start a command, kill it (or all of it) outright when ready; wait until nothing of it is left."""
        mark = f"whole-{os.getpid()}-{time.monotonic_ns()}"
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**self.environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: ready() or started.poll() is not None, 200)
        assert started.poll() is None, "it ended before it could be killed"
        if all_of_it:  # stopped first: or a stage hears of its parent's end before its own, and cleans up
            processes = marked(mark)
            for sent in (signal.SIGSTOP, signal.SIGKILL):
                for process in processes:
                    os.kill(process, sent)
        started.kill()
        started.wait()
        until(lambda: marked(mark) == [], 30)

    def partials(self) -> list[str]:
        # Unlike rglob, walk passes over folders that a running stage removes meanwhile.
        walked = os.walk(self.folder / "data")
        return [n for _, *names in walked for n in chain(*names) if fnmatch(n, ".*.partial-*")]


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def make_copy(folder: Path) -> Copy:
    for name in COPIED:
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    unwanted = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PYTHONPATH", "DVC_ROOT", "DVC_STAGE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "PREFECT_HOME": str(folder.parent / "prefect"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    copy = Copy(folder, environment)
    for pattern, text in TINY.items():
        copy.edit("params.yaml", pattern, text)
    return copy


@pytest.fixture(scope="module")
def made(tmp_path_factory, server) -> Copy:
    """A copy in which `dvc repro prepare` has run; its flows need not start a server each."""
    copy = make_copy(tmp_path_factory.mktemp("made") / "project")
    copy.environment["PREFECT_API_URL"] = server.url
    output = copy.repro("prepare")
    assert output.count("Running stage") == 2
    return copy


def test_repro_again_runs_nothing(made):
    assert "Running stage" not in made.repro("prepare")


@pytest.fixture
def alone(made) -> Copy:
    """The copy as of somebody without a server: a flow starts one of its own."""
    environment = {name: value for name, value in made.environment.items() if name != "PREFECT_API_URL"}
    return replace(made, environment=environment)


def test_a_flow_after_repro_recomputes_nothing_and_status_stays_clean(made, alone):
    before = made.read("dvc.lock")
    output = alone.run("flows.pipeline", "--target", "prepare")
    assert "2 stages: 2 cached." in output and "Traceback" not in output
    assert made.read("dvc.lock") == before
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "cached"}  # now by Prefect's own record


def test_a_changed_parameter_reruns_its_readers_and_changing_it_back_restores(made):
    before = made.hashes()
    made.edit("params.yaml", r"^    prepare: \{forget_fraction: 0.1", "    prepare: {forget_fraction: 0.15")
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "ran"}
    assert made.hashes()["data/prepared"] != before["data/prepared"]
    made.edit("params.yaml", r"^    prepare: \{forget_fraction: 0.15", "    prepare: {forget_fraction: 0.1")
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "restored"}
    assert made.hashes() == before
    assert "Running stage" not in made.repro("prepare")


def test_a_parameter_of_another_profile_touches_nothing(made):
    made.edit("params.yaml", r"^    avatars: \{people: 200", "    avatars: {people: 201")
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "cached"}
    made.edit("params.yaml", r"^    avatars: \{people: 201", "    avatars: {people: 200")


@pytest.mark.parametrize("damage", ["delete", "change"])
def test_a_lost_or_changed_output_is_restored(made, damage):
    table = made.folder / "data/prepared/samples.parquet"
    whole = table.read_bytes()
    table.unlink() if damage == "delete" else table.write_bytes(whole[:-100])
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "restored"}
    assert table.read_bytes() == whole


def test_changed_code_makes_exactly_its_users_stale(made):
    path = made.folder / "efface/data/splits.py"
    code = path.read_text()
    path.write_text(code + "\n# a note\n")
    status = made.run("dvc", "status", "benchmark", "prepare")
    assert re.findall(r"^(\w+):", status, re.MULTILINE) == ["prepare"]
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "ran"}
    path.write_text(code)
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "restored"}


def test_a_failing_stage_fails_the_flow_and_says_why(made):
    path = made.folder / "tasks/prepare.py"
    code = path.read_text()
    path.write_text(
        code.replace(
            "    section, name =", "    raise ValueError('broken on purpose')\n    section, name =", 1
        )
    )
    output = made.run("flows.pipeline", "--target", "prepare", good=False)
    assert "error: stage prepare failed" in output
    assert "error: broken on purpose" in output.split("error: stage prepare failed")[1]
    assert re.search(r"│ prepare +│ failed", output)
    path.write_text(code)
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "restored"}


def test_a_bad_parameter_stops_both_ways_before_anything_runs(made):
    made.edit("params.yaml", r"validation_fraction: 0.15", "validation_fraction: 15")
    line = "error: params.yaml: prepare.validation_fraction is 15: expected a number at least 0 and below 1"
    assert line in made.run("flows.pipeline", good=False)
    assert line in made.run("dvc", "repro", "prepare", good=False)
    made.edit("params.yaml", r"validation_fraction: 15", "validation_fraction: 0.15")
    assert "Running stage" not in made.repro("prepare")


@pytest.mark.parametrize("way", ["everything", "dvc", "flow"])
def test_prepare_killed_half_way_is_taken_up_again(made, way):
    """Everything: a power cut. Only DVC, only the flow: the stage ends with them, or has just ended."""
    command = ("flows.pipeline", "--target", "prepare") if way == "flow" else ("dvc", "repro", "prepare")
    made.edit("params.yaml", r"validation_fraction: 0.15", "validation_fraction: 0.3")
    shutil.rmtree(made.folder / ".dvc/cache/runs", ignore_errors=True)  # or there would be nothing to run
    made.kill_when(lambda: bool(made.partials()), *command, all_of_it=way == "everything")
    if way == "everything":
        assert not (made.folder / "data/prepared").exists()
        assert made.partials() != []
    made.repro("prepare")
    assert made.partials() == []
    resumed = made.hashes()["data/prepared"]
    made.repro("--force", "--single-item", "prepare")
    assert made.hashes()["data/prepared"] == resumed
    made.edit("params.yaml", r"validation_fraction: 0.3", "validation_fraction: 0.15")
    made.repro("prepare")


def test_ctrl_c_ends_everything_at_once(made, alone):
    made.edit("params.yaml", r"validation_fraction: 0.15", "validation_fraction: 0.3")
    shutil.rmtree(made.folder / ".dvc/cache/runs", ignore_errors=True)
    log = made.folder.parent / "ctrl-c.log"
    with log.open("w") as out:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline", "--target", "prepare"],
            cwd=alone.folder,
            env=alone.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # as a terminal does: Ctrl-C reaches the whole group
        )
    until(lambda: "exec python -m tasks prepare" in log.read_text(), 120)
    os.killpg(flow.pid, signal.SIGINT)
    assert flow.wait(timeout=10) == 128 + signal.SIGINT
    assert "the next run goes on from there" in log.read_text()
    until(lambda: not any(p for p in Path("/proc").glob("[0-9]*/cwd") if _is_in(p, made.folder)), 30)
    assert made.flow("prepare") == {"benchmark": "cached", "prepare": "ran"}
    made.edit("params.yaml", r"validation_fraction: 0.3", "validation_fraction: 0.15")
    made.repro("prepare")


def _is_in(link: Path, folder: Path) -> bool:
    try:
        return link.resolve() == folder.resolve()
    except OSError:
        return False


def test_training_and_saliency_killed_half_way_are_taken_up_again(made):
    made.repro("base")
    checkpoints = made.folder / "data/checkpoints/vanilla"
    made.kill_when(lambda: _there(checkpoints), "dvc", "repro", "--single-item", "vanilla")
    assert not (made.folder / "data/models/vanilla").exists()
    output = made.repro("vanilla")
    assert "vanilla: resuming from the checkpoint in" in output
    assert not any(checkpoints.glob("*"))
    resumed = made.hashes()["data/models/vanilla"]
    shutil.rmtree(made.folder / "data/models/vanilla")
    assert "Running stage" in made.run("dvc", "repro", "--force", "--single-item", "vanilla")
    assert made.hashes()["data/models/vanilla"] == resumed  # the same weights as without the kill

    mask = made.folder / "data/masks/saliency.safetensors"
    said = made.folder.parent / "saliency.log"
    made.kill_when(lambda: _working(made, said), "dvc", "repro", "--single-item", "saliency")
    assert not mask.exists()
    made.repro("saliency")
    assert mask.exists()
    assert made.partials() == []


def _there(checkpoints: Path) -> bool:
    """Whether there is a whole checkpoint; a partial one is not yet in its place."""
    return any(path.parent.suffix != ".partial" for path in checkpoints.glob("*/state.json"))


def _working(made: Copy, said: Path) -> bool:
    """Whether the saliency stage has loaded its model: it has mapped torch's library for a while."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if (
                b"tasks\0saliency" in path.read_bytes()
                and "libtorch_cpu" in (path.parent / "maps").read_text()
            ):
                first = float(said.read_text()) if said.exists() else time.monotonic()
                said.write_text(str(first))
                return time.monotonic() - first > 4.0
        except OSError:
            continue
    return False
