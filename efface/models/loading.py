"""Loading and saving multimodal LLMs as Hugging Face folders."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ModelError
from efface.models.processors import check_processor, load_processor
from efface.models.source import Source, base_of, loading_error, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForCausalLM",
    "AutoModel",
)


# Tensors in checkpoints that no model needs: buffers that are recomputed, additions of training libraries,
# and pre-training heads of vision towers. transformers ignores others, by family.
_NEEDLESS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|position_ids|num_batches_tracked|masked_bias|_extra_state)$"
    r"|(^|\.)vision_(tower|model|encoder)\.(.+\.)?(head|attn_?pool|pooler|classifier)\."
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with the processor that feeds it.

    Attributes:
        model: the multimodal LLM.
        processor: tokenizer, image processor and chat template.
        source: the folder or Hub id that it came from.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    source: str


def load_model(
    source: str | Path | Source,
    *,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a multimodal LLM and its processor from a folder or a Hub id.

    Args:
        source: a folder written by ``save_pretrained`` (in one file or in shards), the folder of a LoRA
            adapter (merged into its base model), a Hub id, or a ``Source``. A folder that holds only
            ``model.json`` points to a Hub id and revision.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        device: device of the weights; None picks the GPU if there is one.
        attention: attention implementation, such as ``sdpa``; None leaves the choice to transformers.
        options: the other fields of ``Source``.

    Raises:
        ModelError: if the model is missing, incomplete or damaged, is not a multimodal LLM, or its processor
            does not belong to it.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    overrides = {"dtype": None if dtype == "auto" else dtype, "attention": attention, **options}
    where = replace(resolve(source), **{k: value for k, value in overrides.items() if value is not None})
    base = base_of(where)
    if base is not where and where.quantization is not None:
        raise ModelError(
            f"quantization is {where.quantization!r} and {where.id} is an adapter, which cannot be merged "
            "into quantised weights; set quantization to null"
        )
    config = load_config(base)
    processor = load_processor(where)
    model = _load_weights(base, config, device or default_device())
    if base is not where:
        model = merge_adapter(model, where.id, tokens=len(processor.tokenizer))
    check_processor(model, processor)
    return LoadedModel(model=model.eval(), processor=processor, source=where.id)


def default_device() -> str:
    """The GPU if there is one, else the processor."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write model and processor as one Hugging Face folder that the auto classes load."""
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None:  # its last padding would be saved too, and differ in a resumed run
        tokenizer.no_padding()
        tokenizer.no_truncation()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def weights_digest(model: PreTrainedModel) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, independent of file format."""
    import torch

    total = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        data = parameter.detach().cpu().contiguous()
        total.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def merge_adapter(model: PreTrainedModel, folder: str | Path, *, tokens: int = 0) -> PreTrainedModel:
    """The model with a folder's LoRA adapter added to its weights, all of which can train.

    Args:
        model: the adapter's base model; changed in place.
        folder: the adapter.
        tokens: number of tokens of its tokenizer; if the model has fewer embeddings, the adapter must hold
            the others.

    Raises:
        ModelError: if the adapter is damaged, or its weights are not those that the model expects.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    source = Source(str(folder))
    try:
        config = PeftConfig.from_pretrained(str(folder))
        saved = load_peft_weights(str(folder), device="cpu")
        embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        if tokens > embeddings:
            if not any("embed" in key and len(value) >= tokens for key, value in saved.items()):
                raise ModelError(
                    f"the tokenizer of {folder} has {tokens} tokens, its base model {embeddings} embeddings, "
                    "and the adapter holds none for the rest; save it with PEFT's "
                    "save_embedding_layers=True, or use the tokenizer of the base model"
                )
            # The adapter replaces the whole embedding, so the initial values of new rows do not matter.
            model.resize_token_embeddings(tokens, mean_resizing=False)
        wrapped = PeftModel(model, config)
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        keys = wrapped.load_adapter(str(folder), "default", key_mapping=mapping)
    except ModelError:
        raise
    except (ValueError, RuntimeError, OSError, TypeError, KeyError) as error:
        raise loading_error(source, error) from error
    _refuse(
        f"the adapter {folder} does not fit its base model",
        {
            "lacks weights of": keys.missing_keys,
            "has unknown weights:": keys.unexpected_keys,
        },
        "train it on this base model, or correct base_model_name_or_path in its adapter_config.json",
    )
    merged: PreTrainedModel = wrapped.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    for parameter in merged.parameters():  # PEFT freezes the base model
        parameter.requires_grad_(parameter.is_floating_point())
    _refuse_non_finite(source, merged)
    return merged


def best_attention(dtype: str, device: str | torch.device) -> str | None:
    """``flash_attention_2`` where it is installed and can run (half precision on a GPU), else None (sdpa)."""
    installed = importlib.util.find_spec("flash_attn") is not None
    fits = dtype in ("bfloat16", "float16") and str(device).startswith("cuda")
    return "flash_attention_2" if installed and fits else None


