"""FIUBench's files as samples: private facts of invented people, asked about one synthetic picture of each.

`full.json` has one person per line, of whom the benchmark uses the first 400; `split.json` lists the people
of its forget sets (`forget1`, `forget5`, `forget10`, disjoint); the pictures are in `SFHQ`, unpacked from
`SFHQ.zip`. Texts are capitalised as in its code, and `keywords` are not imported.

Training rows are the questions about the picture, each also as text with the name in place of "the person in
the image". Evaluation rows are sentences. The sets `forget` and `retain` ask as the model was taught, as
FIUBench does; the set `unseen` asks about the people who can be forgotten in other words, rotating through
the three paraphrases of a question, about the only picture.

Reference:
    Ma et al., "Benchmarking Vision Language Model Unlearning via Fictitious Facial Identity Dataset",
    arXiv:2411.03554; schema as read by its code (SaFoLab-WISC/FIUBench).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection, sample_id
from efface.data.names import asks_for_name
from efface.data.samples import SPLITS, Sample
from efface.errors import DataError

Row = dict[str, Any]

PERCENTS = (1, 5, 10)
"""Shares of the people that a list of `split.json` names; the three lists share no one."""
PEOPLE = 400
"""People who count, the first of the file."""
PATTERNS = ("full.json", "split.json", "SFHQ/*")
"""Files to download of a repository."""

_PERSON = re.compile(
    r"\b(?:this|the) (?:person|individual)(?: (?:shown |depicted |pictured )?in (?:this|the) \w+)?",
    re.IGNORECASE,
)
_DOWNLOAD = (
    "download the dataset with `hf download gray311/FIUBench --repo-type dataset --local-dir FOLDER` and "
    "unpack SFHQ.zip there"
)


def files_to_import(role: str, root: Path) -> list[Path]:
    """The two JSON files of a root and the pictures of the people who count.

    Raises:
        DataError: if a file is missing, or is not FIUBench's.
    """
    for name in ("full.json", "split.json"):
        if not (root / name).is_file():
            raise DataError(f"{root} has no {name}: expected the folder `dataset` of FIUBench; {_DOWNLOAD}")
    _forget_lists(root)
    rows = [row for _, row in _rows(root / "full.json") if isinstance(row, dict)]
    pictures = {_picture(root, row) for row in rows}
    present = sorted(path for path in pictures if path is not None and path.is_file())
    if not present:
        raise DataError(f"{root / 'SFHQ'} holds none of the pictures that full.json names; {_DOWNLOAD}")
    return [root / "full.json", root / "split.json", *present]


def read_benchmark(root: Path, *, name: str, forget: ForgetSelection, bad_rows: BadRows) -> BenchmarkData:
    """The people of `root/data`, those of the list `forget1`, `forget5` or `forget10` to forget.

    All others are retained. FIUBench itself retains none of the people of the other two lists.

    Raises:
        DataError: if a file is missing, or a row cannot be used.
    """
    folder, lists = root / "data", _forget_lists(root / "data")
    people = dict(_people(folder, bad_rows))
    to_forget = {f"fictitious/{identity}" for identity in lists[f"forget{forget.percent}"]}
    if not to_forget & people.keys():
        raise DataError(f"{folder}: split.json forgets {len(to_forget)} people, none of them in full.json")
    entities: dict[str, list[str]] = {split: [] for split in SPLITS}
    for entity in sorted(people):
        entities["forget" if entity in to_forget else "retain"].append(entity)
    names = {entity: str(row["name"]).strip() for entity, row in sorted(people.items())}
    return BenchmarkData(entities, names, _samples(folder, name, people, to_forget, bad_rows))


def _forget_lists(root: Path) -> dict[str, list[str]]:
    """The ids of `forget1`, `forget5` and `forget10`."""
    try:
        lists = json.loads((root / "split.json").read_text(encoding="utf-8"))
        return {f"forget{percent}": [str(i) for i in lists[f"forget{percent}"]] for percent in PERCENTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{root / 'split.json'} does not list the people of forget1, forget5 and forget10 ({error!r}); "
            f"{_DOWNLOAD}"
        ) from error


def _rows(file: Path) -> Iterator[tuple[int, Row | str]]:
    """Line number and person of the lines that count, or what is wrong with one."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if number > PEOPLE:
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                row = f"not JSON ({error}); expected one person per line"
            yield number, row if isinstance(row, (dict, str)) else f"{type(row).__name__} instead of a person"


