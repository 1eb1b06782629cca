"""The parts of a multimodal LLM: its three groups of parameters and its MLP blocks.

The vision tower is the encoder that transformers names for images, or the only sibling of the decoder that
begins with a convolution over pixels. What is beside tower and decoder is the projector. In some families the
projector is inside the tower, after its layers: its output has the width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from efface.errors import ModelError
from efface.models.mlps import MLP, expert_shape, mlp_shape

GROUPS = ("vision", "projector", "language")
# Weights of linear maps that are bare parameters, which their structure does not distinguish from tables.
_BARE_LINEAR = ("mm_input_projection_weight",)  # Gemma 3's projector


@dataclass(frozen=True)
class Anatomy:
    """Parts of one model.

    Attributes:
        groups: parameter names of ``vision``, ``projector`` and ``language``; disjoint, and together
            every parameter of the model. Other modalities (audio) count as ``projector``.
        mlps: the MLP blocks of vision tower and decoder, in the order of the module tree, without those in
            ``unused``; none for a tower whose blocks have another structure.
        maskable: the parameters that a saliency mask may select: names of weights and biases of linear and
            convolutional layers, including stacked experts, without the output head and ``unused``.
        unused: names of the layers whose output is never read, such as the last layer of a vision tower that
            is read at its last layer but one. Changing them changes no answer.
    """

    groups: dict[str, list[str]]
    mlps: list[MLP]
    maskable: list[str]
    unused: tuple[str, ...] = ()

    def group_of(self, parameter: str) -> str:
        """The group that a parameter belongs to.

        Raises:
            ModelError: if the model has no parameter of that name.
        """
        for group, names in self.groups.items():
            if parameter in names:
                return group
        raise ModelError(f"the model has no parameter {parameter!r}")

    def require_mlps(self) -> list[MLP]:
        """The MLP blocks, for work on neurons.

        Raises:
            ModelError: if the vision tower or the decoder has none.
        """
        for tower in ("vision", "language"):
            if not any(mlp.tower == tower for mlp in self.mlps):
                raise ModelError(
                    f"the {tower} part of this model has no MLP block with one or two linear layers up and "
                    "one down around an activation, so neurons cannot be measured or pruned; use a method "
                    "that trains weights, such as npo"
                )
        return self.mlps


def anatomy(model: nn.Module) -> Anatomy:
    """Find the vision tower, projector, decoder and MLP blocks of a multimodal LLM.

    Raises:
        ModelError: if the model has no decoder, no vision tower, or more than one candidate for it.
    """
    roots = _group_roots(model)
    tower = _vision_root(roots)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    head = _output_head(model)
    for name, _ in model.named_parameters():
        groups[_group_of(name, roots, head)].append(name)
    unused = tuple(_unused_layers(model, tower))
    mlps = [
        mlp
        for mlp in _find_mlps(model, roots, head)
        if mlp.tower != "projector" and not _is_under(mlp.name, unused)
    ]
    maskable = [name for name in _maskable(model) if not _is_under(name, unused)]
    return Anatomy(groups=groups, mlps=mlps, maskable=maskable, unused=unused)


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that turns pixels into patch features.

    Raises:
        ModelError: if there is none, or more than one candidate.
    """
    return model.get_submodule(_vision_root(_group_roots(model)))


def layer_index(name: str) -> int | None:
    """First number in a dotted module or parameter name, or None: ``a.layers.3.mlp`` gives 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def has_class_token(tower: nn.Module) -> bool:
    """Whether a vision tower puts a class token before its patch tokens."""
    return any(
        name.split(".")[-1] in ("class_embedding", "cls_token") for name, _ in tower.named_parameters()
    )


def image_token_id(model: nn.Module) -> int | None:
    """Id of the token that represents a picture or a part of one; None if the model has none."""
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index", "media_placeholder_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def decoder_of(model: nn.Module) -> nn.Module | None:
    """The text decoder inside a multimodal LLM; None if transformers names none."""
    get_decoder: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    can_generate: Callable[[], bool] = getattr(model, "can_generate", lambda: True)
    decoder = get_decoder() if get_decoder is not None and can_generate() else None
    return None if decoder is model else decoder


def _group_roots(model: nn.Module) -> dict[str, str]:
    """Module name -> group: the decoder, the vision tower, and projectors inside and beside the tower.

    If several of these names contain a module, the longest decides; ``_group_of`` handles all others.
    """
    decoder = decoder_of(model)
    names = {id(module): name for name, module in model.named_modules()}
    if decoder is None or id(decoder) not in names:
        raise ModelError(
            f"{type(model).__name__} has no text decoder beside a vision tower; expected a multimodal LLM "
            "such as LLaVA, not a language model or a pair of encoders such as CLIP"
        )
    language = names[id(decoder)]
    tower = _named_encoder(model, names, language) or _convolutional_sibling(model, language)
    if _contains(language, tower):  # a language model that has the tower inside one of its children
        child = tower.removeprefix(f"{language}.").partition(".")[0]
        roots = {language: "language", f"{language}.{child}" if language else child: "projector"}
    else:
        parent = _common_parent(tower, language)
        tower, language = (_child_towards(parent, name) for name in (tower, language))
        roots = {parent: "projector"} if parent else {}
        roots |= {language: "language"}
    inside = dict.fromkeys(_projectors_inside(model, tower, _hidden_size(model)), "projector")
    return roots | {tower: "vision"} | inside


def _named_encoder(model: nn.Module, names: dict[int, str], language: str) -> str | None:
    """Name of the module that transformers calls the image encoder, if it is part of the model."""
    get_encoder: Callable[..., nn.Module] | None = getattr(model, "get_encoder", None)
    if get_encoder is None:
        return None
    try:
        encoder = get_encoder(modality="image")
    except (TypeError, ValueError, AttributeError):  # code that comes with a model has older signatures
        return None
    name = names.get(id(encoder), "")
    usable = bool(name) and encoder is not model and not _contains(name, language)
    return name if usable and next(encoder.parameters(), None) is not None else None


def _convolutional_sibling(model: nn.Module, language: str) -> str:
    """Name of the only module with a convolution beside the decoder or, if there is none, inside it."""
    parent = language.rpartition(".")[0]
    beside = _convolutional_children(model, parent)
    towers = [name for name in beside if name != language] or _convolutional_children(model, language)
    if len(towers) != 1:
        raise ModelError(
            f"expected exactly one vision tower beside the decoder of {type(model).__name__}, got "
            f"{', '.join(towers) or 'none'}; use a method without a mask (such as npo), or choose a model "
            "that reads pictures with one tower"
        )
    return towers[0]


def _convolutional_children(model: nn.Module, parent: str) -> list[str]:
    return [
        f"{parent}.{name}" if parent else name
        for name, child in model.get_submodule(parent).named_children()
        if any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in child.modules())
    ]


def _contains(root: str, name: str) -> bool:
    """Whether a module is another one or inside it."""
    return name == root or root == "" or name.startswith(f"{root}.")


def _is_under(name: str, roots: tuple[str, ...]) -> bool:
    return any(_contains(root, name) for root in roots)


def _common_parent(one: str, two: str) -> str:
    parts = []
    for a, b in zip(one.split("."), two.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)


def _child_towards(parent: str, name: str) -> str:
    """Name of the parent's child that is or contains a module."""
    rest = name.removeprefix(f"{parent}.") if parent else name
    child = rest.partition(".")[0]
    return f"{parent}.{child}" if parent else child


def _vision_root(roots: dict[str, str]) -> str:
    return next(name for name, group in roots.items() if group == "vision")


def _hidden_size(model: nn.Module) -> int:
    """Width of the decoder's hidden state; 0 if it has no embedding."""
    get_embeddings: Callable[[], nn.Module] | None = getattr(model, "get_input_embeddings", None)
    try:
        weight = getattr(get_embeddings() if get_embeddings else None, "weight", None)
    except NotImplementedError:
        return 0
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


def _output_head(model: nn.Module) -> str | None:
    get_head: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return next((name for name, module in model.named_modules() if module is head and name), None)


def _group_of(name: str, roots: dict[str, str], head: str | None) -> str:
    """Group of a module or parameter: that of the longest root that contains it."""
    under = [root for root in roots if _contains(root, name)]
    if under:
        return roots[max(under, key=len)]
    # Outside all roots: beside the multimodal model (the output head), or in a flat model beside its towers.
    flat = all("." not in root for root, group in roots.items() if group != "projector")
    return "projector" if flat and not (head and _contains(head, name)) else "language"


def _find_mlps(model: nn.Module, roots: dict[str, str], head: str | None) -> Iterator[MLP]:
    hidden = _hidden_size(model)
    for name, module in model.named_modules():
        shape = mlp_shape(module) or expert_shape(module, hidden)
        if shape is None:
            continue
        for expert in [None] if shape.experts is None else range(shape.experts):
            yield MLP(
                name=name if expert is None else f"{name}.{expert}",
                tower=_group_of(name, roots, head),
                layer=layer_index(name) or 0,
                width=shape.width,
                down=f"{name}.{shape.down}",
                up=tuple(f"{name}.{part}" for part in shape.up),
                expert=expert,
            )


def _maskable(model: nn.Module) -> list[str]:
    head = _output_head(model)
    hidden = _hidden_size(model)
    names = []
    for name, module in model.named_modules():
        parameters = [part for part, _ in module.named_parameters(recurse=False)]
        linear = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        if name == head or not (linear or expert_shape(module, hidden) is not None):
            parameters = [part for part in parameters if part in _BARE_LINEAR]
        names += [f"{name}.{part}" for part in parameters]
    return names


def _unused_layers(model: nn.Module, tower: str) -> Iterator[str]:
    """Layers after the last that is read (LLaVA's ``vision_feature_layer``), and heads that pool patches.

    A decoder reads patch features, so SigLIP's attention-pooling head is unused.
    """
    for name, module in model.get_submodule(tower).named_modules():
        if any(isinstance(child, nn.MultiheadAttention) for child in module.children()) and name:
            yield f"{tower}.{name}"
    config: Any = getattr(model, "config", None)
    read = getattr(config, "vision_feature_layer", None) or getattr(config, "vision_feature_layers", None)
    stacks = [
        (f"{tower}.{name}", module)
        for name, module in model.get_submodule(tower).named_modules()
        if isinstance(module, nn.ModuleList) and _is_stack(module)
    ]
    if read is None or not stacks:
        return
    name, layers = stacks[0]
    indices = [read] if isinstance(read, int) else list(read)
    # Entry 0 of the hidden states is the input of the first layer, entry i the output of layer i - 1.
    used = max(index if index >= 0 else len(layers) + 1 + index for index in indices)
    for index in range(used, len(layers)):
        yield f"{name}.{index}"
