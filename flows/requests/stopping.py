"""SIGTERM and Ctrl-C while `python -m flows.requests run` is at work: children end, the lock is free at once.

Prefect would first tell its server that the run crashed. A temporary server that got the same signal does not
answer any more, and to be told that takes minutes, in which nobody else may touch the production model.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from flows.children import terminate_all

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CHILDREN_SECONDS = 10.0
_SERVER_SECONDS = 10.0
_WORDS = (
    "stopped; the production model is free for others, requests that were not finished stay pending, and the "
    "next run goes on from what is finished\n"
)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End all children, say so, and leave with the code that shells give to a signal."""
    terminate_all(wait=_CHILDREN_SECONDS)
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(sys.stderr.fileno(), _WORDS.encode())
    os._exit(128 + number)  # the kernel frees the lock; the watcher ends a temporary server


def leave_a_flow(number: int, frame: FrameType | None) -> NoReturn:
    """As `leave`; a server of its own is told that the run ended, if it listens within seconds."""
    from prefect.exceptions import TerminationSignal
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        leave(number, frame)
    signal.signal(number, leave)
    terminate_all(wait=_CHILDREN_SECONDS)
    late = threading.Timer(_SERVER_SECONDS, leave, (number, None))
    late.daemon = True
    late.start()
    raise TerminationSignal(signal=number)  # Prefect reports it, and then sends it once more


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let a signal end this process at once during the block; of a worker's run the worker takes care."""
    of_a_worker = "PREFECT__FLOW_RUN_ID" in os.environ
    if of_a_worker or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave_a_flow) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
