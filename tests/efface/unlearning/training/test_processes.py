"""Real processes: a run killed with SIGKILL resumes bit for bit, and two processes share every batch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parents[4]
PROGRAM = Path(__file__).with_name("program.py")
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": PROJECT, "text": True}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def program(folder: Path, **options) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [str(PROGRAM), str(folder), json.dumps(options)]


def finished(arguments: list[str], **extra: str) -> None:
    completed = subprocess.run([sys.executable, *arguments], **SILENT, env=environment() | extra, timeout=200)
    assert completed.returncode == 0, completed.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_killed_at_a_random_step_resumes_bit_for_bit(tmp_path, lora):
    options = {"steps": 30, "checkpoint_every": 3, "lora": lora}
    finished(program(tmp_path / "whole", **options))
    killed = tmp_path / "killed"
    running = subprocess.Popen(
        [sys.executable, *program(killed, **options, delay=0.05)], **SILENT, env=environment()
    )
    state = killed / "checkpoint" / "state.json"
    target = random.randint(3, 24)
    while not state.exists() or json.loads(state.read_text())["step"] < target:
        assert running.poll() is None, running.stderr.read()[-2000:]
        time.sleep(0.01)
    time.sleep(random.random() * 0.1)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL and not (killed / "run-0.json").exists()
    finished(program(killed, **options))
    runs = [json.loads((tmp_path / name / "run-0.json").read_text()) for name in ("whole", "killed")]
    assert runs[0]["history"] == runs[1]["history"]
    assert len(runs[1]["batches"]) < len(runs[0]["batches"])  # it went on, and did not begin anew
    whole, resumed = (load_file(tmp_path / n / "weights-0.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "masked"), [(False, True), (True, False)])
def test_two_processes_share_every_batch_and_train_as_one(tmp_path, lora, masked):
    # What `accelerate launch` does with GPUs; without, it would need MPI to start more than one process.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    values = {"epochs": 3, "checkpoint_every": 2, "lora": lora, "masked": masked, "accumulation_steps": 2}
    values["dropout"] = 0.0  # the processes draw it apart
    finished([*launch, *program(tmp_path / "two", **values)])
    runs = [json.loads((tmp_path / "two" / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    assert [run["processes"] for run in runs] == [2, 2]
    # Ten forget samples in five batches of two, three times over; of an odd last batch process 1 gets none.
    for seed, size, epoch, epochs in ((3, 10, 5, 3), (4, 26, 14, 1)):
        shares = [[batch for s, batch in run["batches"] if s == seed] for run in runs]
        assert all(len(a) == 1 and len(b) <= 1 for a, b in zip(*shares, strict=True))
        batches = [a + b for a, b in zip(*shares, strict=True)]
        for k in range(epochs):
            samples = [i for batch in batches[k * epoch : (k + 1) * epoch] for i in batch]
            assert sorted(samples) == list(range(size))  # every one once, so the shares are disjoint
    weights = [load_file(tmp_path / "two" / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert runs[0]["history"] == runs[1]["history"]
    finished(program(tmp_path / "one", **values))
    expected = load_file(tmp_path / "one" / "weights-0.safetensors")
    history = json.loads((tmp_path / "one" / "run-0.json").read_text())["history"]
    for record, shared in zip(history, runs[0]["history"], strict=True):
        assert shared == pytest.approx(record, rel=1e-3)
    for name, weight in expected.items():
        if "k_proj" not in name:
            assert torch.allclose(weight, weights[0][name], atol=1e-5), name


@pytest.mark.slow
def test_two_processes_resume_with_the_dropout_of_each(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    values = {"steps": 6, "checkpoint_every": 4, "lora": True}
    finished([*launch, *program(tmp_path / "whole", **values)])
    finished([*launch, *program(tmp_path / "whole", **values)])  # from the checkpoint of step 4
    runs = [json.loads((tmp_path / "whole" / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(len(run["batches"]) < 6 * 2 for run in runs)
    resumed = load_file(tmp_path / "whole" / "weights-0.safetensors")
    finished([*launch, *program(tmp_path / "again", **values)])
    weights = load_file(tmp_path / "again" / "weights-0.safetensors")
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())
