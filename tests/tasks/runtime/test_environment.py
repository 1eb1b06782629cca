"""Bars are for terminals, and a GPU that torch cannot use is told at the first stage."""

import pytest

from tasks.runtime import environment


@pytest.mark.parametrize(("terminal", "disabled"), [(True, None), (False, "1")])
def test_progress_bars_are_for_terminals(terminal, disabled, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    variables: dict[str, str] = {}
    environment.apply(variables)
    assert variables.get("TQDM_DISABLE") == disabled


@pytest.mark.parametrize(("gpu", "usable", "hidden"), [(1, 0, 0), (1, 1, 0), (0, 0, 0), (1, 0, 1)])
def test_a_gpu_that_torch_cannot_use_is_told(gpu, usable, hidden, tmp_path, monkeypatch):
    (tmp_path / f"nvidia{'0' if gpu else ''}").touch()
    monkeypatch.setattr(environment, "GPUS", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(usable))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if hidden else "0")
    advice = environment.unused_gpu()
    assert bool(advice) is bool(gpu and not usable and not hidden)
    assert advice is None or "TORCH_INDEX" in advice
