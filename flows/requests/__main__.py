"""Requests to be forgotten, from intake to certificate: python -m flows.requests COMMAND."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

ROOT = Path("data")
app = typer.Typer(
    help="Requests to be forgotten, from intake to certificate (docs/requests.md).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Id = Annotated[str, typer.Argument(help="Id of a request: its file's name without .yaml.")]


@app.command()
def add(
    reason: Annotated[str, typer.Option(help="Why they are to be forgotten.")],
    legal_basis: Annotated[str, typer.Option(help="On what ground, such as 'GDPR Art. 17(1)(b)'.")],
    requester: Annotated[str, typer.Option(help="A reference to who asks: a case number, no name.")],
    due: Annotated[str, typer.Option(help="The day by which it must be done, such as 2030-12-31.")],
    subject: Annotated[
        list[str] | None, typer.Option(help="Entity id of a person, such as fictitious/042; repeatable.")
    ] = None,
    select_id: Annotated[str | None, typer.Option(help="Instead: a pattern of ids, such as 'vip/*'.")] = None,
    select_name: Annotated[str | None, typer.Option(help="Instead: a pattern of names.")] = None,
    received: Annotated[str | None, typer.Option(help="The day it came; today if not given.")] = None,
    identifier: Annotated[str | None, typer.Option("--id", help="Chosen from the day if not given.")] = None,
    late: Annotated[bool, typer.Option("--late", help="Take it although the due date is past.")] = False,
) -> None:
    """Write a new request to data/requests, checked."""
    with _errors_in_words():
        from tasks.requests import intake, planning

        today = dt.date.today()
        day = received or today.isoformat()
        selector = {"id": select_id, "name": select_name}
        given = {key: text for key, text in selector.items() if text is not None}
        values: dict[str, Any] = {
            "id": identifier or intake.next_id(ROOT, day),
            "subjects": subject or None,
            "selector": given or None,
            "reason": reason,
            "legal_basis": legal_basis,
            "received": day,
            "due": due,
            "requester": requester,
        }
        request = intake.made_request(values, "add")
        if request.due < today and not late:
            raise intake.RequestError(
                f"add: due is {request.due}, which is past: expected today or later; correct it, "
                "or say --late to take a request that is overdue"
            )
        planning.must_fit(ROOT, request)
        path = intake.write_request(ROOT, request)
        typer.echo(f"{path} written; carry it out with: python -m flows.requests run")


@app.command("list")
def list_requests() -> None:
    """Show every request and what became of it, by what is on disk."""
    with _errors_in_words():
        from tasks.requests import planning

        _show(_table(planning.look(ROOT)))


@app.command()
def status() -> None:
    """Show the versions in MLflow, which is in production, and every request."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests import planning
        from tasks.requests.registry import CANDIDATE, PRODUCTION

        registry = planning.registry_of(load_params(), ROOT)
        aliases = {alias: registry.pointed(alias) for alias in (PRODUCTION, CANDIDATE)}
        lineage = registry.lineage(aliases[PRODUCTION])
        table = _grid(f"versions of {registry.name}", "version", "made from", "forgot", "alias")
        for number, version in registry.versions().items():
            names = [alias for alias, pointed in aliases.items() if pointed == number]
            table.add_row(
                str(number),
                str(version.start or ""),
                ", ".join(version.requests) or "nobody (vanilla)",
                ", ".join(names) or ("before production" if number in lineage else ""),
            )
        _show(table, _table(planning.look(ROOT, lineage, aliases[CANDIDATE])))


