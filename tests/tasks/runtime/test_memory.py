"""A GPU that is too small for a stage is refused by the estimate, before weights are loaded."""

from __future__ import annotations

import pytest
import torch

from efface.errors import ModelError
from efface.models import anatomy
from efface.models.memory import estimate_memory
from tasks import finetune, saliency, unlearn
from tasks.evaluate import score_model
from tasks.runtime.artifacts import RunRecord
from tasks.runtime.memory import require_memory
from tests.efface.conftest import model, processor, sample  # noqa: F401
from tests.tiny_project import make_root, params_with


@pytest.fixture
def root(tmp_path, model, processor):  # noqa: F811
    return make_root(tmp_path, model, processor)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a size, as torch reports one; loading weights fails the test."""

    def of(size):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tiny GPU")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (size // 2, size))

    def load(*_args, **_options):
        pytest.fail("weights were loaded")

    monkeypatch.setattr("efface.models.load_model", load)
    return of


def test_the_bound_is_the_estimate(root, model, gpu):  # noqa: F811
    weights = sum(p.numel() for p in model.parameters())
    params, folder = params_with("unlearn"), root / "models" / "vanilla"
    parts = anatomy(model)
    measured = {name for g in params.saliency.groups for name in parts.groups[g] if name in parts.maskable}
    saliency_bytes = estimate_memory(model, parts, measured=measured).saliency
    for work, needed in (
        ("evaluation", 4 * weights),
        ("training", 16 * weights),
        ("saliency", saliency_bytes),
    ):
        gpu(needed)
        require_memory(params, folder, work)
        gpu(needed - 1)
        with pytest.raises(ModelError, match=rf"{work} of .*vanilla.*Tiny GPU"):
            require_memory(params, folder, work)


def test_factors_need_less_than_all_weights(root, model, gpu):  # noqa: F811
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "components": ["language"]}
    params, folder = params_with("unlearn", lora=lora), root / "models" / "vanilla"
    gpu(8 * sum(p.numel() for p in model.parameters()))
    require_memory(params, folder, "training", lora=params.unlearn.lora)
    with pytest.raises(ModelError):
        require_memory(params, folder, "training")


def test_stages_say_so_before_they_load(root, gpu):
    gpu(1000)
    params = params_with("evaluate")
    (root / "models" / "base").symlink_to(root / "models" / "vanilla")
    inputs = {"model": root / "models" / "vanilla"}
    record = RunRecord()
    for run in (
        lambda: finetune.run(params, "vanilla", root),
        lambda: saliency.run(params, root),
        lambda: unlearn.run(params, "npo", root),
        lambda: score_model(params, [sample(0)], [], "evaluate", "vanilla", inputs, root, record),
    ):
        with pytest.raises(ModelError, match="Tiny GPU"):
            run()
