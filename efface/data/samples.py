"""The one table every benchmark becomes: a row is one question about one person, with its answer.

`read_samples` and `write_samples` go between the parquet file and `Sample`; `validate` says which row
breaks the data model and why.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from efface.data.parquet import IMAGE, read_rows, write_rows
from efface.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("forget", "retain", "real", "holdout", "utility")
PARTS = ("train", "validation", "test")
MODALITIES = ("multimodal", "text")
TASKS = ("qa", "choice", "cloze", "generation", "caption", "name")
SETS = ("forget", "unseen", "retain", "real", "holdout", "utility")

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("entity_id", pa.string()),
        ("split", pa.string()),
        ("part", pa.string()),
        ("modality", pa.string()),
        ("task", pa.string()),
        ("attribute", pa.string()),
        ("image", IMAGE),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("options", pa.list_(pa.string())),
        ("paraphrase", pa.string()),
        ("wrong_answers", pa.list_(pa.string())),
        ("pair_id", pa.string()),
        ("set", pa.string()),
    ]
)

_CONVERTED = ("image", "options", "wrong_answers")
_PERSON = re.compile(r"\b(?:this|the) (?:person|individual)\b", re.IGNORECASE)
_NAMING = re.compile(
    r"\b(?:person|individual)(?:'s|’s) (?:full |first |last )?name\b"
    r"|\bnames? of (?:this|the) (?:person|individual)\b"
    r"|\b(?:which|what) name\b|(?<!\bof )\b(?:this|the) (?:person|individual) (?:is )?(?:called|named)\b"
    r"|\bwho is (?:this|the) (?:person|individual)\b|\bidentify (?:this|the) (?:person|individual)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of `samples.parquet`; a field per column, the picture decoded when first asked for."""

    sample_id: str
    entity_id: str
    """Person, namespaced: `fictitious/042`, `real/007`, `stranger/00019`."""
    split: str
    """One of `SPLITS`."""
    part: str
    """One of `PARTS`."""
    modality: str
    """One of `MODALITIES`."""
    task: str
    """One of `TASKS`."""
    attribute: str | None
    """What is asked for: occupation, birthplace, ..., name; None where the benchmark does not say."""
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
    """One of `SETS` for evaluation rows, None for training rows."""
    more_image_bytes: tuple[bytes, ...] = field(default=(), repr=False)
    """Encoded pictures after the first, of a question about several. No column: a row of a table has one."""

    def __post_init__(self) -> None:
        if self.more_image_bytes and self.image_bytes is None:
            raise DataError(
                f"sample {self.sample_id} has further pictures and no first; give the first one too"
            )

    @property
    def image(self) -> Image | None:
        """The first picture as RGB, or None. Rows with equal pictures share it: copy before changing it.

        Raises:
            DataError: if the picture cannot be decoded.
        """
        return None if self.image_bytes is None else self._open(self.image_bytes)

    @property
    def images(self) -> list[Image]:
        """All pictures as RGB, in the order in which the question speaks of them; none for text.

        Raises:
            DataError: if a picture cannot be decoded.
        """
        return [self._open(encoded) for encoded in self.encoded_images]

    @property
    def encoded_images(self) -> tuple[bytes, ...]:
        """All pictures as PNG, JPEG or the like."""
        return () if self.image_bytes is None else (self.image_bytes, *self.more_image_bytes)

    def _open(self, encoded: bytes) -> Image:
        try:
            return _decoded(encoded)
        except DataError as error:
            raise DataError(f"sample {self.sample_id} ({self.entity_id}): {error}") from error

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Sample:
        """A sample from a row keyed by column name; columns that may be null may be left out."""
        options, wrong = row.get("options"), row.get("wrong_answers")
        plain: dict[str, Any] = {name: row.get(name) for name in SCHEMA.names if name not in _CONVERTED}
        return cls(
            **plain,
            image_bytes=_encoded(row.get("image")),
            options=None if options is None else tuple(options),
            wrong_answers=None if wrong is None else tuple(wrong),
        )

    def row(self) -> dict[str, Any]:
        """The row as written to parquet.

        Raises:
            DataError: if the sample has several pictures.
        """
        if self.more_image_bytes:
            raise DataError(
                f"sample {self.sample_id} has {len(self.encoded_images)} pictures, and a row of a table has "
                "one; write a row per picture"
            )
        row = {name: getattr(self, name) for name in SCHEMA.names if name != "image"}
        row["image"] = None if self.image_bytes is None else {"bytes": self.image_bytes, "path": None}
        return row


def _encoded(image: Any) -> bytes | None:
    return image["bytes"] if isinstance(image, Mapping) else image


def _decode(encoded: bytes) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = str(error).split("<")[0].strip()
        raise DataError(
            f"the picture cannot be decoded ({len(encoded)} bytes: {reason}); "
            "expected a whole PNG or JPEG file"
        ) from error


# Enough for every picture of a small benchmark; at a few megabytes each, large ones stay within gigabytes.
_decoded = functools.lru_cache(maxsize=1024)(_decode)


