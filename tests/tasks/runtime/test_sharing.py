"""Stages as several processes: the same results, one writer, and nothing left when they end badly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from efface.errors import EffaceError
from efface.models import save_model
from efface.saliency import load_mask
from tasks.runtime import artifacts, sharing
from tests.efface.conftest import model, processor  # noqa: F401
from tests.tasks.runtime import shared_stages
from tests.tiny_project import PROJECT, make_root

SETTINGS = {
    "finetune": {"batch_size": 5, "replay_share": 0.0},
    "vanilla": {"steps": 5},
    "importance": {"samples": None, "batch_size": 3},
    "saliency": {"fisher_samples": None, "batch_size": 3, "controls": ["magnitude"]},
    "unlearn": {"batch_size": 3, "checkpoint_every": 2},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (sharing.COUNT, "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_processes_is_at_least_one(monkeypatch, text):
    monkeypatch.setenv(sharing.COUNT, text)
    with pytest.raises(EffaceError) as error:
        sharing.processes_of("saliency")
    assert f"EFFACE_PROCESSES is {text!r}" in str(error.value)
    assert sharing.processes_of("report") == 1  # a stage that cannot share its work


def test_only_stages_that_can_share_are_started_as_several(monkeypatch):
    monkeypatch.setenv(sharing.COUNT, "2")
    assert [sharing.processes_of(s) for s in ("unlearn@npo", "evaluate@npo", "vanilla")] == [2, 1, 2]


def test_several_processes_of_a_stage_that_cannot_share_are_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(EffaceError) as error, sharing.joined("report"):
        pass
    assert "WORLD_SIZE is 2" in str(error.value) and "report" in str(error.value)


def test_only_the_first_process_writes_a_record(monkeypatch, tmp_path):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with artifacts.recording("saliency", {}, root=tmp_path) as record:
        record.summary = {"density": 1.0}
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("RANK", "0")
    with artifacts.recording("saliency", {}, root=tmp_path) as record:
        record.summary = {"density": 1.0}
    assert (tmp_path / "runs" / "saliency.json").exists()


def make_project(folder: Path, model, processor) -> Path:  # noqa: F811
    """A project with the tiny model as base and vanilla, and settings that take seconds."""
    (folder / "data").mkdir(parents=True)
    root = make_root(folder / "data", model, processor)
    save_model(model, processor, root / "models" / "base")
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    params = json.loads(json.dumps(yaml.load((PROJECT / "params.yaml").read_text(encoding="utf-8"))))
    for section, changes in SETTINGS.items():
        params[section] |= changes
    with (folder / "params.yaml").open("w", encoding="utf-8") as handle:
        yaml.dump(params, handle)
    return folder


def environment(processes: int) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PATH": path, "DVC_NO_ANALYTICS": "1"}
    return {**os.environ, **variables, sharing.COUNT: str(processes)}


def run(project: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tasks", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment(processes), capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_make_what_one_makes(tmp_path, model, processor):  # noqa: F811
    roots = {count: make_project(tmp_path / str(count), model, processor) / "data" for count in (1, 2)}
    shared_stages.run(roots[1])
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    completed = subprocess.run(
        [*together, "-m", "tests.tasks.runtime.shared_stages", str(roots[2])],
        cwd=PROJECT,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    for stage in ("importance", "saliency", "control", "unlearn"):
        assert completed.stdout.count(f"{stage}: ") == 1  # one of them speaks
    runs = [sorted(path.name for path in (root / "runs").iterdir()) for root in roots.values()]
    assert runs[0] == runs[1] and len(runs[0]) == 4
    tables = [load_file(root / "masks" / "importance.safetensors") for root in roots.values()]
    for name, table in tables[0].items():
        assert (table - tables[1][name]).abs().max() <= 1e-6 * max(1.0, table.abs().max()), name
    for mask in ("saliency", "magnitude"):
        one, two = (load_mask(root / "masks" / f"{mask}.safetensors")[0] for root in roots.values())
        differing = sum(int((one[name] != two[name]).sum()) for name in one)
        assert differing <= 1e-4 * sum(entry.numel() for entry in one.values())  # ties within rounding
    weights = [
        load_file(root / "models" / "unlearned" / "mmunlearner" / "model.safetensors")
        for root in roots.values()
    ]
    for name, weight in weights[0].items():
        if "k_proj" not in name:  # whose gradient is nothing but rounding, which AdamW makes large
            assert torch.allclose(weight, weights[1][name], atol=2e-5), name
    histories = [
        json.loads((root / "runs" / "unlearn@mmunlearner.json").read_text())["history"]
        for root in roots.values()
    ]
    for one, two in zip(*histories, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


DVC = """
stages:
  vanilla:
    cmd: python -m tasks vanilla
    params: [finetune, vanilla]
    deps: [data/prepared, data/models/base]
    outs: [data/models/vanilla, data/runs/vanilla.json]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dvc_runs_a_stage_as_two_and_calls_it_current_afterwards(tmp_path, model, processor):  # noqa: F811
    project = make_project(tmp_path / "project", model, processor)
    (project / "dvc.yaml").write_text(DVC, encoding="utf-8")

    def dvc(processes: int, *arguments: str) -> str:
        completed = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project,
            env=environment(processes),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-2000:]
        return completed.stdout

    dvc(1, "init", "--no-scm", "--quiet")
    assert "vanilla: data/models/vanilla trained" in dvc(2, "repro")
    record = json.loads((project / "data/runs/vanilla.json").read_text())
    assert len(record["history"]) == 5
    assert "didn't change, skipping" in dvc(1, "repro")  # how many shared it is none of its inputs


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mistake_is_told_once_and_a_terminated_launcher_leaves_nothing(tmp_path, model, processor):  # noqa: F811
    project = make_project(tmp_path / "project", model, processor)
    completed = run(project, 2, "unlearn", "no_such_method")
    assert completed.returncode == 1 and completed.stderr.count("error: ") == 1
    (project / "data/prepared/samples.parquet").unlink()
    completed = run(project, 2, "saliency")
    assert completed.returncode == 1 and completed.stderr.count("does not exist") == 1
    assert "Traceback" not in completed.stderr
    launcher = make_project(tmp_path / "other", model, processor)
    running = subprocess.Popen(
        [sys.executable, "-m", "tasks", "vanilla"],
        cwd=launcher,
        env={**environment(2), "EFFACE_TEST_MARK": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(marked(tmp_path)) >= 3)
    running.terminate()
    running.wait()
    wait_for(lambda: not marked(tmp_path))


def marked(mark: Path) -> list[str]:
    """Processes with the mark in their environment."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"EFFACE_TEST_MARK={mark}".encode() in path.read_bytes().split(b"\0"):
                pids.append(path.parent.name)
        except OSError:  # gone meanwhile
            continue
    return pids


def wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
