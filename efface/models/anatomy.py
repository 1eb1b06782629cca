"""Where the parts of a multimodal LLM are: its three groups of parameters and its MLP blocks.

Found from the structure of the module tree, not from names of families: the decoder is what the
model itself calls its decoder, the vision tower is the sibling that begins with a convolution over
pixels, and whatever stands between them is the projector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from efface.errors import ModelError

GROUPS = ("vision", "projector", "language")


@dataclass(frozen=True)
class MLP:
    """One MLP block. Its neurons are the input coordinates of ``down``.

    Attributes:
        name: module name of the block.
        tower: ``vision`` or ``language``.
        layer: index of the layer the block belongs to, from 0.
        width: number of neurons N.
        down: module name of the linear map from the N neurons back to the hidden state.
        up: module names of the linear maps that make the neurons (one, or gate and up).
    """

    name: str
    tower: str
    layer: int
    width: int
    down: str
    up: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """Parts of one model.

    Attributes:
        groups: parameter names of ``vision``, ``projector`` and ``language``; disjoint, and together
            every parameter of the model.
        mlps: the MLP blocks of vision tower and decoder, in the order of the module tree.
        maskable: names of the weights and biases of linear and convolutional layers, without the
            output head: the parameters a saliency mask may select.
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
                f"one or two "
                "linear layers up and one down around an activation"
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


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that turns pixels into patch features.

    Raises:
        ModelError: if there is none, or more than one candidate.
    """
    roots = _group_roots(model)
    return model.get_submodule(next(name for name, group in roots.items() if group == "vision"))


def _group_roots(model: nn.Module) -> dict[str, str]:
    """Module name -> group for the top of the vision tower and of the decoder; the rest is decided by
    ``_owner``."""
    get_decoder: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else None
    names = {id(module): name for name, module in model.named_modules()}
    if decoder is None or id(decoder) not in names or decoder is model:
        raise ModelError(
            f"{type(model).__name__} has no text decoder beside a vision tower; expected a multimodal LLM "
            f"such as LLaVA"
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
            "text-only models and models with two towers are not supported"
        )
    return {towers[0]: "vision", decoder_name: "language"}


def _owner(name: str, roots: dict[str, str]) -> str:
    for root, group in roots.items():
        if name.startswith(root + "."):
            return group
    parent = next(iter(roots)).rpartition(".")[0]
    # Beside the towers inside the multimodal model: projector. Outside it (the output head): language.
    return "projector" if parent and name.startswith(parent + ".") else "language"


def _find_mlps(model: nn.Module, roots: dict[str, str]) -> Iterator[MLP]:
    for name, module in model.named_modules():
        shape = _mlp_shape(module)
        if shape is None:
            continue
        up, down, width = shape
        yield MLP(
            name=name,
            tower=_owner(name + ".", roots),
            layer=layer_index(name) or 0,
            width=width,
            down=f"{name}.{down}",
            up=tuple(f"{name}.{part}" for part in up),
        )


def _mlp_shape(module: nn.Module) -> tuple[list[str], str, int] | None:
    """Names of the up and down maps and the number of neurons, if the module is an MLP block.

    An MLP block holds one or two maps H -> N, one map N -> H with N != H, no other linear layer, and
    an activation. Attention blocks have three or four maps and no activation.
    """
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    activation = any(
        not isinstance(child, nn.Linear) and not list(child.parameters()) for child in module.children()
    )
    if len(linears) not in (2, 3) or not activation:
        return None
    for name, down in linears.items():
        others = [child for other, child in linears.items() if other != name]
        widths = (down.out_features, down.in_features)
        if down.in_features != down.out_features and all(
            (o.in_features, o.out_features) == widths for o in others
        ):
            # With one map each way both could be "down"; the activation widens, so down narrows.
            if len(others) == 1 and down.in_features < down.out_features:
                continue
            return [other for other in linears if other != name], name, down.in_features
    return None


def _maskable(model: nn.Module) -> list[str]:
    get_head: Callable[[], nn.Module] | None = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    names = []
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            names += [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
    return names
