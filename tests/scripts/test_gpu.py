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
    assert len(rows) == 6


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
