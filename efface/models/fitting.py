"""Processors: loading one with the same pixels everywhere, and checking that it belongs to its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import ModelError
from efface.models.anatomy import image_token_id
from efface.models.system_turn import add_system_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models.loading import Source


def prepare_processor(source: Source) -> ProcessorMixin:
    """The model's processor, with the chat template, system turn and padding token the source names.

    Pictures are resized by Pillow whether or not torchvision is installed: the two differ in the last bits,
    and a model must see the same pixels on every machine.

    Raises:
        ModelError: if it cannot be loaded, has no image processor, a token or file is not there, or its
            template writes no system turn and the source has one.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    from efface.models.loading import cannot_load

    options = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source.id, **options)
        images = getattr(processor, "image_processor", None)
        if images is not None and not type(images).__name__.endswith("Pil"):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                source.id, backend="pil", **options
            )
    except Exception as error:  # tokenizers and image processors each raise their own kinds
        raise cannot_load(source, error) from error
    if images is None or getattr(processor, "tokenizer", None) is None:
        raise ModelError(
            f"{source.id} has a {type(processor).__name__} that does not read pictures and text; expected "
            "the model's own processor: copy its preprocessor and tokenizer files into the model's folder"
        )
    _write_turns(processor, source)
    _pad(processor, source)
    return processor


def check_processor(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Refuse a processor that was made for another model.

    Raises:
        ModelError: saying what does not match.
    """
    embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    tokenizer = processor.tokenizer
    largest = max(tokenizer.get_vocab().values())
    kind = type(processor).__name__
    remedy = "load both from one checkpoint, or copy the model's own processor files into its folder"
    if largest >= embeddings:
        raise ModelError(
            f"{kind} does not belong to the model: its tokens go up to {largest}, the model has "
            f"{embeddings} embeddings; {remedy}"
        )
    expected = image_token_id(model)
    found = getattr(tokenizer, "image_token_id", None) or getattr(processor, "image_token_id", None)
    if expected is not None and found is not None and expected != found:
        raise ModelError(
            f"{kind} does not belong to the model: its picture token has the id {found}, the model's "
            f"{expected}; {remedy}"
        )
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    own = getattr(processor, "patch_size", None) or getattr(processor.image_processor, "patch_size", None)
    if isinstance(size, int) and isinstance(own, int) and size != own:
        raise ModelError(
            f"{kind} does not belong to the model: it cuts patches of {own} pixels, the model of {size}; "
            f"{remedy}"
        )


def _write_turns(processor: ProcessorMixin, source: Source) -> None:
    if source.chat_template is not None:
        path = Path(source.chat_template)
        if not path.is_file():
            raise ModelError(f"chat_template is {source.chat_template!r}: there is no such file")
        processor.chat_template = path.read_text(encoding="utf-8")
    elif processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    if source.system is None:
        return
    if processor.chat_template is None:
        raise ModelError(
            f"{source.id} has no chat template to write a system turn with; name a file with a Jinja "
            "template as `base.chat_template`"
        )
    if not add_system_turn(processor, source.system):
        raise ModelError(
            f"the chat template of {source.id} writes no system turn before questions with a picture, and "
            f"`base.system` is {source.system!r}; set it to null, or name a template of your own that has "
            "these words in the place you want as `base.chat_template`"
        )


def _pad(processor: ProcessorMixin, source: Source) -> None:
    tokenizer = processor.tokenizer
    if source.pad_token is not None:
        if source.pad_token not in tokenizer.get_vocab():
            raise ModelError(f"pad_token is {source.pad_token!r}, which is no token of {source.id}")
        tokenizer.pad_token = source.pad_token
    elif tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer of {source.id} has no padding token, so samples of different length cannot share "
            f"a batch; set `base.pad_token` to one of its tokens, such as {tokenizer.eos_token!r}"
        )
