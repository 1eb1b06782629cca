"""Where the parts of a multimodal LLM are: its three groups of parameters and its MLP blocks.

Found from the structure of the module tree, not from names of families: the decoder is what the
model itself calls its decoder, the vision tower is the sibling that begins with a convolution over
pixels, and whatever stands between them is the projector. Some families keep the projector inside the
vision tower, after its layers: it is told by its output, which has the decoder's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from efface.errors import ModelError
from efface.models.blocks import expert_shape, mlp_shape

GROUPS = ("vision", "projector", "language")
# Weights of linear maps that a family keeps as bare parameters; structure cannot tell them from tables.
_BARE_LINEAR = ("mm_input_projection_weight",)  # Gemma 3's projector


@dataclass(frozen=True)
class MLP:
    """One MLP block. Its neurons are the input coordinates of ``down``.

    Attributes:
        name: module name of the block; of an expert whose weights are stacked with those of others, the
            name of the experts' module and the expert's number.
        tower: ``vision`` or ``language``.
        layer: index of the layer the block belongs to, from 0.
        width: number of neurons N.
        down: module name of the linear map from the N neurons back to the hidden state.
        up: module names of the linear maps that make the neurons: one, or gate and up, or one with 2 N
            outputs that makes both.
        expert: index of a stacked expert, whose ``down`` and ``up`` name parameters with an axis of experts
            before the others; None for all other blocks.
    """

    name: str
    tower: str
    layer: int
    width: int
    down: str
    up: tuple[str, ...]
    expert: int | None = None


@dataclass(frozen=True)
class Anatomy:
    """Parts of one model.

    Attributes:
        groups: parameter names of ``vision``, ``projector`` and ``language``; disjoint, and together
            every parameter of the model.
        mlps: the MLP blocks of vision tower and decoder, in the order of the module tree.
        maskable: names of the weights and biases of linear and convolutional layers, stacked experts
            included, without the output head: the parameters a saliency mask may select.
    """

    groups: dict[str, list[str]]
    mlps: list[MLP]
    maskable: list[str]

    def group_of(self, parameter: str) -> str:
        """Group a parameter belongs to.

        Raises:
            ModelError: if the model has no parameter of that name.
        """
        for group, names in self.groups.items():
            if parameter in names:
                return group
        raise ModelError(f"the model has no parameter {parameter!r}")


def anatomy(model: nn.Module) -> Anatomy:
    """Find the vision tower, projector, decoder and MLP blocks of a multimodal LLM.

    Raises:
        ModelError: if the model has no decoder, no vision tower, more than one candidate for it, or
            a tower without MLP blocks.
    """
    roots = _group_roots(model)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, _ in model.named_parameters():
        groups[_owner(name, roots)].append(name)
    mlps = [mlp for mlp in _find_mlps(model, roots) if mlp.tower != "projector"]
    for tower in ("vision", "language"):
        if not any(mlp.tower == tower for mlp in mlps):
            raise ModelError(
                f"no MLP block found in the {tower} part of {type(model).__name__}: expected modules with "
                "one or two linear layers up and one down around an activation; this architecture is not "
                "supported"
            )
    return Anatomy(groups=groups, mlps=mlps, maskable=_maskable(model))


def layer_index(name: str) -> int | None:
    """First number in a dotted module or parameter name, or None: ``a.layers.3.mlp`` gives 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def has_class_token(tower: nn.Module) -> bool:
    """Whether a vision tower puts a class token before its patch tokens."""
    return any(
        name.split(".")[-1] in ("class_embedding", "cls_token") for name, _ in tower.named_parameters()
    )


