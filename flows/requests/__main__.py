"""Requests to be forgotten, from intake to certificate: python -m flows.requests COMMAND."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

ROOT = Path("data")
app = typer.Typer(
    help="Requests to be forgotten, from intake to certificate.",
    epilog="In this order: add, run, promote, verify. What each does: docs/how-to/requests.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Id = Annotated[str, typer.Argument(help="Id of a request: its file's name without .yaml.")]


@app.command()
def add(
    reason: Annotated[str, typer.Option(help="Why they are to be forgotten.")],
    legal_basis: Annotated[str, typer.Option(help="The legal basis, such as 'GDPR Art. 17(1)(b)'.")],
    requester: Annotated[str, typer.Option(help="A reference to the requester: a case number, no name.")],
    due: Annotated[str, typer.Option(help="The day by which it must be done, such as 2030-12-31.")],
    subject: Annotated[
        list[str] | None, typer.Option(help="Entity id of a person, such as fictitious/042; repeatable.")
    ] = None,
    select_id: Annotated[str | None, typer.Option(help="Instead: a pattern of ids, such as 'vip/*'.")] = None,
    select_name: Annotated[str | None, typer.Option(help="Instead: a pattern of names.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Only this fact about them, such as birthplace; repeatable.")
    ] = None,
    received: Annotated[str | None, typer.Option(help="The day of receipt; by default today.")] = None,
    identifier: Annotated[
        str | None, typer.Option("--id", help="Id of the request; by default the day and a number.")
    ] = None,
    late: Annotated[bool, typer.Option("--late", help="Accept a past due date; needs --received.")] = False,
) -> None:
    """Check a new request and write it to data/requests."""
    with _errors_in_words():
        from tasks.requests.plan import add_request

        selector = {"id": select_id, "name": select_name}
        patterns = {key: pattern for key, pattern in selector.items() if pattern is not None}
        values: dict[str, Any] = {
            "id": identifier,
            "subjects": subject or None,
            "selector": patterns or None,
            "attributes": attribute or None,
            "reason": reason,
            "legal_basis": legal_basis,
            "received": received,
            "due": due,
            "requester": requester,
        }
        path = add_request(ROOT, values, late=late, today=dt.date.today())
        typer.echo(f"{path} written; carry it out with: python -m flows.requests run")


@app.command("list")
def list_requests() -> None:
    """Show every request and its state on disk."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.plan import read_overview

        share = load_params().requests.largest_share
        overview = read_overview(ROOT, largest_share=share)
        _show(_table(overview))
        for name, reason in _reasons(overview).items():
            typer.echo(f"{name}: {reason}")