def undecodable(encoded: bytes) -> str | None:
    """Why a picture cannot be decoded, or None. The decoded picture is not kept."""
    try:
        _decode(encoded)
    except DataError as error:
        return str(error)
    return None


def read_samples(
    path: Path | str,
    *,
    split: str | Collection[str] | None = None,
    part: str | Collection[str] | None = None,
    modality: str | Collection[str] | None = None,
    set: str | Collection[str] | None = None,
    task: str | Collection[str] | None = None,
) -> list[Sample]:
    """The samples of a prepared table that match every filter given, in file order.

    Args:
        path: `samples.parquet`, or the folder that holds it.
        split: keep rows of this split, or of one of these; None keeps all. The other filters likewise.
        part: see `PARTS`.
        modality: see `MODALITIES`.
        set: see `SETS`; training rows belong to none.
        task: see `TASKS`.

    Raises:
        DataError: if a filter names something unknown, or the file is missing or damaged.
    """
    path = Path(path)
    path = path / "samples.parquet" if path.is_dir() else path
    filters = {"split": (split, SPLITS), "part": (part, PARTS), "modality": (modality, MODALITIES)}
    filters |= {"set": (set, SETS), "task": (task, TASKS)}
    where = {
        name: _values(name, given, known) for name, (given, known) in filters.items() if given is not None
    }
    return [Sample.from_row(row) for row in read_rows(path, columns=SCHEMA.names, where=where)]


def _values(name: str, given: str | Collection[str], known: Sequence[str]) -> list[str]:
    values = [given] if isinstance(given, str) else sorted(given)
    if unknown := [value for value in values if value not in known]:
        raise DataError(f"{name} is {unknown[0]!r}: expected one of {', '.join(known)}")
    return values


def write_samples(samples: Iterable[Sample | Mapping[str, Any]], path: Path | str) -> None:
    """Write samples (or rows keyed by column) as a parquet table; equal samples give equal bytes.

    Raises:
        DataError: if a row has an unknown column or a value of the wrong type.
    """
    rows = (s.row() if isinstance(s, Sample) else s for s in samples)
    write_rows(rows, Path(path), SCHEMA)


def validate(samples: Iterable[Sample | Mapping[str, Any]]) -> list[Sample]:
    """The samples, once every one of them keeps to the data model and every picture decodes.

    Raises:
        DataError: naming the first offending row (number and id) and the reason.
    """
    return list(validated(samples, pictures=True))


def validated(samples: Iterable[Sample | Mapping[str, Any]], *, pictures: bool = False) -> Iterator[Sample]:
    """The samples one by one, each once it keeps to the data model and fits those before it.

    Args:
        samples: samples, or rows keyed by column.
        pictures: decode every picture too. They are held until the end, so this is for small tables.

    Raises:
        DataError: naming the first offending row (number and id) and the reason.
    """
    ids: dict[str, int] = {}
    splits: dict[str, tuple[str, int]] = {}
    decoded: dict[int, bytes] = {}
    for number, given in enumerate(samples):
        sample = given if isinstance(given, Sample) else Sample.from_row(given)
        reason = fault(sample) or (_picture_fault(sample, decoded) if pictures else None)
        if not reason and (first := ids.setdefault(sample.sample_id, number)) != number:
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
    """Why a sample on its own breaks the data model, or None; whether its picture decodes is not asked."""
    for name in ("sample_id", "entity_id", "question", "answer"):
        value = getattr(sample, name)
        if not isinstance(value, str) or not value.strip():
            return f"empty {name}; expected some text, got {value!r}"
    for name, known in (("split", SPLITS), ("part", PARTS), ("modality", MODALITIES), ("task", TASKS)):
        if getattr(sample, name) not in known:
            return f"unknown {name} {getattr(sample, name)!r}; expected one of {', '.join(known)}"
    if sample.part == "train" and sample.set is not None:
        return f"a training row has set {sample.set!r}; only evaluation rows belong to a set"
    if sample.part != "train" and sample.set not in SETS:
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


def _picture_fault(sample: Sample, seen: dict[int, bytes]) -> str | None:
    if sample.image_bytes is None or id(sample.image_bytes) in seen:
        return None
    reason = undecodable(sample.image_bytes)
    if reason is None:
        seen[id(sample.image_bytes)] = sample.image_bytes  # held, so that the id stays its own
    return reason


def text_rendering(question: str, name: str) -> str | None:
    """The question without its picture: the person's name in place of "this person" and the like.

    None where there is no such rendering: the question asks for the name itself, or points at nobody.
    """
    if _NAMING.search(question):
        return None
    return question if name in question else (named(question, name) if _PERSON.search(question) else None)


def named(text: str, name: str) -> str:
    """The text with the person's name in place of "this person", "the individual" and the like."""
    return _PERSON.sub(lambda _: name, text)


def asks_for_name(question: str) -> bool:
    """Whether the question asks who the person is."""
    return _NAMING.search(question) is not None
