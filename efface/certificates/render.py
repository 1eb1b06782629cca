"""A certificate as an HTML page to print and file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

MODELS = {
    "original": "vanilla, none forgotten",
    "before": "in production before",
    "after": "new model",
    "retrained": "retrained without them",
    "base": "never met them",
}
"""Models of the scores, in the order of the page's columns."""
GATES = {
    "forget": "Forgotten: exact match by picture",
    "other_facts": "Their other facts, as a share of vanilla's",
    "served": "Forgotten, with the weights as they are served",
    "retain": "People to keep, as a share of vanilla's",
    "utility": "Real people and skills, as a share of vanilla's",
    "knowledge": "Probability of the facts, share left",
    "membership": "Membership inference, AUC",
    "tpr": "Membership inference, true positives at 1 % false ones",
    "relative_p": "Nearer to a model that never met them, p",
    "neighbours": "People most like them, as a share of vanilla's",
    "relearn_gap": "After relearning, above the retrained model",
}
QUESTIONS = {
    "seen": "by pictures from training",
    "unseen": "by other pictures",
    "by_name": "by name, without a picture",
}


def render_certificate(certificate: Mapping[str, Any], *, stamp: str | None = None) -> str:
    """One HTML document without scripts; the same certificate always gives the same bytes.

    Args:
        certificate: with its digest and signature.
        stamp: name of the file of its RFC 3161 time stamp; None: it has none.

    Raises:
        KeyError: if the certificate lacks a part.
    """
    from jinja2 import UndefinedError

    template = environment().get_template("certificate.html.j2")
    scores, request = certificate["scores"]["requests"], certificate["request"]["id"]
    try:
        return template.render(
            c=certificate,
            stamp=stamp,
            columns={name: title for name, title in MODELS.items() if name in scores[request]},
            own=scores[request],
            other_requests={name: values for name, values in scores.items() if name != request},
            questions=QUESTIONS,
            gate_names=GATES,
            worst=_worst,
        )
    except UndefinedError as error:
        raise KeyError(f"the certificate lacks a part: {error}") from error


def render_purge_record(record: Mapping[str, Any], *, stamp: str | None = None) -> str:
    """A purge record as one HTML document without scripts; `stamp` as for a certificate.

    Raises:
        KeyError: if the record lacks a part.
    """
    from jinja2 import UndefinedError

    try:
        template = environment().get_template("purge_record.html.j2")
        return template.render(c=record, purge=record["purge"], stamp=stamp)
    except UndefinedError as error:
        raise KeyError(f"the record lacks a part: {error}") from error


def environment() -> Environment:
    """Jinja with the templates beside this file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    result = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters |= {"number": format_number, "grouped": group_digits, "plain": format_parameter}
    return result


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
