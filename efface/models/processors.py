"""Loading processors with the same pixels on every machine, and checking that they fit their model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ModelError
from efface.models.anatomy import image_token_id
from efface.models.chat_template import add_system_turn, check_rendering, freeze_date, set_arguments
from efface.models.source import Source, base_of, loading_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_processor(source: Source) -> ProcessorMixin:
    """The model's processor, with chat template, system turn and padding token of the source.

    An adapter's folder may hold a processor, only a tokenizer, or neither; its base model supplies the rest.
    Pictures are resized by Pillow whether or not torchvision is installed: the two differ in the last bits,
    and a model must see the same pixels on every machine.

    Raises:
        ModelError: if it cannot be loaded, has no image processor, a token or file does not exist, or its
            template writes no system turn and the source has one.
    """
    base, folder = base_of(source), Path(source.id)
    complete = any((folder / name).is_file() for name in _PROCESSOR_FILES)
    processor = _read(source if base is source or complete else base)
    if base is not source and not complete and (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        try:
            processor.tokenizer = AutoTokenizer.from_pretrained(source.id)
        except Exception as error:  # every tokenizer raises errors of its own
            raise loading_error(source, error) from error
        processor.chat_template = processor.tokenizer.chat_template or processor.chat_template
    _apply_template(processor, source)
    _set_padding(processor, source)
    return processor


def check_processor(model: PreTrainedModel, processor: ProcessorMixin, *, new_tokens: bool = False) -> None:
    """Refuse a processor that was made for another model.

    Args:
        model: the model or its meta model.
        processor: its processor.
        new_tokens: whether an adapter will give the model embeddings for more tokens.

    Raises:
        ModelError: saying what does not match.
    """
    kind = type(processor).__name__
    remedy = "load both from one checkpoint, or copy the model's own processor files into its folder"
    embeddings = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    largest = max(processor.tokenizer.get_vocab().values())
    if largest >= embeddings and not new_tokens:
        raise ModelError(
            f"{kind} does not belong to the model: its tokens go up to {largest}, the model has "
            f"{embeddings} embeddings; {remedy}"
        )
    expected, ids = image_token_id(model), _image_token_ids(processor)
    if expected is not None and ids and expected not in ids:
        raise ModelError(
            f"{kind} does not belong to the model: its picture token has the id {ids[0]}, the model's "
            f"{expected}; {remedy}"
        )
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    side = getattr(processor, "patch_size", None) or getattr(processor.image_processor, "patch_size", None)
    # Aya Vision's processor stores the side of a picture token, which is several patches.
    factor = getattr(model.config, "downsample_factor", 1)
    if isinstance(size, int) and isinstance(side, int) and side not in (size, size * factor):
        raise ModelError(
            f"{kind} does not belong to the model: it cuts patches of {side} pixels, the model of {size}; "
            f"{remedy}"
        )


def _image_token_ids(processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that a processor writes for a picture."""
    tokenizer = processor.tokenizer
    ids = [
        getattr(tokenizer, "image_token_id", None),
        getattr(processor, "image_token_id", None),
        *getattr(processor, "image_token_ids", []),
    ]
    if isinstance(patch := getattr(processor, "img_patch_token", None), str):  # Llama 4
        ids.append(tokenizer.convert_tokens_to_ids(patch))
    return [number for number in ids if isinstance(number, int)]


def _read(source: Source) -> ProcessorMixin:
    from transformers import AutoImageProcessor, AutoProcessor

    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(source.id, **options)
        images = getattr(processor, "image_processor", None)
        if images is not None and not type(images).__name__.endswith("Pil"):
            processor.image_processor = AutoImageProcessor.from_pretrained(
                source.id, backend="pil", **options
            )
    except Exception as error:  # tokenizers and image processors each raise errors of their own
        raise loading_error(source, error) from error
    if images is None and getattr(processor, "video_processor", None) is not None:
        raise ModelError(
            f"{source.id} has a {type(processor).__name__}, which reads videos and no pictures; choose a "
            "model that reads pictures"
        )
    if images is None or getattr(processor, "tokenizer", None) is None:
        raise ModelError(
            f"{source.id} has a {type(processor).__name__} that does not read pictures and text; expected "
            "the model's own processor: copy its preprocessor and tokenizer files into the model's folder"
        )
    return processor


def _apply_template(processor: ProcessorMixin, source: Source) -> None:
    if source.chat_template is not None:
        path = Path(source.chat_template)
        if not path.is_file():
            raise ModelError(f"chat_template is {source.chat_template!r}: no such file; correct the path")
        processor.chat_template = path.read_text(encoding="utf-8")
    elif processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    if processor.chat_template is None:
        if source.system is not None or source.template_arguments:
            key = "template_arguments" if source.system is None else "system"
            raise ModelError(
                f"`base.{key}` is set and {source.id} has no chat template; set `base.chat_template` to a "
                "file with a Jinja template"
            )
        return
    freeze_date(processor)
    check_rendering(processor)
    if source.template_arguments:
        set_arguments(processor, source.template_arguments)
    if source.system is not None and not add_system_turn(processor, source.system):
        raise ModelError(
            f"the chat template of {source.id} writes no system turn before questions with a picture, and "
            f"`base.system` is {source.system!r}; set it to null, or set `base.chat_template` to a template "
            "of your own that contains these words"
        )


def _set_padding(processor: ProcessorMixin, source: Source) -> None:
    tokenizer = processor.tokenizer
    if source.pad_token is not None:
        if source.pad_token not in tokenizer.get_vocab():
            raise ModelError(f"pad_token is {source.pad_token!r}: expected a token of {source.id}")
        tokenizer.pad_token = source.pad_token
    elif tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer of {source.id} has no padding token, so samples of different length cannot share "
            f"a batch; set `base.pad_token` to one of its tokens, such as {tokenizer.eos_token!r}"
        )
