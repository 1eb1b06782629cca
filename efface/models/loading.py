"""Loading and saving multimodal LLMs as Hugging Face folders."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ModelError
from efface.models.fitting import check_processor, prepare_processor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

POINTER = "model.json"
"""File of a model folder that holds no weights but says where they are."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with the processor that feeds it.

    Attributes:
        model: the multimodal LLM.
        processor: tokenizer, image processor and chat template in one.
        source: the folder or hub id it came from.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    source: str


@dataclass(frozen=True)
class Source:
    """Where a model is, and how to load it.

    Attributes:
        id: a Hub id, or a local folder: of a model, or of a LoRA adapter.
        revision: branch, tag or commit on the Hub; None for the main branch.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        attention: attention implementation (``sdpa``, ``eager``, ``flash_attention_2``); ``auto`` takes
            flash attention where it is installed and can run; None leaves the choice to transformers (sdpa).
        device_map: how to spread the weights over devices, as ``auto``; None puts them all on one.
        quantization: ``4bit`` or ``8bit`` weights of linear layers, for training LoRA adapters on them; None
            for none.
        chat_template: file with a Jinja template, for a model that has none.
        system: words of a system turn before every question; None for what the template does by itself.
        pad_token: token of the tokenizer's that pads, for a tokenizer that has none.
        trust_remote_code: whether code that comes with the model may run here.
    """

    id: str
    revision: str | None = None
    dtype: str = "auto"
    attention: str | None = None
    device_map: str | None = None
    quantization: str | None = None
    chat_template: str | None = None
    system: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False


def load_model(
    source: str | Path | Source,
    *,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
    **options: Any,
) -> LoadedModel:
    """Load a multimodal LLM and its processor from a folder or a hub id.

    Args:
        source: a folder written by ``save_pretrained`` (in one file or in shards), the folder of a LoRA
            adapter (merged into its base model), a hub id, or a ``Source``. A folder holding only
            ``model.json`` points on to a hub id and revision.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        device: where the weights go; None picks the GPU when there is one.
        attention: attention implementation, such as ``sdpa``; None leaves the choice to transformers.
        options: the other fields of ``Source``.

    Raises:
        ModelError: if the model is missing, incomplete or damaged, is no multimodal LLM, or its processor
            does not belong to it; with what to do.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = resolve(source)
    given = {"dtype": None if dtype == "auto" else dtype, "attention": attention, **options}
    where = replace(where, **{key: value for key, value in given.items() if value is not None})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    base = base_of(where)
    model = _weights(base, device)
    if base is not where:
        if where.quantization is not None:
            raise ModelError(
                f"an adapter cannot be merged into {where.quantization} weights; load it without"
            )
        model = merge_adapter(model, where.id)
    has_own = (Path(where.id) / "processor_config.json").is_file()
    processor = prepare_processor(where if has_own else base)
    check_processor(model, processor)
    return LoadedModel(model=model.eval(), processor=processor, source=where.id)


def resolve(source: str | Path | Source) -> Source:
    """Where a model is: the source itself, or what the folder's ``model.json`` points to.

    Raises:
        ModelError: if a path holds no model.
    """
    if isinstance(source, Source):
        return source
    folder = Path(source)
    if (folder / POINTER).is_file():
        record = json.loads((folder / POINTER).read_text())
        unknown = set(record) - {field.name for field in fields(Source)}
        if unknown:
            raise ModelError(f"{folder / POINTER} has an unknown key {min(unknown)!r}; make it again")
        if record.get("chat_template"):
            record["chat_template"] = str(folder / record["chat_template"])
        return Source(**record)
    whole = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
    if isinstance(source, Path) and not whole:
        raise ModelError(
            f"{folder} is not a model folder: expected config.json, model weights and processor files; "
            "make it with `dvc repro`, or restore it with `dvc checkout`"
        )
    return Source(str(source))


def write_pointer(source: Source, folder: Path) -> None:
    """Write a model folder that holds no weights but says where they are, and a copy of the chat template."""
    if source.chat_template is not None:
        template = Path(source.chat_template)
        (folder / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        source = replace(source, chat_template=template.name)
    record = {key: value for key, value in asdict(source).items() if value is not None}
    (folder / POINTER).write_text(json.dumps(record, indent=2) + "\n")


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write model and processor as one Hugging Face folder that the auto classes load."""
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


