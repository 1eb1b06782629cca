"""UMU-Bench's files as samples: every fact of a person asked about the picture and by name.

The root holds `forget_5/10/15`, `retain_95/90/85` and the real people, `real_person` or `Real_Person_Set`; a
row is a person. `MM_QA` and `UM_QA` are for training, `Classify`, `Cloze` and `Generation` for evaluation;
all five are Python literals in text, with the key `muitimodal` spelt so. The two forms of one key are a
pair. The questions by name are the benchmark's own, so `Biography` is not read, and people are identified by
ID.

Reference:
    Wang et al., "UMU-Bench", NeurIPS 2025; schema as read by its code (QDRhhhh/UMU-bench), which takes the
    right letter of both forms from the form by name.
"""

from __future__ import annotations

import ast
import functools
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection, sample_id
from efface.data.parquet import column_names, parquet_files, read_folder
from efface.data.samples import SPLITS, Sample
from efface.errors import DataError

Row = dict[str, Any]

PERCENTS = (5, 10, 15)
REAL = ("real_person", "Real_Person_Set")
"""Names of the folder of real people: in the benchmark's code, and in its description."""
PATTERNS = ("*.parquet",)
"""Files to download of a repository."""
TRAINING = ("image", "ID", "MM_QA", "UM_QA")
EVALUATION = ("image", "ID", "Classify", "Cloze", "Generation")
TASKS = {"Classify": "choice", "Cloze": "cloze", "Generation": "generation"}
FORMS = {"MM_QA": "multimodal", "UM_QA": "text", "muitimodal": "multimodal", "unimodal": "text"}


def files_to_import(role: str, root: Path) -> list[Path]:
    """The parquet files of the shares that are complete and of the real people, their columns checked.

    Raises:
        DataError: if a folder or a column is missing.
    """
    folders = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    pairs = [(f"forget_{percent}", f"retain_{100 - percent}") for percent in PERCENTS]
    names = [name for pair in pairs if set(pair) <= folders for name in pair]
    if not names or not folders & set(REAL):
        lacking = "real_person" if names else "forget_5 and retain_95 (or 10 and 90, 15 and 85)"
        raise DataError(
            f"{root} lacks {lacking}: expected UMU-Bench's folders, its folders are "
            f"{', '.join(sorted(folders)) or 'none'}; download it with `hf download "
            "linbojunzi/UMU-bench --repo-type dataset --local-dir FOLDER`"
        )
    files = [file for name in (*names, *_real(root)) for file in parquet_files(root / name)]
    for file in files:
        columns = column_names(file)
        expected = EVALUATION if file.parent.name in REAL else (*TRAINING, *EVALUATION)
        if missing := sorted({*expected} - {*columns}):
            raise DataError(
                f"{file} has no column {', '.join(missing)}: expected {sorted({*expected})}, its columns are "
                f"{columns}; download it again"
            )
    return files


def _real(root: Path) -> list[str]:
    return [name for name in REAL if (root / name).is_dir()][:1]


def read_benchmark(root: Path, *, name: str, forget: ForgetSelection, bad_rows: BadRows) -> BenchmarkData:
    """Samples of the folders under `root/data` for a share to forget.

    Raises:
        DataError: if the share has no folder, or a row cannot be used.
    """
    folder, percent = root / "data", forget.percent
    if not (folder / f"forget_{percent}").is_dir():
        raise DataError(f"{folder} has no folder forget_{percent}; set forget_fraction to 0.05, 0.1 or 0.15")
    folders = {"forget": folder / f"forget_{percent}", "retain": folder / f"retain_{100 - percent}"}
    folders["real"] = folder / _real(folder)[0]
    entities: dict[str, list[str]] = {split: [] for split in SPLITS}
    people: set[str] = set()
    left_out: set[tuple[Path, int]] = set()
    for split, path in folders.items():
        columns = EVALUATION if split == "real" else (*TRAINING, *EVALUATION)
        for file, number, row in read_folder(path, columns):
            entity = f"{'real' if split == 'real' else 'fictitious'}/{row['ID']}"
            if _accepts(row, entity in people, split, file, number, bad_rows):
                people.add(entity)
                entities[split].append(entity)
            else:
                left_out.add((file, number))
    entities = {split: sorted(members) for split, members in entities.items()}
    return BenchmarkData(entities, {}, _samples(folders, name, left_out, bad_rows))


