"""A certificate as a page to print and to file; it says what the JSON says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

MODELS = {
    "original": "vanilla, nobody forgotten",
    "before": "in production before",
    "after": "new model",
    "retrained": "retrained without them",
}
"""Models of the scores, in the order of the page's columns."""
GATES = {
    "forget": "Forgotten: exact match by picture",
    "retain": "People to keep, as a share of vanilla's",
    "utility": "Real people and skills, as a share of vanilla's",
    "relearn_gap": "After relearning, above the retrained model",
}
KNOWN = {
    "seen": "by pictures from training",
    "unseen": "by other pictures",
    "by_name": "by name, without a picture",
}


def render_certificate(certificate: Mapping[str, Any]) -> str:
    """One HTML document, style inside, no script; the same certificate always gives the same bytes.

    Raises:
        KeyError: if the certificate lacks something.
    """
    from jinja2 import Environment, StrictUndefined, UndefinedError

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = shown
    environment.filters["grouped"] = grouped
    environment.filters["plain"] = plain
    template = environment.from_string(
        files("efface.certificates").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    scores = certificate["scores"]["requests"]
    own = certificate["request"]["id"]
    columns = {name: title for name, title in MODELS.items() if name in scores[own]}
    try:
        return template.render(
            c=certificate,
            columns=columns,
            own=scores[own],
            others={request: values for request, values in scores.items() if request != own},
            known=KNOWN,
            gate_names=GATES,
            worst=_worst,
        )
    except UndefinedError as error:
        raise KeyError(f"the certificate is not whole: {error}") from error


def shown(value: float | None) -> str:
    """A share with two digits; a dash for none."""
    return "–" if value is None else f"{value:.2f}"


def plain(value: Any) -> str:
    """A parameter as params.yaml could say it: null, true, {"beta": 0.1}; words without quotation marks."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def grouped(digest: str) -> str:
    """A digest in groups of eight, which can be compared by eye and broken at the end of a line."""
    return " ".join(digest[i : i + 8] for i in range(0, len(digest), 8))


def _worst(values: Mapping[str, Mapping[str, float | None]], model: str) -> float | None:
    """The higher of what is known by pictures seen and unseen, which is what the gate asks."""
    found = [v for key in ("seen", "unseen") if (v := values[model][key]) is not None]
    return max(found, default=None)
