"""Numbers of a whole model, made of its score table and that of the retrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from efface.evaluation import privacy
from efface.evaluation.comparisons import ForgetQuality, forget_quality
from efface.evaluation.likelihood import truth_ratio
from efface.evaluation.metrics import fact_rows, given, records, with_metrics
from efface.evaluation.tables import check_same_samples

Row = Mapping[str, Any]
SIGNALS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "mia_loss": ("nll_gold", lambda row: privacy.loss_signal(row["nll_gold"])),
    "mia_zlib": (
        "nll_gold",
        lambda row: privacy.zlib_signal(row["nll_gold"], int(row["n_tokens"]), str(row["gold"])),
    ),
    "mia_min_k": ("token_logprobs", lambda row: privacy.min_k_signal(row["token_logprobs"])),
    "mia_min_k_pp": ("token_zscores", lambda row: privacy.min_k_pp_signal(row["token_zscores"])),
}
"""Membership inference to the column it reads and the signal of a row."""


@dataclass(frozen=True)
class Membership:
    """Can the people to forget be told from people never seen?

    Attributes:
        auc: area under the curve, 0.5 ideal.
        retrained: the retrained model's.
        gap: distance between the two, in [0, 1]; 0 ideal.
        leak: relative and signed, 0 ideal; None where the retrained model's AUC is 1.
    """

    auc: float
    retrained: float
    gap: float
    leak: float | None


@dataclass(frozen=True)
class ModalityGap:
    """Facts asked both by picture and by name, on the people to forget; all in [0, 1].

    Attributes:
        gap: distance between the shares right by picture and by name.
        both_right: share of facts right both ways.
        both_wrong: share of facts wrong both ways.
        n: facts.
    """

    gap: float
    both_right: float
    both_wrong: float
    n: int


METRICS_FILE = {
    "forget": ("knowledge", "forget", ("multimodal",)),
    "unseen": ("knowledge", "unseen", ("multimodal",)),
    "forget_text": ("knowledge", "forget", ("text",)),
    "retain": ("knowledge", "retain", ("multimodal",)),
    "retain_text": ("knowledge", "retain", ("text",)),
    "real": ("knowledge", "real", ("multimodal", "text")),
    "utility": ("knowledge", "utility", ("multimodal", "text")),
    "forget_exact": ("exact_match", "forget", ("multimodal",)),
    "retain_exact": ("exact_match", "retain", ("multimodal",)),
}
"""Key of a metrics file to the metric, set and modalities it is the mean of."""


def model_metrics(table: pd.DataFrame) -> dict[str, float]:
    """About ten numbers of one model, each in [0, 1], for a metrics file with one row per model.

    Args:
        table: score table of the model; its rows of the part ``test`` count.

    Returns:
        The keys of `METRICS_FILE` and ``fluency``, rounded to 6 decimals. Those are means over questions for
        a fact (sentences where a set has nothing else), of each modality first. A key without rows is
        missing.
    """
    rows = table[table["part"] == "test"]
    result = {}
    for key, (metric, name, modalities) in METRICS_FILE.items():
        of_set = with_metrics(fact_rows(rows[rows["set"] == name]), [metric])
        means = [
            of_set.loc[of_set["modality"] == modality, metric].dropna().sort_values().mean()
            for modality in modalities
        ]
        values = [float(mean) for mean in means if not pd.isna(mean)]
        if values:
            result[key] = round(sum(values) / len(values), 6)
    fluency = rate(table, "fluency", sets=tuple(rows["set"].unique()))
    return result | ({} if fluency is None else {"fluency": round(fluency, 6)})


def membership(table: pd.DataFrame, *, modality: str = "multimodal", part: str = "test") -> dict[str, float]:
    """AUC of each attack, forget set against holdout set; one without its rows or column is left out."""
    rows = table[(table["part"] == part) & (table["modality"] == modality)]
    members, others = (records(rows[rows["set"] == name]) for name in ("forget", "holdout"))
    if not members or not others:
        return {}
    return {
        name: privacy.auc([signal(row) for row in members], [signal(row) for row in others])
        for name, (column, signal) in SIGNALS.items()
        if all(given(row, column) is not None for row in (*members, *others))
    }


def privacy_of(table: pd.DataFrame, retrained: pd.DataFrame) -> dict[str, Membership]:
    """Each attack on a model held against the same attack on the retrained model."""
    ours, theirs = membership(table), membership(retrained)
    return {
        name: Membership(
            auc=ours[name],
            retrained=theirs[name],
            gap=abs(ours[name] - theirs[name]),
            leak=privacy.privacy_leak(ours[name], theirs[name]) if theirs[name] < 1 else None,
        )
        for name in ours
        if name in theirs
    }


def forget_quality_of(
    table: pd.DataFrame, retrained: pd.DataFrame, *, modality: str = "multimodal", part: str = "test"
) -> ForgetQuality | None:
    """Forget quality on the rows of the forget set that have a truth ratio; None where none has.

    None also where the retrained model's table is without, as those of older runs are.

    Raises:
        ArtifactError: if the tables were made from different samples.
    """
    check_same_samples({"retrained": retrained, "the model": table})
    ratios = [_truth_ratios(rows, modality, part) for rows in (table, retrained)]
    if not ratios[0] or ratios[0].keys() != ratios[1].keys():
        return None
    keys = sorted(ratios[0])
    return forget_quality([ratios[0][key] for key in keys], [ratios[1][key] for key in keys])


def modality_gap(
    table: pd.DataFrame, *, part: str = "test", metric: str = "exact_match"
) -> ModalityGap | None:
    """What the people to forget are known for by picture against by name; None without paired facts."""
    rows = with_metrics(table, [metric])
    rows = rows[(rows["part"] == part) & (rows["set"] == "forget") & rows[metric].notna()]
    right = {
        name: here.dropna(subset=["pair_id"]).groupby(["pair_id", "task"])[metric].mean().astype(float) >= 0.5
        for name, here in rows.groupby("modality")
    }
    if not {"multimodal", "text"} <= right.keys():
        return None
    pairs = right["multimodal"].index.intersection(right["text"].index)
    seen, read = right["multimodal"].loc[pairs], right["text"].loc[pairs]
    if not len(pairs):
        return None
    return ModalityGap(
        gap=abs(float(seen.mean()) - float(read.mean())),
        both_right=float((seen & read).mean()),
        both_wrong=float((~seen & ~read).mean()),
        n=len(pairs),
    )


def rate(table: pd.DataFrame, metric: str, *, sets: tuple[str, ...], part: str = "test") -> float | None:
    """Mean of a metric over the rows of some sets, None where no row has a value."""
    rows = with_metrics(table[(table["part"] == part) & table["set"].isin(sets)], [metric])
    values = rows[metric].dropna()
    return float(values.mean()) if len(values) else None


def _truth_ratios(table: pd.DataFrame, modality: str, part: str) -> dict[str, float]:
    rows = table[(table["part"] == part) & (table["set"] == "forget") & (table["modality"] == modality)]
    return {
        str(row["sample_id"]): truth_ratio(row["nll_paraphrase"], row["nll_wrong"])
        for row in records(rows)
        if given(row, "nll_paraphrase") is not None and given(row, "nll_wrong") is not None
    }
