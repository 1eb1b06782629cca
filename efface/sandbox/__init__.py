"""A real LLaVA small enough to train on a laptop: about a million weights, built offline.

Its classes are those of LLaVA-1.5 (CLIP vision tower, two-layer projector, Llama decoder, LlavaProcessor), so
a saved folder loads with the auto classes and runs through the same code as a 7B model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedConfig,
        PreTrainedTokenizerFast,
    )

IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = ["<pad>", "<unk>", "<s>", "</s>", IMAGE_TOKEN]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_WORD = re.compile(r"\w+|[^\w\s]+")


def build_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over every word of the corpus; a word outside it becomes ``<unk>``.

    Args:
        corpus: the texts that the model will read. Words are sorted before they get their ids, so the order
            of the corpus does not matter.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"USER", "ASSISTANT", ":"}
    for text in corpus:
        words.update(_WORD.findall(text))
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # No word has this decoder's "##" prefix: it is used for its spacing, with spaces between words and none
    # before punctuation.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="right",
        model_max_length=256,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int, patch_size: int
) -> LlavaProcessor:
    """LlavaProcessor for pictures of ``image_size`` pixels; each becomes (image_size / patch_size)^2
    tokens."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    patch_size: int,
    width: int,
    mlp_width: int,
    vision_layers: int,
    language_layers: int,
    heads: int,
) -> LlavaForConditionalGeneration:
    """Untrained LLaVA with the given shape, in float32, weights drawn from torch's global generator."""
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    # Transformers draws weights with a deviation of 0.02, meant for widths of thousands. In a model this
    # narrow, signals would fade from layer to layer, and learning would take several times as many steps.
    deviation = width**-0.5
    text = LlamaConfig(
        initializer_range=deviation,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=language_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    config = llava_config(
        text,
        image_token=tokenizer.vocab[IMAGE_TOKEN],
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        mlp_width=mlp_width,
        vision_layers=vision_layers,
        heads=heads,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model


def llava_config(
    text: PreTrainedConfig,
    *,
    image_token: int,
    image_size: int,
    patch_size: int,
    width: int,
    mlp_width: int,
    vision_layers: int,
    heads: int,
) -> LlavaConfig:
    """Configuration of a LLaVA with the sandbox's vision tower and the given decoder.

    Args:
        text: configuration of the decoder.
        image_token: id of the token that a patch replaces.
        image_size, patch_size: sizes of the vision tower, pixels.
        width, mlp_width, vision_layers, heads: shape of the vision tower.
    """
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=width,
        hidden_act="gelu",
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )
