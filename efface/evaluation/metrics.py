"""Metrics: pure functions of score tables, each with its range and direction.

A metric reads one row of a score table (a sample) and returns that row's value, or None if it does not apply:
another task, or a benchmark without the paraphrases the metric needs. The metric of a set is the mean over
the rows that have a value; if none has, it is not available, which is never the same as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.evaluation import likelihood, parsers, texts
from efface.evaluation.texts import exact_match, normalise, rouge_l

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "STORED", "Metric", "choice", "exact_match", "normalise", "rouge_l", "summarise"]

Row = Mapping[str, Any]
FACT_TASKS = ("choice", "cloze", "qa", "name")
FORGET_SETS = ("forget", "unseen")


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        name: as in tables and in MLflow.
        value_of: value of one row of a score table, or None.
        low: least possible value.
        high: greatest possible value.
        higher_is_better: direction on retain people; it is reversed on people to forget, unless ``turns`` is
            False.
        description: one sentence for tables and reports.
        needs: columns without which it is not available.
        turns: whether the direction is reversed on people to forget.
        stored: whether score tables have a column for it; the rest are computed from the tables on demand.
        of_facts: whether means leave out sentences if a set and modality asks for bare facts as well.
    """

    name: str
    value_of: Callable[[Row], float | None]
    description: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    needs: tuple[str, ...] = ("generation",)
    turns: bool = True
    stored: bool = False
    of_facts: bool = False


def choice(option_logprobs: Sequence[float]) -> int:
    """Index of the option with the highest log-probability per token; the first one on ties.

    Raises:
        ValueError: if there is no option, or a log-probability is not a number.
    """
    values = list(option_logprobs)
    if not values or any(math.isnan(value) for value in values):
        raise ValueError(f"expected log-probabilities of one or more options, got {values}")
    return max(range(len(values)), key=values.__getitem__)


def cell_value(row: Row, column: str) -> Any:
    """Value of a row in a column; None for no column, null, NaN or an empty list."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return None if hasattr(value, "__len__") and len(value) == 0 else value


def records(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, keyed by column."""
    return [{str(key): value for key, value in row.items()} for row in scores.to_dict("records")]


def fact_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows that ask for a fact or, if a set and modality has none, its sentences.

    Most of a sentence is its frame, which a model can repeat without knowing any fact.
    """
    is_fact = scores["task"].isin(FACT_TASKS)
    cells = scores["set"].astype(str) + "\0" + scores["modality"].astype(str)
    return scores[is_fact | ~cells.isin(set(cells[is_fact]))]


def chance(scores: pd.DataFrame) -> pd.Series[float]:
    """Expected score of guessing on each row, in [0, 1]: 1 / options for multiple choice, 0 for the rest."""
    import pandas as pd

    if "options" not in scores.columns:
        return pd.Series(0.0, index=scores.index)
    levels = [
        1 / len(options) if task == "choice" and options is not None else 0.0
        for task, options in zip(scores["task"], scores["options"], strict=True)
    ]
    return pd.Series(levels, index=scores.index)


def with_metrics(scores: pd.DataFrame, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The table with a column for each metric that it lacks, in the order of :data:`METRICS`.

    Args:
        scores: a score table.
        names: metrics to add; None adds all.

    Raises:
        ValueError: if a log-probability of the table is not a finite number.
    """
    import pandas as pd

    missing = [METRICS[name] for name in (METRICS if names is None else names) if name not in scores.columns]
    if not missing:  # probes have no likelihoods from which a metric could be computed
        return scores
    check_finite(scores)
    rows = records(scores)
    added = {
        metric.name: pd.Series([metric.value_of(row) for row in rows], index=scores.index, dtype="Float64")
        for metric in missing
    }
    return scores.assign(**added)


