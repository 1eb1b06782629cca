"""Model cards: whom a model forgot, how, its scores, and what they do not show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efface.subject_hashes import subject_hashes

if TYPE_CHECKING:
    from efface.evaluation.goals import Score

_METADATA = (
    "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- machine-unlearning\n---\n\n"
)
_LIMITS = (
    "- The scores do not prove that facts are gone: they may come back after further training, or under "
    "attacks that were not run.\n"
    "- The numbers are valid for the benchmark, questions and pictures named here."
)
_KEYED = (
    "HMAC-SHA256 of each person's id with the secret salt of the project, as in its certificates. "
    "Without the salt nobody can check who is meant."
)
_PLAIN = (
    "The first 16 digits of the SHA-256 of each person's id, without a key: whoever guesses an id can verify "
    "it here."
)


def model_card(
    name: str,
    *,
    method: str,
    subjects: Iterable[str],
    key: bytes | None,
    parameters: Mapping[str, Any],
    provenance: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Score]] | str,
    notes: Sequence[str] = (),
) -> str:
    """The card of an unlearned model: Markdown with the metadata block of the Hugging Face Hub.

    Args:
        name: name of the model.
        method: the method that made it.
        subjects: ids of the people to forget; the card holds their hashes.
        key: key of the hashes; None: hashed without a key, which the card says.
        parameters: the method's parameters.
        provenance: commit, digests, seed, versions.
        scores: model to goal to score, for this model and the reference models; or a sentence instead.
        notes: sentences below the scores.
    """
    hashes = subject_hashes(subjects, key)
    rows = "\n".join(f"- `{digest}`" for digest in hashes)
    forgotten = f"{rows}\n\n{_PLAIN if key is None else _KEYED}" if hashes else "No person is recorded."
    blocks = [
        f"# {name}",
        f"A multimodal model made to forget {len(hashes)} people by `{method}`.",
        f"## Forgotten\n\n{forgotten}",
        f"## Parameters\n\n{_table(parameters)}",
        "## Scores\n\n" + "\n\n".join([scores if isinstance(scores, str) else _score_table(scores), *notes]),
        f"## Limits\n\n{_LIMITS}",
        f"## Provenance\n\n{_table(provenance)}",
    ]
    return _METADATA + "\n\n".join(blocks) + "\n"


def without_metadata(card: str) -> str:
    """A card without the metadata block, which only the Hugging Face Hub reads."""
    return card.removeprefix(_METADATA)


def _score_table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    lines = [
        "| model | goal | score | 95% | forget | text | retain | utility |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, goals in scores.items():
        for goal, score in goals.items():
            interval = "" if score.low is None else f"{score.low:.1f} to {score.high:.1f}"
            parts = " | ".join(f"{x:.2f}" for x in (score.forget, score.text, score.retain, score.utility))
            lines.append(f"| {model} | {goal} | {score.value:.1f} | {interval} | {parts} |")
    return "\n".join(lines)


def _table(values: Mapping[str, Any]) -> str:
    if not values:
        return "Not recorded."
    rows = (f"| {key} | `{json.dumps(value, sort_keys=True)}` |" for key, value in sorted(values.items()))
    return "| | |\n|---|---|\n" + "\n".join(rows)
