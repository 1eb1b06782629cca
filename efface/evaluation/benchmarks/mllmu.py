"""MLLMU-Bench's table: three tasks by two modalities by four sets.

In ``tables[set][task][modality][reading]`` the sets ``forget`` and ``unseen`` (the same people on other
pictures, in other words) should fall, ``retain`` and ``real`` (celebrities) should not. The published
readings are

| of the paper | here |
|---|---|
| classification | ``accuracy_first_letter``; MMUnlearner's code: ``accuracy_first_alphanumeric`` |
| cloze | ``accuracy_contains`` |
| generation | ``rouge_l``, ``bleu_nltk`` |

The strict readings beside them show how much of a number is format.

Reference:
    Liu et al., "MLLMU-Bench", arXiv:2410.22108. Its few-shot prompts show questions about the evaluated
    people, which it then leaves out of the count; here all are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from efface.evaluation.benchmarks.reading import CHOICE, CLOZE, SENTENCE, Cell, Reading, rows_of, summed_up

if TYPE_CHECKING:
    import pandas as pd

SETS = {"forget": "Forget", "unseen": "Test", "retain": "Retain", "real": "Real Celebrity"}
"""Sets and their names in the paper; lower is better on the first two, higher on the others."""

TASKS: dict[str, tuple[str, dict[str, Reading]]] = {
    "classification": ("choice", CHOICE),
    "cloze": ("cloze", CLOZE),
    "generation": ("generation", SENTENCE),
}
"""Task of the paper to the task of the samples and how its answers are read."""

Table = dict[str, dict[str, dict[str, dict[str, Cell]]]]


def view(scores: pd.DataFrame) -> dict[str, Any]:
    """The table of one model.

    Args:
        scores: rows of the model's score table that count (part ``test``).

    Returns:
        ``tables[set][task][modality][reading]`` with ``value`` in [0, 1] and ``n``; entries without rows are
        left out.
    """
    tables: Table = {}
    rows = rows_of(scores)
    for set_name in SETS:
        for task, (questions, readings) in TASKS.items():
            for modality in ("multimodal", "text"):
                cell_rows = [
                    row
                    for row in rows
                    if (row["set"], row["task"], row["modality"]) == (set_name, questions, modality)
                ]
                if cells := summed_up(cell_rows, readings):
                    tables.setdefault(set_name, {}).setdefault(task, {})[modality] = cells
    return {"benchmark": "mllmu", "tables": tables}
