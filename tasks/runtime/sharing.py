"""One stage as several processes that share its work.

With EFFACE_PROCESSES=2 a stage that can share its work starts itself twice on this machine, through torch's
own launcher; `torchrun` and `accelerate launch` may start the processes as well, on several machines too. The
first process alone writes, speaks and shows progress. Stages that cannot share always run as one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import typer

from efface.errors import EffaceError

COUNT = "EFFACE_PROCESSES"
_LAUNCHER = "EFFACE_LAUNCHER"
STAGES = ("vanilla", "retrained", "saliency", "control", "importance", "unlearn")
"""Those whose work can be shared."""
_LAST_LINES = 15


def wanted() -> int:
    """How many processes the environment asks for.

    Raises:
        EffaceError: if it asks for something else than a number of processes.
    """
    text = os.environ.get(COUNT, "1")
    if not text.isdecimal() or int(text) < 1:
        raise EffaceError(f"{COUNT} is {text!r}: expected how many processes share a stage, at least 1")
    return int(text)


def processes_of(stage: str) -> int:
    """How many processes a stage of dvc.yaml, such as `unlearn@npo`, runs as.

    Raises:
        EffaceError: if the environment asks for something else than a number of processes.
    """
    return wanted() if stage.partition("@")[0] in STAGES else 1


def started_together() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def launcher() -> int | None:
    """Process id of the launcher, if it is one of ours: it may be dead before its processes look for it."""
    found = os.environ.get(_LAUNCHER)
    return int(found) if found and started_together() else None


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; a lone one is."""
    return not started_together() or os.environ.get("RANK", "0") == "0"


def shares(stage: str) -> bool:
    """Whether a stage, in this process, is yet to be started as several.

    Raises:
        EffaceError: if it was started as several and cannot share its work.
    """
    if not started_together():
        return processes_of(stage) > 1
    if stage not in STAGES:
        raise EffaceError(
            f"stage {stage} runs as one process, and {os.environ['WORLD_SIZE']} were started; "
            f"those that several can share: {', '.join(STAGES)}"
        )
    return False


def start(arguments: Sequence[str]) -> NoReturn:
    """Run `python -m tasks ARGUMENTS` as several processes on this machine, and end as they end."""
    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # errors are told below
    count = wanted()
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory(prefix="efface-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            max_restarts=0,
            run_id="efface",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "tasks", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if 0 not in error.failures:  # what the first process has to say was seen already
                said = "\n".join(_last_lines(Path(logs), rank))
                typer.echo(f"process {rank} of {count} failed. Its last lines:\n{said}", err=True)
            raise SystemExit(failure.exitcode if failure.exitcode > 0 else 1) from None
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
    raise SystemExit(0)


def _last_lines(logs: Path, rank: int) -> list[str]:
    files = sorted(logs.glob(f"*/attempt_0/{rank}/stderr.log"))
    return [line for file in files for line in file.read_text(errors="replace").splitlines()][-_LAST_LINES:]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Processes that were started together know each other inside the block; a lone one is left alone."""
    if not started_together():
        yield
        return
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    import torch

    gpu = torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU")
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
        if alone and sys.platform.startswith("linux"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # on one machine nothing needs to leave it
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    yield
    torch.distributed.destroy_process_group()
