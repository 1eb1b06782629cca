"""The table at the end of a run, on the terminal and in Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

REPORT = Path("data/report/index.html")


@dataclass
class Row:
    """What happened to one stage."""

    stage: str
    outcome: str = "not run"
    """ran, restored (from DVC's cache), cached, failed or not run."""
    seconds: float = 0.0


def publish(rows: list[Row]) -> None:
    """Show what happened to each stage, and keep it with the flow run."""
    if not rows:
        return
    show(rows)
    create_markdown_artifact(
        key="pipeline", markdown=markdown(rows), description="What happened to each stage"
    )


def show(rows: list[Row]) -> None:
    """Print one line per stage and where the report is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "outcome", title="pipeline", title_justify="left")
    table.add_column("seconds", justify="right")
    for row in rows:
        table.add_row(row.stage, row.outcome, f"{row.seconds:.1f}" if row.seconds else "")
    console = Console()
    console.print(table)
    console.print(closing_line(rows), soft_wrap=True, highlight=False)


def markdown(rows: list[Row]) -> str:
    """The same as a Markdown table."""
    lines = ["| stage | outcome | seconds |", "|---|---|---:|"]
    lines += [f"| {row.stage} | {row.outcome} | {row.seconds:.1f} |" for row in rows]
    return "\n".join([*lines, "", closing_line(rows)])


def closing_line(rows: list[Row]) -> str:
    """How many stages ran, and the report, if the last stage made one."""
    counts = {
        outcome: sum(row.outcome == outcome for row in rows)
        for outcome in dict.fromkeys(r.outcome for r in rows)
    }
    text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    done = any(row.stage == "report" and row.outcome in ("ran", "restored", "cached") for row in rows)
    return f"{len(rows)} stages: {text}." + (f" Report: {REPORT.resolve()}" if done else "")