def _accepts(row: Row, known: bool, split: str, file: Path, number: int, bad_rows: BadRows) -> bool:
    """Whether a person's row can be used; reported if not."""
    reason = None
    if not isinstance(row["ID"], str) or not row["ID"].strip():
        reason = f"ID is {row['ID']!r}; expected text such as '042'"
    elif known:
        reason = f"ID {row['ID']} a second time, in this folder or that of the other people"
    else:
        for column in ("Classify", "Cloze", "Generation", *(() if split == "real" else ("MM_QA", "UM_QA"))):
            try:
                list(_questions(row, column))
            except (ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
                reason = f"{column} does not have the expected form ({type(error).__name__}: {error})"
                break
    if reason:
        bad_rows.report(file, f"row {number}", reason, "correct or remove the row")
        return False
    return bad_rows.accepts_picture((row["image"] or {}).get("bytes"), file, f"row {number}, ID {row['ID']}")


def _questions(row: Row, column: str) -> Iterator[Row]:
    """The questions of a column, with the key under which a fact stands in both forms.

    Raises:
        ValueError, SyntaxError, KeyError, TypeError, AttributeError: if the column is not as expected.
    """
    content = ast.literal_eval(row[column])
    if column in ("MM_QA", "UM_QA"):
        for key, question in content["question"].items():
            yield _question(column, str(key), question, content["answer"][key]) | {"task": "qa"}
        return
    for key, fact in content["unimodal"].items():
        for form in ("muitimodal", "unimodal"):
            entry, options = content[form][key], None
            answer = entry["answer"]
            if column == "Classify":
                options = [entry["options"][letter] for letter in "ABCD"]
                answer = entry["options"][fact["answer"].split(".")[0].strip()]
            yield _question(form, str(key), entry["question"], answer) | {
                "task": TASKS[column],
                "options": options,
            }


def _question(form: str, key: str, question: str, answer: str) -> Row:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError(f"expected text, got {question!r} and {answer!r}")
    return {"modality": FORMS[form], "key": key, "question": question, "answer": answer}


def _samples(
    folders: dict[str, Path], benchmark: str, left_out: set[tuple[Path, int]], bad_rows: BadRows
) -> Iterator[Sample]:
    """Training rows, then evaluation rows; forget and retain people by id, so that no share shows."""
    for part in ("train", "test"):
        groups = [
            _of_folder(split, path, part, benchmark, left_out, bad_rows) for split, path in folders.items()
        ]
        yield from heapq.merge(*groups[:2], key=lambda sample: sample.entity_id)
        yield from groups[2] if part == "test" else ()


def _of_folder(
    split: str, path: Path, part: str, benchmark: str, left_out: set[tuple[Path, int]], bad_rows: BadRows
) -> Iterator[Sample]:
    columns = TRAINING if part == "train" else EVALUATION
    for file, number, row in read_folder(path, columns):
        if (file, number) in left_out:
            continue
        entity = f"{'real' if split == 'real' else 'fictitious'}/{row['ID']}"
        identify = functools.partial(sample_id, benchmark, entity, part)
        for question in (q for column in columns[2:] for q in _questions(row, column)):
            key, task, modality = question.pop("key"), question["task"], question["modality"]
            place = {
                "sample_id": identify(task, modality, key),
                "pair_id": identify(task, "pair", key),
                "entity_id": entity,
                "split": split,
                "part": part,
                "set": None if part == "train" else split,
                "image": row["image"] if modality == "multimodal" else None,
            }
            sample = Sample.from_row(question | place)
            if bad_rows.accepts(sample, file, f"row {number}, ID {row['ID']}"):
                yield sample
