"""Tiny models of any type that transformers registers, by shrinking the default configuration of the type.

The values follow the names that configurations share; a type that needs others is not built.
"""

from __future__ import annotations

import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.models.tokens import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 2, 2, 600
LARGEST = 150_000_000
"""Weights of a tiny model at most."""
_SIZES: list[tuple[int, tuple[str, ...]]] = [
    (
        WIDTH,
        (
            "hidden_size",
            "d_model",
            "embed_dim",
            "hidden_dim",
            "n_embd",
            "dim",
            "projection_dim",
            "out_hidden_size",
            "output_dim",
            "vision_output_dim",
            "projector_input_dim",
            "projector_output_dim",
            "text_hidden_size",
            "vision_hidden_size",
            "encoder_hidden_size",
            "model_dim",
            "projector_hidden_size",
            "projection_hidden_size",
            "mm_hidden_size",
            "hidden_size_per_layer_input",
            "multimodal_hidden_size",
            "cross_attention_hidden_size",
            "fc_hidden_size",
            "visual_hidden_size",
            "out_dim",
        ),
    ),
    (
        48,
        (
            "intermediate_size",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "d_ff",
            "n_inner",
            "mlp_dim",
            "moe_intermediate_size",
            "intermediate_size_mlp",
            "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "alignment_intermediate_size",
        ),
    ),
    (
        LAYERS,
        (
            "num_hidden_layers",
            "num_layers",
            "depth",
            "n_layer",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "layers",
            "resampler_depth",
        ),
    ),
    (
        HEADS,
        (
            "num_attention_heads",
            "num_heads",
            "attention_heads",
            "n_head",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_key_value_heads",
            "heads",
            "resampler_n_heads",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "num_mm_kv_heads",
        ),
    ),
    (
        16,
        (
            "head_dim",
            "d_kv",
            "global_head_dim",
            "resampler_head_dim",
            "attention_head_size",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "q_lora_rank",
            "kv_lora_rank",
            "v_head_dim",
            "qk_nope_head_dim",
        ),
    ),
    (8, ("qk_rope_head_dim",)),
    (4, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")),
    (2, ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")),
    (1, ("n_group", "topk_group", "n_shared_experts", "num_nextn_predict_layers")),
    (24, ("num_query_tokens", "num_latents", "resampler_n_latents")),
    (512, ("max_position_embeddings", "n_positions", "max_seq_len")),
    (VOCABULARY, ("vocab_size", "vocab_size_per_layer_input")),
]
_SIZE_OF = {name: value for value, names in _SIZES for name in names}
_DEFAULT_PARTS = {"text_config": "llama", "vision_config": "siglip_vision_model"}


def tiny_config(kind: str) -> PreTrainedConfig:
    """The default configuration of a model type with a tiny value for every size whose name is common."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]()
    _shrink(config, itertools.count(VOCABULARY - 40))
    return config


def tiny_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A tiny untrained model, in evaluation mode.

    Raises:
        ValueError: if the configuration has sizes that were not made small.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        sizes = [p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters()]
    if sum(sizes) > LARGEST:
        raise ValueError(f"tiny sizes do not fit this type: {sum(sizes) // 10**6} million weights")
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()


def _shrink(config: Any, numbers: Any) -> None:
    """Give a configuration and those inside it tiny sizes, and special tokens ids of a tiny vocabulary."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    for name, part in getattr(config, "sub_configs", {}).items():
        if getattr(config, name, None) is None:
            default = _DEFAULT_PARTS.get(name)
            is_auto = part.__name__ == "AutoConfig"
            if is_auto and default is None:
                continue
            setattr(config, name, CONFIG_MAPPING[default]() if is_auto else part())
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value, numbers)
        elif name in _SIZE_OF and isinstance(value, int):
            setattr(config, name, _SIZE_OF[name])
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value > 10:
            setattr(config, name, next(numbers))
        elif name.endswith("token_id") and isinstance(value, list):
            setattr(config, name, [next(numbers)])
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and value:
            setattr(config, name, [value[0], value[-1]])
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "rope_type" in value:
            setattr(config, name, value | {"mrope_section": [2, 3, 3]})
        elif isinstance(value, list) and name.endswith(("indexes", "indices", "layers")):
            setattr(config, name, sorted({0, min(1, len(value) - 1)}) if value else value)
        elif name == "image_size":
            patch = getattr(config, "patch_size", 8)
            patch = patch[0] if isinstance(patch, list | tuple) else patch
            setattr(config, name, 4 * patch if isinstance(value, int) else [4 * patch] * len(value))
        elif name in ("mm_tokens_per_image", "image_seq_length"):
            setattr(config, name, 16)


def tiny_processor(config: PreTrainedConfig) -> ProcessorMixin:
    """The processor of a tiny model: its own class, a tokenizer with the special tokens that the class names.

    The configuration's picture token becomes the processor's.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    kind = PROCESSOR_MAPPING[type(config)]
    source = inspect.getsource(inspect.getmodule(kind))  # type: ignore[arg-type]  # a class has a module
    usual = {"pad_token", "bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token"}
    named = {name: f"<{name}>" for name in re.findall(r"tokenizer\.(\w+_token)\b", source)}
    tokenizer = build_tokenizer(
        sorted({"<image>", *re.findall(r'"(<[^"\s]{2,40}>)"', source)}),
        named={name: token for name, token in named.items() if name not in usual},
        size=VOCABULARY - 40,
    )
    classes = IMAGE_PROCESSOR_MAPPING[type(config)]
    image_class = classes.get("pil") or next(iter(classes.values()))
    images = image_class()
    vision = getattr(config, "vision_config", None)
    side = getattr(vision, "image_size", None)
    patch = getattr(vision, "patch_size", None)
    side, patch = (value[0] if isinstance(value, list | tuple) else value for value in (side, patch))
    sizes: dict[str, Any] = {}
    if isinstance(side, int):
        for name in ("size", "crop_size"):
            keys = {key for key, value in dict(getattr(images, name, None) or {}).items() if value}
            if keys:
                sizes[name] = dict.fromkeys(keys, side)
    if isinstance(patch, int) and isinstance(getattr(images, "patch_size", None), int):
        sizes["patch_size"] = patch
    for name in ("merge_size", "temporal_patch_size"):
        value = getattr(vision, name.replace("merge_size", "spatial_merge_size"), None)
        if hasattr(images, name) and isinstance(value, int):
            sizes[name] = value
    images = image_class(**sizes)
    options: dict[str, Any] = {"image_processor": images, "tokenizer": tokenizer}
    parameters = inspect.signature(kind.__init__).parameters
    if "video_processor" in parameters:
        options["video_processor"] = next(iter(VIDEO_PROCESSOR_MAPPING[type(config)].values()))()
    if "patch_size" in parameters and isinstance(patch, int):
        options["patch_size"] = patch
    if isinstance(side, int) and isinstance(patch, int):
        for name in ("image_seq_length", "image_seq_len", "num_image_tokens"):
            if name in parameters:
                options[name] = (side // patch) ** 2
    if "num_additional_image_tokens" in parameters:
        options |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    processor: ProcessorMixin = kind(**options)
    picture = Image.new("RGB", (64, 64))
    names = ("image_token", "boi_token", "fake_image_token")
    tokens = [token for name in names if isinstance(token := getattr(processor, name, None), str)]
    for token in [*tokens, "<image>"]:
        try:
            processor(text=[f"{token} Which"], images=[[picture]], return_tensors="pt")
        except Exception:  # noqa: BLE001  # each family refuses its own way
            continue
        break
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + token + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
        "</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    patch_token = getattr(processor, "img_patch_token", None)
    number = getattr(processor, "image_token_id", None) or tokenizer.convert_tokens_to_ids(token)
    if isinstance(patch_token, str):
        number = tokenizer.convert_tokens_to_ids(patch_token)
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, number)
    transformers.logging.set_verbosity_error()
    return processor
