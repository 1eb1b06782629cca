"""The purge of a request: Prefect's data, then everything else, then the benchmark without these people."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.runtime import flow_run
from prefect.settings import PREFECT_HOME

from efface.errors import EffaceError
from flows.commands import reproduce
from tasks.config import Params
from tasks.requests import purge
from tasks.requests.certificates import signing_key
from tasks.requests.notify import tell_done
from tasks.requests.plan import read_overview
from tasks.requests.timestamps import add_stamps, check_timestamps
from tasks.tracking.registry import Registry

FLOWS = ("pipeline", "study", "requests")
PLACE = "Prefect"
_PAGE = 200
_SECONDS = 60.0


def purge_request(
    params: Params, root: Path, registry: Registry, request: str, *, log: Callable[[str], Any]
) -> tuple[dict[str, Any], list[str]]:
    """Delete everything that holds the data of a request's people, or complete an interrupted purge.

    The caller holds the lock on the production model.

    Returns:
        The purge record, and lines about its time stamp and the letter.

    Raises:
        EffaceError: if the model in production knows the people, or a place cannot be reached.
    """
    signing_key(root)
    check_timestamps(params, root)
    journal = purge.unfinished(root)
    if journal is None:
        purge.start(root, plan(params, root, registry, request))
        journal = purge.unfinished(root)
    assert journal is not None
    if journal["request"] != request:
        raise EffaceError(
            f"the purge of {journal['request']} was interrupted: complete it first with: "
            f"python -m flows.requests purge {journal['request']}"
        )
    _delete_runs(journal["deleted"][PLACE]["flow runs"])
    record = purge.carry_out(root)
    reproduce("split", log=log)  # the next run needs to know who is in the benchmark
    lines = add_stamps(params, root) + tell_done(params, root, registry, [request])
    purge.complete(root, request)  # a purge killed before does all of this again
    return record, lines


def plan(params: Params, root: Path, registry: Registry, request: str) -> dict[str, Any]:
    """What a purge would delete, keep and not reach; nothing is changed."""
    return purge.plan_purge(params, root, registry, request, elsewhere={PLACE: {"flow runs": _flow_runs()}})


def lines_of(plan: Mapping[str, Any]) -> Iterator[str]:
    """A plan or a record as lines to print."""
    for place, content in plan["deleted"].items():
        if isinstance(content, list):
            yield from (f"delete in the {place}: {path}" for path in content)
        elif "objects" in content:
            yield f"delete in {place}: {len(content['objects'])} objects, {content['run_cache']} cached runs"
        else:
            yield from (f"delete in {place}: {key}: {', '.join(items)}" for key, items in content.items())
    for key in ("kept", "not_reached"):
        yield from (f"{key.replace('_', ' ')}: {line}" for line in plan[key])


def due_purges(params: Params, root: Path, registry: Registry) -> list[str]:
    """Requests whose grace period is over, and an interrupted purge."""
    if journal := purge.unfinished(root):
        return [journal["request"]]
    days = params.requests.purge_after_days
    if days is None:
        return []
    latest = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    overview = read_overview(root, registry)
    return [
        name
        for name, request in overview.requests.items()
        if request.attributes is None  # of which no data are deleted
        and (state := overview.states.get(name)) is not None
        and state.status == "done"
        and dt.datetime.fromisoformat(state.time) <= latest
    ]


def _flow_runs() -> list[str]:
    """Ids of the project's flow runs in Prefect, except this one."""
    own, ids = str(flow_run.get_id() or ""), list[str]()
    with _client() as client:
        while page := client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))), limit=_PAGE, offset=len(ids)
        ):
            ids += [str(run.id) for run in page]
    return [identifier for identifier in ids if identifier != own]


def _delete_runs(ids: list[str]) -> None:
    """Delete flow runs with their tables and logs; missing ones are not an error."""
    from prefect.exceptions import ObjectNotFound

    with _client() as client:
        for start in range(0, len(ids), _PAGE):
            runs: list[Any] = ids[start : start + _PAGE]
            tables = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=runs))
            while page := client.read_artifacts(artifact_filter=tables, limit=_PAGE):
                for artifact in page:
                    client.delete_artifact(artifact.id)
            for run in runs:
                with contextlib.suppress(ObjectNotFound):
                    client.delete_flow_run(run)
            logs, end = LogFilter(flow_run_id=LogFilterFlowRunId(any_=runs)), time.monotonic() + _SECONDS
            while client.read_logs(log_filter=logs, limit=1):  # the server deletes them in the background
                if time.monotonic() > end:
                    raise EffaceError("Prefect has not deleted the logs of deleted runs; run the purge again")
                time.sleep(0.5)
    database = PREFECT_HOME.value() / "prefect.db"
    if database.is_file():  # SQLite leaves the bytes of deleted rows in the file
        with contextlib.closing(sqlite3.connect(database, timeout=_SECONDS)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    import httpx

    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, RuntimeError, sqlite3.Error) as error:
        raise EffaceError(
            f"Prefect does not answer as expected ({type(error).__name__}: {error}); nothing is lost: start "
            "its server (make server) or unset PREFECT_API_URL, then run again"
        ) from error
