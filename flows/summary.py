"""The summary of a run: a table in the terminal, and in Prefect with links to the report and MLflow."""

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
from tasks.tracking.runs import PAGE_QUERY, RECEIPT, VIEW

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
    """Print the outcome of each stage, and store it with the flow run.

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
        description=f"{closing}; {page.resolve()}" if page.is_file() else closing,
    )
    if page == REPORT:
        for key, (text, address) in mlflow_links().items():
            create_link_artifact(address, key=f"{title}-{key}", link_text=text)


def mlflow_links() -> dict[str, tuple[str, str]]:
    """Key to text and address of the newest result in MLflow's pages; empty if MLflow has none.

    The pages are at EFFACE_MLFLOW_PAGES, at the tracking server, or where `make ui` shows them.
    """
    if not RECEIPT.is_file():
        return {}
    try:
        receipt = read_json(RECEIPT)
        server, experiment, run = (str(receipt[key]) for key in ("at", "experiment", "run"))
    except (ArtifactError, KeyError, TypeError):  # a damaged receipt costs only the links
        return {}
    pages = os.environ.get("EFFACE_MLFLOW_PAGES") or (server if server.startswith("http") else _LOCAL_PAGES)
    root = f"{redact(pages).replace('***@', '').rstrip('/')}/#/experiments/{experiment}/runs"
    return {
        "report": ("Report", f"{root}/{run}/artifacts/report/index.html?{PAGE_QUERY}"),
        "models": (
            "Models compared by score and ten metrics",
            f"{root}?{PAGE_QUERY}&viewStateShareKey={VIEW}",
        ),
        "mlflow": ("All numbers in MLflow", f"{root}/{run}?{PAGE_QUERY}"),
    }
