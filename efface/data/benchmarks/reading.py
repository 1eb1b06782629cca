"""What every reader of a benchmark takes and gives, and what becomes of a row that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from efface.data.samples import Sample, fault, undecodable
from efface.errors import DataError

SPLIT_NAMES = ("forget", "retain", "real", "holdout", "utility")


@dataclass(frozen=True)
class Forgetting:
    """Who is to be forgotten: a share that the benchmark or a seed turns into people, or the people."""

    fraction: float
    """Share of the people, in (0, 1)."""
    people: tuple[str, ...] | None = None
    """Everybody to be asked about as a person to forget, in place of the share: entity ids."""
    seed: int = 0
    """Draws the people where the benchmark has no sets of its own."""

    @property
    def percent(self) -> int:
        """The share in whole percent, as benchmarks name their folders."""
        return round(100 * self.fraction)


@dataclass(frozen=True)
class BenchmarkData:
    """What a benchmark says, before anybody is set aside for validation."""

    entities: dict[str, list[str]]
    """Split to its entity ids, sorted; complete before any sample is read."""
    names: dict[str, str]
    """Entity id to name, where the benchmark tells it."""
    samples: Iterable[Sample]
    """Training rows, then evaluation rows, all with part `train` or `test`. A reader gives a generator that
    can be walked through once and holds the pictures of a few rows at a time."""


@dataclass
class BadRows:
    """What to do with a row that cannot be used: stop at the first, or leave it out and take note."""

    policy: Literal["stop", "skip"] = "stop"
    left_out: list[dict[str, str]] = field(default_factory=list)
    """Of each row left out: file, row, reason and remedy."""

    def found(self, file: Path | str, row: str, reason: str, remedy: str) -> None:
        """Report a bad row.

        Args:
            file: file or folder that holds it.
            row: its id, with as much as it takes to find it.
            reason: what is wrong.
            remedy: what to do about it.

        Raises:
            DataError: with all of this, unless bad rows are to be skipped.
        """
        if self.policy == "stop":
            raise DataError(
                f"{file}: {row}: {reason}; {remedy}, or leave such rows out with prepare.on_bad_row: skip"
            )
        note = {"file": str(file), "row": row, "reason": reason, "remedy": remedy}
        if note not in self.left_out[-50:]:  # two passes may meet the same row
            self.left_out.append(note)

    def accepts(self, sample: Sample, file: Path | str, row: str) -> bool:
        """Whether a sample keeps to the data model, its picture aside; reported if not."""
        reason = fault(sample)
        if reason:
            self.found(file, f"{row}, question {sample.question!r}", reason, "correct the row")
        return not reason

    def picture(self, encoded: bytes | None, file: Path | str, row: str) -> bool:
        """Whether a picture is there and decodes; reported if not. Nothing of it is kept in memory."""
        reason = "the picture is missing" if not encoded else undecodable(encoded)
        if reason:
            self.found(file, row, reason, "put a whole picture there or download the file again")
        return not reason


def sample_id(*parts: object) -> str:
    """Id of a sample or a pair: stable, and unlike any other as soon as one part differs."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
