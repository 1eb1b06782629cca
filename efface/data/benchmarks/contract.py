"""What every importer takes and returns, and how it treats unusable rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from efface.data.pictures import picture_fault
from efface.data.samples import Sample, fault
from efface.errors import DataError


@dataclass(frozen=True)
class ForgetSelection:
    """Whom to forget: a share of the people, selected by the benchmark's files or by a seed."""

    fraction: float
    """Share of the people, in (0, 1)."""
    seed: int = 0
    """Draws the people where the benchmark has no sets of its own."""

    @property
    def percent(self) -> int:
        """The share in whole percent, as benchmarks name their folders."""
        return round(100 * self.fraction)


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark's samples, with the people whom its files or a seed select to forget."""

    entities: dict[str, list[str]]
    """Split to its entity ids, sorted; complete before any sample is read."""
    names: dict[str, str]
    """Entity id to name, where the benchmark has one."""
    samples: Iterable[Sample]
    """Training rows, then evaluation rows, all with part `train` or `test`. An importer passes a generator,
    which can be consumed once and has the pictures of a few rows in memory at a time."""


@dataclass
class BadRows:
    """How to treat unusable rows: stop at the first, or leave each out and list it."""

    policy: Literal["stop", "skip"] = "stop"
    left_out: list[dict[str, str]] = field(default_factory=list)
    """File, row, reason and remedy of each row left out."""

    def report(self, file: Path | str, row: str, reason: str, remedy: str) -> None:
        """Stop at a bad row, or list it.

        Args:
            file: file or folder that holds it.
            row: its number or id.
            reason: what is wrong.
            remedy: what to do about it.

        Raises:
            DataError: with all of this, unless bad rows are to be skipped.
        """
        if self.policy == "stop":
            raise DataError(f"{file}: {row}: {reason}; {remedy}, or leave such rows out (on_bad_row: skip)")
        entry = {"file": str(file), "row": row, "reason": reason, "remedy": remedy}
        if entry not in self.left_out[-50:]:  # two passes may meet the same row
            self.left_out.append(entry)

    def accepts(self, sample: Sample, file: Path | str, row: str) -> bool:
        """Whether a sample conforms to the data model; reported if not. Its picture is not decoded."""
        reason = fault(sample)
        if reason:
            self.report(file, f"{row}, question {sample.question!r}", reason, "correct the row")
        return not reason

    def accepts_picture(self, encoded: bytes | None, file: Path | str, row: str) -> bool:
        """Whether there is a picture that decodes; reported if not."""
        reason = picture_fault(encoded)
        if reason:
            self.report(file, row, reason, "replace the picture or download the file again")
        return not reason


def sample_id(*parts: object) -> str:
    """Id of a sample or a pair: stable, and different as soon as one part differs."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]
