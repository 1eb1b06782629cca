"""Numbers of a whole model, computed from its score table and those of the reference models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from efface.evaluation import privacy
from efface.evaluation.comparisons import ForgetQuality, RelativeDistance, forget_quality, relative_distance
from efface.evaluation.intervals import jackknife, share_interval
from efface.evaluation.likelihood import truth_ratio
from efface.evaluation.metrics import cell_value, fact_rows, records, with_metrics
from efface.evaluation.tables import check_same_samples

Row = Mapping[str, Any]
SIGNALS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "mia_zlib": ("nll_gold", lambda row: privacy.zlib_signal(row["nll_gold"], str(row["gold"]))),
    "mia_loss": ("nll_gold", lambda row: privacy.loss_signal(row["nll_gold"])),
    "mia_min_k": ("token_logprobs", lambda row: privacy.min_k_signal(row["token_logprobs"])),
    "mia_min_k_pp": ("token_zscores", lambda row: privacy.min_k_signal(row["token_zscores"])),
}
"""Membership inference attack to the column it reads and the signal of a row; the first is the reference."""
REFERENCE_ATTACK = "mia_zlib"
METRICS_FILE: dict[str, tuple[str, str, tuple[str, ...]]] = {
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
"""Key of a metrics file to the metric, set and modalities that it averages."""


@dataclass(frozen=True)
class Membership:
    """How well the people to forget can be told from people whom no model was trained on.

    Attributes:
        auc: area under the curve, in [0, 1]; 0.5 is ideal.
        interval: interval of the AUC over people; None if it cannot be estimated.
        tpr: true-positive rate at a false-positive rate of 1 %, in [0, 1].
    """

    auc: float
    interval: tuple[float, float] | None
    tpr: float


@dataclass(frozen=True)
class Privacy:
    """Membership inference on a model compared with the retrained model.

    Attributes:
        model: result on the model.
        retrained: result on the retrained model.
    """

    model: Membership
    retrained: Membership

    @property
    def gap(self) -> float:
        """Distance of the two AUCs, in [0, 1]; 0 is ideal."""
        return abs(self.model.auc - self.retrained.auc)

    @property
    def leak(self) -> float | None:
        """`privacy_leak`, 0 is ideal; None if the retrained model's AUC is 1."""
        defined = self.retrained.auc < 1
        return privacy.privacy_leak(self.model.auc, self.retrained.auc) if defined else None


def model_metrics(table: pd.DataFrame) -> dict[str, float]:
    """About ten numbers of one model, in [0, 1] but for ``base_logprob``, for its metrics file.

    Args:
        table: score table of the model, whose rows of the part ``test`` count.

    Returns:
        The keys of `METRICS_FILE`, ``fluency``, ``language`` and ``base_logprob`` (nats per token), rounded
        to 6 decimals. Those of `METRICS_FILE` average questions that ask for a fact (sentences if a set has
        nothing else), first by modality. A key without rows is left out.
    """
    names = ["fluency", "language"]
    rows = with_metrics(table[table["part"] == "test"], ["knowledge", "exact_match", *names])
    names += ["base_logprob"] if "base_logprob" in rows else []
    facts = fact_rows(rows)
    result = {}
    for key, (metric, name, modalities) in METRICS_FILE.items():
        cells = [facts[(facts["set"] == name) & (facts["modality"] == modality)] for modality in modalities]
        means = [cell[metric].dropna().sort_values().mean() for cell in cells]
        values = [float(mean) for mean in means if not pd.isna(mean)]
        if values:
            result[key] = round(sum(values) / len(values), 6)
    of_all = {name: rows[name].dropna().sort_values().mean() for name in names}
    return result | {name: round(float(mean), 6) for name, mean in of_all.items() if not pd.isna(mean)}


def membership(table: pd.DataFrame, *, attacks: Sequence[str] = tuple(SIGNALS)) -> dict[str, Membership]:
    """Each attack on the forget set against the holdout set, by picture; one without its rows or column is
    left out."""
    rows = _pictured(table)
    sets = {name: records(rows[rows["set"] == name]) for name in ("forget", "holdout")}
    result = {}
    for attack in attacks:
        column, signal = SIGNALS[attack]
        everything = [row for of_set in sets.values() for row in of_set]
        if not all(sets.values()) or any(cell_value(row, column) is None for row in everything):
            continue
        by_person: dict[str, dict[str, list[float]]] = {name: {} for name in sets}
        for name, of_set in sets.items():
            for row in of_set:
                by_person[name].setdefault(str(row["entity_id"]), []).append(signal(row))
        result[attack] = membership_of_signals(by_person)
    return result


