"""UMU-Bench's table: three tasks by two modalities, and both modalities of one fact together.

In ``tables[set][task][modality][reading]`` the published readings are ``accuracy_option`` (classification:
the generation is the option's text), ``accuracy_first_sentence`` (cloze: it holds the gold answer up to its
first full stop) and ``rouge_l``.

A forgotten fact should be wrong in both forms, a retained one right in both. ``tables[set][task][both]``
holds ``all_modal_error`` for the people to forget, ``all_modal_accuracy`` for the others and, of sentences
with ROUGE-L a by picture and b by name, ``all_modal_rouge_l``: the mean of (a² + b²) / (a + b) on the people
to forget, else of 2ab / (a + b).

Reference:
    Wang et al., "UMU-Bench", NeurIPS 2025; readings as in its code (QDRhhhh/UMU-bench), which on real people
    takes the option most like the generation; here all are read alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from efface.evaluation import texts
from efface.evaluation.benchmarks.reading import (
    CHOICE,
    CLOZE,
    SENTENCE,
    Cell,
    Reading,
    Row,
    rows_of,
    summed_up,
)

if TYPE_CHECKING:
    import pandas as pd

MODALITIES = ("multimodal", "text")


def _option(row: Row) -> float:
    return float(row["generation"].strip() == row["gold"].strip())


def _blank(row: Row) -> float:
    return float(row["gold"].split(".")[0].lower() in row["generation"].lower())


def _rouge(row: Row) -> float:
    return texts.rouge_l(row["generation"], row["gold"])


TASKS: dict[str, tuple[str, Reading, dict[str, Reading]]] = {
    "classification": ("choice", _option, {"accuracy_option": _option, **CHOICE}),
    "cloze": ("cloze", _blank, {"accuracy_first_sentence": _blank, **CLOZE}),
    "generation": ("generation", _rouge, SENTENCE),
}
"""Task of the paper to the task of the samples, its published reading, and all readings."""


def view(scores: pd.DataFrame) -> dict[str, Any]:
    """The table of one model.

    Args:
        scores: the model's score table, part ``test``.

    Returns:
        ``tables[set][task][modality][reading]`` and, of facts asked in both forms,
        ``tables[set][task][both]``, with ``value`` in [0, 1] and ``n``; what has no rows is left out.
    """
    tables: dict[str, dict[str, dict[str, dict[str, Cell]]]] = {}
    rows = rows_of(scores)
    for name in ("forget", "retain", "real"):
        for task, (kind, published, readings) in TASKS.items():
            task_rows = [row for row in rows if (row["set"], row["task"]) == (name, kind)]
            cells = {
                m: summed_up([row for row in task_rows if row["modality"] == m], readings) for m in MODALITIES
            }
            cells["both"] = _both(
                task_rows, published, sentences=task == "generation", forget=name == "forget"
            )
            if cells := {modality: cell for modality, cell in cells.items() if cell}:
                tables.setdefault(name, {})[task] = cells
    return {"benchmark": "umu", "tables": tables}


def _both(rows: list[dict[str, Any]], reading: Reading, *, sentences: bool, forget: bool) -> dict[str, Cell]:
    """Readings of the facts that are asked in both forms."""
    facts: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("pair_id") is not None and (value := reading(row)) is not None:
            facts.setdefault(row["pair_id"], {})[row["modality"]] = value
    pairs = [(fact["multimodal"], fact["text"]) for fact in facts.values() if len(fact) == 2]
    if not pairs:
        return {}
    if sentences:
        values = [((a * a + b * b) if forget else 2 * a * b) / (a + b) if a + b else 0.0 for a, b in pairs]
        return {"all_modal_rouge_l": {"value": math.fsum(sorted(values)) / len(pairs), "n": len(pairs)}}
    return {
        "all_modal_accuracy": {"value": sum(a * b for a, b in pairs) / len(pairs), "n": len(pairs)},
        "all_modal_error": {"value": sum((1 - a) * (1 - b) for a, b in pairs) / len(pairs), "n": len(pairs)},
    }
