"""Running one stage as several processes that share its work.

With EFFACE_PROCESSES=2 a stage that can share its work starts itself twice on this machine, through torchrun.
`torchrun` and `accelerate launch` work too, even on several machines. Only the first process writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from efface.errors import EffaceError
from tasks.config.stages import STAGES

COUNT = "EFFACE_PROCESSES"


def process_count() -> int:
    """Number of processes that share a stage, from the environment.

    Raises:
        EffaceError: if the variable is not a number from 1 on.
    """
    text = os.environ.get(COUNT, "1")
    if not text.isdecimal() or int(text) < 1:
        raise EffaceError(f"{COUNT} is {text!r}: expected a number of processes, at least 1")
    return int(text)


def processes_of(stage: str) -> int:
    """Number of processes that a stage, such as `unlearn@npo`, runs as."""
    entry = STAGES.get(stage.partition("@")[0])
    return process_count() if entry is not None and entry.shared else 1


_TORCHRUN = """
import sys
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

try:
    main()
except ChildFailedError:
    sys.exit(1)
"""
"""torchrun without a traceback of its own: the process that failed has said why."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process writes and prints: the only one, or the first of several."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun, which runs `python -m tasks ARGUMENTS` several times."""
    count = os.environ[COUNT]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(count))))
    torchrun = ["-c", _TORCHRUN, "--standalone", "--nproc_per_node", count]
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "tasks", *arguments])


@contextlib.contextmanager
def joined(stage: str) -> Iterator[None]:
    """Connect the processes of a stage within the block; do nothing for a single process.

    Raises:
        EffaceError: if several processes were started for a stage that cannot share its work.
    """
    if not launched():
        yield
        return
    if not STAGES[stage].shared:
        shared = ", ".join(name for name, entry in STAGES.items() if entry.shared)
        world = os.environ["WORLD_SIZE"]
        raise EffaceError(f"WORLD_SIZE is {world}: expected 1 for {stage}; stages that share work: {shared}")
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    import torch

    gpu = torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU")
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield
    torch.distributed.destroy_process_group()
