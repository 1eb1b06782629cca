"""What DVC knows: which stages are current, what each needs, and the hashes it recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from tasks.runtime.startup import uncollected

LOCK_FILE = Path("dvc.lock")
_BUSY = Path(".dvc/tmp/lock")
_NOTES = Path(".dvc/tmp/rwlock")


class ProjectError(EffaceError):
    """DVC cannot be asked: another one is at work, or dvc.yaml cannot be read."""


@dataclass(frozen=True)
class StageFacts:
    """What dvc.yaml says about one stage."""

    needs: frozenset[str]
    """Stages whose outputs it reads directly."""
    gpu: bool
    """Whether it computes with a model and so wants a device of its own."""


class Ledger:
    """One look at the whole project, in this process, before a flow starts; kept up to date as stages finish.

    A current stage therefore costs the flow no process and no second look.
    """

    def __init__(
        self, stages: dict[str, StageFacts], stale: set[str], lock: dict[str, Any] | None = None
    ) -> None:
        self.stages = stages
        self._stale = stale
        self._guard = threading.Lock()
        self._entries: tuple[Any, dict[str, Any]] = (None, {})
        if lock:
            self._entries = (_stamp(), lock.get("stages") or {})
        self._outputs_before = {name: self.outputs(name) for name in stages}
        self._changed: set[str] = set()

    @classmethod
    @uncollected(freeze=False)  # DVC reads a hundred thousand nodes of YAML
    def open(cls) -> Ledger:
        """Ask DVC about the project in the current folder.

        Raises:
            ProjectError: if another DVC process is at work here, or dvc.yaml or dvc.lock is wrong.
        """
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo, lock_repo

        logging.getLogger("dvc").setLevel(logging.ERROR)
        lock: dict[str, Any] = {}
        try:
            with Repo(".") as repo, lock_repo(repo):  # one lock, or DVC would read everything twice
                _drop_torn_notes()
                graph = repo.index.graph
                stages = {
                    stage.addressing: StageFacts(
                        needs=frozenset(up.addressing for up in graph.successors(stage)),
                        gpu=bool((stage.meta or {}).get("gpu")),
                    )
                    for stage in graph
                }
                stale = set(repo.status())
                for stage in graph:  # they share one file, which DVC has read already
                    lock = stage.dvcfile.lockfile_contents
                    break
        except LockError as error:
            raise ProjectError(
                f"another DVC process is at work in this project{_holder()}; wait until it is done, "
                "or stop it, then start again"
            ) from error
        except DvcException as error:
            raise ProjectError(f"DVC cannot read this project: {error}") from error
        return cls(stages, stale, lock)

    def is_current(self, stage: str) -> bool:
        """Whether DVC calls the stage current and nothing this flow did has changed what it reads."""
        with self._guard:
            return stage not in self._stale and not (self.stages[stage].needs & self._changed)

    def finished(self, stage: str) -> None:
        """Take note that a stage was brought up to date."""
        with self._guard:
            self._stale.discard(stage)
            if self.outputs(stage) != self._outputs_before[stage]:
                self._changed.add(stage)

    def upstream(self, stage: str) -> set[str]:
        """The stage and everything it needs, directly or not.

        Raises:
            ProjectError: if dvc.yaml has no such stage.
        """
        if stage not in self.stages:
            raise ProjectError(f"no stage {stage!r}; expected one of: {', '.join(sorted(self.stages))}")
        found, todo = set(), [stage]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.stages[name].needs
        return found

    def runs_alone(self, stage: str) -> bool:
        """Whether every other stage comes before or after it, so that none can ever run beside it.

        The graph alone decides, not what happens to be current: a stage always gets the same share of the
        processor, and with it the same bits.
        """
        after = {name for name in self.stages if stage in self.upstream(name)}
        return after | self.upstream(stage) == set(self.stages)

    def outputs(self, stage: str) -> dict[str, str]:
        """Path to hash of what the stage made, as DVC recorded it."""
        return {out["path"]: out.get("md5", "") for out in self._entry(stage).get("outs", [])}

    def fingerprint(self, stage: str) -> str:
        """Digest of everything DVC recorded for the stage: command, parameters, dependencies and outputs."""
        text = json.dumps(self._entry(stage), sort_keys=True, default=str)
        return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _entry(self, stage: str) -> dict[str, Any]:
        stamp = _stamp()
        if stamp is None:
            return {}
        if self._entries[0] != stamp:
            from ruamel.yaml import YAML

            entries = YAML(typ="safe").load(LOCK_FILE.read_text(encoding="utf-8")) or {}
            self._entries = (stamp, entries.get("stages") or {})
        return self._entries[1].get(stage, {})


def _stamp() -> tuple[int, ...] | None:
    """What changes when DVC's lock file does; None if there is none."""
    try:
        found = LOCK_FILE.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _drop_torn_notes() -> None:
    """Remove DVC's notes of who is at work on what if a killed DVC left them half written.

    DVC itself would only refuse to go on. Called with DVC's lock held: nobody else is at them.
    """
    try:
        json.loads(_NOTES.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        logging.getLogger(__name__).warning("%s was half written by a killed process: removed", _NOTES)
        _NOTES.unlink()


def _holder() -> str:
    try:
        pid = _BUSY.read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError):
        return ""
    return f" (process {pid})"
