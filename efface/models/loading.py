"""Loading and saving multimodal LLMs as Hugging Face folders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin


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


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
) -> LoadedModel:
    """Load a multimodal LLM and its processor from a folder or a hub id.

    Args:
        source: a folder written by ``save_pretrained``, or a hub id. A folder holding only
            ``model.json`` points on to a hub id and revision.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        device: where the weights go; None picks the GPU when there is one.
        attention: attention implementation, such as ``sdpa``; None leaves the choice to transformers.

    Raises:
        ModelError: if the folder is missing, incomplete or damaged, with the way to restore it.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, revision = _resolve(source)
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
        processor = AutoProcessor.from_pretrained(source, revision=revision)
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own kinds
        raise ModelError(
            f"{source} cannot be loaded as an image-text-to-text model with its processor "
            f"({type(error).__name__}: {_first_line(error)}); if the pipeline made it, restore it with "
            "`dvc checkout` or rebuild it with `dvc repro`"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # wrapped by transformers in a way its types do not follow
    return LoadedModel(model=model.eval(), processor=processor, source=str(source))


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


def _resolve(source: str | Path) -> tuple[str, str | None]:
    folder = Path(source)
    pointer = folder / "model.json"
    if pointer.is_file():
        record = json.loads(pointer.read_text())
        return str(record["id"]), record.get("revision")
    if isinstance(source, Path) and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: expected config.json, model weights and processor files; "
            "make it with `dvc repro`, or restore it with `dvc checkout`"
        )
    return str(source), None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