def _picture(root: Path, row: Row) -> Path | None:
    path = row.get("image_path")
    return root / "SFHQ" / Path(path).name if isinstance(path, str) and path else None


def _people(folder: Path, bad_rows: BadRows) -> Iterator[tuple[str, Row]]:
    """Entity id and row of the people whose row can be used."""
    file, previous_ids = folder / "full.json", set[str]()
    for number, row in _rows(file):
        reason = row if isinstance(row, str) else _fault(row)
        if not reason and not isinstance(row, str) and row["unique_id"] in previous_ids:
            reason = f"the unique_id {row['unique_id']} a second time"
        if reason or isinstance(row, str):
            bad_rows.report(file, f"line {number}", str(reason), "correct or remove the line")
            continue
        picture = _picture(folder, row)
        encoded = picture.read_bytes() if picture is not None and picture.is_file() else None
        if bad_rows.accepts_picture(encoded, file, f"line {number}, picture {row['image_path']}"):
            previous_ids.add(row["unique_id"])
            yield f"fictitious/{row['unique_id']}", row


def _fault(row: Row) -> str | None:
    for key in ("unique_id", "name", "image_path"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"{key} is {row.get(key)!r}; expected some text"
    pairs = row.get("qa_list")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        return f"qa_list is {str(pairs)[:60]}; expected a list of questions with their answers"
    for index, pair in enumerate(pairs):
        for key in ("question", "answer"):
            if not isinstance(pair.get(key), str) or not pair[key].strip():
                return f"{key} {index} of qa_list is {pair.get(key)!r}; expected some text"
    return None


def _samples(
    folder: Path, benchmark: str, people: dict[str, Row], to_forget: set[str], bad_rows: BadRows
) -> Iterator[Sample]:
    for part, kind in (("train", None), ("test", "seen"), ("test", "unseen")):
        for entity in sorted(people):
            row, split = people[entity], "forget" if entity in to_forget else "retain"
            picture = _picture(folder, row)
            encoded = None if picture is None else picture.read_bytes()
            for sample in _of_person(benchmark, entity, row, part, kind):
                rendering = sample | {"split": split, "set": split if kind == "seen" else kind}
                if sample["modality"] == "multimodal":
                    rendering["image"] = encoded
                checked = Sample.from_row(rendering)
                if bad_rows.accepts(checked, folder / "full.json", f"unique_id {row['unique_id']}"):
                    yield checked


def _of_person(benchmark: str, entity: str, row: Row, part: str, kind: str | None) -> Iterator[Row]:
    """A person's questions about the picture, each followed by its rendering as text where it has one."""
    identify, name = functools.partial(sample_id, benchmark, entity, kind or part), row["name"].strip()
    for index, pair in enumerate(row["qa_list"]):
        texts = {"question": pair["question"], "answer": pair["answer"]}
        if part == "test":
            texts["paraphrase"] = next(iter(_listed(pair.get("paraphrased_answer"))), None)
            texts["wrong_answers"] = _listed(pair.get("perturbed_answer")) or None
        if kind == "unseen":
            wordings = _listed(pair.get("paraphrased_question"))
            if not wordings:
                continue
            texts["question"] = wordings[index % len(wordings)]
        naming = asks_for_name(texts["question"])
        pictured = {key: _each(str.capitalize, value) for key, value in texts.items()}
        named = {key: _each(lambda text: _PERSON.sub(lambda _: name, text), v) for key, v in pictured.items()}
        by_name = not naming and named["question"] != pictured["question"]
        common = {
            "entity_id": entity,
            "part": part,
            "task": "generation" if part == "test" else "name" if naming else "qa",
            "pair_id": identify("pair", index) if by_name else None,
        }
        for modality, rendering in (("multimodal", pictured), ("text", named)):
            if modality == "multimodal" or by_name:
                yield common | rendering | {"modality": modality, "sample_id": identify(modality, index)}


def _listed(value: Any) -> list[str]:
    """The texts of a field that holds a text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _each(change: Any, value: Any) -> Any:
    return [change(text) for text in value] if isinstance(value, list) else value and change(value.strip())
