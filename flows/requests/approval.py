"""Deciding on a candidate in Prefect, and the events by which Prefect tells others about requests."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run

from tasks.config import Params
from tasks.requests import promotion
from tasks.requests.certificates import certificate_of, certificate_path
from tasks.requests.intake import RequestError
from tasks.requests.notify import tell_done
from tasks.requests.plan import read_overview
from tasks.requests.state import CANDIDATE, production_lock
from tasks.tracking.registry import Registry, Version

EVENT = "efface.request"
NEEDS_ATTENTION, OVERDUE, WAITING = (
    f"{EVENT}.{name}" for name in ("needs-attention", "overdue", "candidate")
)
_TIMEOUT_SECONDS = 30 * 24 * 3600
BLOCK = "efface-requests"
AUTOMATION = "forget requests"


class Approval(RunInput):
    """The decision on a candidate."""

    approve: bool = False
    reason: str = "no reason given"


def own_candidate(registry: Registry) -> Version | None:
    """The candidate, if this flow run made it."""
    candidate = registry.versions().get(registry.aliases().get(CANDIDATE, 0))
    made_by_this_run = candidate is not None and candidate.flow_run == str(flow_run.get_id() or "none")
    return candidate if made_by_this_run else None


def decide(params: Params, root: Path, registry: Registry, candidate: Version) -> list[str]:
    """Suspend the flow run until a decision in Prefect's pages, then promote or drop the candidate.

    The run ends meanwhile and restarts with the decision. `python -m flows.requests promote` decides too; the
    suspended run then continues as if it had made no candidate.

    Returns:
        A line per request, and one per letter.

    Raises:
        RequestError: if it is no longer the candidate.
    """
    text = gates_text(root, candidate)
    create_markdown_artifact(key="request-approval", markdown=text, description="A candidate waits")
    get_run_logger().info("version %d waits for approval", candidate.number)
    decision = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=text), key="approval", timeout=_TIMEOUT_SECONDS
    )
    with production_lock(Path(), "an approval"):
        if own_candidate(registry) is None:
            raise RequestError(f"version {candidate.number} is no longer the candidate; nothing was changed")
        if decision.approve:
            number, requests = promotion.promote(root, registry)
            promoted = f"version {number} forgot them and is in production"
            lines = [f"request {name}: {promoted}" for name in requests]
            return lines + tell_done(params, root, registry, requests)
        number, requests = promotion.decline(root, registry, decision.reason)
    for name in requests:
        tell(NEEDS_ATTENTION, name)
    return [f"request {name} needs attention: version {number} was declined" for name in requests]


def gates_text(root: Path, candidate: Version) -> str:
    """The gates of a candidate as Markdown, with the certificates and the commands."""
    lines = [f"Version {candidate.number} waits for approval.", ""]
    lines += ["| gate | request | measured | expected | held |", "|---|---|---:|---:|---|"]
    certificates = [certificate_of(root, name) for name in candidate.requests]
    for gate in certificates[0]["gates"] if certificates else ():
        value = "not measured" if gate["value"] is None else f"{gate['value']:.2f}"
        about, passed = gate["about"] or "", "yes" if gate["passed"] else "no"
        limit = f"{gate['holds']} {gate['limit']:g}"
        lines.append(f"| {gate['name'].replace('_', ' ')} | {about} | {value} | {limit} | {passed} |")
    lines.append("")
    for certificate in certificates:
        page = certificate_path(root, certificate).with_suffix(".html").absolute()
        lines.append(f"- request {certificate['request']['id']}: [certificate]({page.as_uri()}), `{page}`")
    lines += ["", "In a terminal: `python -m flows.requests promote`."]
    return "\n".join(lines)


def tell(event: str, request: str) -> None:
    """Send Prefect an event about a request, without naming a person."""
    emit_event(
        event,
        resource={"prefect.resource.id": f"{EVENT}.{request}", "prefect.resource.name": f"request {request}"},
        payload={"request": request, "status": event.rpartition(".")[2]},
    )


def tell_overdue(root: Path) -> None:
    """Send an event for each open request whose due date has passed."""
    overview, today = read_overview(root), dt.date.today()
    closed = [name for name, state in overview.states.items() if state.status != "needs-attention"]
    for name, request in overview.requests.items():
        if request.due < today and name not in closed:
            tell(OVERDUE, name)


def connect_webhook(url: str) -> None:
    """Make Prefect post each of these events to an address; a second call replaces the first."""
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture
    from pydantic import SecretStr

    block: Any = Webhook(url=SecretStr(url)).save(BLOCK, overwrite=True)
    with contextlib.suppress(ValueError):  # there is none yet
        earlier: Any = Automation.read(name=AUTOMATION)
        earlier.delete()
    Automation(
        name=AUTOMATION,
        description="A gate failed, a request is overdue, or a candidate waits for approval",
        trigger=EventTrigger(
            expect={NEEDS_ATTENTION, OVERDUE, WAITING},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=block,
                payload='{"request": "{{ event.payload.request }}", "status": "{{ event.payload.status }}"}',
            )
        ],
    ).create()
