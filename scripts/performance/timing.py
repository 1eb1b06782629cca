"""Seconds, ratios and memory of jobs that take turns."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Job = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        case: what was measured against what.
        size: of the model.
        value: the number.
        unit: what follows it.
        limit: highest (``at_most``) or lowest acceptable number; None: reported only.
        at_most: which of the two the limit is.
        note: anything else.
    """

    case: str
    size: str
    value: float
    unit: str = "x"
    limit: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def met(self) -> str:
        """Whether the number is within its limit."""
        if self.limit is None:
            return ""
        return "yes" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "**no**"

    def line(self) -> str:
        """The row in Markdown."""
        bound = "" if self.limit is None else f"{'<=' if self.at_most else '>='} {self.limit:g} {self.unit}"
        cells = [self.case, self.size, f"{self.value:.3g} {self.unit}", bound, self.met, self.note]
        return f"| {' | '.join(cells)} |"


@dataclass
class Clock:
    """How to take the time on a device.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: how often each job runs, after one run to warm up.

    On one processor core it is processor seconds, so that what other programs take does not count; on several
    cores waiting threads would count as busy, so it is the clock on the wall.
    """

    device: str
    rounds: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def now(self) -> float:
        """Seconds since some moment, everything before being done."""
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()

    def once(self, job: Job) -> float:
        """Seconds of one run."""
        started = self.now()
        job()
        return self.now() - started

    def measure(self, jobs: Mapping[str, Job]) -> Timings:
        """Seconds of each job in each round."""
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(self.rounds + 1):
            for name in list(jobs)[:: 1 if number % 2 else -1]:
                taken = self.once(jobs[name])
                if number:  # the first round warms up
                    seconds[name].append(taken)
        return Timings(seconds)


@dataclass(frozen=True)
class Timings:
    """Seconds of each job in each round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, job: str) -> float:
        """Of the rounds' seconds."""
        return statistics.median(self.seconds[job])

    def row(
        self,
        case: str,
        size: str,
        job: str,
        plain: str,
        *,
        limit: float | None = None,
        at_most: bool = True,
        scale: float = 1.0,
        note: str = "",
    ) -> Row:
        """How many times as long one job takes as the other: median over rounds, and their range.

        Args:
            case: what is said of it.
            size: of the model.
            job: above the line.
            plain: below it.
            limit: acceptable number; see ``Row``.
            at_most: likewise.
            scale: factor of the first, where one of the two did a part of the work only.
            note: what to add.
        """
        pairs = zip(self.seconds[job], self.seconds[plain], strict=True)
        found = sorted(scale * a / b for a, b in pairs)
        spread = f"{found[0]:.3g} to {found[-1]:.3g}" if len(found) > 1 else "one round"
        notes = "; ".join(part for part in (spread, note) if part)
        return Row(case, size, statistics.median(found), "x", limit, at_most, notes)


def peak_mib(job: Job, device: str) -> float:
    """Memory a job needs beyond what is there before it starts, in MiB: the process's on a CPU, the GPU's.

    On a CPU blocks that are freed and kept for later count as needed, or are used again unseen, unless the
    process was started so that it keeps none: see ``scripts.performance.memory``.
    """
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that from now on
    before = _status("VmRSS")
    job()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise SystemExit("this system does not tell a process's memory in /proc/self/status")
    return int(found[1])


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size with which time grows: slope of a line through the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
