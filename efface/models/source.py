"""Where a model is and how to load it: Hub ids, folders, adapters, and folders that point to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from efface.errors import ModelError

POINTER = "model.json"
"""File of a model folder without weights, which says where the model is."""


@dataclass(frozen=True)
class Source:
    """Where a model is, and how to load it.

    Attributes:
        id: a Hub id, or the local folder of a model or LoRA adapter.
        revision: branch, tag or commit on the Hub; None for the main branch.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        attention: attention implementation (``sdpa``, ``eager``, ``flash_attention_2``); ``auto`` takes
            flash attention where it is installed and can run; None leaves the choice to transformers (sdpa).
        device_map: how to spread the weights over devices, such as ``auto``; None: all on one device.
        quantization: ``4bit`` or ``8bit`` weights of linear layers, for training LoRA adapters on them; None
            for none.
        chat_template: file with a Jinja template, for a model without one.
        template_arguments: variables of the chat template, such as ``{"enable_thinking": False}``.
        system: text of a system turn before every question; None: the template's own behaviour.
        pad_token: padding token, for a tokenizer without one.
        trust_remote_code: whether code that comes with the model may run. Only the caller can set it, not a
            model's folder.
    """

    id: str
    revision: str | None = None
    dtype: str = "auto"
    attention: str | None = None
    device_map: str | None = None
    quantization: str | None = None
    chat_template: str | None = None
    template_arguments: Mapping[str, Any] | None = None
    system: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False


def resolve(source: str | Path | Source) -> Source:
    """Where a model is: the source itself, or what the folder's ``model.json`` points to.

    Raises:
        ModelError: if a path holds no model, or its ``model.json`` has an unknown key.
    """
    if isinstance(source, Source):
        return source
    folder = Path(source)
    if (folder / POINTER).is_file():
        record = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        record.pop("trust_remote_code", None)  # a folder cannot decide that its code runs
        names = [field.name for field in fields(Source) if field.name != "trust_remote_code"]
        if unknown := sorted(set(record) - set(names)):
            raise ModelError(
                f"{folder / POINTER} has an unknown key {unknown[0]!r}; allowed: {', '.join(names)}"
            )
        if record.get("chat_template"):
            record["chat_template"] = str(folder / record["chat_template"])
        return Source(**record)
    complete = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
    if isinstance(source, Path) and not complete:
        raise ModelError(
            f"{folder} is not a model folder: expected config.json, model weights and processor files; "
            "rebuild or download the model again"
        )
    return Source(str(source))


def write_pointer(source: Source, folder: Path) -> None:
    """Write a model folder that points to a model elsewhere and holds its chat template, but no weights."""
    if source.chat_template is not None:
        template = Path(source.chat_template)
        (folder / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        source = replace(source, chat_template=template.name)
    record = {key: value for key, value in asdict(source).items() if value is not None}
    del record["trust_remote_code"]
    (folder / POINTER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def base_of(source: Source) -> Source:
    """The model that a folder's LoRA adapter belongs to; the source itself if it holds no adapter.

    Raises:
        ModelError: if the adapter names no base model.
    """
    path = Path(source.id) / "adapter_config.json"
    if not path.is_file():
        return source
    record = json.loads(path.read_text(encoding="utf-8"))
    if not record.get("base_model_name_or_path"):
        raise ModelError(f"{path} names no base model; set base_model_name_or_path in it")
    return replace(source, id=str(record["base_model_name_or_path"]), revision=record.get("revision"))


def loading_error(source: Source, error: Exception) -> ModelError:
    """Why a model or processor does not load, and what to do."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    advice = "if its files are missing or damaged, rebuild or download the model again"
    packages = _missing_packages(error)
    if packages:
        advice = f"install the missing packages: pip install {packages} (see docs/reference/models.md)"
    elif "trust_remote_code" in text:
        advice = (
            "it comes with its own code: read that code, then set `base.trust_remote_code: true` "
            "(load_model's `trust_remote_code`)"
        )
    elif not Path(source.id).exists() and (source.id.startswith(("/", ".", "~")) or source.id.count("/") > 1):
        advice = "no such folder: correct the path (for an adapter's base, in its adapter_config.json)"
    elif not Path(source.id).exists():
        advice = "check the id and revision on the Hub, the network, and your access (`hf auth login`)"
    return ModelError(
        f"{source.id} cannot be loaded as an image-text-to-text model with its processor "
        f"({type(error).__name__}: {reason}); {advice}"
    )


def _missing_packages(error: Exception) -> str | None:
    """The packages to install if the error says that some are missing."""
    text = str(error)
    if any(name in text.lower() for name in ("torchvision", "num2words", "timm")):
        return "'efface[families]'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    # transformers: "X requires the Y library but it was not found in your environment."
    for before, after in (("requires the ", " library"), ("not found in your environment: ", ". Run")):
        if before in text and after in text.partition(before)[2]:
            return text.partition(before)[2].partition(after)[0].replace(",", "").strip().lower()
    return None
