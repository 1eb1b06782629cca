"""SineProject: the projector's weights become W + sin(D), so each moves by at most 1, whatever the loss.

Reference:
    "SineProject", arXiv:2511.18444; a parameterisation for any loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from efface.errors import ModelError
from efface.models.anatomy import anatomy
from efface.unlearning.training.gradients import training_only


class _Sine(nn.Module):
    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.detach().clone(), persistent=False)

    def forward(self, offset: Tensor) -> Tensor:
        """The weight W + sin(D); exactly W at D = 0."""
        return self.weight + offset.sin()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """D = 0 at the start."""
        return torch.zeros_like(weight)


@contextmanager
def sine_projector(model: nn.Module) -> Iterator[None]:
    """Within this context only the offsets D of the projector's linear maps train; afterwards its weights are
    plain again, with the values they reached.

    Raises:
        ModelError: if the projector has no linear map, or one with LoRA factors or quantised weights.
    """
    parts = anatomy(model)
    projector = set(parts.groups["projector"])
    names = [name for name in parts.maskable if name in projector and model.get_parameter(name).dim() > 1]
    if not names:
        raise ModelError("projector is 'sine' and the projector has no linear map: expected plain")
    parameters = [model.get_parameter(name) for name in names]
    if any("lora_" in name for name in names) or not all(p.is_floating_point() for p in parameters):
        raise ModelError(
            "projector is 'sine' and it has LoRA factors or quantised weights: leave `projector` out of the "
            "components of LoRA, and load the model without quantisation"
        )
    with ExitStack() as stack:
        rest = {name for name, _ in model.named_parameters() if name not in projector}
        stack.enter_context(training_only(model, rest))
        for name in names:
            path, _, attribute = name.rpartition(".")
            module: Any = model.get_submodule(path)
            parametrize.register_parametrization(module, attribute, _Sine(getattr(module, attribute)))
            module.parametrizations[attribute].original.requires_grad_(True)
            stack.callback(partial(_plain, module, attribute))
        yield


def _plain(module: nn.Module, attribute: str) -> None:
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
