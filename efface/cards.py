"""Model cards: what was forgotten, how, how well, and what that does not show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efface.pseudonyms import pseudonyms

if TYPE_CHECKING:
    from efface.evaluation.goals import Score

LIMITS = (
    "Not shown to be gone, only not shown to be there: facts may come back after further training or under "
    "attacks that were not tried.",
    "Numbers hold for the benchmark, questions and pictures named here.",
)
KEYED = (
    "HMAC-SHA256 of each person's id, with the key of this project's certificates: one person has one hash "
    "in both, and without the key nobody can tell who is meant."
)
PLAIN = (
    "The first 16 digits of the SHA-256 of each person's id, without a key: whoever guesses an id can check "
    "it here."
)


def model_card(
    name: str,
    *,
    method: str,
    people: Iterable[str],
    key: bytes | None,
    parameters: Mapping[str, Any],
    provenance: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Score]] | str,
    notes: Sequence[str] = (),
) -> str:
    """The card of an unlearned model, in Markdown with the metadata block of the Hugging Face Hub.

    Args:
        name: of the model.
        method: that made it.
        people: ids of the people it was to forget; they appear hashed.
        key: of their hashes; None: hashed without one, and the card says so.
        parameters: of the method.
        provenance: what it was made from: commit, digests, seed, versions.
        scores: model to goal to score, this model's and the yardsticks'; or where they will be, in words.
        notes: sentences below the scores.
    """
    ids = pseudonyms(people, key)
    listed = "\n".join(f"- `{identity}`" for identity in ids)
    how = PLAIN if key is None else KEYED
    blocks = [
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- machine-unlearning\n---",
        f"# {name}",
        f"A multimodal model made to forget {len(ids)} people by `{method}`.",
        "## Forgotten\n\n" + (f"{listed}\n\n{how}" if ids else "Nobody is on record."),
        "## Parameters\n\n" + _table(parameters),
        "## Scores\n\n" + "\n\n".join([scores if isinstance(scores, str) else _scores(scores), *notes]),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
        "## Provenance\n\n" + _table(provenance),
    ]
    return "\n\n".join(blocks) + "\n"


def _scores(scores: Mapping[str, Mapping[str, Score]]) -> str:
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
        return "Not on record."
    shown = {key: json.dumps(value, sort_keys=True) for key, value in sorted(values.items())}
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | `{value}` |" for key, value in shown.items())
