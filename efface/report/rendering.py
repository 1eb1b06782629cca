"""What the pages of a report and of a study share: rendering, tables in Markdown, numbers in words."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any


def render_page(template: str, **values: Any) -> str:
    """One HTML document from a template in this folder, pictures and style inside, no script."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("efface.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": svg_uri, "number": number}
    page = environment.from_string(folder.joinpath(template).read_text(encoding="utf-8"))
    style = Markup(folder.joinpath("report.css").read_text(encoding="utf-8"))
    return page.render(style=style, **values)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "---:") -> list[str]:
    """The lines of a table: labels to the left, the other columns as ``align`` says."""
    lines = [" | ".join(cells) for cells in (head, *rows)]
    lines = [f"| {line} |" for line in lines]
    return [lines[0], "|---|" + f"{align}|" * (len(head) - 1), *lines[1:]]


def number(value: Any, digits: int = 3) -> str:
    """A number as all tables write it; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def svg_uri(content: bytes) -> str:
    """An SVG picture as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()
