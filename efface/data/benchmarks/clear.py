"""CLEAR's files as samples: captions and names of invented authors' pictures, and questions in text.

Training rows come from the forget and retain configurations: every picture with its caption, every question
with its answer. Evaluation rows are of other kinds:

- a caption, asked for in words that training does not use, with its paraphrase and five false ones;
- the name, which is never trained, freely and as one of six options;
- real faces (set `real`) and questions about the world (set `utility`), likewise;
- questions in text. CLEAR has no others than those of the training, so these alone are asked as they were
  taught. They are asked of the people who are asked about in pictures too.

No fact of CLEAR exists both as a picture and as text. A pair of training rows is therefore the k-th picture
and the k-th question of one author: it says that they belong to the same person, and no more.

Reference:
    Dontsov et al., "CLEAR", arXiv:2410.18057; choices as in MMUnlearner's code, arXiv:2502.11051. Both draw
    questions and the place of the answer anew at each run; here they follow from the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efface.data.benchmarks import clear_files as files
from efface.data.benchmarks.clear_files import Place
from efface.data.benchmarks.clear_survey import QUESTIONS_PER_AUTHOR, Survey, stripped, survey
from efface.data.benchmarks.reading import BadRows, BenchmarkData, Forgetting, sample_id
from efface.data.samples import Sample

Row = dict[str, Any]

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
"""CLEAR asks for captions in nine ways, in training and in evaluation alike. Here a third of them is kept for
evaluation, so that no evaluation question about a picture is ever trained."""
NAME_QUESTION = "The name of the person on the image is "
"""With a blank at the end, as CLEAR asks."""
NAME_CHOICE_QUESTION = "What is the name of the person in the image?"


def read_benchmark(root: Path, *, name: str, forget: Forgetting, bad_rows: BadRows) -> BenchmarkData:
    """CLEAR's configurations under `root/data`, with the forget configuration of the share asked for.

    Raises:
        DataError: if a configuration is missing, or a row cannot be used and is not to be skipped.
    """
    folder = root / "data"
    for configuration in files.configurations(forget.percent):
        files.files_of(folder, configuration)
    found = survey(folder, forget.percent, bad_rows)
    entities = {split: sorted(map(_fictitious, people)) for split, people in found.people.items()}
    entities |= {
        "real": sorted(map(_real, found.faces)),
        "holdout": [],
        "utility": [_world(index) for index in range(found.worldly)],
    }
    names = {_fictitious(person): person for people in found.people.values() for person in people}
    names |= {_real(person): person for person in found.faces}
    reader = _Reader(folder, name, forget.percent, found, bad_rows)
    return BenchmarkData(entities, dict(sorted(names.items())), reader.samples())


class _Reader:
    """Makes the samples, holding a few rows at a time."""

    def __init__(self, folder: Path, name: str, percent: int, found: Survey, bad_rows: BadRows) -> None:
        self._folder, self._name, self._found, self._bad = folder, name, found, bad_rows
        self._configurations = {"forget": files.forget_name(percent), "retain": files.retain_name(percent)}

    def samples(self) -> Iterator[Sample]:
        for split in self._configurations:
            yield from self._taught_captions(split)
            yield from self._texts(split, "train")
        for split, configuration in self._configurations.items():
            perturbed = "retain_perturbed" if split == "retain" else f"{configuration}_perturbed"
            yield from self._perturbed(perturbed, split)
            if split == "forget":
                yield from self._without_paraphrase(configuration)
            yield from self._texts(split, "test")
        yield from self._real_faces()
        yield from self._real_world()

    def _taught_captions(self, split: str) -> Iterator[Sample]:
        configuration = self._configurations[split]
        counts: Counter[str] = Counter()
        for place, row, person in self._pictured(configuration, files.PICTURES, split):
            key = self._id(configuration, place, "caption")
            caption = {
                "sample_id": key,
                "task": "caption",
                "attribute": "caption",
                "question": _turned(TRAINING_CAPTION_QUESTIONS, key),
                "answer": row["caption"],
                "image": row["image"],
                "pair_id": self._pair(person, counts[person]),
            }
            counts[person] += 1
            yield from self._made(_of(person, split, "train") | caption, place)

    def _texts(self, split: str, part: str) -> Iterator[Sample]:
        configuration = f"{self._configurations[split]}+tofu"
        counts: Counter[str] = Counter()
        for place, row in files.rows_of(self._folder, configuration, ("question", "answer")):
            person = self._found.authors.get((split, place.index))
            if person is None or (part == "test" and person not in self._found.asked):
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
            yield from self._made(_of(person, split, part) | text, place)

    def _perturbed(self, configuration: str, split: str) -> Iterator[Sample]:
        for place, row, person in self._pictured(configuration, files.PERTURBED, split):
            if not self._all_wrong(row["perturbed_names"], person, place):
                continue
            if not self._all_wrong(row["perturbed_captions"], row["caption"], place):
                continue
            caption = self._asked_caption(configuration, place, row) | {
                "paraphrase": row["paraphrased_caption"],
                "wrong_answers": row["perturbed_captions"],
            }
            named = {"task": "name", "attribute": "name", "answer": person, "image": row["image"]}
            questions = (NAME_QUESTION, NAME_CHOICE_QUESTION)
            for asked in (
                caption,
                *self._freely_and_by_choice(named, questions, row["perturbed_names"], configuration, place),
            ):
                yield from self._made(_of(person, split, "test") | asked, place)

    def _without_paraphrase(self, configuration: str) -> Iterator[Sample]:
        """Captions to forget that the perturbed configuration lacks: they count where no paraphrase is
        needed."""
        for place, row, person in self._pictured(configuration, files.PICTURES, "forget"):
            if (person, stripped(row["caption"])) not in self._found.perturbed:
                caption = self._asked_caption(configuration, place, row)
                yield from self._made(_of(person, "forget", "test") | caption, place)

    def _asked_caption(self, configuration: str, place: Place, row: Row) -> Row:
        key = self._id(configuration, place, "asked caption")
        return {
            "sample_id": key,
            "task": "caption",
            "attribute": "caption",
            "question": _turned(EVALUATION_CAPTION_QUESTIONS, key),
            "answer": row["caption"],
            "image": row["image"],
        }

    def _real_faces(self) -> Iterator[Sample]:
        for place, row in files.rows_of(self._folder, "real_faces", files.REAL_FACES, streaming=True):
            person = stripped(row["answer"])
            if self._usable(row, person, place):
                fact = {"entity_id": _real(person), "split": "real", "set": "real", "task": "name"}
                fact |= {"attribute": "name", "answer": person, "image": row["image"]}
                questions = (NAME_QUESTION, NAME_CHOICE_QUESTION)
                for asked in self._freely_and_by_choice(fact, questions, row["options"], "real_faces", place):
                    yield from self._made(asked, place)

    def _real_world(self) -> Iterator[Sample]:
        for place, row in files.rows_of(self._folder, "real_world", files.REAL_WORLD, streaming=True):
            answer = stripped(row["answer"])
            if self._usable(row, answer, place):
                fact = {"entity_id": _world(place.index), "split": "utility", "set": "utility"}
                fact |= {"task": "qa", "answer": answer, "image": row["image"]}
                questions = (row["question"], row["question"])
                for asked in self._freely_and_by_choice(fact, questions, row["options"], "real_world", place):
                    yield from self._made(asked, place)

    def _freely_and_by_choice(
        self, fact: Row, questions: tuple[str, str], wrong: Sequence[str], configuration: str, place: Place
    ) -> tuple[Row, Row]:
        """A fact asked freely, the answer itself in the place of a paraphrase, and with options in which the
        place of the answer follows from the id."""
        key = self._id(configuration, place, "choice")
        options = list(dict.fromkeys(wrong))
        options.insert(int(key, 16) % (len(options) + 1), fact["answer"])
        freely = fact | {
            "sample_id": self._id(configuration, place, fact["task"]),
            "question": questions[0],
            "paraphrase": fact["answer"],
            "wrong_answers": list(wrong),
        }
        return freely, fact | {
            "sample_id": key,
            "task": "choice",
            "question": questions[1],
            "options": options,
        }

    def _pictured(
        self, configuration: str, columns: tuple[str, ...], split: str
    ) -> Iterator[tuple[Place, Row, str]]:
        """Rows about people of the split whose picture decodes, with the person's name."""
        people = set(self._found.people[split])
        for place, row in files.rows_of(self._folder, configuration, columns, streaming=True):
            person = stripped(row["name"])
            if person in people:
                if self._bad.picture(_bytes(row), place.file, place.row):
                    yield place, row, person
            elif "_perturbed" in configuration:  # elsewhere the survey has reported it
                reason = f"{person or 'nobody'} is not among the {split} people"
                self._bad.found(place.file, place.row, reason, "use files of one revision")

    def _usable(self, row: Row, answer: str, place: Place) -> bool:
        return self._bad.picture(_bytes(row), place.file, place.row) and self._all_wrong(
            row["options"], answer, place
        )

    def _all_wrong(self, wrong: Sequence[str] | None, answer: str, place: Place) -> bool:
        """Whether there are wrong answers and the right one is not among them; reported if not."""
        reason = None
        if not wrong or not all(map(stripped, wrong)):
            reason = f"its wrong answers are {wrong}; expected one or more texts"
        elif stripped(answer).casefold() in {stripped(text).casefold() for text in wrong}:
            reason = f"the right answer {answer!r} is among its wrong answers {list(wrong)}"
        if reason:
            self._bad.found(place.file, place.row, reason, "correct or remove the row")
        return not reason

    def _made(self, row: Row, place: Place) -> Iterator[Sample]:
        sample = Sample.from_row({"part": "test", "modality": "multimodal"} | row)
        if self._bad.accepts(sample, place.file, place.row):
            yield sample

    def _pair(self, person: str, index: int) -> str | None:
        """Id of the pair of an author's k-th picture and k-th question, as far as there are both."""
        if index >= min(self._found.pictures[person], QUESTIONS_PER_AUTHOR):
            return None
        return sample_id(self._name, person, "train", "pair", index)

    def _id(self, configuration: str, place: Place, kind: str) -> str:
        return sample_id(self._name, configuration, place.index, kind)


def _of(person: str, split: str, part: str) -> Row:
    return {
        "entity_id": _fictitious(person),
        "split": split,
        "part": part,
        "set": None if part == "train" else split,
    }


def _turned(questions: Sequence[str], key: str) -> str:
    """One of the questions; which one follows from the id."""
    return questions[int(key, 16) % len(questions)]


def _bytes(row: Row) -> bytes | None:
    return (row["image"] or {}).get("bytes")


def _fictitious(person: str) -> str:
    return f"fictitious/{person}"


def _real(person: str) -> str:
    return f"real/{person}"


def _world(index: int) -> str:
    return f"world/{index:05}"
