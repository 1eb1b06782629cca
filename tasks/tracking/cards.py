"""Model cards of the unlearned models, with their scores: they are made with the report, when scores are
known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.artifacts import writing
from tasks.runtime.results import Record

if TYPE_CHECKING:
    from efface.report.scorecard import Line, Scorecard

YARDSTICKS = ("vanilla", "retrained")


def write_cards(
    folder: Path,
    models: Mapping[str, str],
    records: Iterable[Record],
    splits: Mapping[str, Any],
    card: Scorecard,
    key: bytes | None,
) -> list[Path]:
    """Write ``<folder>/<model>.md`` for every model that an unlearn or prune stage made.

    Args:
        folder: replaced as a whole.
        models: name in the report to folder under data/models.
        records: run records of the stages.
        splits: who is in which split.
        card: the scores.
        key: that ids are hashed with; None: none.
    """
    from efface.cards import model_card

    lines = {line.model: line for line in card.lines}
    scores = {name: line.scores for name, line in lines.items() if line.scores}
    made = {record.name: record for record in records if record.stage in ("unlearn", "prune")}
    written = []
    with writing(folder) as partial:
        partial.mkdir()
        for model, place in models.items():
            record = made.get(Path(place).name)
            if record is None or not place.startswith("unlearned/"):
                continue
            shown = {name: scores[name] for name in (*YARDSTICKS, model) if name in scores}
            text = model_card(
                model,
                method=str(record.name),
                people=splits["entities"]["forget"],
                key=key,
                parameters=record.content.get("params") or {},
                provenance=_provenance(record.content),
                scores=shown or "The score is refused: " + " ".join(card.refused.values()),
                notes=_notes(lines[model]),
            )
            (partial / f"{model}.md").write_text(text, encoding="utf-8")
            written.append(folder / f"{model}.md")
    return written


def _notes(line: Line) -> list[str]:
    """What stands beside the score: can it be told who was forgotten, and what do attacks bring back?"""
    privacy = attacks = "not available"
    if line.auc is not None and line.auc_gap is not None:
        privacy = f"AUC {line.auc:.2f}, {line.auc_gap:.2f} from the retrained model's"
    if line.attack_gap is not None:
        attacks = f"{line.attack_gap:+.2f} exact match from the retrained model after what brings back most"
    return [f"Membership inference: {privacy}.", f"Attacks: {attacks}."]


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("git_commit", "seed", "started", "device", "inputs", "outputs", "versions")
    return {key: content[key] for key in keys if content.get(key) is not None}
