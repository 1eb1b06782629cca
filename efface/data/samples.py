"""The table that every benchmark becomes: a row is one question about one person, with its answer.

`read_samples` and `write_samples` convert between the parquet file and `Sample`; `validated` reports the
first row that breaks the data model, and why.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Features, Image, List, Value

from efface.data.parquet import column_values, read_parquet, write_parquet
from efface.data.pictures import cached_picture
from efface.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SPLITS = ("forget", "retain", "real", "holdout", "utility")
PEOPLE = "people"
"""Split of people who can be forgotten, in a table that does not say who is forgotten; set `SEEN`."""
PARTS = ("train", "validation", "test")
MODALITIES = ("multimodal", "text")
TASKS = ("qa", "choice", "cloze", "generation", "caption", "name")
SETS = ("forget", "unseen", "retain", "real", "holdout", "utility", "perception")
OF_FORGOTTEN = ("unseen", "perception")
"""Sets of the people to forget alone, beside their own: other pictures, and what else their pictures show."""
SEEN = "seen"
"""Set of evaluation rows with training pictures of people who can be forgotten; see `PEOPLE`."""

_TEXT, _TEXTS = Value("string"), List(Value("string"))
FEATURES = Features(
    {
        "sample_id": _TEXT,
        "entity_id": _TEXT,
        "split": _TEXT,
        "part": _TEXT,
        "modality": _TEXT,
        "task": _TEXT,
        "attribute": _TEXT,
        "image": Image(),
        "question": _TEXT,
        "answer": _TEXT,
        "options": _TEXTS,
        "paraphrase": _TEXT,
        "wrong_answers": _TEXTS,
        "pair_id": _TEXT,
        "set": _TEXT,
    }
)
"""Columns of the table as Hugging Face `datasets` describes them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of `samples.parquet`, a field per column. The picture is decoded on first use."""

    sample_id: str
    entity_id: str
    """Person, namespaced: `fictitious/042`, `real/007`, `stranger/00019`."""
    split: str
    """One of `SPLITS`, or `PEOPLE`."""
    part: str
    """One of `PARTS`."""
    modality: str
    """One of `MODALITIES`."""
    task: str
    """One of `TASKS`."""
    attribute: str | None
    """The fact in question: occupation, birthplace, ..., name; None if the benchmark does not say."""
    image_bytes: bytes | None = field(repr=False)
    """The encoded picture; rows with equal pictures share one object."""
    question: str
    answer: str
    options: tuple[str, ...] | None
    """Every option, the answer included."""
    paraphrase: str | None
    """The answer in other words."""
    wrong_answers: tuple[str, ...] | None
    """False answers in the words of the paraphrase."""
    pair_id: str | None
    """Shared by the multimodal and the text rendering of one fact."""
    set: str | None
    """One of `SETS`, or `SEEN`, for evaluation rows; None for training rows."""
    more_image_bytes: tuple[bytes, ...] = field(default=(), repr=False)
    """Encoded pictures after the first, for a question about several. Not a column: a table row has one."""

    def __post_init__(self) -> None:
        if self.more_image_bytes and self.image_bytes is None:
            raise DataError(
                f"sample {self.sample_id} has more_image_bytes and no image_bytes; set the first picture too"
            )

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text of the sample, with the name of its column."""
        for name in ("attribute", "question", "answer", "paraphrase"):
            if (text := getattr(self, name)) is not None:
                yield name, text
        for name in ("options", "wrong_answers"):
            yield from ((name, text) for text in getattr(self, name) or ())

    @property
    def image(self) -> Picture | None:
        """The first picture as RGB, or None. Rows with equal pictures share it: copy before changing it.

        Raises:
            DataError: if the picture cannot be decoded.
        """
        return None if self.image_bytes is None else self._open(self.image_bytes)

    @property
    def images(self) -> list[Picture]:
        """All pictures as RGB, in the order of the question; empty for text.

        Raises:
            DataError: if a picture cannot be decoded.
        """
        return [self._open(encoded) for encoded in self.encoded_images]

    @property
    def encoded_images(self) -> tuple[bytes, ...]:
        """All pictures as PNG, JPEG or the like."""
        return () if self.image_bytes is None else (self.image_bytes, *self.more_image_bytes)

    def _open(self, encoded: bytes) -> Picture:
        try:
            return cached_picture(encoded)
        except DataError as error:
            raise DataError(f"sample {self.sample_id} ({self.entity_id}): {error}") from error

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Sample:
        """A sample from a row keyed by column name; nullable columns may be left out."""
        fields: dict[str, Any] = {name: row.get(name) for name in FEATURES}
        image = fields.pop("image")
        fields["image_bytes"] = image["bytes"] if isinstance(image, Mapping) else image
        for name in ("options", "wrong_answers"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        return cls(**fields)

    def row(self) -> dict[str, Any]:
        """The row as written to parquet.

        Raises:
            DataError: if the sample has several pictures.
        """
        if self.more_image_bytes:
            raise DataError(
                f"sample {self.sample_id} has {len(self.encoded_images)} pictures, and a table row holds "
                "one; write a row per picture"
            )
        row = {name: getattr(self, name) for name in FEATURES if name != "image"}
        row["image"] = None if self.image_bytes is None else {"bytes": self.image_bytes, "path": None}
        return row


def read_samples(
    path: Path | str,
    *,
    split: str | Collection[str] | None = None,
    part: str | Collection[str] | None = None,
    modality: str | Collection[str] | None = None,
    set: str | Collection[str] | None = None,
    task: str | Collection[str] | None = None,
) -> list[Sample]:
    """The samples of a table that match every filter given.

    A folder that the pipeline prepared holds `samples.parquet`, which does not say who is forgotten, and
    `splits.json`, which does. Its samples come with their split: training rows, then evaluation rows, sorted
    by `SPLITS` and `SETS` and then by person. The samples of a file, or of a folder without `splits.json`,
    come unchanged and in file order.

    Args:
        path: a table, or the folder that holds `samples.parquet`.
        split: keep rows of this split, or of one of these; None keeps all. The other filters likewise.
        part: see `PARTS`.
        modality: see `MODALITIES`.
        set: see `SETS`; training rows belong to none.
        task: see `TASKS`.

    Raises:
        DataError: if a filter has an unknown value, the file is missing or damaged, or a filter depends on
            who is forgotten and there is no `splits.json`.
    """
    filters = {"split": split, "part": part, "modality": modality, "set": set, "task": task}
    return [Sample.from_row(row) for row in _read(Path(path), list(FEATURES), filters)]


LABELS = ("sample_id", "entity_id", "split", "part", "modality", "task", "attribute", "pair_id", "set")


def read_labels(path: Path | str) -> list[dict[str, Any]]:
    """The columns `LABELS` of every sample: its person, split, part and set; see `read_samples`."""
    return list(_read(Path(path), LABELS, {}))


_ALLOWED = {
    "split": (*SPLITS, PEOPLE),
    "part": PARTS,
    "modality": MODALITIES,
    "set": (*SETS, SEEN),
    "task": TASKS,
}


def _read(
    path: Path, columns: Sequence[str], filters: Mapping[str, str | Collection[str] | None]
) -> Iterable[dict[str, Any]]:
    table = path / "samples.parquet" if path.is_dir() else path
    splits = path / "splits.json"
    people = _People.read(splits) if splits.is_file() else None
    where: dict[str, list[str]] = {}
    for name, values in filters.items():
        if values is None:
            continue
        where[name] = [values] if isinstance(values, str) else sorted(values)
        if unknown := [value for value in where[name] if value not in _ALLOWED[name]]:
            raise DataError(f"{name} is {unknown[0]!r}: expected one of {', '.join(_ALLOWED[name])}")
    table_filters = where if people is None else people.wider(where)
    rows: Iterator[dict[str, Any]] = read_parquet(table, columns, where=table_filters, share_pictures=True)
    if people is not None:
        return people.labelled(rows, where)
    sides = {"forget", "retain"} & {*where.get("split", ()), *where.get("set", ())}
    if sides and PEOPLE in column_values(table, "split"):
        raise DataError(
            f"{table} does not say who is forgotten: expected splits.json beside it, and its folder as path; "
            "create it with: python -m tasks split"
        )
    return rows


@dataclass(frozen=True)
class _People:
    """Who is forgotten, from `splits.json`."""

    sides: Mapping[str, str]
    """Person to `forget` or `retain`."""
    validation: frozenset[str]
    """People whose evaluation rows are of part `validation`."""
    forgotten: frozenset[str]
    """People forgotten before, who have no training row."""
    attributes: Mapping[str, frozenset[str]]
    """Person to the attributes that are, or were, forgotten, where others are retained."""

    @classmethod
    def read(cls, path: Path) -> _People:
        try:
            splits = json.loads(path.read_text(encoding="utf-8"))
            sides = {e: side for side in ("forget", "retain") for e in splits["entities"].get(side, ())}
            validation, forgotten = (frozenset(splits.get(key, ())) for key in ("validation", "forgotten"))
            attributes = {e: frozenset(names) for e, names in splits.get("attributes", {}).items()}
            return cls(sides, validation, forgotten, attributes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is damaged: expected a JSON object with the people of each split under entities "
                f"({error!r}); make it again with: python -m tasks split"
            ) from error

    def wider(self, where: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """Filters on the table that keep every row which may match the given ones once it is labelled."""
        table_filters = dict(where)
        if "part" in where:
            table_filters["part"] = sorted(
                {"test" if part == "validation" else part for part in where["part"]}
            )
        splits, sets = ({*where.get(name, allowed)} for name, allowed in (("split", SPLITS), ("set", SETS)))
        if "split" in where:
            table_filters["split"] = [*where["split"], PEOPLE]
        if "set" in where:
            table_filters["set"] = [*where["set"], SEEN]
            splits &= sets | ({"forget"} if sets & {*OF_FORGOTTEN} else set())
        if self.sides and splits <= {"forget", "retain"}:  # so that the others' pictures are not read
            whole = {person for person, side in self.sides.items() if side in splits}
            table_filters["entity_id"] = sorted(whole | {*self.attributes})
        return table_filters

    def labelled(
        self, rows: Iterable[dict[str, Any]], where: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """The rows that match, with their split, set and part, in the order that `read_samples` gives."""
        matching = []
        for row in rows:
            person, kind = row["entity_id"], row["set"]
            if row["split"] == PEOPLE:
                side, forgets = self.sides.get(person), self.attributes.get(person)
                retained = forgets is not None and row["attribute"] not in forgets
                if side is None or (kind is None and person in self.forgotten and not retained):
                    continue
                side = "retain" if retained else side
                if kind in OF_FORGOTTEN and side == "retain":
                    continue
                row |= {"split": side, "set": side if kind == SEEN else kind}
            if row["part"] == "test" and person in self.validation:
                row["part"] = "validation"
            if all(row[name] in values for name, values in where.items()):
                matching.append(row)
        return sorted(matching, key=self._place)

    def _place(self, row: Mapping[str, Any]) -> tuple[bool, int, str]:
        trains = row["part"] == "train"
        rank = SPLITS.index(row["split"]) if trains else SETS.index(row["set"])
        return not trains, rank, row["entity_id"] if row["split"] in ("forget", "retain") else ""


def write_samples(samples: Iterable[Sample | Mapping[str, Any]], path: Path | str) -> None:
    """Write samples (or rows keyed by column) as a parquet table; equal samples give equal bytes.

    Raises:
        DataError: if a row has an unknown column or a value of the wrong type.
    """
    rows = (s.row() if isinstance(s, Sample) else s for s in samples)
    write_parquet(rows, Path(path), FEATURES)


def validated(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples one by one, after checking each against the data model and those before it.

    Pictures are not decoded: importers do that.

    Raises:
        DataError: naming the first offending row (number and id) and the reason.
    """
    numbers: dict[str, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    for number, sample in enumerate(samples):
        reason = fault(sample)
        if not reason and (first := numbers.setdefault(sample.sample_id, number)) != number:
            reason = f"duplicate sample_id, first used by row {first}; ids must be unique"
        if not reason:
            split, first = splits.setdefault(sample.entity_id, (sample.split, number))
            if split != sample.split:
                reason = (
                    f"entity {sample.entity_id} is in both {split} (row {first}) and {sample.split}; "
                    "every entity belongs to one split"
                )
        if reason:
            raise DataError(f"row {number} (sample_id {sample.sample_id!r}): {reason}")
        yield sample


def fault(sample: Sample) -> str | None:
    """Why a single sample breaks the data model, or None; its picture is not decoded."""
    for name in ("sample_id", "entity_id", "question", "answer"):
        value = getattr(sample, name)
        if not isinstance(value, str) or not value.strip():
            return f"empty {name}; expected some text, got {value!r}"
    for name, text in sample.texts():
        if any("\ud800" <= c <= "\udfff" for c in text):
            return f"{name} holds half a character (a lone surrogate): {text!r}; write the whole character"
    for name, allowed in (
        ("split", (*SPLITS, PEOPLE)),
        ("part", PARTS),
        ("modality", MODALITIES),
        ("task", TASKS),
    ):
        if getattr(sample, name) not in allowed:
            return f"unknown {name} {getattr(sample, name)!r}; expected one of {', '.join(allowed)}"
    if sample.part == "train" and sample.set is not None:
        return f"a training row has set {sample.set!r}; only evaluation rows belong to a set"
    if sample.part != "train" and sample.set not in (*SETS, SEEN):
        return f"unknown set {sample.set!r} of an evaluation row; expected one of {', '.join(SETS)}"
    if sample.modality == "multimodal" and not sample.image_bytes:
        return "missing image; a multimodal row needs one"
    if sample.modality == "text" and sample.image_bytes is not None:
        return "a text row has an image; expected none"
    if sample.options is not None and sample.answer not in sample.options:
        return f"answer {sample.answer!r} is not among its options {list(sample.options)}"
    if sample.task == "choice" and sample.options is None:
        return "a choice row has no options"
    return None


def check_special_tokens(samples: Iterable[Sample], tokens: Collection[str]) -> None:
    """Refuse texts that hold a special token of the model: it would be read as a picture or as the end.

    Args:
        samples: the samples for training or evaluation.
        tokens: special tokens of its processor, such as `<image>` or `</s>`.

    Raises:
        DataError: naming sample, person, column and token of the first.
    """
    for sample in samples:
        for name, text in sample.texts():
            if special := sorted(token for token in tokens if token and token in text):
                raise DataError(
                    f"sample {sample.sample_id} ({sample.entity_id}): its {name} {text!r} holds "
                    f"{special[0]!r}, a special token of this model; take it out of the text, or use another "
                    "model"
                )
