"""Model cards of the unlearned models, with their scores: they are made with the report, when scores are
known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import writing
from tasks.results import Record

if TYPE_CHECKING:
    from efface.report.scorecard import Scorecard

YARDSTICKS = ("vanilla", "retrained")


def write_cards(
    folder: Path,
    models: Mapping[str, str],
    records: Iterable[Record],
    splits: Mapping[str, Any],
    card: Scorecard,
) -> list[Path]:
    """Write ``<folder>/<model>.md`` for every model that an unlearn or prune stage made.

    Args:
        folder: replaced as a whole.
        models: name in the report to folder under data/models.
        records: run records of the stages.
        splits: who is in which split.
        card: the scores.
    """
    from efface.report.card import model_card

    scores = {line.model: line.scores for line in card.lines}
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
                parameters=record.content.get("params") or {},
                provenance=_provenance(record.content),
                scores=shown,
            )
            (partial / f"{model}.md").write_text(text, encoding="utf-8")
            written.append(folder / f"{model}.md")
    return written


def _provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("git_commit", "seed", "started", "device", "inputs", "outputs", "versions")
    return {key: content[key] for key in keys if content.get(key) is not None}
