"""The registry holds one method per file, and settings out of range are refused by key and value."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from efface.unlearning import METHODS, TrainingSettings, methods
from efface.unlearning.methods.idk_dpo import IdkDPOSettings

FILES = {file.stem for file in Path(methods.__path__[0]).glob("[a-z]*.py")}


def test_every_file_is_a_method_of_its_name():
    assert METHODS.keys() == FILES
    for name, method in METHODS.items():
        assert method.name == name and method.paper.startswith(("arXiv:", "CVPR", "this project"))


def test_every_setting_has_a_default_and_methods_that_train_share_theirs():
    for method in METHODS.values():
        settings = method.settings()
        assert isinstance(settings, TrainingSettings) is method.trains
        assert dataclasses.replace(settings) == settings


def test_the_sum_of_gradients_is_clipped_as_published_but_for_masked_updates():
    clips = {name: method.settings().clip for name, method in METHODS.items() if method.trains}
    assert clips.pop("mmunlearner") == "apart" and set(clips.values()) == {"sum"}


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("grad_diff", "steps", 0),
        ("grad_diff", "epochs", 0),
        ("grad_diff", "learning_rate", 0.0),
        ("grad_diff", "learning_rate", 1.5),
        ("grad_diff", "learning_rate", math.nan),
        ("grad_diff", "forget_weight", -1.0),
        ("grad_diff", "retain_weight", math.inf),
        ("grad_diff", "max_grad_norm", 0.0),
        ("grad_diff", "clip", "total"),
        ("grad_diff", "warmup_fraction", 1.0),
        ("grad_diff", "weight_decay", 1.0),
        ("grad_diff", "retain_batches_per_forget_batch", -1),
        ("npo", "beta", 0.0),
        ("simnpo", "beta", -1.0),
        ("simnpo", "delta", -0.1),
        ("idk_dpo", "beta", math.nan),
        ("undial", "beta", 0.0),
        ("rmu", "layer", 0),
        ("rmu", "scale", math.inf),
        ("mmunlearner", "variant", "code"),
        ("system_prompt", "instruction", ""),
        ("grad_diff", "sam_radius", -0.1),
        ("grad_diff", "adversarial_radius", math.nan),
        ("grad_diff", "adversarial_layer", 0),
        ("grad_diff", "projector", "cosine"),
        ("kvw", "gamma", -0.1),
        ("kvw", "passes", 0),
        ("kvw", "batch_size", 0),
        ("kvw", "first_layer", 0),
        ("kvw", "last_layer", 0),
        ("vl_eraser", "rank", 0),
        ("vl_eraser", "similarity_weight", 1.1),
        ("vl_eraser", "energy", 0.0),
        ("projected_diff", "energy", -0.1),
        ("projected_diff", "energy", 1.1),
        ("projected_simnpo", "energy", 1.1),
        ("projected_simnpo", "beta", 0.0),
        ("pava", "layers", 0),
        ("pava", "selection", "last"),
        ("pava", "traced_samples", 0),
        ("pava", "questions", []),
        ("pava", "max_new_tokens", 0),
        ("vgid", "noise", 0.0),
        ("mip_editor", "neurons_per_layer", 0),
        ("mip_editor", "path_steps", 0),
        ("mip_editor", "path_samples", 0),
        ("mip_editor", "layer", 0),
        ("mip_editor", "scale", 0.0),
        ("mip_editor", "weight_decay", 0.1),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_key_and_value(method, key, value):
    with pytest.raises(ValueError) as error:
        METHODS[method].settings(**{key: value})
    assert f"{key} is {value!r}" in str(error.value)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError):
        IdkDPOSettings(gamma=1)
