"""What a run did: a table on the terminal, and in Prefect with links to the report and to MLflow."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_table_artifact
from rich.console import Console
from rich.table import Table

from efface.errors import ArtifactError
from tasks.runtime.artifacts import read_json
from tasks.tracking.client import redact
from tasks.tracking.runs import RECEIPT

REPORT = Path("data/report/index.html")
_LOCAL_PAGES = "http://127.0.0.1:5000"


@dataclass(frozen=True)
class Row:
    """The outcome of one stage of the pipeline, or of one cell of a study."""

    name: str
    outcome: str = "not run"
    """ran, restored (from DVC's cache), cached, failed or not run."""
    seconds: float = 0.0


def publish(rows: list[Row], *, title: str = "pipeline", page: Path = REPORT) -> None:
    """Print what happened to each stage, and keep it with the flow run.

    Args:
        rows: stages, or a study's cells.
        title: key of the artifact in Prefect: lower case, digits, dashes.
        page: the report, or the page of the study.
    """
    console, table = Console(), Table("name", "outcome", "seconds", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.name, row.outcome, f"{row.seconds:.1f}" if row.seconds else "")
    console.print(table)
    counts = Counter(row.outcome for row in rows)
    closing = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    console.print(f"{len(rows)} in all: {closing}", f"({page.resolve()})" if page.is_file() else "")
    create_table_artifact(
        [{"name": row.name, "outcome": row.outcome, "seconds": round(row.seconds, 1)} for row in rows],
        key=title,
        description=closing,
    )
    if page == REPORT and (run := mlflow_run()):
        create_link_artifact(run, key=f"{title}-mlflow", link_text="All numbers in MLflow")
        create_link_artifact(f"{run}/artifacts/report/index.html", key=f"{title}-report", link_text="Report")


def mlflow_run() -> str | None:
    """Address of the newest result's run in MLflow's pages; None if MLflow has none.

    The pages are at EFFACE_MLFLOW_PAGES, at the tracking server, or where `make ui` shows them.
    """
    if not RECEIPT.is_file():
        return None
    try:
        receipt = read_json(RECEIPT)
        server, path = str(receipt["at"]), f"#/experiments/{receipt['experiment']}/runs/{receipt['run']}"
    except (ArtifactError, KeyError, TypeError):  # a damaged receipt costs the link alone
        return None
    pages = os.environ.get("EFFACE_MLFLOW_PAGES") or (server if server.startswith("http") else _LOCAL_PAGES)
    return f"{redact(pages).replace('***@', '').rstrip('/')}/{path}"
