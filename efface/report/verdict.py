"""The comparison in a few plain sentences, no stronger than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from efface.report.measures import Estimates, difference_interval, lookup, rows_of
from efface.report.scores import YARDSTICKS

LEARNT = 0.05
"""Vanilla must lead retrained by this much; below, there is nothing to forget and nothing to measure."""
KEPT = 0.9
"""Share of vanilla's score on the people to keep that a method has to hold to be called usable."""
KNOWN = 0.5
"""A vanilla model that answers less than this of what it was taught is too weak for firm words."""
FEW_PEOPLE = 5
"""With fewer people to forget, intervals are mostly luck."""
FORGET_CELLS = (("forget", "multimodal"), ("forget", "text"), ("unseen", "multimodal"), ("unseen", "text"))


@dataclass(frozen=True)
class Verdict:
    """What the numbers say: sentences for everybody, warnings that qualify them."""

    sentences: list[str]
    warnings: list[str] = field(default_factory=list)
    best: str | None = None


def warnings(estimates: Mapping[str, Estimates]) -> list[str]:
    """One line for each set and modality that vanilla never learnt, by exact match."""
    found = []
    for set_name, modality in FORGET_CELLS:
        vanilla = lookup(estimates["vanilla"], set_name, modality, "exact_match")
        retrained = lookup(estimates["retrained"], set_name, modality, "exact_match")
        if vanilla is None or retrained is None or vanilla.value - retrained.value >= LEARNT:
            continue
        found.append(
            f"{set_name} / {modality}: vanilla answers {vanilla.value:.3f} exactly, retrained, which "
            f"never saw these people, {retrained.value:.3f}. Vanilla did not learn this, so no method "
            "can be said to have removed it."
        )
    return found


def verdict(
    tables: Mapping[str, pd.DataFrame], estimates: Mapping[str, Estimates], *, seed: int = 0
) -> Verdict:
    """Compare the methods on the pictures of the forget people, among those that keep the others.

    Args:
        tables: score table per model, yardsticks included, all on the same samples.
        estimates: what :func:`efface.report.measures.estimate` made of them.
        seed: seed of the paired bootstrap.
    """
    notes = warnings(estimates)
    methods = [model for model in tables if model not in YARDSTICKS]
    forget = {model: _value(estimates, model, "forget") for model in tables}
    retain = {model: _value(estimates, model, "retain") for model in tables}
    sentences = [_scene(forget)] if forget["vanilla"] is not None else []
    comparable = [m for m in methods if forget[m] is not None and retain[m] is not None]
    if not comparable:
        return Verdict(
            [*sentences, "No unlearned model was scored on both the forget and the retain people."], notes
        )
    if any(note.startswith("forget / multimodal") for note in notes):
        return Verdict(
            [*sentences, "No method is named best: vanilla had not learnt what should be forgotten."], notes
        )
    usable = [m for m in comparable if _at_least(retain[m], KEPT, retain["vanilla"])]
    if not usable:
        closest = max(comparable, key=lambda m: (retain[m] or 0.0, m))
        return Verdict(
            [
                *sentences,
                f"No method kept {KEPT:.0%} of vanilla's exact match on the people to keep; "
                f"{closest} came closest with {_percent(retain[closest])} against "
                f"{_percent(retain['vanilla'])}.",
            ],
            notes,
        )
    best = min(usable, key=lambda m: (forget[m] or 0.0, -(retain[m] or 0.0), m))
    sentences += [_leader(estimates, best), *_text_side(estimates, best)]
    sentences += _rivals(tables, [m for m in usable if m != best], best, seed)
    sentences += _cautions(estimates)
    dropped = [m for m in comparable if m not in usable]
    if dropped:
        sentences.append(
            f"Left out of this comparison, because too much else was lost: {', '.join(dropped)}."
        )
    return Verdict(sentences, notes, best)


def _scene(forget: Mapping[str, float | None]) -> str:
    before, never = _percent(forget["vanilla"]), _percent(forget["retrained"])
    return (
        f"Shown their pictures, the model before unlearning (vanilla) answers {before} of the questions "
        f"about the people to forget exactly; a model that never met them (retrained) {never}, by luck."
    )


def _leader(estimates: Mapping[str, Estimates], best: str) -> str:
    forget = lookup(estimates[best], "forget", "multimodal", "exact_match")
    retain = lookup(estimates[best], "retain", "multimodal", "exact_match")
    vanilla = lookup(estimates["vanilla"], "retain", "multimodal", "exact_match")
    share, kept, before = (None if cell is None else cell.value for cell in (forget, retain, vanilla))
    interval = ""
    if forget is not None and forget.low is not None and forget.high is not None:
        interval = (
            f" (95% interval {_percent(forget.low)} to {_percent(forget.high)}, {forget.people} people)"
        )
    return (
        f"Of the methods that keep at least {KEPT:.0%} of vanilla's answers about the people to keep, {best} "
        f"leaves the least: {_percent(share)} of those questions{interval}. About the people to keep it "
        f"answers {_percent(kept)}, vanilla {_percent(before)}."
    )


def _text_side(estimates: Mapping[str, Estimates], best: str) -> list[str]:
    after = lookup(estimates[best], "forget", "text", "exact_match")
    before = lookup(estimates["vanilla"], "forget", "text", "exact_match")
    if after is None or before is None:
        return []
    return [
        f"Asked by name and without a picture, it answers {_percent(after.value)} about the forgotten "
        f"people (vanilla {_percent(before.value)})."
    ]


def _cautions(estimates: Mapping[str, Estimates]) -> list[str]:
    """What makes all of this uncertain, if something does."""
    found = []
    forget = lookup(estimates["vanilla"], "forget", "multimodal", "exact_match")
    if forget is not None and forget.people < FEW_PEOPLE:
        found.append(
            f"With {forget.people} people asked about, all of this is an example rather than a result."
        )
    weak = [s for s in ("forget", "retain") if (_value(estimates, "vanilla", s) or 0.0) < KNOWN]
    if weak:
        found.append(
            f"Vanilla itself knows less than half of what it was taught ({' and '.join(weak)}), "
            "so differences here say little about the methods."
        )
    return found


def _rivals(tables: Mapping[str, pd.DataFrame], others: list[str], best: str, seed: int) -> list[str]:
    """Methods whose paired difference from the best could be nothing."""
    if not others:
        return ["It is the only method in this comparison."]
    where = {"set": "forget", "modality": "multimodal", "measure": "exact_match"}
    mine = rows_of(tables[best], **where)
    close = []
    for other in others:
        interval = difference_interval(rows_of(tables[other], **where), mine, seed=seed)
        if interval is None or interval[0] <= 0:
            close.append(other)
    if not close:
        return ["The others in this comparison leave more, by more than drawing other people would explain."]
    return [
        f"Not clearly behind it: {', '.join(close)}; the paired 95% interval of the difference includes 0."
    ]


def _value(estimates: Mapping[str, Estimates], model: str, set_name: str) -> float | None:
    cell = lookup(estimates[model], set_name, "multimodal", "exact_match")
    return None if cell is None else cell.value


def _at_least(value: float | None, share: float, reference: float | None) -> bool:
    return value is not None and reference is not None and value >= share * reference


def _percent(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.0%}"
