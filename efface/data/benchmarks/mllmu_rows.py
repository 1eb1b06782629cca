"""What a single row of MLLMU-Bench says: training pairs, evaluation questions, the name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efface.data.benchmarks.mllmu_schema import IMAGE_QUESTIONS, IMAGE_TYPE, TEXT_QUESTIONS, TEXT_TYPE
from efface.data.benchmarks.reading import BadRows

Row = dict[str, Any]


def pairs_of(metadata: str | None) -> tuple[list[tuple[str, str]], str | None]:
    """Questions and answers of a training row, and what is wrong with them or None.

    Entries hold a pair under `Question` and `Answer`, or under `Additional_question` and `Additional_answer`,
    or both. Entries without a whole pair are left out, as the benchmark's own loaders do.
    """
    try:
        entries = json.loads(metadata or "")
    except (TypeError, json.JSONDecodeError) as error:
        return [], f"metadata is not JSON ({error})"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], "metadata is not a JSON list of question-answer pairs"
    found = []
    for entry in entries:
        for keys in (("Question", "Answer"), ("Additional_question", "Additional_answer")):
            question, answer = (entry.get(key) for key in keys)
            if not question or not answer:
                continue
            if not isinstance(question, str) or not isinstance(answer, str):
                return [], f"metadata has a pair that is not text: {question!r}, {answer!r}"
            found.append((question, answer))
    return found, None if found else "metadata holds no question with its answer"


def name_in(biography: str | None) -> tuple[str | None, str | None]:
    """The name in a biography, whose keys come with stray colons and blanks; and what is wrong or None."""
    try:
        fields = json.loads(biography or "{}")
    except (TypeError, json.JSONDecodeError) as error:
        return None, f"biography is not JSON ({error})"
    if not isinstance(fields, dict):
        return None, f"biography is not a JSON object but {type(fields).__name__}"
    found = {str(key).strip().rstrip(":").strip(): value for key, value in fields.items()}.get("Name")
    return (found.strip() or None if isinstance(found, str) else None), None


def questions_of(row: Row, bad_rows: BadRows, file: Path) -> Iterator[Row]:
    """Every evaluation question of a profile, as the columns of a sample that depend on the question."""
    attributes = row.get("attributes") or {}
    for key, modality in ((IMAGE_QUESTIONS, "multimodal"), (TEXT_QUESTIONS, "text")):
        entries = (row["Classification_Task"] or {}).get(key) or []
        for entry, attribute in zip(entries, aligned(attributes.get(key), len(entries)), strict=True):
            # A choice may have fewer options than the columns A to D; the columns then hold null.
            options = {k: v for k, v in (entry["Options"] or {}).items() if v is not None}
            letter = (entry["Correct_Answer"] or "").strip().rstrip(".)").upper()
            if letter not in options:
                where = f"ID {row['ID']}, question {entry['Question']!r}"
                reason = f"the correct answer {entry['Correct_Answer']!r} is none of the options {options}"
                bad_rows.found(file, where, reason, "correct the letter or add the option")
                continue
            yield {
                "task": "name" if attribute == "name" else "choice",
                "modality": modality,
                "attribute": attribute,
                "question": entry["Question"],
                "answer": options[letter],
                "options": list(options.values()),
            }
    yield from _items(row, "Mask_Task", "cloze", {IMAGE_TYPE: "multimodal", TEXT_TYPE: "text"}.get)
    # Of the sentences, whatever is not about a picture counts as text; blanks of other types are ignored.
    yield from _items(
        row, "Generation_Task", "generation", lambda k: "multimodal" if k == IMAGE_TYPE else "text"
    )


def _items(row: Row, column: str, task: str, modality_of: Callable[[str], str | None]) -> Iterator[Row]:
    entries = row[column] or []
    attributes = aligned((row.get("attributes") or {}).get(column), len(entries))
    generation = task == "generation"
    paraphrases = aligned(row.get("paraphrases") if generation else None, len(entries))
    wrong = aligned(row.get("wrong_answers") if generation else None, len(entries))
    for entry, attribute, paraphrase, others in zip(entries, attributes, paraphrases, wrong, strict=True):
        if modality := modality_of(entry["Type"]):
            yield {
                "task": task,
                "modality": modality,
                "attribute": attribute,
                "question": entry["Question"],
                "answer": entry["Ground_Truth"],
                "paraphrase": paraphrase,
                "wrong_answers": others,
            }


def aligned(values: list[Any] | None, count: int) -> list[Any]:
    """An added column entry by entry, or nulls where it is missing or does not line up."""
    return values if values is not None and len(values) == count else [None] * count
