"""No two stages meet on one GPU, and a dead holder's GPU is free at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from efface.errors import EffaceError
from flows import devices


@pytest.fixture(autouse=True)
def guards_of_our_own(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0,1", ["0", "1"]), ("GPU-abc", ["GPU-abc"]), ("", []), ("-1", []), (" 2 , 3 ", ["2", "3"])],
)
def test_the_environment_says_which_gpus_there_are(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.gpus() == names


def test_two_stages_take_two_gpus_and_the_third_waits(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    third: list[str] = []

    def wait_for_one() -> None:
        with devices.device(gpu=True, workers=3) as got:
            third.append(got.environment["CUDA_VISIBLE_DEVICES"])

    with devices.device(gpu=True, workers=3) as first:
        with devices.device(gpu=True, workers=3) as second:
            assert {d.environment["CUDA_VISIBLE_DEVICES"] for d in (first, second)} == {"0", "1"}
            thread = threading.Thread(target=wait_for_one)
            thread.start()
            time.sleep(1.0)
            assert third == []
        thread.join(timeout=10)
    assert third == [second.environment["CUDA_VISIBLE_DEVICES"]]


def test_a_stage_without_a_model_takes_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with devices.device(gpu=True, workers=1), devices.device(gpu=False, workers=1) as other:
        assert other.descriptors == ()


def test_a_killed_holder_keeps_nothing(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = "import sys, time; print('up', flush=True); time.sleep(60)"
    with devices.device(gpu=True, workers=1) as got:
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=got.descriptors
        )
        assert child.stdout is not None
        child.stdout.readline()
    # The flow let go, as if killed; its child still computes, so the GPU is not free yet.
    with pytest.raises(TimeoutError), _within(1.5), devices.device(gpu=True, workers=1):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with _within(5), devices.device(gpu=True, workers=1) as again:
        assert again.environment == {"CUDA_VISIBLE_DEVICES": "0"}


def test_the_processor_is_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with devices.device(gpu=True, workers=2) as got:
        assert got.environment == {"OMP_NUM_THREADS": "4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with devices.device(gpu=True, workers=2) as got:
        assert got.environment == {"OMP_NUM_THREADS": "3"}


class _within:
    """Raise TimeoutError in the block after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def late(number: int, frame: object) -> None:
            raise TimeoutError

        self.before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def test_processes_that_share_a_stage_get_a_gpu_each_and_all_at_once(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    later: list[str] = []

    def wait_for_two() -> None:
        with devices.device(gpu=True, workers=1, processes=2) as got:
            later.append(got.environment["CUDA_VISIBLE_DEVICES"])

    with devices.device(gpu=True, workers=1, processes=2) as first:
        assert first.environment["CUDA_VISIBLE_DEVICES"] == "0,1" and len(first.descriptors) == 2
        thread = threading.Thread(target=wait_for_two)
        thread.start()
        time.sleep(1.0)
        with _within(5), devices.device(gpu=True, workers=1) as third:  # nobody waits while holding it
            assert third.environment["CUDA_VISIBLE_DEVICES"] == "2"
        assert later == []
    thread.join(timeout=10)
    assert later == ["0,1"]


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (
        pytest.raises(EffaceError, match="EFFACE_PROCESSES is 2, and there is a GPU for 1"),
        devices.device(gpu=True, workers=1, processes=2),
    ):
        pass


def test_the_processor_is_divided_among_the_processes_of_all_stages(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 16)
    with devices.device(gpu=True, workers=2, processes=4) as got:
        assert got.environment == {"OMP_NUM_THREADS": "2"}
