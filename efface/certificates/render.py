"""A certificate as an HTML page to print and file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

MODELS = {
    "original": "vanilla, none forgotten",
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
QUESTIONS = {
    "seen": "by pictures from training",
    "unseen": "by other pictures",
    "by_name": "by name, without a picture",
}


def render_certificate(certificate: Mapping[str, Any]) -> str:
    """One HTML document without scripts; the same certificate always gives the same bytes.

    Raises:
        KeyError: if the certificate lacks a part.
    """
    from jinja2 import Environment, StrictUndefined, UndefinedError

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "grouped": group_digits, "plain": format_parameter}
    template = environment.from_string(
        files("efface.certificates").joinpath("certificate.html.j2").read_text(encoding="utf-8")
    )
    scores, request = certificate["scores"]["requests"], certificate["request"]["id"]
    try:
        return template.render(
            c=certificate,
            columns={name: title for name, title in MODELS.items() if name in scores[request]},
            own=scores[request],
            other_requests={name: values for name, values in scores.items() if name != request},
            questions=QUESTIONS,
            gate_names=GATES,
            worst=_worst,
        )
    except UndefinedError as error:
        raise KeyError(f"the certificate lacks a part: {error}") from error


def format_number(value: float | None) -> str:
    """A share with two digits; a dash for None."""
    return "–" if value is None else f"{value:.2f}"


def format_parameter(value: Any) -> str:
    """A parameter as JSON, null or {"beta": 0.1}; text without quotation marks."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def group_digits(digest: str) -> str:
    """A digest in groups of eight, which can be compared by eye and wrapped."""
    return " ".join(digest[i : i + 8] for i in range(0, len(digest), 8))


def _worst(values: Mapping[str, Mapping[str, float | None]], model: str) -> float | None:
    """The higher share of answers by picture, seen or unseen, which the gate compares."""
    shares = [share for key in ("seen", "unseen") if (share := values[model][key]) is not None]
    return max(shares, default=None)