@app.command()
def status() -> None:
    """Show the versions in MLflow, and each request's state according to the one in production."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.plan import read_overview, registry_of
        from tasks.requests.state import PRODUCTION

        registry = registry_of(load_params(), ROOT)
        aliases = registry.aliases()
        lineage = registry.lineage(aliases.get(PRODUCTION))
        table = _grid(f"versions of {registry.name}", "version", "parent", "requests", "alias")
        for number, version in registry.versions().items():
            if version.run is None:  # of the pipeline only
                continue
            names = [alias for alias, target in aliases.items() if target == number]
            table.add_row(
                str(number),
                str(version.parent or "") if version.run else "",
                ", ".join(version.requests) or "none (vanilla)",
                ", ".join(names) or ("before production" if number in lineage else ""),
            )
        _show(table, _table(read_overview(ROOT, registry)))


@app.command()
def run(
    request: Annotated[
        list[str] | None,
        typer.Option(help="Only this request; repeatable. By default the pending ones that are due first."),
    ] = None,
) -> None:
    """Carry out pending requests: unlearn, evaluate, check the gates, register, certify."""
    with _errors_in_words():
        from tasks.config import load_params

        load_params()  # a mistake is reported at once, not after a server has started
        from flows.requests.flow import run as run_flow
        from flows.server import require_server

        require_server()
        success = run_flow(request or [], lambda line: typer.echo(line, err=line.startswith("error")))
    if not success:
        raise typer.Exit(1)


@app.command()
def promote() -> None:
    """Put the candidate into production."""
    with _locked("promote") as (root, registry):
        from tasks.config import load_params
        from tasks.requests import promotion
        from tasks.requests.notify import tell_done

        number, requests = promotion.promote(root, registry)
        typer.echo(f"version {number} is in production; done: {', '.join(requests) or 'no request'}")
        for line in tell_done(load_params(), root, registry, requests):
            typer.echo(line)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; stored with the requests.")],
    to: Annotated[int | None, typer.Option(help="The version to go back to; the parent if not set.")] = None,
) -> None:
    """Put an earlier version back into production; repeating the command does not go back further."""
    with _locked("rollback") as (root, registry):
        from tasks.requests import promotion

        newer, older, requests = promotion.rollback(root, registry, reason, to=to)
        typer.echo(
            f"version {older} is in production again, {newer} is not; these requests need attention: "
            f"{', '.join(requests) or 'none'}; to go back further: rollback --to VERSION"
        )


@app.command()
def retry(identifier: Id) -> None:
    """Make a request that needs attention or was withdrawn pending again."""
    with _errors_in_words():
        from tasks.requests import promotion
        from tasks.requests.state import production_lock

        with production_lock(Path(), "retry"):
            promotion.retry(ROOT, identifier)
        typer.echo(f"request {identifier} is pending again")


@app.command()
def confirm(identifier: Id, reason: Annotated[str, typer.Option(help="Why; stored with it.")]) -> None:
    """Carry a request out although it names many or unknown people, or similar people lose much."""
    with _errors_in_words():
        from tasks.requests import promotion
        from tasks.requests.state import production_lock

        with production_lock(Path(), "confirm"):
            promotion.confirm(ROOT, identifier, reason)
        typer.echo(f"request {identifier} is pending and confirmed")


@app.command()
def withdraw(identifier: Id, reason: Annotated[str, typer.Option(help="Why; stored with it.")]) -> None:
    """Close a request that is pending, invalid or needs attention."""
    with _errors_in_words():
        from tasks.requests import promotion
        from tasks.requests.state import production_lock

        with production_lock(Path(), "withdraw"):
            promotion.withdraw(ROOT, identifier, reason)
        typer.echo(f"request {identifier} is withdrawn")


@app.command()
def purge(
    identifier: Id,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Delete all data of a done request's people, and models that know them; cannot be undone."""
    with _locked("purge") as (root, registry):
        from flows.requests import purge as purges
        from flows.server import require_server
        from tasks.config import load_params

        require_server()
        if dry_run:
            plan = purges.plan(load_params(), root, registry, identifier)
            for line in purges.lines_of(plan):
                typer.echo(line)
            return
        record, notes = purges.purge_request(load_params(), root, registry, identifier, log=typer.echo)
        for line in (*purges.lines_of(record["purge"]), *notes):
            typer.echo(line)
        typer.echo(f"the data of request {identifier} are deleted; record {record['number']} says what")


@app.command()
def letter(identifier: Id) -> None:
    """Write the letter to the person again and print it."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.notify import write_letter

        text, page = write_letter(load_params(), ROOT, identifier)
        typer.echo(text.read_text(encoding="utf-8"))
        typer.echo(f"{page}\n{text}")


@app.command()
def notify(identifier: Id) -> None:
    """Post the event of a done request, and list who else must be told."""
    with _locked("notify") as (root, registry):
        from tasks.config import load_params
        from tasks.requests import notify as notifications

        values = notifications.event(load_params(), root, registry, identifier)
        typer.echo(f"recipients: {', '.join(values['recipients']) or 'none'}")
        numbers = values["models_that_know_them"]
        typer.echo(f"versions that still know them: {', '.join(map(str, numbers)) or 'none'}")
        sent = notifications.post(values)
        typer.echo("sent to the webhook" if sent else f"no webhook: {notifications.WEBHOOK} is not set")


@app.command()
def webhook(url: Annotated[str, typer.Argument(help="Address that Prefect posts to.")]) -> None:
    """Make Prefect post to an address if a gate failed, a request is overdue, or a candidate waits."""
    with _errors_in_words():
        from flows.requests.approval import connect_webhook
        from flows.server import require_server

        require_server()
        connect_webhook(url)
        typer.echo("Prefect posts each event of a request there from now on")


@app.command()
def certificate(identifier: Id) -> None:
    """Write a certificate's page again and print the paths of both files."""
    with _errors_in_words():
        from tasks.requests import certificates

        newest = certificates.certificate_of(ROOT, identifier)
        page = certificates.write_page(ROOT, newest)
        typer.echo(f"certificate {newest['number']} of request {identifier}, digest {newest['digest']}")
        typer.echo(f"{page}\n{certificates.certificate_path(ROOT, newest)}")


