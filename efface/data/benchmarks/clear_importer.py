"""CLEAR's files as samples: captions and names of invented authors' pictures, and questions in text.

A configuration is a folder of parquet files with one split. `full`, `full+tofu` and `data` repeat what the
forget and retain configurations hold, so they are not imported.

Training rows come from the forget and retain configurations: every picture with its caption, every question
with its answer. Evaluation rows are of other kinds:

- a caption, asked for in words that training does not use, with its paraphrase and five false ones;
- the name, which is never trained, freely and as one of six options;
- real faces (set `real`) and questions about the world (set `utility`), likewise;
- questions in text. CLEAR has none beside those used for training, so only these are asked as they were
  taught, about the same people as the pictures.

No fact of CLEAR exists both as a picture and as text. A pair of training rows is therefore the k-th picture
and the k-th question of one author: it only says that they belong to the same person.

Reference:
    Dontsov et al., "CLEAR", arXiv:2410.18057; choices as in MMUnlearner's code, arXiv:2502.11051. Both draw
    questions and the place of the answer anew at each run; here they follow from the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection, sample_id
from efface.data.parquet import column_names, parquet_files, read_folder
from efface.data.samples import Sample
from efface.errors import DataError

Row = dict[str, Any]

PERCENTS = (1, 5, 10)
"""Shares of the authors that a forget configuration holds."""

PICTURES = ("image", "caption", "name")
"""Columns of forgetNN and retainNN."""
PERTURBED = (*PICTURES, "paraphrased_caption", "perturbed_captions", "perturbed_names")
"""Columns of forgetNN_perturbed and retain_perturbed, whose order differs from file to file."""
WITH_TOFU = ("image", "caption", "question", "answer")
"""Columns of X+tofu: rows with a picture and a caption, and rows with a question and an answer."""
REAL_FACES = ("image", "answer", "options")
REAL_WORLD = ("image", "question", "answer", "options")
_SHARED = {"retain_perturbed": PERTURBED, "real_faces": REAL_FACES, "real_world": REAL_WORLD}

TRAINING_CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "Tell me about the content of this image",
    "Can you give a description of the image?",
    "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?",
    "What is happening in this image?",
)
EVALUATION_CAPTION_QUESTIONS = (
    "What is depicted in the image?",
    "Explain what you observe in the picture.",
    "Describe the image in detail.",
)
"""CLEAR asks for captions in nine ways, in training and in evaluation alike. Here three of them are reserved
for evaluation, so that no evaluation question about a picture is ever trained on."""
NAME_QUESTION = "The name of the person on the image is "
"""With a blank at the end, as CLEAR asks."""
NAME_CHOICE_QUESTION = "What is the name of the person in the image?"

QUESTIONS_PER_AUTHOR = 20
"""Text rows come in blocks of this size, one author each."""

_DOWNLOAD = (
    "download it with `hf download therem/CLEAR --repo-type dataset --revision COMMIT --local-dir FOLDER`"
)
_ONE_REVISION = "use files of one revision"


def _of_share(percent: int) -> dict[str, tuple[str, ...]]:
    """The configurations for one share to forget, with their columns."""
    forget, retain = f"forget{percent:02}", f"retain{100 - percent}"
    return {
        forget: PICTURES,
        f"{forget}+tofu": WITH_TOFU,
        f"{forget}_perturbed": PERTURBED,
        retain: PICTURES,
        f"{retain}+tofu": WITH_TOFU,
    }


PATTERNS = tuple(f"{name}/*.parquet" for names in (*map(_of_share, PERCENTS), _SHARED) for name in names)
"""Files to download of the repository."""


def files_to_import(role: str, root: Path) -> list[Path]:
    """The files of every complete share, and those that the shares have in common.

    Args:
        role: `data`, CLEAR's only root.
        root: the folder that holds the configurations.

    Raises:
        DataError: if the folder is not CLEAR's, no share is complete, or a file lacks a column.
    """
    folders = {p.name for p in root.iterdir() if p.is_dir()} if root.is_dir() else set()
    if not folders & {"full", "real_faces", *(f"forget{p:02}" for p in PERCENTS)}:
        raise DataError(
            f"{root} does not hold CLEAR's configurations (folders: {sorted(folders)[:8]}): expected the "
            f"folder with forget05, retain95 and the others as its subfolders; {_DOWNLOAD}"
        )
    shares = [_of_share(percent) for percent in PERCENTS if set(_of_share(percent)) <= folders]
    missing = sorted({*_SHARED} - folders)
    if not shares or missing:
        lacking = missing or sorted(set(_of_share(5)) - folders)
        raise DataError(
            f"{root} lacks {', '.join(lacking)}: every share to forget needs its own five configurations "
            f"(for 5 %: {', '.join(_of_share(5))}) and {', '.join(_SHARED)}; {_DOWNLOAD}"
        )
    files: list[Path] = []
    for name, columns in sorted(
        {key: value for share in (*shares, _SHARED) for key, value in share.items()}.items()
    ):
        for file in parquet_files(root / name):
            _check_columns(file, columns)
            files.append(file)
    return files


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    names = column_names(file)
    if missing := [column for column in columns if column not in names]:
        old = " (revisions before the benchmark was renamed had no name column)" if "name" in missing else ""
        raise DataError(
            f"{file} has no column {', '.join(missing)}{old}: expected {list(columns)}, its columns are "
            f"{names}; {_DOWNLOAD}"
        )


def read_benchmark(root: Path, *, name: str, forget: ForgetSelection, bad_rows: BadRows) -> BenchmarkData:
    """CLEAR's configurations under `root/data`, with those of the share to forget.

    Raises:
        DataError: if a configuration is missing, or a row cannot be used and is not to be skipped.
    """
    for configuration in {**_of_share(forget.percent), **_SHARED}:
        parquet_files(root / "data" / configuration)
    return _ClearReader(root / "data", name, forget.percent, bad_rows).read()


@dataclass(frozen=True)
class _Place:
    """Where a row stands."""

    file: Path
    number: int
    """Row of the file, from 0."""
    index: int
    """Row of the configuration, all its files in order, from 0."""

    @property
    def row(self) -> str:
        return f"row {self.number}"


class _ClearReader:
    """Reads all texts first, then yields the samples, with a few rows in memory at a time."""

    def __init__(self, folder: Path, name: str, percent: int, bad_rows: BadRows) -> None:
        self._folder, self._name, self._bad_rows = folder, name, bad_rows
        self._configurations = {"forget": f"forget{percent:02}", "retain": f"retain{100 - percent}"}
        self._people: dict[str, list[str]] = {}
        """Split to names."""
        self._authors: dict[tuple[str, int], str] = {}
        """Split and index of a text row to its author."""
        self._pictures: Counter[str] = Counter()
        """Author to number of pictures to train on."""
        self._captions: set[tuple[str, str]] = set()
        """Author and caption of each row of forgetNN_perturbed."""
        self._evaluated: set[str] = set()
        """Authors who are asked about in pictures."""

    def read(self) -> BenchmarkData:
        for split, configuration in self._configurations.items():
            self._people[split] = self._survey_people(split, configuration)
        for split, configuration in self._configurations.items():
            self._survey_texts(split, f"{configuration}+tofu")
        for configuration in (f"{self._configurations['forget']}_perturbed", "retain_perturbed"):
            for _, row in self._rows(configuration, ("name", "caption")):
                self._evaluated.add(_stripped(row["name"]))
                if configuration != "retain_perturbed":
                    self._captions.add((_stripped(row["name"]), _stripped(row["caption"])))
        faces = {_stripped(row["answer"]) for _, row in self._rows("real_faces", ("answer",))} - {""}
        world = sum(1 for _ in self._rows("real_world", ("question",)))
        entities = {
            split: sorted(f"fictitious/{person}" for person in people)
            for split, people in self._people.items()
        }
        entities |= {
            "real": sorted(f"real/{person}" for person in faces),
            "holdout": [],
            "utility": [f"world/{index:05}" for index in range(world)],
        }
        people = [entity for split in ("forget", "retain", "real") for entity in entities[split]]
        names = {entity: entity.partition("/")[2] for entity in sorted(people)}
        return BenchmarkData(entities, names, self._samples())

    def _rows(self, configuration: str, columns: Sequence[str]) -> Iterator[tuple[_Place, Row]]:
        rows = read_folder(self._folder / configuration, columns)
        for index, (file, number, row) in enumerate(rows):
            yield _Place(file, number, index), row

    def _survey_people(self, split: str, configuration: str) -> list[str]:
        people: dict[str, None] = {}
        for place, row in self._rows(configuration, ("name",)):
            person = _stripped(row["name"])
            if not person:
                reason = "the name is empty"
                self._bad_rows.report(place.file, place.row, reason, "correct or remove the row")
            elif person in self._people.get("forget", ()):
                reason = f"{person} is to be forgotten and to be retained; every author belongs to one split"
                self._bad_rows.report(place.file, place.row, reason, _ONE_REVISION)
            else:
                people[person] = None
                self._pictures[person] += 1
        return list(people)

    def _survey_texts(self, split: str, configuration: str) -> None:
        """Find whom the text rows are about: the author who is named in most rows of a block."""
        rows: list[tuple[_Place, Row]] = []
        for place, row in self._rows(configuration, WITH_TOFU[1:]):
            if _stripped(row["question"]):
                rows.append((place, row))
            elif not _stripped(row["caption"]):
                reason = "it has neither a caption nor a question"
                self._bad_rows.report(place.file, place.row, reason, "correct or remove the row")
        for start in range(0, len(rows), QUESTIONS_PER_AUTHOR):
            block = rows[start : start + QUESTIONS_PER_AUTHOR]
            people = [person for names in self._people.values() for person in names]
            author = _most_named(people, [f"{row['question']} {row['answer']}" for _, row in block])
            first, last = block[0][0], block[-1][0]
            where = f"rows {first.number} to {last.number} (text)"
            if author is None:
                reason = (
                    "no author's name occurs in most of them, so they cannot be assigned to an author "
                    f"(expected blocks of {QUESTIONS_PER_AUTHOR} questions, one author each)"
                )
                self._bad_rows.report(first.file, where, reason, "restore the published order of rows")
            elif author not in self._people[split]:
                reason = f"they are about {author}, who is not among the {split} people"
                self._bad_rows.report(first.file, where, reason, _ONE_REVISION)
            else:
                self._authors |= {(split, place.index): author for place, _ in block}

    def _samples(self) -> Iterator[Sample]:
        for split in self._configurations:
            yield from self._training_captions(split)
            yield from self._texts(split, "train")
        for split, configuration in self._configurations.items():
            perturbed = "retain_perturbed" if split == "retain" else f"{configuration}_perturbed"
            yield from self._perturbed(perturbed, split)
            if split == "forget":
                yield from self._without_paraphrase(configuration)
            yield from self._texts(split, "test")
        for configuration, columns in (("real_faces", REAL_FACES), ("real_world", REAL_WORLD)):
            yield from self._real(configuration, columns)

    def _training_captions(self, split: str) -> Iterator[Sample]:
        counts: Counter[str] = Counter()
        for place, row, person in self._pictured(self._configurations[split], PICTURES, split):
            key = self._id(self._configurations[split], place, "caption")
            caption = {
                "sample_id": key,
                "task": "caption",
                "attribute": "caption",
                "question": _pick(TRAINING_CAPTION_QUESTIONS, key),
                "answer": row["caption"],
                "image": row["image"],
                "pair_id": self._pair(person, counts[person]),
            }
            counts[person] += 1
            yield from self._accepted(_columns(person, split, "train") | caption, place)

    def _texts(self, split: str, part: str) -> Iterator[Sample]:
        configuration = f"{self._configurations[split]}+tofu"
        counts: Counter[str] = Counter()
        for place, row in self._rows(configuration, ("question", "answer")):
            person = self._authors.get((split, place.index))
            if person is None or (part == "test" and person not in self._evaluated):
                continue
            text = {
                "sample_id": self._id(configuration, place, part),
                "task": "qa" if part == "train" else "generation",
                "modality": "text",
                "question": row["question"],
                "answer": row["answer"],
                "pair_id": self._pair(person, counts[person]) if part == "train" else None,
            }
            counts[person] += 1
            yield from self._accepted(_columns(person, split, part) | text, place)

    def _perturbed(self, configuration: str, split: str) -> Iterator[Sample]:
        for place, row, person in self._pictured(configuration, PERTURBED, split):
            if not self._accepts_wrong(row["perturbed_names"], person, place):
                continue
            if not self._accepts_wrong(row["perturbed_captions"], row["caption"], place):
                continue
            caption = self._evaluation_caption(configuration, place, row) | {
                "paraphrase": row["paraphrased_caption"],
                "wrong_answers": row["perturbed_captions"],
            }
            name = {"task": "name", "attribute": "name", "answer": person, "image": row["image"]}
            questions = (NAME_QUESTION, NAME_CHOICE_QUESTION)
            renderings = self._freely_and_by_choice(
                name, questions, row["perturbed_names"], configuration, place
            )
            for rendering in (caption, *renderings):
                yield from self._accepted(_columns(person, split, "test") | rendering, place)

    def _without_paraphrase(self, configuration: str) -> Iterator[Sample]:
        """Captions to forget that the perturbed configuration lacks, for numbers that need no paraphrase."""
        for place, row, person in self._pictured(configuration, PICTURES, "forget"):
            if (person, _stripped(row["caption"])) not in self._captions:
                caption = self._evaluation_caption(configuration, place, row)
                yield from self._accepted(_columns(person, "forget", "test") | caption, place)

    def _evaluation_caption(self, configuration: str, place: _Place, row: Row) -> Row:
        key = self._id(configuration, place, "asked caption")
        return {
            "sample_id": key,
            "task": "caption",
            "attribute": "caption",
            "question": _pick(EVALUATION_CAPTION_QUESTIONS, key),
            "answer": row["caption"],
            "image": row["image"],
        }

    def _real(self, configuration: str, columns: tuple[str, ...]) -> Iterator[Sample]:
        """Names of real faces, or answers to questions about the world."""
        for place, row in self._rows(configuration, columns):
            answer, wrong = _stripped(row["answer"]), row["options"]
            if not (self._accepts_picture(row, place) and self._accepts_wrong(wrong, answer, place)):
                continue
            if configuration == "real_faces":
                fact = {"entity_id": f"real/{answer}", "split": "real", "set": "real", "task": "name"}
                fact, questions = fact | {"attribute": "name"}, (NAME_QUESTION, NAME_CHOICE_QUESTION)
            else:
                fact = {"entity_id": f"world/{place.index:05}", "split": "utility", "set": "utility"}
                fact, questions = fact | {"task": "qa"}, (row["question"], row["question"])
            fact |= {"answer": answer, "image": row["image"]}
            for sample in self._freely_and_by_choice(fact, questions, wrong, configuration, place):
                yield from self._accepted(sample, place)

    def _freely_and_by_choice(
        self, fact: Row, questions: tuple[str, str], wrong: Sequence[str], configuration: str, place: _Place
    ) -> tuple[Row, Row]:
        """A fact as a free question, with the answer itself as its paraphrase, and as a choice in which the
        id determines the position of the answer."""
        key = self._id(configuration, place, "choice")
        options = list(dict.fromkeys(wrong))
        options.insert(int(key, 16) % (len(options) + 1), fact["answer"])
        freely = {
            "sample_id": self._id(configuration, place, fact["task"]),
            "question": questions[0],
            "paraphrase": fact["answer"],
            "wrong_answers": list(wrong),
        }
        choice = {"sample_id": key, "task": "choice", "question": questions[1], "options": options}
        return fact | freely, fact | choice

    def _pictured(
        self, configuration: str, columns: tuple[str, ...], split: str
    ) -> Iterator[tuple[_Place, Row, str]]:
        """Rows about people of the split whose picture decodes, with the person's name."""
        people = set(self._people[split])
        for place, row in self._rows(configuration, columns):
            person = _stripped(row["name"])
            if person in people:
                if self._accepts_picture(row, place):
                    yield place, row, person
            elif "_perturbed" in configuration:  # already reported in the first pass
                reason = f"{person or 'the empty name'} is not among the {split} people"
                self._bad_rows.report(place.file, place.row, reason, _ONE_REVISION)

    def _accepts_picture(self, row: Row, place: _Place) -> bool:
        return self._bad_rows.accepts_picture((row["image"] or {}).get("bytes"), place.file, place.row)

    def _accepts_wrong(self, wrong: Sequence[str] | None, answer: str, place: _Place) -> bool:
        """Whether there are wrong answers and the right one is not among them; reported if not."""
        reason = None
        if not wrong or not all(map(_stripped, wrong)):
            reason = f"its wrong answers are {wrong}; expected one or more texts"
        elif _stripped(answer).casefold() in {_stripped(text).casefold() for text in wrong}:
            reason = f"the right answer {answer!r} is among its wrong answers {list(wrong)}"
        if reason:
            self._bad_rows.report(place.file, place.row, reason, "correct or remove the row")
        return not reason

    def _accepted(self, row: Row, place: _Place) -> Iterator[Sample]:
        sample = Sample.from_row({"part": "test", "modality": "multimodal"} | row)
        if self._bad_rows.accepts(sample, place.file, place.row):
            yield sample

    def _pair(self, person: str, index: int) -> str | None:
        """Id of the pair of an author's k-th picture and k-th question; None unless both exist."""
        if index >= min(self._pictures[person], QUESTIONS_PER_AUTHOR):
            return None
        return sample_id(self._name, person, "train", "pair", index)

    def _id(self, configuration: str, place: _Place, kind: str) -> str:
        return sample_id(self._name, configuration, place.index, kind)


def _columns(person: str, split: str, part: str) -> Row:
    return {
        "entity_id": f"fictitious/{person}",
        "split": split,
        "part": part,
        "set": None if part == "train" else split,
    }


def _most_named(people: Iterable[str], texts: list[str]) -> str | None:
    """The person whose name occurs in more of the texts than any other's, or None."""
    counts = Counter({person: sum(person in text for text in texts) for person in people})
    ranked = counts.most_common(2)
    if not ranked or not ranked[0][1] or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _pick(questions: Sequence[str], key: str) -> str:
    """One of the questions, determined by the id."""
    return questions[int(key, 16) % len(questions)]


def _stripped(text: str | None) -> str:
    """The text without blanks around it; empty for null."""
    return (text or "").strip()
