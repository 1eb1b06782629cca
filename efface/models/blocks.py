"""Which modules form an MLP block, and where the weights and activations of its neurons are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.errors import ModelError

if TYPE_CHECKING:
    from efface.models.anatomy import MLP


@dataclass(frozen=True)
class Shape:
    """Names, inside the module, of the maps into and out of its neurons.

    Attributes:
        up: maps that make the neurons.
        down: map from the neurons back to the hidden state.
        width: neurons of the block (of one expert).
        experts: number of experts whose weights are stacked; None for an ordinary block.
    """

    up: tuple[str, ...]
    down: str
    width: int
    experts: int | None = None


@dataclass(frozen=True)
class _Incoming:
    """What makes the N neurons of one expert.

    Attributes:
        weights: one (N, H) view per map.
        biases: one (N,) view per map that has a bias.
    """

    weights: list[Tensor]
    biases: list[Tensor]


Index = tuple[int | slice | Tensor, ...]


def mlp_shape(module: nn.Module) -> Shape | None:
    """The maps of the module if it is an MLP block.

    An MLP block holds one or two maps H -> N (or one H -> 2 N, gate and up in one), one map N -> H with
    N != H, no other linear layer, and an activation. Attention blocks have three or four maps and no
    activation.
    """
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    activation = any(
        not isinstance(child, nn.Linear) and not list(child.parameters()) for child in module.children()
    )
    if len(linears) not in (2, 3) or not activation:
        return None
    for name, down in linears.items():
        others = [child for other, child in linears.items() if other != name]
        hidden, width = down.out_features, down.in_features
        fused = len(others) == 1 and (others[0].in_features, others[0].out_features) == (hidden, 2 * width)
        plain = width != hidden and all((o.in_features, o.out_features) == (hidden, width) for o in others)
        # With one map each way both could be "down"; the activation widens, so down narrows.
        if fused or (plain and not (len(others) == 1 and width < hidden)):
            return Shape(tuple(other for other in linears if other != name), name, width)
    return None


def expert_shape(module: nn.Module, hidden: int) -> Shape | None:
    """The maps of the module if it holds the stacked weights of several experts.

    Args:
        module: any module.
        hidden: width H of the decoder, to tell which axis is which.
    """
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.dim() == 3}
    down = own.get("down_proj")
    if down is None or len(own) not in (2, 3) or hidden not in down.shape[1:]:
        return None
    width = int(down.shape[1] if _transposed(module, down, hidden) else down.shape[2])
    return Shape(tuple(name for name in own if name != "down_proj"), "down_proj", width, int(down.shape[0]))


def neuron_entries(model: nn.Module, mlp: MLP, units: Tensor) -> list[tuple[Tensor, Index]]:
    """Where the weights of some of a block's neurons are: their outgoing column, incoming rows, and biases.

    Args:
        model: the model.
        mlp: one of its blocks.
        units: neuron indices.

    Returns:
        Parameters with the index of the entries, such that ``parameter[index]`` are the neurons' own.

    Raises:
        ModelError: if the block's maps are not plain linear layers, such as quantised or adapted ones.
    """
    if mlp.expert is not None:
        return _expert_entries(model, mlp, units)
    entries: list[tuple[Tensor, Index]] = [(_linear(model, mlp.down).weight, (slice(None), units))]
    for name in mlp.up:
        layer = _linear(model, name)
        rows = _rows(units, layer.out_features, mlp.width, concatenated=True)
        entries += [(p, (rows,)) for p in (layer.weight, layer.bias) if p is not None]
    return entries


def watch_neurons(
    model: nn.Module, mlp: MLP, see: Callable[[Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    """Call ``see`` with the activations of a block's neurons in every forward pass, until it is removed.

    They have the shape of what enters the block with N for its last axis. An expert's are computed a second
    time from what enters the experts' module, (tokens, N), and are 0 for tokens that go to other experts.
    """
    if mlp.expert is None:
        down = model.get_submodule(mlp.down)
        return down.register_forward_pre_hook(lambda module, args: see(args[0]))

    def from_inputs(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(_expert_activations(module, mlp, args[0].flatten(0, -2), args[1]))

    return model.get_submodule(mlp.down.rpartition(".")[0]).register_forward_pre_hook(from_inputs)


def _expert_activations(module: nn.Module, mlp: MLP, hidden_states: Tensor, routed: Tensor) -> Tensor:
    """Activations of one expert's neurons for every token, (tokens, N); 0 where the token goes elsewhere.

    Args:
        module: the experts' module.
        mlp: the expert.
        hidden_states: what enters the module, (tokens, H).
        routed: experts each token goes to, (tokens, k).
    """
    chosen = routed.eq(mlp.expert or 0).any(dim=-1)
    incoming = _of_expert(module, mlp, hidden_states.shape[-1])
    into = zip(incoming.weights, incoming.biases or (None,) * len(incoming.weights), strict=True)
    maps = [nn.functional.linear(hidden_states[chosen], weight, bias) for weight, bias in into]
    gate = getattr(module, "_apply_gate", None)
    if gate is not None and len(maps) == 2 and getattr(module, "is_concatenated", True):
        made = gate(torch.cat(maps, dim=-1))
    else:
        activate: Callable[[Tensor], Tensor] = getattr(module, "act_fn")  # noqa: B009  # typed as a tensor
        made = activate(maps[0]) * (maps[1] if len(maps) == 2 else 1)
    values = hidden_states.new_zeros(len(hidden_states), mlp.width)
    values[chosen] = made
    return values


def _expert_entries(model: nn.Module, mlp: MLP, units: Tensor) -> list[tuple[Tensor, Index]]:
    module = model.get_submodule(mlp.down.rpartition(".")[0])
    get_embeddings: Callable[[], nn.Embedding] = getattr(model, "get_input_embeddings")  # noqa: B009
    down, expert = module.get_parameter("down_proj"), mlp.expert or 0
    transposed = _transposed(module, down, get_embeddings().weight.shape[-1])
    own = dict(module.named_parameters(recurse=False))
    entries: list[tuple[Tensor, Index]] = [
        (down, (expert, units) if transposed else (expert, slice(None), units))
    ]
    for name in (path.rpartition(".")[2] for path in mlp.up):
        outputs = own[name].shape[2 if transposed else 1]
        rows = _rows(units, outputs, mlp.width, concatenated=getattr(module, "is_concatenated", True))
        entries.append((own[name], (expert, slice(None), rows) if transposed else (expert, rows)))
        if f"{name}_bias" in own:
            entries.append((own[f"{name}_bias"], (expert, rows)))
    return entries


def _rows(units: Tensor, outputs: int, width: int, *, concatenated: bool) -> Tensor:
    """Rows of a map that make the units: one each, or two where gate and up are one map."""
    if outputs == width:
        return units
    return torch.cat([units, units + width] if concatenated else [2 * units, 2 * units + 1])


def _of_expert(module: nn.Module, mlp: MLP, hidden: int) -> _Incoming:
    """Layouts: (E, out, in) or transposed; gate and up apart, one after the other, or interleaved."""
    stacked = module.get_parameter("down_proj")
    transposed = _transposed(module, stacked, hidden)
    incoming, biases = [], []
    for name in (path.rpartition(".")[2] for path in mlp.up):
        weight = module.get_parameter(name)[mlp.expert]
        weight = weight.T if transposed else weight
        bias = dict(module.named_parameters(recurse=False)).get(f"{name}_bias")
        for part in _parts(len(weight), mlp.width, getattr(module, "is_concatenated", True)):
            incoming.append(weight[part])
            if bias is not None:
                biases.append(bias[mlp.expert][part])
    return _Incoming(weights=incoming, biases=biases)


def _parts(rows: int, width: int, concatenated: bool) -> list[slice]:
    if rows == width:
        return [slice(None)]
    return [slice(0, width), slice(width, None)] if concatenated else [slice(0, None, 2), slice(1, None, 2)]


def _transposed(module: nn.Module, down: Tensor, hidden: int) -> bool:
    """Whether the experts' weights are stored (E, in, out)."""
    if down.shape[1] == down.shape[2]:
        return bool(getattr(module, "is_transposed", False))
    return int(down.shape[2]) == hidden


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if type(layer) is not nn.Linear:
        raise ModelError(
            f"{name} is a {type(layer).__name__}, expected a plain linear layer; load the model without "
            "quantisation, and merge an adapter into it first"
        )
    return layer