@app.command()
def stamp() -> None:
    """Add a time stamp to each certificate that has none, from requests.timestamp_server."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.state import production_lock
        from tasks.requests.timestamps import add_stamps

        params = load_params()
        if params.requests.timestamp_server is None:
            typer.echo("error: requests.timestamp_server is null: expected an address", err=True)
            raise typer.Exit(2)
        with production_lock(Path(), "stamp"):
            lines = add_stamps(params, ROOT)
        typer.echo("\n".join(lines) or "every certificate has a time stamp")
        if lines:
            raise typer.Exit(1)


@app.command()
def verify(
    public_key: Annotated[
        str | None, typer.Option(help="Trust this key alone, in hex; by default those in public_keys.txt.")
    ] = None,
) -> None:
    """Recompute every digest of every certificate, and check the chain."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.certificates import verify as verify_all
        from tasks.requests.plan import registry_of

        result = verify_all(ROOT, registry_of(load_params(), ROOT), public_key=public_key)
        for line in result.faults:
            typer.echo(f"error: {line}", err=True)
        for line in result.notes:
            typer.echo(f"note: {line}")
        if result.faults:
            raise typer.Exit(1)
        typer.echo(
            f"{result.certificates} certificates hold: {result.digests} digests"
            f"{f', {result.stamps} time stamps' if result.stamps else ''} and the chain are right"
        )


@contextlib.contextmanager
def _locked(command: str) -> Iterator[Any]:
    """The data folder and the registry, with the production model locked."""
    with _errors_in_words():
        from tasks.config import load_params
        from tasks.requests.plan import registry_of
        from tasks.requests.state import production_lock

        registry = registry_of(load_params(), ROOT)
        with production_lock(Path(), command):
            yield ROOT, registry


def _table(overview: Any) -> Table:
    from rich.markup import escape

    table = _grid("requests", "request", "due", "people", "known", "status", "version")
    today = dt.date.today()
    for name in _names(overview):
        state, subjects = overview.states.get(name), overview.pending.get(name, [])
        status = state.status if state else "pending" if subjects else "invalid"
        due = str(overview.requests[name].due) if name in overview.requests else ""
        open_request = status in ("pending", "invalid", "needs-attention")
        row = [
            name,
            f"{due} overdue" if due and open_request and due < str(today) else due,
            str(len(state.subjects if state else subjects) or ""),
            _known(overview.known.get(name, {})),
            status,
            str(state.version or "") if state else "",
        ]
        table.add_row(*map(escape, row))  # a request's text is not markup
    return table


def _reasons(overview: Any) -> dict[str, str]:
    """Why a request is in its state, if there is a reason; it would not fit into a column."""
    reasons = dict(overview.problems) | {name: "; ".join(s.reasons) for name, s in overview.states.items()}
    return {name: reasons[name] for name in _names(overview) if reasons.get(name)}


def _names(overview: Any) -> list[str]:
    return list(dict.fromkeys([*overview.requests, *overview.states, *overview.problems]))


def _known(numbers: Mapping[str, float]) -> str:
    """Probability of a request's facts in the production model, and in one that never met the people."""
    if "knowledge" not in numbers:
        return ""
    return f"{numbers['knowledge']:.2f} against {numbers['floor']:.2f}"


def _grid(title: str, *columns: str) -> Table:
    from rich.table import Column, Table

    # 80 columns hold dated ids and states whole; what is longer is folded.
    least, most = {"request": 13, "status": 15}, {"due": 10, "known": 10}
    styled = (
        Column(name, overflow="fold", min_width=least.get(name), max_width=most.get(name)) for name in columns
    )
    return Table(*styled, title=title, title_justify="left")


def _show(*tables: Table) -> None:
    from rich.console import Console

    for table in tables:
        Console().print(table)


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
    """End the program on our own errors, printing only their text."""
    from efface.errors import EffaceError

    try:
        yield
    except EffaceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        from tasks.runtime.artifacts import disk_is_full

        if not disk_is_full(error):
            raise
        typer.echo(f"error: {error}; make room and run the same command again, which continues", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
