"""The annex of a certificate: the attacks that a regulator lists, and what a certificate does not say.

The classes are those of the European Data Protection Board, Opinion 28/2024, paragraph 55. No standard for
certificates of unlearning exists, and this is not one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.config import Params

if TYPE_CHECKING:
    from tasks.requests.finish import Verdict

EXECUTED, NOT_RUN, OUT_OF_SCOPE = "executed", "not run", "out of scope"


def annex(request: str, verdict: Verdict) -> list[dict[str, Any]]:
    """A row per class of attack: `class`, `status`, `about` in words, and `result`, numbers by name.

    Args:
        request: id of the request, one of the verdict's.
        verdict: verdict of the run.
    """
    measured, scores = verdict.evidence[request], verdict.scores["requests"][request]["after"]
    attack = measured["membership"]
    shares = {kind: share for kind, share in measured["left"].items() if share is not None}
    return [
        _row(
            "attribute inference",
            EXECUTED if shares else NOT_RUN,
            "probability of their facts, from 0, as in a model that never met them, to 1, as before",
            shares,
        ),
        _row(
            "membership inference",
            EXECUTED if attack else NOT_RUN,
            "likelihood attack against people no model met; AUC of 0.5 is chance"
            if attack
            else "the benchmark has no holdout people, whom no model met",
            {"AUC": attack["auc"], "true-positive rate at 1 % false positives": attack["tpr"]}
            if attack
            else {},
            interval=attack["interval"] if attack else None,
        ),
        _row(
            "regurgitation of training data",
            EXECUTED,
            "share of questions that the model answers with the fact, word for word",
            {kind: share for kind, share in scores.items() if share is not None},
        ),
        _row(
            "exfiltration",
            OUT_OF_SCOPE,
            "taking the model or its data from the operator's systems is not a property of the weights",
        ),
        _row("model inversion", NOT_RUN, "no attempt was made to compute a picture from the weights"),
        _row(
            "reconstruction",
            NOT_RUN,
            "no attempt was made to compute training rows from the weights; relearning, if it was run, is "
            "among the attacks",
        ),
    ]


def limits_in_words(params: Params, measured: Mapping[str, Any]) -> list[str]:
    """What the certificate does not say, one sentence each."""
    lines = [
        "It is valid for the questions that were asked and the attacks that were run; others may still bring "
        "a fact back.",
        "It is about the weights named here, not about copies of them, earlier versions, or models made from "
        "them elsewhere.",
    ]
    if measured["goal"] == "visual":
        lines.append(
            "The model was made to forget these people by picture; what it answers when they are named was "
            "not to change."
        )
    if params.requests.release is None:
        lines.append(
            "Who can use the model, and how, was not stated (requests.release), so whether these numbers "
            "suffice for that use is open."
        )
    return lines


def _row(
    name: str, status: str, about: str, result: Mapping[str, float] | None = None, *, interval: Any = None
) -> dict[str, Any]:
    return {
        "class": name,
        "status": status,
        "about": about,
        "result": dict(result or {}),
        "interval": None if interval is None else list(interval),
    }
