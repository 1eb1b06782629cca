"""What a stage makes of its machine while it works: processor, memory and GPUs, every few seconds."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from types import TracebackType

_MOST = 240
"""Samples kept; with more, every other one goes, and those to come are twice as far apart."""
_MIB = 1024**2


class Usage:
    """Samples the machine in a thread during its block, and once more at the end.

    Processor and memory are those of the whole machine, as MLflow samples them, whose names these are;
    `process_memory_usage_megabytes` is this process's own.

    Args:
        every: seconds from one sample to the next, to begin with.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.samples: list[dict[str, float]] = []
        """Seconds since the start (`at`), and values by name."""
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Usage:
        import psutil

        self._process, self._began = psutil.Process(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        psutil.cpu_percent()  # the next call in this thread tells what has been used since
        over = False
        while not over:
            over = self._over.wait(self._every)
            self.samples.append(self._now())
            if len(self.samples) > _MOST:
                self.samples = self.samples[::-2][::-1]  # the last one stays
                self._every *= 2

    def _now(self) -> dict[str, float]:
        import psutil

        memory = psutil.virtual_memory()
        found = {
            "at": time.perf_counter() - self._began,
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MIB,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": self._process.memory_info().rss / _MIB,
            **_gpus(),
        }
        return {name: round(value, 3) for name, value in found.items()}


def _gpus() -> dict[str, float]:
    """Memory of the GPUs of a stage that computes on one; how busy they are where NVIDIA's library tells."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    found = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / _MIB
        found[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
        if importlib.util.find_spec("pynvml"):
            found[f"gpu_{number}_utilization_percentage"] = torch.cuda.utilization(number)
    return found