def cannot_load(source: Source, error: Exception) -> ModelError:
    """Why a model or processor does not load, and what to do."""
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    advice = "if the pipeline made it, restore it with `dvc checkout` or rebuild it with `dvc repro`"
    if "trust_remote_code" in str(error):
        advice = "it brings its own code: read that code, then set `base.trust_remote_code: true`"
    elif any(word in str(error) for word in ("torchvision", "Torchvision", "num2words")):
        advice = "its processor needs more packages: pip install 'efface[families]' (see docs/models.md)"
    elif not Path(source.id).exists():
        advice = "check the id and revision on the Hub, the network, and your access (`hf auth login`)"
    return ModelError(
        f"{source.id} cannot be loaded as an image-text-to-text model with its processor "
        f"({type(error).__name__}: {reason}); {advice}"
    )


def _weights(source: Source, device: str | torch.device) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForImageTextToText

    common = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    options: dict[str, Any] = {"dtype": source.dtype, **common}
    attention = best_attention(source.dtype, device) if source.attention == "auto" else source.attention
    if attention is not None:
        options["attn_implementation"] = attention
    if source.device_map is not None:
        options["device_map"] = source.device_map
    if source.quantization is not None:
        options |= _quantized(source, device)
    try:
        config = AutoConfig.from_pretrained(source.id, **common)
        must_see_pictures(source, config)
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(source.id, **options)
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own kinds
        raise cannot_load(source, error) from error
    if "device_map" not in options:
        model.to(device)  # type: ignore[arg-type]  # wrapped by transformers in a way its types do not follow
    for module in model.modules():
        # Some processors' 4-bit layers pack their weights anew, in place, when first asked in evaluation
        # mode: training would find another layout afterwards, and narrow layers do not fit it at all.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module).update(support_avx512bf16_for_cpu=False)
    return model


def must_see_pictures(source: Source, config: Any) -> None:
    """Refuse the configuration of anything but a multimodal LLM."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        raise ModelError(
            f"{source.id} is a {config.model_type!r} model, which does not answer questions about pictures; "
            "choose a multimodal LLM (an image-text-to-text model such as llava-hf/llava-1.5-7b-hf)"
        )


def best_attention(dtype: str, device: str | torch.device) -> str | None:
    """``flash_attention_2`` where it is installed and can run (half precision on a GPU), else None (sdpa)."""
    import importlib.util

    installed = importlib.util.find_spec("flash_attn") is not None
    fits = dtype in ("bfloat16", "float16") and str(device).startswith("cuda")
    return "flash_attention_2" if installed and fits else None


def _quantized(source: Source, device: str | torch.device) -> dict[str, Any]:
    """Options that load weights in 4 or 8 bits; such weights cannot be trained, only adapters on them."""
    import importlib.util

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

    # It tells at every layer and step that 8-bit products round their inputs to half precision.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float32 if source.dtype == "float32" else torch.bfloat16,
        "bnb_4bit_use_double_quant": True,
    }
    config = BitsAndBytesConfig(**four) if kind == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": source.device_map or {"": str(device)}}


def base_of(source: Source) -> Source:
    """The model that a folder's LoRA adapter belongs to; the source itself if it holds no adapter.

    Raises:
        ModelError: if the adapter names no base model.
    """
    path = Path(source.id) / "adapter_config.json"
    if not path.is_file():
        return source
    record = json.loads(path.read_text())
    if not record.get("base_model_name_or_path"):
        raise ModelError(f"{path} names no base model; set base_model_name_or_path in it")
    return replace(source, id=str(record["base_model_name_or_path"]), revision=record.get("revision"))


def merge_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The model with a folder's LoRA adapter added to its weights.

    Raises:
        ModelError: if the adapter is damaged or belongs to another model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError, OSError) as error:
        raise cannot_load(Source(str(folder)), error) from error