@app.command()
def run(
    request: Annotated[
        list[str] | None, typer.Option(help="Take up this one only; repeatable. By default those due first.")
    ] = None,
) -> None:
    """Carry out pending requests: unlearn, evaluate, gates, registry, certificates."""
    with _errors_in_words():
        from flows.watcher import watch_over_this_process
        from tasks.config import load_params

        load_params()  # a mistake is told at once, not after a server has started
        watch_over_this_process()
        from flows.children import terminate_all
        from flows.requests.stopping import SIGNALS, leave

        for number in SIGNALS:
            signal.signal(number, leave)
        from flows.requests.flow import run as run_flow
        from flows.server import require_server

        require_server()
        try:
            good = run_flow(request or [], lambda line: typer.echo(line, err=line.startswith("error")))
        finally:
            terminate_all()
    if not good:
        raise typer.Exit(1)


@app.command()
def promote() -> None:
    """Put the candidate into production."""
    with _held("promoting") as (root, registry):
        from tasks.requests import promotion

        number, done = promotion.promote(root, registry)
        typer.echo(f"version {number} is in production; done: {', '.join(done) or 'no request'}")


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; kept with the requests.")]) -> None:
    """Put the version before the one in production back."""
    with _held("rolling back") as (root, registry):
        from tasks.requests import promotion

        newer, older, concerned = promotion.rollback(root, registry, reason)
        typer.echo(
            f"version {older} is in production again, {newer} is not; these requests need attention: "
            f"{', '.join(concerned) or 'none'}"
        )


@app.command()
def retry(identifier: Id) -> None:
    """Make a request that needs attention pending again."""
    with _errors_in_words():
        from tasks.requests import promotion
        from tasks.requests.state import holding

        with holding(Path(), "retrying"):
            promotion.retry(ROOT, identifier)
        typer.echo(f"request {identifier} is pending again")


@app.command()
def certificate(identifier: Id) -> None:
    """Write a certificate's page anew and say where both files are."""
    with _errors_in_words():
        from tasks.requests import certificates

        found = certificates.certificate_of(ROOT, identifier)
        page = certificates.write_page(ROOT, found)
        typer.echo(f"certificate {found['number']} of request {identifier}, digest {found['digest']}")
        typer.echo(f"{page}\n{certificates.path_of(ROOT, found)}")


@app.command()
def verify() -> None:
    """Recompute every digest of every certificate, and the chain."""
    with _errors_in_words():
        from tasks.requests.certificates import verify as check

        found = check(ROOT)
        for line in found.faults:
            typer.echo(f"error: {line}", err=True)
        for line in found.notes:
            typer.echo(f"note: {line}")
        if found.faults:
            raise typer.Exit(1)
        typer.echo(f"{found.certificates} certificates hold: {found.digests} digests and the chain are right")


@contextlib.contextmanager
def _held(what: str) -> Iterator[Any]:
    """The production model in our hands, after what an earlier run left has been finished."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests import finishing, planning
        from tasks.requests.state import holding

        registry = planning.registry_of(load_params(), ROOT)
        with holding(Path(), what):
            finishing.settle(ROOT, registry)
            yield ROOT, registry


def _table(desk: Any) -> Table:
    table = _grid("requests", "request", "due", "people", "status", "version", "why")
    today = dt.date.today()
    for name, request in desk.requests.items():
        outcome, people = desk.outcomes.get(name), desk.meant.get(name)
        state = outcome.status if outcome else "pending" if people else "invalid"
        open_still = state not in ("done", "candidate")
        due = f"{request.due} overdue" if open_still and request.due < today else str(request.due)
        table.add_row(
            name,
            due,
            str(len(outcome.subjects if outcome else people or ())),
            state,
            str(outcome.version or "") if outcome else "",
            "; ".join(outcome.reasons) if outcome else desk.problems.get(name, ""),
        )
    for name in desk.problems.keys() - desk.requests.keys():
        table.add_row(name, "", "", "invalid", "", desk.problems[name])
    return table


def _grid(title: str, *columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left")


def _show(*tables: Table) -> None:
    from rich.console import Console

    for table in tables:
        Console().print(table)


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    """Our own errors end the program with their text alone."""
    from efface.errors import EffaceError
    from tasks.runtime import environment

    environment.apply()
    try:
        yield
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
