"""The acceptance of a GPU, on a processor with the sandbox's shapes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch

from scripts import gpu
from scripts.performance import Clock
from scripts.subjects import build


def test_a_processor_agrees_with_itself():
    rows = list(gpu.parity("cpu"))
    assert [met for *_, met in rows] == [True] * len(rows)
    assert len(rows) == 8


def test_weights_that_differ_are_missed(monkeypatch):
    real = copy.deepcopy

    def damaged(value):
        result = real(value)
        if isinstance(result, torch.nn.Module):
            with torch.no_grad():
                next(p for n, p in result.named_parameters() if "language" in n and p.dim() == 2).mul_(1.5)
        return result

    monkeypatch.setattr(gpu, "copy", SimpleNamespace(deepcopy=damaged))
    assert not all(met for *_, met in gpu.parity("cpu"))


def test_lora_costs_are_measured_and_named():
    subject = build("tiny", samples=32, device="cpu")
    [(case, value, goal, _)] = gpu.lora_costs(subject, Clock("cpu", 1))
    assert "LoRA" in case and value.split()[1] == "x" and goal == "at most 1.2 x"


def test_memory_is_what_a_batch_of_no_samples_would_take(monkeypatch):
    def run(size):
        return 2**30 * (10 + 3 * size)

    monkeypatch.setattr(gpu, "_peak", lambda job: job())
    [(_, value, _, met)] = gpu._against("memory", "cuda", run, estimate=9 * 2**30)
    assert value.startswith("10.0 GiB and 3.00 per sample") and met
    [(*_, met)] = gpu._against("memory", "cuda", run, estimate=8 * 2**30)
    assert not met


def test_a_part_that_breaks_is_a_missed_row():
    def rows():
        yield ("first", "1 x", "", True)
        raise RuntimeError("no kernel\nfor this card")

    assert list(gpu._part("costs", rows)) == [
        ("first", "1 x", "", True),
        ("costs", "RuntimeError: no kernel", "", False),
    ]
