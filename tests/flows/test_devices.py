"""No two stages compute on one GPU, and the processor is divided among them."""

import threading

import pytest

from efface.errors import EffaceError
from flows import devices
from flows.devices import device


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0,1", ["0", "1"]), ("GPU-abc", ["GPU-abc"]), ("", []), ("-1", []), (" 2 , 3 ", ["2", "3"])],
)
def test_gpus_are_those_of_the_environment(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.gpus() == names


@pytest.mark.parametrize(("processes", "granted"), [(1, {"0", "1", "2"}), (2, {"0,1"})])
def test_a_stage_waits_until_its_gpus_are_free(monkeypatch, processes, granted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    waiting: list[str] = []

    def wait() -> None:
        with device(processes=3, workers=1) as environment:
            waiting.append(environment["CUDA_VISIBLE_DEVICES"])

    with device(processes=processes, workers=1) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] in granted
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(timeout=1.5)
        assert waiting == []
    thread.join(timeout=10)
    assert waiting == ["0,1,2"]


def test_two_stages_hold_different_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with device(processes=1, workers=2) as first, device(processes=1, workers=2) as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        with device(processes=0, workers=2) as third:  # a stage without a model
            assert "CUDA_VISIBLE_DEVICES" not in third


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(EffaceError) as error, device(processes=2, workers=1):
        pass
    assert "EFFACE_PROCESSES is 2" in str(error.value) and "1" in str(error.value)


@pytest.mark.parametrize(
    ("preset", "processes", "threads"), [(None, 1, "4"), (None, 2, "2"), (None, 0, "4"), ("3", 1, "3")]
)
def test_the_processor_is_divided_among_processes_and_stages(monkeypatch, preset, processes, threads):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if preset:
        monkeypatch.setenv("OMP_NUM_THREADS", preset)
    with device(processes=processes, workers=2) as environment:
        assert environment == {"OMP_NUM_THREADS": threads}
