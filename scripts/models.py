"""The table of docs/models.md, from the tests every family goes through: python -m scripts.models"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tests.models import FAMILIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


class Outcomes:
    """A pytest plugin that notes how each family fared in each column."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], set[str]] = {}
        self.columns: list[str] = []
        self._of: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Note the column and family of each test."""
        for item in items:
            column = item.get_closest_marker("column")
            if column is not None:
                self._of[item.nodeid] = (item.callspec.params["family"], column.args[0])
                self.columns += [] if column.args[0] in self.columns else [column.args[0]]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note an outcome; of a test that was left out, the reason."""
        if report.nodeid not in self._of:
            return
        outcome = {"passed": "passed", "failed": "**failed**"}.get(report.outcome)
        if report.skipped:
            outcome = str(report.longrepr[2]).removeprefix("Skipped: ")
        if report.when == "call" or not report.passed:
            self.cells.setdefault(self._of[report.nodeid], set()).add(outcome or report.outcome)


def table(outcomes: Outcomes) -> str:
    """One row per family, one column per test; a family's video processor is marked by a star."""
    lines = ["| family | " + " | ".join(outcomes.columns) + " |", "|---" * (len(outcomes.columns) + 1) + "|"]
    for name, family in FAMILIES.items():
        cells = [", ".join(sorted(outcomes.cells.get((name, c), {"not run"}))) for c in outcomes.columns]
        star = "\\*" if family.needs else ""
        lines.append(f"| {family.title}{star} (`{name}`) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n\\* has a video processor: needs torchvision (see Packages).\n"


def main() -> None:
    """Run the tests and write the table."""
    import pytest

    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "tests/efface/families/test_matrix.py"], [outcomes])
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table(outcomes)}{END}{after}", encoding="utf-8")
    raise SystemExit(int(code))


if __name__ == "__main__":
    typer.run(main)