def load_config(source: Source) -> PreTrainedConfig:
    """The model's configuration.

    Raises:
        ModelError: if it cannot be read, its weights are quantised, or it is not that of a multimodal LLM.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source.id, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # every family's configuration raises errors of its own
        raise loading_error(source, error) from error
    auto_class(source, config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{source.id} has quantised weights (quantization_config in its config.json: {method}), which "
            "cannot be trained, measured or merged with an adapter; choose the checkpoint with full weights, "
            "which `quantization` can load in 4bit or 8bit for LoRA"
        )
    return config


def auto_class(source: Source, config: PreTrainedConfig) -> Any:
    """The auto class of transformers that loads a multimodal LLM of this configuration.

    Raises:
        ModelError: if the configuration is that of a text-only model, or of a model that does not generate.
    """
    import transformers

    if hasattr(config, "thinker_config"):
        raise ModelError(
            f"{source.id} is a {config.model_type!r} model, several models in one; save the one that answers "
            "as a checkpoint of its own (its `thinker`, with the processor) and name that"
        )
    text = config.get_text_config()
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise ModelError(
            f"{source.id} is a {config.model_type!r} model with encoder and decoder ({text.model_type!r}): "
            "its answers do not continue their prompt; choose a decoder-only model such as "
            "llava-hf/llava-1.5-7b-hf"
        )
    if hasattr(config, "canvas_length"):
        raise ModelError(
            f"{source.id} is a {config.model_type!r} model, which writes text by diffusion, not token after "
            "token; choose a model that continues its prompt, such as llava-hf/llava-1.5-7b-hf"
        )
    classifiers = [name for name in config.architectures or [] if name.endswith("Classification")]
    if classifiers:
        raise ModelError(
            f"{source.id} is a {classifiers[0]}, which classifies and does not write answers; choose the "
            "image-text-to-text model that it was made from"
        )
    remote = getattr(config, "auto_map", None) or {}
    values = config.to_dict()
    sees = _has_vision(values)
    reads_pictures = sees or any("image" in key for key in values)  # without a tower: Fuyu, Chameleon
    for name in _AUTO_CLASSES:
        mapping = getattr(transformers, name)._model_mapping
        registered = name != "AutoModel" and type(config) in mapping
        writes = registered and mapping[type(config)].can_generate()
        if name in remote or (writes and (reads_pictures if name == "AutoModelForImageTextToText" else sees)):
            return getattr(transformers, name)
    raise ModelError(
        f"{source.id} is a {config.model_type!r} model, which does not answer questions about pictures; "
        "choose a multimodal LLM (an image-text-to-text model such as llava-hf/llava-1.5-7b-hf)"
    )


def _has_vision(config: dict[str, Any]) -> bool:
    """Whether a configuration has one of a vision tower inside."""
    parts = {key: value for key, value in config.items() if isinstance(value, dict)}
    return any("vision" in key or "image" in key or _has_vision(value) for key, value in parts.items())


def _load_weights(source: Source, config: PreTrainedConfig, device: str | torch.device) -> PreTrainedModel:
    attention = best_attention(source.dtype, device) if source.attention == "auto" else source.attention
    options: dict[str, Any] = {
        "dtype": source.dtype,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }
    if attention is not None:
        options["attn_implementation"] = attention
    if source.device_map is not None:
        options["device_map"] = source.device_map
    if source.quantization is not None:
        options |= _quantized(source, device)
    reports = logging.getLogger("transformers.modeling_utils")
    disabled = reports.disabled
    reports.disabled = True  # a page about misfits, before the error that names them
    try:
        model, keys = auto_class(source, config).from_pretrained(
            source.id, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # transformers, safetensors and tokenizers each raise errors of their own
        raise loading_error(source, error) from error
    finally:
        reports.disabled = disabled
    mismatched = [f"{key} {tuple(saved)} for {tuple(shape)}" for key, saved, shape in keys["mismatched_keys"]]
    unknown = [name for name in keys["unexpected_keys"] if not _NEEDLESS.search(name)]
    remedy = (
        "the checkpoint is damaged or incomplete, or its config.json belongs to another one: rebuild or "
        "download it again"
    )
    if not (keys["missing_keys"] or mismatched):
        remedy += (
            "; if the model answers correctly without them, save it without them: "
            "AutoModelForImageTextToText.from_pretrained(...).save_pretrained(...)"
        )
    _refuse(
        f"{source.id} does not fit a {type(model).__name__}",
        {
            "lacks weights:": keys["missing_keys"],
            "has unknown weights:": unknown,
            "has weights of another shape:": mismatched,
        },
        remedy,
    )
    _refuse_non_finite(source, model)
    if "device_map" not in options:
        model.to(device)
    for module in model.modules():
        # On some processors 4-bit layers repack their weights in place in their first evaluation: training
        # would then see another layout, which does not fit narrow layers at all.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module).update(support_avx512bf16_for_cpu=False)
    return model


def _refuse(what: str, problems: dict[str, Iterable[str]], remedy: str) -> None:
    """Raise an error that names the faulty weights, if there are any."""
    clauses = []
    for problem, names in problems.items():
        if names := sorted(names):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            clauses.append(f"{problem} {', '.join(names[:5])}{more}")
    if clauses:
        raise ModelError(f"{what}: it {'; it '.join(clauses)}; {remedy}")


def _refuse_non_finite(source: Source, model: PreTrainedModel) -> None:
    """Refuse weights that are NaN or infinite."""
    import torch

    names = [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.device.type != "meta" and not bool(torch.isfinite(p).all())
    ]
    _refuse(
        f"{source.id} cannot be used",
        {"has weights that are NaN or infinite:": names},
        "the checkpoint is damaged, or its training failed: rebuild or download it again",
    )


def _quantized(source: Source, device: str | torch.device) -> dict[str, Any]:
    """Options that load weights in 4 or 8 bits, on which only adapters can be trained."""
    kind = source.quantization
    if kind not in ("4bit", "8bit"):
        raise ModelError(f"quantization is {kind!r}: expected 4bit or 8bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"loading in {kind} needs bitsandbytes (pip install 'efface[quantization]'); without it set "
            "quantization to null"
        )
    import torch
    from transformers import BitsAndBytesConfig

    # It warns at every layer and step that 8-bit products round their inputs to half precision.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float32 if source.dtype == "float32" else torch.bfloat16,
        "bnb_4bit_use_double_quant": True,
    }
    config = BitsAndBytesConfig(**four) if kind == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": source.device_map or {"": str(device)}}