def check_finite(scores: pd.DataFrame) -> None:
    """Refuse a table with a log-probability that is not a finite number.

    Raises:
        ValueError: naming the column, how many rows have it and the first of them.
    """
    import numpy as np

    if "nll_gold" not in scores.columns:
        return
    for column in ("nll_gold", "option_logprobs", "nll_wrong", "token_logprobs"):
        if column not in scores.columns:
            continue
        bad = [
            sample
            for sample, value in zip(scores["sample_id"], scores[column], strict=True)
            if value is not None and not np.all(np.isfinite(np.asarray(value, dtype=float)))
        ]
        if bad:
            raise ValueError(
                f"{column} of {len(bad)} of {len(scores)} rows (such as sample {bad[0]}) is not a finite "
                "number: the model's weights are probably damaged; rebuild the model and score it again"
            )


def unavailable(scores: pd.DataFrame) -> dict[str, str]:
    """Metrics that this table lacks data for, each with the reason."""
    reasons = {}
    for metric in METRICS.values():
        missing = [
            column
            for column in metric.needs
            if column not in scores or all(cell_value({"": value}, "") is None for value in scores[column])
        ]
        if missing:
            reasons[metric.name] = f"not available: the samples have no {', no '.join(missing)}"
    return reasons


def summarise(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Mean of every metric by set and modality.

    Args:
        scores: a score table with one column per metric, empty where the metric does not apply.

    Returns:
        set -> modality -> metric -> ``{"value", "n"}``; combinations without rows are left out.
    """
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    columns = [metric for metric in METRICS if metric in scores.columns]
    for (name, modality), rows in scores.groupby(["set", "modality"], sort=True):
        metrics = result.setdefault(str(name), {}).setdefault(str(modality), {})
        for metric in columns:
            of_metric = fact_rows(rows) if METRICS[metric].of_facts else rows
            # Sorted before they are summed, so that the result does not depend on the order of the rows.
            values = of_metric[metric].dropna().sort_values()
            if len(values):
                metrics[metric] = {"value": float(values.mean()), "n": len(values)}
    return result


def _choice(row: Row) -> float | None:
    if row["task"] != "choice" or cell_value(row, "correct") is None:
        return None
    return float(row["correct"])


def choice_read_by(parser: Callable[[str, list[str]], int | None]) -> Callable[[Row], float | None]:
    """Whether the option that a parser extracts from the answer to a multiple-choice question is right."""

    def value_of(row: Row) -> float | None:
        if row["task"] != "choice" or cell_value(row, "options") is None:
            return None
        index = parser(row["generation"], list(row["options"]))
        return float(index is not None and row["options"][index] == row["gold"])

    return value_of


def _cloze(row: Row, holds: Callable[[str, str], bool] = parsers.fills_blank) -> float | None:
    return float(holds(row["generation"], row["gold"])) if row["task"] == "cloze" else None


def _exact(row: Row) -> float | None:
    return exact_match(row["generation"], row["gold"]) if row["task"] in FACT_TASKS else None


def _rouge(name: str, part: str) -> Callable[[Row], float | None]:
    def value_of(row: Row) -> float | None:
        if row["task"] not in texts.SENTENCE_TASKS:
            return None
        return float(getattr(texts.rouge(row["generation"], row["gold"])[name], part))

    return value_of


def _bleu(row: Row) -> float | None:
    return texts.bleu(row["generation"], row["gold"]) if row["task"] in texts.SENTENCE_TASKS else None


def _knowledge(row: Row) -> float | None:
    logprobs = cell_value(row, "token_logprobs")
    return None if logprobs is None or len(logprobs) < 2 else likelihood.knowledge(logprobs)


def _language(row: Row) -> float | None:
    return _knowledge(row) if row.get("set") == "utility" and row["task"] == "generation" else None


def _base_likelihood(row: Row) -> float | None:
    logprob = cell_value(row, "base_logprob")
    return None if logprob is None else likelihood.probability(-logprob)


def _probability(row: Row) -> float | None:
    return None if cell_value(row, "nll_gold") is None else likelihood.probability(row["nll_gold"])


def _probability_among(row: Row) -> float | None:
    if cell_value(row, "nll_gold") is None or cell_value(row, "nll_wrong") is None:
        return None
    return likelihood.probability_among(row["nll_gold"], row["nll_wrong"])


def _truth_ratio(row: Row) -> float | None:
    if cell_value(row, "nll_paraphrase") is None or cell_value(row, "nll_wrong") is None:
        return None
    forget = row["set"] in FORGET_SETS
    return likelihood.truth_ratio_score(row["nll_paraphrase"], row["nll_wrong"], forget=forget)


def _ranked(function: Callable[[Sequence[int]], float]) -> Callable[[Row], float | None]:
    return lambda row: None if cell_value(row, "token_ranks") is None else function(row["token_ranks"])


_SENTENCES = "of generated sentences"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # Generated answers against the right ones.
        Metric(
            "exact_match",
            _exact,
            "share of questions about one fact whose generated answer is that fact",
            stored=True,
        ),
        Metric(
            "choice_accuracy",
            _choice,
            "share of multiple-choice questions whose likeliest option per token is the right one",
            needs=("option_logprobs",),
            stored=True,
        ),
        Metric(
            "choice_accuracy_generated",
            choice_read_by(parsers.strict_choice),
            "share of multiple-choice questions whose generated answer states the right option",
        ),
        Metric("cloze_accuracy", _cloze, "share of blanks whose answer holds the fact as whole words"),
        Metric(
            "cloze_accuracy_legacy",
            lambda row: _cloze(row, parsers.contains_gold),
            "share of blanks whose answer holds the fact as a substring, as MLLMU-Bench counts",
        ),
        Metric("rouge_l", _rouge("rougeL", "fmeasure"), f"ROUGE-L F-measure {_SENTENCES}", stored=True),
        Metric("rouge_l_recall", _rouge("rougeL", "recall"), f"ROUGE-L recall {_SENTENCES}"),
        Metric("rouge_1", _rouge("rouge1", "fmeasure"), f"ROUGE-1 F-measure {_SENTENCES}"),
        Metric("rouge_1_recall", _rouge("rouge1", "recall"), f"ROUGE-1 recall {_SENTENCES}"),
        Metric("rouge_2", _rouge("rouge2", "fmeasure"), f"ROUGE-2 F-measure {_SENTENCES}"),
        Metric("rouge_2_recall", _rouge("rouge2", "recall"), f"ROUGE-2 recall {_SENTENCES}"),
        Metric("bleu", _bleu, f"sentence BLEU {_SENTENCES}"),
        # Likelihood of given answers.
        Metric(
            "knowledge",
            _knowledge,
            "probability per token of the right answer, end token left out, geometric mean",
            needs=("token_logprobs",),
            of_facts=True,
        ),
        Metric(
            "language",
            _language,
            "probability per token of the ends of plain sentences that no model was trained on",
            needs=("token_logprobs",),
        ),
        Metric(
            "probability",
            _probability,
            "probability per token of the right answer, geometric mean",
            needs=("nll_gold",),
        ),
        Metric(
            "probability_among",
            _probability_among,
            "probability of the right answer relative to all candidate answers",
            needs=("nll_gold", "nll_wrong"),
        ),
        Metric(
            "truth_ratio",
            _truth_ratio,
            "on people to forget, how similar truth and error are; on others, how much likelier the truth is",
            needs=("nll_paraphrase", "nll_wrong"),
            turns=False,
        ),
        Metric(
            "exact_memorisation",
            _ranked(likelihood.exact_memorisation),
            "share of answer tokens that are the likeliest of all",
            needs=("token_ranks",),
        ),
        Metric(
            "extraction_strength",
            _ranked(likelihood.extraction_strength),
            "share of the answer that follows by itself from the shortest sufficient beginning",
            needs=("token_ranks",),
        ),
        # The form of generated answers, right or wrong.
        Metric(
            "fluency",
            lambda row: float(texts.is_fluent(row["generation"], row["task"])),
            "share of generations that are an answer: not empty, of the expected form, without loops",
            turns=False,
        ),
        Metric(
            "base_likelihood",
            _base_likelihood,
            "probability per token that the base model gives the generations, pictures left out",
            needs=("base_logprob",),
            turns=False,
        ),
        Metric(
            "refusal_rate",
            lambda row: float(texts.is_refusal(row["generation"])),
            "share of generations that begin with a refusal",
            higher_is_better=False,
        ),
    )
}
STORED = {name: metric for name, metric in METRICS.items() if metric.stored}
