"""Full fine-tuning of models that no GPU holds together with their gradients and moments: sharding (FSDP2).

``accelerate launch --use_fsdp --fsdp_version 2`` asks for it. Each process then keeps a part of every weight,
of its gradient and of its moments, and a layer is whole only while it computes. Layers run in all processes
at the same time, so every process takes part in every batch, with its share of the samples.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.unlearning.training.processes import Processes


def wanted(processes: Processes) -> bool:
    """Whether several processes were started to shard the weights.

    Raises:
        ModelError: if they are to use the first version of FSDP, which flattens weights: no mask fits them.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    if not asked or processes.count == 1:
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ModelError("sharded training needs FSDP 2; add --fsdp_version 2 to accelerate launch")
    return True


def shard(model: PreTrainedModel, processes: Processes) -> None:
    """Shard a model in place, layer by layer.

    Raises:
        ModelError: if only some weights train, as with LoRA, which needs no sharding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not all(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "sharded training trains all weights, and here only some do; start the processes without "
            "--use_fsdp (LoRA fits on one GPU each)"
        )
    kind = "cpu" if processes.device is None else processes.device.type
    mesh = init_device_mesh(kind, (processes.count,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers and module is not model:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loop weights every share itself; gloo can only add.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def gather(model: nn.Module) -> None:
    """Make every weight whole again, in every process, for good."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()


def like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A tensor of a parameter's shape, sharded as the parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all processes ask for it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Norm of all gradients together, sharded or not, the same in every process."""
    return whole(torch.nn.utils.get_total_norm(gradients))
