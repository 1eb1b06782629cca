"""Recognising MLP blocks, and locating the weights and activations of their neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.errors import ModelError

Index = tuple[int | slice | Tensor, ...]


@dataclass(frozen=True)
class MLP:
    """One MLP block. Its neurons are the input coordinates of ``down``.

    Attributes:
        name: module name of the block; for a stacked expert, the name of the experts' module and the
            expert's number.
        tower: ``vision`` or ``language``.
        layer: index of the layer the block belongs to, from 0.
        width: number of neurons N.
        down: module name of the linear map from the N neurons back to the hidden state.
        up: module names of the linear maps that compute the neurons: one, or gate and up, or one with 2 N
            outputs for both.
        expert: index of a stacked expert, whose ``down`` and ``up`` name parameters with an axis of experts
            in front; None for all other blocks.
    """

    name: str
    tower: str
    layer: int
    width: int
    down: str
    up: tuple[str, ...]
    expert: int | None = None


@dataclass(frozen=True)
class MLPShape:
    """Names, inside one module, of the maps into and out of its neurons.

    Attributes:
        up: maps that compute the neurons.
        down: map from the neurons back to the hidden state.
        width: neurons of the block (of one expert).
        experts: number of experts whose weights are stacked; None for an ordinary block.
    """

    up: tuple[str, ...]
    down: str
    width: int
    experts: int | None = None


def mlp_shape(module: nn.Module) -> MLPShape | None:
    """The maps of the module if it is an MLP block.

    An MLP block holds one or two maps H -> N (or one H -> 2 N, gate and up in one), one map N -> H with
    N != H, no other linear layer, and an activation; with three maps the activation may be a function, which
    no module shows. Attention blocks have four maps, or two and no activation.
    """
    linears: dict[str, nn.Linear] = {}
    for name, child in module.named_children():
        inner = [*child.named_children()]
        if len(inner) == 1 and not [*child.parameters(recurse=False)]:  # Gemma 4 clips around a linear layer
            name, child = f"{name}.{inner[0][0]}", inner[0][1]
        child = getattr(child, "base_layer", child)  # under LoRA the layer itself is in there
        if isinstance(child, nn.Linear):
            linears[name] = child
    activation = any(
        not isinstance(child, nn.Linear) and not list(child.parameters()) for child in module.children()
    )
    bare = len(linears) == 3 == len([*module.children()])
    if len(linears) not in (2, 3) or not (activation or bare):
        return None
    for name, down in linears.items():
        ups = [child for key, child in linears.items() if key != name]
        hidden, width = down.out_features, down.in_features
        fused = len(ups) == 1 and (ups[0].in_features, ups[0].out_features) == (hidden, 2 * width)
        plain = width != hidden and all((u.in_features, u.out_features) == (hidden, width) for u in ups)
        # With one map each way both could be "down"; neurons outnumber hidden units, so down narrows.
        if fused or (plain and not (len(ups) == 1 and width < hidden)):
            return MLPShape(tuple(key for key in linears if key != name), name, width)
    return None


def expert_shape(module: nn.Module, hidden: int) -> MLPShape | None:
    """The maps of the module if it holds the stacked weights of several experts.

    Args:
        module: any module.
        hidden: width H of the decoder, which tells the axes apart.
    """
    stacked = {name: p for name, p in module.named_parameters(recurse=False) if p.dim() == 3}
    down = stacked.get("down_proj")
    if down is None or len(stacked) not in (2, 3) or hidden not in down.shape[1:]:
        return None
    width = int(down.shape[1] if _transposed(module, hidden) else down.shape[2])
    ups = tuple(name for name in stacked if name != "down_proj")
    return MLPShape(ups, "down_proj", width, int(down.shape[0]))


def neuron_entries(model: nn.Module, mlp: MLP, units: Tensor) -> list[tuple[Tensor, Index]]:
    """The weights of some of a block's neurons: their outgoing columns, incoming rows, and biases.

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


def down_weight(model: nn.Module, mlp: MLP) -> Tensor:
    """The map from a block's neurons to the hidden state, (H, N), as a view: changing it in place changes the
    model.

    Raises:
        ModelError: if the map is not a plain linear layer, but quantised or adapted.
    """
    if mlp.expert is None:
        return _linear(model, mlp.down).weight.data
    get_embeddings: Callable[[], nn.Embedding] = getattr(model, "get_input_embeddings")  # noqa: B009
    module = model.get_submodule(mlp.down.rpartition(".")[0])
    weight = module.get_parameter("down_proj").data[mlp.expert]
    return weight.T if _transposed(module, get_embeddings().weight.shape[-1]) else weight


