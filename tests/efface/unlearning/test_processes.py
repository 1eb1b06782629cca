"""Real processes: a run killed with SIGKILL goes on bit for bit, and two processes share every epoch."""

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

from efface.unlearning.training.processes import _buckets

PROJECT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("training_run.py")
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": PROJECT, "text": True}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


def program(folder: Path, **options) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [str(PROGRAM), str(folder), json.dumps(options)]


def finished(arguments: list[str], **extra: str) -> None:
    done = subprocess.run([sys.executable, *arguments], **SILENT, env=environment() | extra, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_killed_at_a_random_step_goes_on_bit_for_bit(tmp_path, lora):
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
    assert len(runs[1]["drawn"]) < len(runs[0]["drawn"])  # it went on, and did not begin anew
    whole, resumed = (load_file(tmp_path / n / "weights-0.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2, 1], ids=["whole batches", "halves of each batch"])
def test_two_processes_share_every_epoch_and_stay_alike(tmp_path, accumulation):
    # What `accelerate launch` does with GPUs; without, it would want MPI to start more than one process.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = {"epochs": 3, "checkpoint_every": 2, "lora": False, "accumulation_steps": accumulation}
    finished([*launch, *program(tmp_path / "two", **options)])
    runs = [json.loads((tmp_path / "two" / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    assert [run["processes"] for run in runs] == [2, 2]
    # Ten forget samples in five batches, three times over: an odd number, so the last step may be half a one.
    for seed, size, epoch, epochs in ((3, 10, 5, 3), (4, 26, 14, 1)):
        shares = [[batch for s, batch in run["drawn"] if s == seed] for run in runs]
        if accumulation == 2:
            assert [len(share) for share in shares] == [8, 7]
            walked = [shares[k % 2][k // 2] for k in range(15)]
        else:  # a batch of two, one sample each; of an odd last one the second process gets none
            assert all(len(a) == 1 and len(b) <= 1 for a, b in zip(*shares, strict=True))
            walked = [a + b for a, b in zip(*shares, strict=True)]
        for k in range(epochs):
            samples = [i for batch in walked[k * epoch : (k + 1) * epoch] for i in batch]
            assert sorted(samples) == list(range(size))  # every one once, so the shares are disjoint
    weights = [load_file(tmp_path / "two" / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert runs[0]["history"] == runs[1]["history"]
    # What one process makes of the same steps.
    finished(program(tmp_path / "one", **options))
    alone = load_file(tmp_path / "one" / "weights-0.safetensors")
    history = json.loads((tmp_path / "one" / "run-0.json").read_text())["history"]
    assert [r["forget_loss"] for r in history] == pytest.approx(
        [r["forget_loss"] for r in runs[0]["history"]], rel=1e-4
    )
    for name, weight in alone.items():
        if "k_proj" not in name:
            assert torch.allclose(weight, weights[0][name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_sharded_weights_end_as_those_of_one_process(tmp_path, masked):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = {"epochs": 1, "accumulation_steps": 2, "lora": False, "masked": masked}
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch --use_fsdp` sets
    finished([*launch, *program(tmp_path / "two", **options)], **sharded)
    finished(program(tmp_path / "one", **options))
    alone = load_file(tmp_path / "one" / "weights-0.safetensors")
    for rank in (0, 1):
        found = load_file(tmp_path / "two" / f"weights-{rank}.safetensors")  # whole again, in each process
        assert found.keys() == alone.keys()
        for name, weight in alone.items():
            if "k_proj" not in name:
                assert torch.allclose(weight, found[name], atol=1e-5), name
    histories = [json.loads((tmp_path / n / "run-0.json").read_text())["history"] for n in ("one", "two")]
    for one, two in zip(*histories, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_small_tensors_travel_together_large_ones_alone_and_dtypes_apart():
    sizes = [(2**16,), (3,), (2**23, 1), (5, 2), (7,)]
    tensors = [torch.zeros(size) for size in sizes] + [torch.zeros(4, dtype=torch.float64)]
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    buckets = [[places[id(tensor)] for tensor in bucket] for bucket in _buckets(tensors)]
    assert buckets == [[0], [2], [1, 3, 4], [5]]
    many = [torch.zeros(2**15) for _ in range(2**9)]
    assert [len(bucket) for bucket in _buckets(many)] == [2**8, 2**8]
