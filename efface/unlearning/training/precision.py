"""Mixed precision: weights and optimizer in float32, computing in half where torch holds that to be safe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from efface.errors import ModelError

PrecisionName = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How numbers are kept while training.

    float16 gradients underflow, so its losses are scaled up before the backward pass; gradients are scaled
    back before anything reads them. The scale is a power of two, so scaling alters no digit.

    Args:
        name: ``fp32``: as the weights are; ``bf16`` or ``fp16``: mixed.
        device: where the model is.
        trained: the weights that train.

    Raises:
        ModelError: if the weights are kept in half precision themselves.
    """

    def __init__(self, name: PrecisionName, device: torch.device, trained: Mapping[str, nn.Parameter]):
        if name not in _DTYPES:
            raise ValueError(f"precision is {name!r}: expected one of: {', '.join(_DTYPES)}")
        half = [key for key, p in trained.items() if p.dtype != torch.float32]
        if name != "fp32" and half:
            raise ModelError(
                f"precision {name} computes in half and keeps weights in float32, but {half[0]} is "
                f"{trained[half[0]].dtype}; load the model with dtype float32"
            )
        self.name, self._device, self._dtype = name, device, _DTYPES[name]
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def computing(self) -> AbstractContextManager[object]:
        """The context of forward passes."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a loss, scaled if need be."""
        self._scaler.scale(loss).backward()

    def unscale(self, gradients: list[Tensor]) -> None:
        """Undo the scale of gradients, in place."""
        if self._scaler.is_enabled():
            torch._foreach_mul_(gradients, 1 / self._scaler.get_scale())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step with the gradients in place; none if one of them overflowed."""
        if not self._scaler.is_enabled():
            optimizer.step()
            return
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        torch._foreach_mul_(gradients, self._scaler.get_scale())
        self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def overflows(self) -> bool:
        """Whether an infinite gradient is a matter of the scale, which then goes down, and no divergence."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > 1

    def state(self) -> dict[str, float]:
        """What to remember of the scale; empty when there is none."""
        return dict(self._scaler.state_dict())

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on with a remembered scale."""
        if state:
            self._scaler.load_state_dict(dict(state))