def watch_neurons(
    model: nn.Module, mlp: MLP, callback: Callable[[Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    """Call ``callback`` with the activations of a block's neurons in every forward pass, until removed.

    They have the shape of the block's input with N as the last axis. An expert's are computed a second time
    from the input of the experts' module, (tokens, N), and are 0 for tokens routed to other experts.
    """
    if mlp.expert is None:
        down = model.get_submodule(mlp.down)
        return down.register_forward_pre_hook(lambda module, args: callback(args[0]))

    def from_inputs(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        routed = args[1] if len(args) > 1 else None
        callback(_expert_activations(module, mlp, args[0].flatten(0, -2), routed))

    return model.get_submodule(mlp.down.rpartition(".")[0]).register_forward_pre_hook(from_inputs)


def _expert_activations(module: nn.Module, mlp: MLP, hidden_states: Tensor, routed: Tensor | None) -> Tensor:
    """Activations of one expert's neurons for every token, (tokens, N); 0 for tokens routed elsewhere.

    Args:
        module: the experts' module.
        mlp: the expert.
        hidden_states: input of the module, (tokens, H); if ``routed`` is None (Llama 4), the inputs of all
            experts one after another, already scaled by the router (0 for tokens routed elsewhere).
        routed: experts of each token, (tokens, k).
    """
    expert = mlp.expert or 0
    if routed is None:
        hidden_states = hidden_states.unflatten(0, (module.get_parameter("down_proj").shape[0], -1))[expert]
        selected = hidden_states.any(dim=-1)
    else:
        selected = routed.eq(expert).any(dim=-1)
    parameters = dict(module.named_parameters(recurse=False))
    transposed = _transposed(module, hidden_states.shape[-1])
    maps = []
    for name in (path.rpartition(".")[2] for path in mlp.up):
        weight, bias = parameters[name][expert], parameters.get(f"{name}_bias")
        maps.append(
            nn.functional.linear(
                hidden_states[selected],
                weight.T if transposed else weight,
                None if bias is None else bias[expert],
            )
        )
    fused = torch.cat(maps, dim=-1)
    apply_gate: Callable[[Tensor], Tensor] | None = getattr(module, "_apply_gate", None)
    if fused.shape[-1] == mlp.width:
        neurons = _activation(module)(fused)
    elif apply_gate is not None:
        neurons = apply_gate(fused)
    else:
        concatenated = len(maps) == 2 or getattr(module, "is_concatenated", True)
        gate, up = fused.chunk(2, dim=-1) if concatenated else (fused[..., ::2], fused[..., 1::2])
        neurons = _activation(module)(gate) * up
    values = hidden_states.new_zeros(len(hidden_states), mlp.width)
    values[selected] = neurons.to(values.dtype)
    return values


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    activation: Callable[[Tensor], Tensor] = getattr(module, "act_fn")  # noqa: B009  # typed as a tensor
    return activation


def _expert_entries(model: nn.Module, mlp: MLP, units: Tensor) -> list[tuple[Tensor, Index]]:
    module = model.get_submodule(mlp.down.rpartition(".")[0])
    get_embeddings: Callable[[], nn.Embedding] = getattr(model, "get_input_embeddings")  # noqa: B009
    down, expert = module.get_parameter("down_proj"), mlp.expert or 0
    transposed = _transposed(module, get_embeddings().weight.shape[-1])
    parameters = dict(module.named_parameters(recurse=False))
    entries: list[tuple[Tensor, Index]] = [
        (down, (expert, units) if transposed else (expert, slice(None), units))
    ]
    for name in (path.rpartition(".")[2] for path in mlp.up):
        outputs = parameters[name].shape[2 if transposed else 1]
        rows = _rows(units, outputs, mlp.width, concatenated=getattr(module, "is_concatenated", True))
        index: Index = (expert, slice(None), rows) if transposed else (expert, rows)
        entries.append((parameters[name], index))
        if f"{name}_bias" in parameters:
            entries.append((parameters[f"{name}_bias"], (expert, rows)))
    return entries


def _rows(units: Tensor, outputs: int, width: int, *, concatenated: bool) -> Tensor:
    """Rows of a map that compute the units: one each, or two where gate and up are one map."""
    if outputs == width:
        return units
    return torch.cat([units, units + width] if concatenated else [2 * units, 2 * units + 1])


def _transposed(module: nn.Module, hidden: int) -> bool:
    """Whether the experts' weights are stored (E, in, out)."""
    down = module.get_parameter("down_proj")
    if down.shape[1] != down.shape[2]:
        return int(down.shape[2]) == hidden
    fused = dict(module.named_parameters(recurse=False)).get("gate_up_proj")
    if fused is not None and fused.shape[1] != fused.shape[2]:
        return int(fused.shape[1]) == hidden
    return bool(getattr(module, "is_transposed", False))


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if type(layer) is not nn.Linear:
        raise ModelError(
            f"{name} is a {type(layer).__name__}, expected a plain linear layer; load the model without "
            "quantisation, and merge an adapter into it first"
        )
    return layer