def membership_of_signals(signals: Mapping[str, Mapping[str, Sequence[float]]]) -> Membership:
    """Membership inference from the signals of each person.

    Args:
        signals: for ``forget`` and ``holdout``, each person's signals, at least one per person.
    """
    rows = {
        name: [np.asarray(people[person], float) for person in sorted(people)]
        for name, people in signals.items()
    }
    every = {name: np.concatenate(of_people) for name, of_people in rows.items()}
    value = privacy.auc(every["forget"], every["holdout"])
    replicates, groups = [value], []
    for name, of_people in rows.items():
        for index in range(len(of_people)):
            rest = [of_person for i, of_person in enumerate(of_people) if i != index]
            remaining = every | {name: np.concatenate(rest)} if rest else None
            replicates.append(
                np.nan if remaining is None else privacy.auc(remaining["forget"], remaining["holdout"])
            )
            groups.append(name)
    estimate = jackknife(np.array(replicates), np.array(groups))
    return Membership(
        auc=value,
        interval=None if estimate is None else share_interval(value, estimate.error, estimate.freedom + 1),
        tpr=privacy.true_positive_rate(every["forget"], every["holdout"]),
    )


def privacy_of(
    table: pd.DataFrame, retrained: pd.DataFrame, *, attacks: Sequence[str] = tuple(SIGNALS)
) -> dict[str, Privacy]:
    """Each attack on a model, compared with the same attack on the retrained model."""
    of_model, of_retrained = membership(table, attacks=attacks), membership(retrained, attacks=attacks)
    return {name: Privacy(of_model[name], of_retrained[name]) for name in of_model if name in of_retrained}


def forget_quality_of(table: pd.DataFrame, retrained: pd.DataFrame) -> ForgetQuality | None:
    """Forget quality on the forget set's rows by picture that have a truth ratio; None if none has.

    Raises:
        ArtifactError: if the tables were made from different samples.
    """
    check_same_samples({"retrained": retrained, "the model": table})
    ratios = []
    for rows in (table, retrained):
        pictured = _pictured(rows)
        ratios.append(
            {
                str(row["sample_id"]): truth_ratio(row["nll_paraphrase"], row["nll_wrong"])
                for row in records(pictured[pictured["set"] == "forget"])
                if cell_value(row, "nll_paraphrase") is not None and cell_value(row, "nll_wrong") is not None
            }
        )
    if not ratios[0] or ratios[0].keys() != ratios[1].keys():
        return None
    keys = sorted(ratios[0])
    return forget_quality([ratios[0][key] for key in keys], [ratios[1][key] for key in keys])


def relative_distance_of(
    table: pd.DataFrame, vanilla: pd.DataFrame, retrained: pd.DataFrame, *, seed: int = 0
) -> RelativeDistance | None:
    """Whether a model is nearer to retrained or to vanilla on questions about the people to forget.

    By picture, as the visual goal leaves facts by name as in vanilla. None if the tables hold no such rows.

    Raises:
        ArtifactError: if the tables were made from different samples.
    """
    check_same_samples({"vanilla": vanilla, "retrained": retrained, "the model": table})
    answers = []
    for scores in (table, vanilla, retrained):
        rows = _pictured(scores)
        rows = fact_rows(rows[rows["set"].isin(["forget", "unseen"])])
        rows = with_metrics(rows, ["knowledge"]).dropna(subset=["knowledge"]).sort_values("sample_id")
        by_person = rows["knowledge"].astype(float).groupby(rows["entity_id"].astype(str))
        tiny = np.finfo(float).tiny
        answers.append({str(p): np.log(values.clip(lower=tiny)).tolist() for p, values in by_person})
    return relative_distance(*answers, seed=seed) if all(answers) else None


def modality_gap(table: pd.DataFrame) -> float | None:
    """Distance, in [0, 1], between the shares of facts about the people to forget that are right by picture
    and by name; None without facts asked both ways."""
    rows = with_metrics(table[(table["part"] == "test") & (table["set"] == "forget")], ["exact_match"])
    rows = rows.dropna(subset=["pair_id", "exact_match"])
    facts = rows.pivot_table(index=["pair_id", "task"], columns="modality", values="exact_match").dropna()
    if facts.empty or len(facts.columns) < 2:
        return None
    right = facts.astype(float) >= 0.5
    return abs(float(right["multimodal"].mean()) - float(right["text"].mean()))


def rate(table: pd.DataFrame, metric: str, *, sets: Sequence[str]) -> float | None:
    """Mean of a metric over the test rows of some sets; None if no row has a value."""
    rows = with_metrics(table[(table["part"] == "test") & table["set"].isin(list(sets))], [metric])
    values = rows[metric].dropna()
    return float(values.mean()) if len(values) else None


def _pictured(table: pd.DataFrame) -> pd.DataFrame:
    """The test rows that ask by picture."""
    return table[(table["part"] == "test") & (table["modality"] == "multimodal")]