def image_token_id(model: nn.Module) -> int | None:
    """Id of the token that stands for a picture or a part of one; None if the model has none."""
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index")
    return next((int(getattr(config, n)) for n in names if getattr(config, n, None) is not None), None)


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that turns pixels into patch features.

    Raises:
        ModelError: if there is none, or more than one candidate.
    """
    roots = _group_roots(model)
    return model.get_submodule(next(name for name, group in roots.items() if group == "vision"))


def _group_roots(model: nn.Module) -> dict[str, str]:
    """Module name -> group: the vision tower, the decoder, and projectors inside the tower. The rest is
    decided by ``_owner``."""
    get_decoder: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    can_generate: Callable[[], bool] = getattr(model, "can_generate", lambda: True)
    decoder = get_decoder() if get_decoder is not None and can_generate() else None
    names = {id(module): name for name, module in model.named_modules()}
    if decoder is None or id(decoder) not in names or decoder is model:
        raise ModelError(
            f"{type(model).__name__} has no text decoder beside a vision tower; expected a multimodal LLM "
            "such as LLaVA, not a language model or a pair of encoders such as CLIP"
        )
    decoder_name = names[id(decoder)]
    parent = model.get_submodule(decoder_name.rpartition(".")[0])
    towers = [
        names[id(child)]
        for child in parent.children()
        if child is not decoder and any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in child.modules())
    ]
    if len(towers) != 1:
        found = ", ".join(towers) if towers else "none"
        raise ModelError(
            f"expected exactly one vision tower beside the decoder of {type(model).__name__}, found {found}; "
            "text-only models and models with two towers are not supported: choose a model that reads "
            "pictures with one tower"
        )
    inside = dict.fromkeys(_projectors_inside(model, towers[0], _hidden_size(model)), "projector")
    return {towers[0]: "vision", decoder_name: "language"} | inside


def _hidden_size(model: nn.Module) -> int:
    """Width of the decoder's hidden state; 0 if it has no embedding."""
    get_embeddings: Callable[[], nn.Module] | None = getattr(model, "get_input_embeddings", None)
    weight = getattr(get_embeddings() if get_embeddings else None, "weight", None)
    return int(weight.shape[-1]) if weight is not None else 0


def _projectors_inside(model: nn.Module, tower: str, hidden: int) -> Iterator[str]:
    """Parts of the tower after its stack of layers that end in the decoder's width (Qwen's mergers)."""
    children = list(model.get_submodule(tower).named_children())
    stacks = [i for i, (_, child) in enumerate(children) if _is_stack(child)]
    for name, child in children[stacks[0] + 1 :] if stacks else []:
        linears = [m for m in child.modules() if isinstance(m, nn.Linear)]
        pools = any(isinstance(m, nn.MultiheadAttention) for m in child.modules())
        if linears and not pools and linears[-1].out_features == hidden:
            yield f"{tower}.{name}"


def _is_stack(module: nn.Module) -> bool:
    """Whether the module is, or directly holds, a list of layers with MLP blocks."""
    lists = [m for m in (module, *module.children()) if isinstance(m, nn.ModuleList)]
    return any(mlp_shape(part) for layers in lists for part in layers.modules())


def _owner(name: str, roots: dict[str, str]) -> str:
    """Group of what lies under the longest matching root."""
    under = [root for root in roots if name.startswith(root + ".")]
    if under:
        return roots[max(under, key=len)]
    parent = next(iter(roots)).rpartition(".")[0]
    # Beside the towers inside the multimodal model: projector. Outside it (the output head): language.
    return "projector" if parent and name.startswith(parent + ".") else "language"


def _find_mlps(model: nn.Module, roots: dict[str, str]) -> Iterator[MLP]:
    hidden = _hidden_size(model)
    for name, module in model.named_modules():
        shape = mlp_shape(module) or expert_shape(module, hidden)
        if shape is None:
            continue
        for expert in [None] if shape.experts is None else range(shape.experts):
            yield MLP(
                name=name if expert is None else f"{name}.{expert}",
                tower=_owner(name + ".", roots),
                layer=layer_index(name) or 0,
                width=shape.width,
                down=f"{name}.{shape.down}",
                up=tuple(f"{name}.{part}" for part in shape.up),
                expert=expert,
            )


def _maskable(model: nn.Module) -> list[str]:
    get_head: Callable[[], nn.Module] | None = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    hidden = _hidden_size(model)
    names = []
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        if module is not head and (linear or expert_shape(module, hidden) is not None):
            names += [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
        else:
            own = (part for part, _ in module.named_parameters(recurse=False))
            names += [f"{name}.{part}" for part in own if part in _BARE_LINEAR]
    return names
