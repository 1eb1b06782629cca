"""What a run did: a table on the terminal, and in Prefect with links and plots."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from efface.errors import ArtifactError
from tasks.runtime.artifacts import read_json
from tasks.tracking.client import redact

REPORT = Path("data/report/index.html")
PLOTS = Path("data/report/plots")
TRACKED = Path(".efface/mlflow.json")
DONE = ("ran", "restored", "cached")
_SHOWN_PLOTS = ("forget_retain", "picture_text")  # one look says how it went; the report has the others
_LARGEST_PLOT = 256 << 10
_LOCAL_PAGES = "http://127.0.0.1:5000"


@dataclass
class Row:
    """What happened to one stage."""

    stage: str
    outcome: str = "not run"
    """ran, restored (from DVC's cache), cached, failed or not run."""
    seconds: float = 0.0


def publish(
    rows: list[Row], *, title: str = "pipeline", page: Path = REPORT, notes: Sequence[str] = ()
) -> None:
    """Show what happened to each stage, and keep it with the flow run.

    Args:
        rows: stages, or a study's cells.
        title: what they are stages of.
        page: the page that the last of them made.
        notes: more lines, such as what was fetched and shared.
    """
    if not rows:
        return
    closing = closing_line(rows, page)
    show(rows, title, "\n".join([closing, *notes]))
    made = page != REPORT or _report_made(rows)
    more = [*notes, *(links(page) + plots() if made else [])]
    create_markdown_artifact(
        key=title,
        markdown="\n\n".join([markdown(rows, closing), *more]),
        description=f"What happened to each part of the {title}",
    )


def show(rows: list[Row], title: str, closing: str) -> None:
    """Print one line per stage and where the report is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage" if title == "pipeline" else "cell", "outcome", title=title, title_justify="left")
    table.add_column("seconds", justify="right")
    for row in rows:
        table.add_row(row.stage, row.outcome, f"{row.seconds:.1f}" if row.seconds else "")
    console = Console()
    console.print(table)
    console.print(closing, soft_wrap=True, highlight=False)


def markdown(rows: list[Row], closing: str) -> str:
    """The same as a Markdown table."""
    lines = ["| stage | outcome | seconds |", "|---|---|---:|"]
    lines += [f"| {row.stage} | {row.outcome} | {row.seconds:.1f} |" for row in rows]
    return "\n".join([*lines, "", closing])


def links(page: Path) -> list[str]:
    """Where to look further: the report's file, and the run in MLflow, if MLflow has it.

    A browser follows no link from a server to a file, so the report is linked through MLflow, which
    keeps a copy.
    """
    if page != REPORT or not TRACKED.is_file():
        return []
    try:
        tracked: dict[str, Any] = read_json(TRACKED)
        run = f"{_pages(tracked['at'])}/#/experiments/{tracked['experiment']}/runs/{tracked['run']}"
    except (ArtifactError, KeyError, TypeError):  # somebody else's file; the run is no worse for it
        return []
    return [f"[Report]({run}/artifacts/report/index.html) and [all numbers in MLflow]({run})"]


def _pages(tracked_at: str) -> str:
    """Where MLflow's pages are: EFFACE_MLFLOW_PAGES, the tracking server, or `make ui`."""
    given = os.environ.get("EFFACE_MLFLOW_PAGES")
    given = given or (tracked_at if tracked_at.startswith("http") else _LOCAL_PAGES)
    return redact(given).replace("***@", "").rstrip("/")


def plots() -> list[str]:
    """The first plots of the report, inside the text: an artifact has no files beside it."""
    found = []
    for name in _SHOWN_PLOTS:
        path = PLOTS / f"{name}.svg"
        if path.is_file() and path.stat().st_size <= _LARGEST_PLOT:
            picture = base64.b64encode(path.read_bytes()).decode()
            found.append(f"![{name.replace('_', ' ')}](data:image/svg+xml;base64,{picture})")
    return found


def closing_line(rows: list[Row], page: Path = REPORT) -> str:
    """How many stages ran, and the page, if the last one made it."""
    counts = {
        outcome: sum(row.outcome == outcome for row in rows)
        for outcome in dict.fromkeys(r.outcome for r in rows)
    }
    text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    if page == REPORT:
        return f"{len(rows)} stages: {text}." + (f" Report: {page.resolve()}" if _report_made(rows) else "")
    return f"{len(rows)} cells: {text}. Comparison: {page.resolve()}"


def _report_made(rows: list[Row]) -> bool:
    return any(row.stage == "report" and row.outcome in DONE for row in rows)
