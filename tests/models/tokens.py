"""A word-level tokenizer with the special tokens a family's processor looks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WORD = re.compile(r"\w+|[^\w\s]+")
CORPUS = (
    "USER ASSISTANT User Assistant user assistant system model : . ? Which colour does this person like "
    "red green blue white and You are a helpful Ada Ben Cleo Dan Eve Finn Stone Field Marsh Brook Hill Lake "
    "answer en"
)
"""Every word that the prompts, questions and answers of tests and benchmarks use."""


def build_tokenizer(
    special: Sequence[str] = (),
    *,
    named: dict[str, str] | None = None,
    bos: str | None = "<s>",
    eos: str = "</s>",
    pad: str = "<pad>",
    corpus: Iterable[str] = (CORPUS,),
    size: int = 0,
) -> PreTrainedTokenizerFast:
    """Tokenizer whose words are those of the corpus.

    Args:
        special: special tokens besides padding, unknown, begin and end.
        named: attribute name -> special token, for tokens the processor reads by name (``image_token``).
        bos: begin token, put before every text; None for families that have none.
        eos: end token.
        pad: padding token.
        corpus: texts.
        size: least number of entries; made-up words fill the rest.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    named = named or {}
    specials = list(dict.fromkeys([pad, "<unk>", *([bos] if bos else []), eos, *special, *named.values()]))
    words = sorted({word for text in corpus for word in _WORD.findall(text)})
    entries = [*specials, *words]
    entries += [f"filler{i}" for i in range(size - len(entries))]
    vocabulary = {word: index for index, word in enumerate(entries)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, vocabulary[bos])]
        )
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token="<unk>",
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=named,
        model_max_length=4096,
    )
    built.add_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return built
