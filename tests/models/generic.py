"""Tiny models of any type that transformers registers, by shrinking the default configuration of the type.

Sizes follow the words in a setting's name, processors are those that transformers names for the type, and
what both hold (sizes of patches, ids of tokens, number of tokens of a picture) is taken from one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

WIDTH, HEADS, LAYERS, VOCABULARY = 64, 2, 2, 600
LARGEST = 150_000_000
"""Weights of a tiny model at most."""
_SIDE = 4
"""Patches, after merging, along one side of a picture."""
_SIZES = (
    (r".*vocab_size|vocab_size_per_layer_input|num_embeddings", VOCABULARY),
    (r"(vision|visual|image)_hidden_size", WIDTH // 2),
    (r"qk_head_dim", 48),
    (r"base_channels", 32),
    (r"adapter_input_size", WIDTH),
    (r"qk_rope_head_dim|.*lora_rank|laurel_rank|rotary_dim", 16),
    (r".*head_dim|d_kv|resampler_dim_head|attention_head_size", WIDTH // HEADS),
    (r".*heads|n_head", HEADS),
    (r".*intermediate_size.*|.*ffn_dim|d_ff|mlp_dim|n_inner|share_expert_dim", 96),
    (r"num_local_experts|num_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts", 2),
    (r"n_groups?|topk_group|n_shared_experts|num_nextn_predict_layers|num_kv_shared_layers", 1),
    (r"num_query_tokens|num_latents|.*n_latents|latent_query_num", 16),
    (r"max_position_embeddings|n_positions|max_seq_len", 1024),
    (r"(projector|vision)_hidden_dim|.*hidden_size(_per_layer_input)?|d_model|n_embd|dim|embed_dim", WIDTH),
    (r".*(projection|input|output|in|out|model|hidden|embed|proj)_dim|output_channels", WIDTH),
)
_LAYERS = re.compile(
    r"num_(hidden_|encoder_|decoder_|global_)?layers|n_layers?|(en|de)coder_layers|layers|.*depth"
)
_VISION = (
    (r"hidden_size|embed_dim|d_model|width|adapter_in_dim", WIDTH // 2),
    (r"head_dim", WIDTH // 2 // HEADS),
)
WITHOUT_RULE: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {900: 256}},
    "chameleon": {
        "vq_config": {"num_embeddings": 8},
        "vocabulary_map": {
            "<image>": 4,
            **{f"IMGIMG{letter}Z": 500 + i for i, letter in enumerate("ABCDEFGH")},
        },
    },
    "cohere2_vision": {"vision_config": {"patch_size": 4, "image_size": 32}},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {"sam_config": {"downsample_channels": [64, 64], "image_size": 1024}},
    },
    "dots3_note": {"vision_config": {"temporal_patch_size": 1}},
    "emu3": {
        "vq_config": {"codebook_size": 8, "hidden_size": 128},
        "vocabulary_map": {"<image>": 4, "<|extra_200|>": 499}
        | {f"<|visual token {i:06d}|>": 500 + i for i in range(8)},
    },
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 768}},
    "gemma3n": {
        "vision_config": {"architecture": "mobilenetv5_base", "hidden_size": 2048},
        "vision_soft_tokens_per_image": 256,
    },
    "gemma4_unified": {"vision_config": {"output_proj_dims": WIDTH, "mm_embed_dim": WIDTH}},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64, "patch_size": 14, "image_size": 56},
        "deepstack_layer_map": [(-1, 0)],
        "spatial_target_layers": [0, 0, 1, 1],
        "downsample_rate": "1/2",
    },
    "kimi_k25": {"projection_hidden_size": WIDTH // 2},
    "kosmos-2.5": {"vision_config": {"patch_embed_hidden_size": 768, "max_patches": 64}},
    "llama4": {"vision_config": {"intermediate_size": 128}},
    "molmo2": {"adapter_config": {"hidden_size": WIDTH // 2}},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "nemotron_h_omni": {
        "image_token_id": VOCABULARY - 1,
        "vision_hidden_size": WIDTH,
        "vision_config": {"video_temporal_patch_size": 2},
    },
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": ""}
            | {"img_size": (448, 448), "patch_size": 32},
        },
        "projector_pooling_ratio": 2,
    },
    "shieldgemma2": {"architectures": ["ShieldGemma2ForImageClassification"]},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 16}},
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [64, 32]}}},
}
"""Settings that a type needs and its default configuration leaves out, or that follow from several others."""
_INDICES = re.compile(r".*(indexes|indices|idxs|_layers|layer_ids)")
_ALIASES = {
    "img_size": ("image_size",),
    "image_seq_length": ("mm_tokens_per_image", "vision_soft_tokens_per_image"),
}
"""What a processor calls otherwise than the configuration."""
_SEQUENCES = (
    "image_seq_length",
    "image_seq_len",
    "num_image_tokens",
    "num_query_tokens",
    "num_image_feature_size",
)
_USUAL_TOKENS = {"pad_token", "bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token"}


def tiny_config(kind: str) -> PreTrainedConfig:
    """The default configuration of a model type with a tiny value for every size."""
    from transformers import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[kind](), itertools.count(VOCABULARY - 40), WITHOUT_RULE.get(kind, {}))


def tiny_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A tiny untrained model, in evaluation mode.

    Raises:
        ValueError: if the configuration has sizes that were not made small.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    sizes = []
    with (
        contextlib.suppress(NotImplementedError, RuntimeError),
        torch.device("meta"),
    ):  # timm computes with values
        sizes = [p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters()]
    if sum(sizes) > LARGEST:
        raise ValueError(f"tiny sizes do not fit this type: {sum(sizes) // 10**6} million weights")
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()


def _shrunk(config: Any, numbers: Iterator[int], given: Mapping[str, Any]) -> Any:
    """A configuration built anew with tiny sizes, so that what it derives from them is tiny as well.

    Args:
        config: a configuration with default values.
        numbers: ids for special tokens.
        given: values that no rule gives, by name.
    """
    from transformers import PreTrainedConfig

    aliases = getattr(config, "attribute_map", {})
    values = {
        field.name: vars(config).get(field.name, vars(config).get(aliases.get(field.name, "")))
        for field in dataclasses.fields(config)
    }
    values |= {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    layers = _layers(values)
    usual = {f.name: f.default for f in dataclasses.fields(config) if f.init}
    tiny: dict[str, Any] = {  # a part may have other values here than in a model of its own
        name: value
        for name, value in values.items()
        if usual.get(name) is not None and value is not None and value != usual[name]
    }
    parts = {name: _shrunk(part, numbers, given.get(name, {})) for name, part in _parts(config, values)}
    tiny |= parts
    for name, value in values.items():
        if name == "head_dim" and value is None and "vision" not in config.model_type:
            tiny[name] = WIDTH // HEADS
        if isinstance(value, bool | PreTrainedConfig) or value is None:
            continue
        rules = (*_VISION, *_SIZES) if "vision" in config.model_type else _SIZES
        size = next((size for pattern, size in rules if re.fullmatch(pattern, name)), None)
        if name.endswith(("_id", "token_index")) and isinstance(value, int) and value > 10:
            tiny[name] = next(numbers)
        elif name.endswith(("token_id", "token_ids")) and isinstance(value, list | tuple):
            tiny[name] = [next(numbers) for _ in value]
        elif isinstance(value, int) and value > 0 and _LAYERS.fullmatch(name):
            tiny[name] = len(layers) or LAYERS
        elif isinstance(value, int) and size is not None and value > 0:
            tiny[name] = size
        elif isinstance(value, list | tuple) and re.fullmatch("vision_feature_layers?", name):
            tiny[name] = [LAYERS - 1] * len(value)
        elif isinstance(value, list | tuple) and layers and len(value) == _depth(values):
            tiny[name] = [value[i] for i in layers]
        elif isinstance(value, list | tuple) and size is not None:
            tiny[name] = [size] * len(value)
        elif isinstance(value, list | tuple) and value and _INDICES.fullmatch(name):
            tiny[name] = [LAYERS - 1]
        elif name in ("mm_tokens_per_image", "vision_soft_tokens_per_image"):
            tiny[name] = _SIDE**2
        elif name == "image_size":
            side = _SIDE * _step(config)
            tiny[name] = side if isinstance(value, int) else [side] * len(value)
    tiny |= _rotary(config, tiny)
    tiny |= {name: value for name, value in given.items() if name not in parts}
    try:
        return type(config)(**tiny)
    except (TypeError, AttributeError):  # some take the parts as dictionaries only
        return type(config)(**tiny | {name: part.to_dict() for name, part in parts.items()})


def _parts(config: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Configurations inside one, by name; defaults where the type leaves one out."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            yield name, value
    usual = {"text_config": "llama", "vision_config": "siglip_vision_model"}
    for name, part in getattr(config, "sub_configs", {}).items():
        if values.get(name) is None:
            if part.__name__ != "AutoConfig":
                yield name, part()
            elif name in usual:
                yield name, CONFIG_MAPPING[usual[name]]()


def _depth(values: Mapping[str, Any]) -> int:
    return next((values[n] for n in ("num_hidden_layers", "depth") if isinstance(values.get(n), int)), 0)


def _layers(values: Mapping[str, Any]) -> list[int]:
    """Indices of a few layers that have every kind of layer among them; empty if the type names no kinds."""
    depth = _depth(values)
    lists = [v for v in values.values() if isinstance(v, list | tuple) and v and len(v) == depth]
    kinds = [v for v in lists if not isinstance(v[0], float)]
    if not kinds:
        return []
    layers: list[int] = []
    for i in range(depth):
        if any(
            value[i] not in [value[j] for j in layers] for value in kinds if not isinstance(value[i], float)
        ):
            layers.append(i)
    return sorted({*layers, depth - 1} | ({0, 1} if len(layers) < LAYERS else set()))


def _step(config: Any) -> int:
    """Pixels along one side of what becomes one token of a picture."""
    patch = getattr(config, "patch_size", None) or 8
    merge = getattr(config, "spatial_merge_size", None) or 1
    return int(_first(patch)) * int(_first(merge))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


def _rotary(config: Any, tiny: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings whose sections (time, height, width) fit the tiny heads; equal ones stay equal."""
    rope = vars(config).get("rope_parameters")
    kinds = list(tiny.get("layer_types", vars(config).get("layer_types") or []))
    if not rope and kinds and "rope_parameters" in vars(config):
        return {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in kinds}}
    code = _code_of(type(config), "modeling_")
    if not isinstance(rope, dict) or "rope_type" not in rope or "rope_section" not in code:
        return {}
    in_code = re.search(r'rope_section", \[(\d+), (\d+), (\d+)\]', code)
    width = tiny.get("head_dim", WIDTH // HEADS) * rope.get("partial_rotary_factor", 1.0)
    sections = rope.get("mrope_section") or ([*map(int, in_code.groups())] if in_code else [16, 24, 24])
    twin = next((s for s in sections if sections.count(s) > 1), sections[-1])
    half = int(width) // 2
    size = max(1, round(twin * half / sum(sections)))
    rest = half - size * sections.count(twin)
    others = len(sections) - sections.count(twin)
    scaled = [size if s == twin else rest // max(1, others) for s in sections]
    return {"rope_parameters": rope | {"mrope_section": scaled}}


def _code_of(kind: type, prefix: str) -> str:
    """Source of the modules beside a class whose names begin in one way."""
    folder = Path(inspect.getfile(kind)).parent
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{prefix}*.py")))


def tiny_processor(config: PreTrainedConfig) -> ProcessorMixin:
    """The processor of a tiny model: its own class, a tokenizer with the special tokens that the class names.

    Ids of special tokens in the configuration become the processor's.

    Raises:
        ValueError: if transformers names no processor of pictures and text for the type.
    """
    import transformers
    from transformers.models.auto import (
        feature_extraction_auto,
        image_processing_auto,
        processing_auto,
        video_processing_auto,
    )

    transformers.logging.set_verbosity_error()
    kind = _registered(processing_auto.PROCESSOR_MAPPING_NAMES, config)
    class_names = re.findall(r"^class (\w+Processor)\(", _code_of(type(config), "processing_"), re.MULTILINE)
    kind = getattr(transformers, class_names[0]) if class_names else kind
    if kind is None:
        raise ValueError("transformers names no processor for this type")
    source = inspect.getsource(inspect.getmodule(kind))  # type: ignore[arg-type]  # a class has a module
    names = {*re.findall(r"tokenizer\.(\w+_token)\b", source)}
    names |= {*re.findall(r"""getattr\(tokenizer, "(\w+_token)\"""", source)}
    names -= set(re.findall(r"""hasattr\(tokenizer, "(\w+)"\)""", source))  # it brings a token of its own
    named = {name: f"<{name}>" for name in sorted(names)}
    quoted = re.findall(r"""["']([<\[|\]][^"'\s{}]{1,40}[>\]|\[])["']""", source)
    tokenizer = build_tokenizer(
        sorted({"<image>", *quoted}),
        named={name: token for name, token in named.items() if name not in _USUAL_TOKENS},
        size=VOCABULARY - 40,
    )
    options: dict[str, Any] = {}
    arguments = inspect.signature(kind.__init__).parameters
    names = [name for name in arguments if name not in ("self", "kwargs", "args")]
    registries = {
        "image_processor": image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
        "video_processor": video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES,
        "feature_extractor": feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
    }
    for name in names:
        if name in registries:
            part = _registered(registries[name], config, near=kind)
            options[name] = None if part is None else _with_sizes(part, config)
            if part is None and name == "feature_extractor":  # for sounds: any will do
                options[name] = transformers.WhisperFeatureExtractor()
        elif name.endswith("tokenizer"):
            options[name] = tokenizer
        elif isinstance(value := _setting(config, name), int | str | list) and not name.endswith("_token"):
            options[name] = _first(value) if name == "patch_size" else value
        elif name in _ALIASES:
            values = [value for alias in _ALIASES[name] if isinstance(value := _setting(config, alias), int)]
            options |= {name: values[0]} if values else {}
    if options.get("image_processor") is None:
        raise ValueError("transformers names no image processor for this type")
    if "num_additional_image_tokens" in names and "clip" in _setting(config, "model_type"):
        options["num_additional_image_tokens"] = 1  # the class token
    for name, value in (("patch_size", 32), ("vision_feature_select_strategy", "default")):
        if name in names and arguments[name].default is None:
            options.setdefault(name, value)
    processor: ProcessorMixin = kind(**options)
    for name in re.findall(r"config\.(\w+_token_id)\b", _code_of(type(config), "modeling_")):
        if not hasattr(config, name):  # only checkpoints have it
            setattr(config, name, VOCABULARY - 1)
    _give_ids(config, processor)
    return processor


def _registered(names: Mapping[str, Any], config: Any, *, near: type | None = None) -> Any:
    """The class that transformers takes for a type, or for the types that its code is derived from.

    Args:
        names: type -> name of a class, or backend -> name of a class.
        config: configuration of the type.
        near: a class whose module's type is looked up next.
    """
    import transformers

    kinds = [config.model_type, Path(inspect.getfile(type(config))).parent.name]
    kinds += re.findall(r"^from \.\.(\w+)\.", _code_of(type(config), "modular_"), re.MULTILINE)
    kinds[2:2] = [near.__module__.split(".")[-2]] if near is not None else []
    for kind in kinds:
        for spelling in (kind, kind.replace("_", "-"), kind.replace("-", "_")):
            name = names.get(spelling)
            if isinstance(name, dict):
                backends = ["torchvision"] * transformers.utils.is_torchvision_available() + ["pil", *name]
                name = next(name[backend] for backend in backends if name.get(backend))
            name = _first(name)
            if name is not None:
                return getattr(transformers, name)
    return None


def _setting(config: Any, name: str) -> Any:
    """The value of a setting, of the vision tower before the whole model before other parts; else None."""
    from transformers import PreTrainedConfig

    parts = [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    if name.startswith("high_res_"):  # a second tower
        return _setting(vars(config).get("high_res_vision_config", config), name.removeprefix("high_res_"))
    parts.sort(key=lambda part: "vision" not in type(part).__name__.lower())
    for part in [*parts[:1], config, *parts[1:]]:
        value = part.__dict__.get(name, getattr(part, name, None))
        if value is not None:
            return value
    return None


def _with_sizes(kind: Any, config: PreTrainedConfig) -> Any:
    """A part of a processor, with the sizes of pictures and patches that the configuration has."""
    try:
        default = kind()
    except TypeError:
        return None
    values = {name: _setting(config, name) for name in vars(default)}
    sizes = {name: value for name, value in values.items() if isinstance(value, int | list | tuple)}
    sizes = {k: _first(v) if isinstance(getattr(default, k), int) else v for k, v in sizes.items()}
    if getattr(default, "overlap_margins", None):
        sizes["overlap_margins"] = [1, 1]
    sizes = {k: v for k, v in sizes.items() if type(v) is type(getattr(default, k)) and "image_m" not in k}
    merge = _setting(config, "spatial_merge_size")
    if isinstance(getattr(default, "merge_size", None), int) and isinstance(_first(merge), int):
        sizes["merge_size"] = _first(merge)
    side, high = (_first(_setting(config, name)) for name in ("image_size", "high_res_image_size"))
    patches = _SIDE * int(_first(_setting(config, "patch_size") or 8)) * int(_first(merge or 1))
    for name in ("size", "crop_size", "high_res_size"):
        size = getattr(default, name, None)
        keys = {key for key, value in dict(size or {}).items() if value}
        if keys and max(size[key] for key in keys) > 10_000:  # counts of pixels
            sizes[name] = dict.fromkeys(keys, patches**2)
        elif keys and isinstance(side, int):
            sizes[name] = dict.fromkeys(keys, high if "high" in name else side)
    for name in ("min_pixels", "max_pixels"):
        if isinstance(getattr(default, name, None), int):
            sizes[name] = patches**2
    part = kind(**sizes)
    if isinstance(patch := _first(_setting(config, "patch_size")), int) and isinstance(
        getattr(part, "patch_size", None), int
    ):
        part.patch_size = patch
    if hasattr(default, "vision_patch_size") and isinstance(side, int):  # what it calls a patch is a tile
        part.patch_size = side
    return part


def _give_ids(config: Any, processor: ProcessorMixin) -> None:
    """Let the configuration and its parts name special tokens by the ids of the processor's tokenizer."""
    from transformers import PreTrainedConfig

    tokenizer = processor.tokenizer
    for name in [*vars(config)]:
        value = vars(config)[name]
        if isinstance(value, PreTrainedConfig):
            _give_ids(value, processor)
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            stem = name.rpartition("_token_")[0]
            number = getattr(processor, f"{stem}_token_id", None)
            token = getattr(processor, f"{stem}_token", None) or getattr(tokenizer, f"{stem}_token", None)
            if stem == "image" and isinstance(patch := getattr(processor, "img_patch_token", None), str):
                number = tokenizer.convert_tokens_to_ids(patch)
            if not isinstance(number, int) and isinstance(token, str):
                number = tokenizer.convert_tokens_to_ids(token)
            if isinstance(number, int):
                setattr(config, name, number)
        elif isinstance(value, dict) and "<image>" in value:
            value["<image>"] = processor.image_token_id


def fit_processor(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Give a processor the chat template with which the model reads a picture; changed in place.

    The token that a processor expects for a picture is not named alike in all of them, nor is the number of
    tokens that it writes for one: both are tried.
    """
    import torch

    from efface.encoding.forward import model_inputs

    picture = Image.new("RGB", (64, 64), (90, 120, 30))
    placeholders, accepted = _placeholders(processor), list[str]()
    while placeholders:
        token = placeholders.pop(0)
        counts: list[int | None] = [None]
        while counts:
            count = counts.pop(0)
            for name in _SEQUENCES if count is not None else ():
                if isinstance(getattr(processor, name, None), int):
                    setattr(processor, name, count)
            try:
                inputs = processor(text=[f"{token} Which"], images=[picture], return_tensors="pt")
                accepted.append(token)
                _name_picture_token(model.config, inputs["input_ids"][0].tolist())
                with torch.no_grad():
                    model(**model_inputs(model, dict(inputs)))
            except Exception as error:  # noqa: BLE001  # each family refuses its own way
                said = re.search(r"(?:features:?|value tensor of shape \[)\s*(\d+)", str(error))
                if said is not None and count is None:  # of features, or of their numbers
                    counts = [int(said[1]), int(said[1]) // WIDTH]
                    placeholders += [token * int(said[1])] if token == "<image>" else []
            else:
                processor.chat_template = _template(token)
                return
    processor.chat_template = _template(next(iter(accepted), "<image>"))


def _placeholders(processor: ProcessorMixin) -> list[str]:
    """What may stand for a picture in a prompt, the likeliest first."""
    names = ("image_token", "boi_token", "fake_image_token", "img_token", "image_placeholder", "image_tag")
    tokens = [token for name in names if isinstance(token := getattr(processor, name, None), str)]
    around = [
        [getattr(processor, name.format(end), None) for end in ("start", "end")]
        for name in ("vision_{}_token", "image_{}_token")
    ]
    framed = [f"{start}{tokens[0]}{end}" for start, end in around if start and end and tokens]
    return [*dict.fromkeys([*framed, *tokens, "<image>", ""])]


def _name_picture_token(config: Any, ids: list[int]) -> None:
    """Where a prompt has no token that the configuration calls a picture's, take the most frequent one."""
    number = max(set(ids), key=ids.count)
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if hasattr(config, name) and getattr(config, name) not in ids:
            setattr(config, name, number)


def _template(token: str) -> str:
    return (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + token + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
        "</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
