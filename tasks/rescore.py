"""Compute the metrics of finished score tables again, also of earlier versions' tables, without a model."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.errors import ArtifactError

RENAMED = {"test": "unseen"}
"""Names of sets in earlier versions to their current names."""


def run(folder: Path) -> None:
    """Print the scores of every `<model>.parquet` in a folder, which must include the reference models.

    Raises:
        ArtifactError: if a reference model is missing, a file is not a score table, or the tables were made
            from different samples.
    """
    import pandas as pd
    from pyarrow import ArrowException

    from efface.evaluation.tables import check_same_samples
    from efface.report.checks import check_reference_models, check_table
    from efface.report.comparison import compare, markdown_scores

    paths = sorted(folder.glob("*.parquet"))
    check_reference_models([path.stem for path in paths])
    tables = {}
    for path in paths:
        try:
            table = pd.read_parquet(path)
        except (ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path} is damaged: expected a parquet table, got {reason}") from error
        check_table(path.stem, table)
        tables[path.stem] = table.assign(set=table["set"].replace(RENAMED))
    check_same_samples(tables)
    typer.echo(markdown_scores(compare(tables)))
