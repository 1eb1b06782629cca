"""The table at the end of a run, on the terminal and in Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

REPORT = Path("data/report/index.html")
_DONE = ("ran", "restored", "cached")


@dataclass
class Row:
    """What happened to one stage."""

    stage: str
    outcome: str = "not run"
    """ran, restored (from DVC's cache), cached, failed or not run."""
    seconds: float = 0.0


def publish(rows: list[Row], *, title: str = "pipeline", page: Path = REPORT) -> None:
    """Show what happened to each stage, and keep it with the flow run.

    Args:
        rows: stages, or a study's cells.
        title: what they are stages of.
        page: the page that the last of them made.
    """
    if not rows:
        return
    closing = closing_line(rows, page)
    show(rows, title, closing)
    create_markdown_artifact(
        key=title, markdown=markdown(rows, closing), description=f"What happened to each part of the {title}"
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


def closing_line(rows: list[Row], page: Path = REPORT) -> str:
    """How many stages ran, and the page, if the last one made it."""
    counts = {
        outcome: sum(row.outcome == outcome for row in rows)
        for outcome in dict.fromkeys(r.outcome for r in rows)
    }
    text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    if page == REPORT:
        made = any(row.stage == "report" and row.outcome in _DONE for row in rows)
        return f"{len(rows)} stages: {text}." + (f" Report: {page.resolve()}" if made else "")
    return f"{len(rows)} cells: {text}. Comparison: {page.resolve()}"
