"""MANU: modality-aware neuron importance, from the statistics of two renderings of the same facts.

I = I_abs + I_freq + I_var + I_rms          per neuron, on one set
S = I(forget) / (I(retain) + eps)           what ranks neurons for pruning
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from efface.neurons.statistics import ActivationStatistics

EPS = 1e-8
FUNCTIONS = ("abs", "freq", "var", "rms")

Statistics = Mapping[str, ActivationStatistics]
Tables = dict[str, dict[str, Tensor]]
"""Table name -> MLP name -> one value per neuron."""


def importance_terms(
    multimodal: Statistics, text: Statistics, *, variance_only: Collection[str] = ()
) -> Tables:
    """The four comparisons of a set's two renderings, whose sum is a neuron's importance.

    Args:
        multimodal: statistics over the samples with their pictures.
        text: statistics over the same facts in text; the same number of samples.
        variance_only: MLPs that text does not reach and that have no entry in ``text``. Without a second
            rendering to compare, their neurons only have I_var, over the pictures.

    Returns:
        ``abs``, ``freq``, ``var`` and ``rms`` -> MLP name -> float64 tensor (N,), values >= 0; the MLPs of
        ``variance_only`` are only under ``var``.

    Raises:
        ValueError: if the two name different MLPs, or count different numbers of samples.

    Reference:
        arXiv:2502.15910, section 4. As printed, the variance subtracts the mean of abs(z) from z; here abs(z)
        is used in both places.
    """
    odd = sorted(multimodal.keys() ^ (text.keys() | set(variance_only)))
    if odd:
        raise ValueError(f"only one of the two renderings reached {odd[0]}; both must cover the same MLPs")
    terms: Tables = {function: {} for function in FUNCTIONS}
    for name, m in multimodal.items():
        if name in variance_only:
            terms["var"][name] = torch.sqrt(m.variance)
            continue
        t = text[name]
        if m.count != t.count:
            raise ValueError(
                f"{m.count} multimodal and {t.count} text samples cannot be compared for {name}: take one "
                "text rendering for each multimodal sample"
            )
        terms["abs"][name] = _contrast(m.mean_abs, t.mean_abs)
        terms["freq"][name] = _contrast(m.active, t.active)
        terms["var"][name] = torch.sqrt(m.variance + t.variance)
        terms["rms"][name] = torch.sqrt(_contrast(m.sum_square, t.sum_square))
    return terms


def neuron_importance(
    multimodal: Statistics, text: Statistics, *, variance_only: Collection[str] = ()
) -> dict[str, Tensor]:
    """Importance of every neuron on one set: the sum of its terms; arguments as for ``importance_terms``.

    Returns:
        MLP name -> float64 tensor (N,), values >= 0.

    Raises:
        ValueError: if the two name different MLPs, or count different numbers of samples.
    """
    return _summed(importance_terms(multimodal, text, variance_only=variance_only), multimodal)


def relative_importance(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """S = importance on the forget set over importance on the retain set, per neuron."""
    return {name: value / (retain[name] + EPS) for name, value in forget.items()}


def paper_tables(statistics: Mapping[str, Statistics], *, variance_only: Collection[str] = ()) -> Tables:
    """The tables of an importance file: statistics, terms, importance on both sets, and the score S.

    Args:
        statistics: ``forget.multimodal``, ``forget.text``, ``retain.multimodal`` and ``retain.text``, each by
            MLP name.
        variance_only: see ``importance_terms``.
    """
    tables: Tables = {
        f"{rendering}.{field}": {name: getattr(values, field) for name, values in by_mlp.items()}
        for rendering, by_mlp in statistics.items()
        for field in ("mean_abs", "variance", "sum_square", "active")
    }
    for kind in ("forget", "retain"):
        pictured = statistics[f"{kind}.multimodal"]
        terms = importance_terms(pictured, statistics[f"{kind}.text"], variance_only=variance_only)
        tables |= {f"terms.{kind}.{function}": values for function, values in terms.items()}
        tables[f"importance.{kind}"] = _summed(terms, pictured)
    tables["score"] = relative_importance(tables["importance.forget"], tables["importance.retain"])
    tables["activation"] = tables["forget.multimodal.mean_abs"]
    return tables


def _summed(terms: Tables, names: Collection[str]) -> dict[str, Tensor]:
    def total(parts: list[Tensor]) -> Tensor:
        return functools.reduce(torch.add, parts)

    return {name: total([terms[f][name] for f in FUNCTIONS if name in terms[f]]) for name in names}


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """Absolute difference over sum, in [0, 1]."""
    return (a - b).abs() / (a + b + EPS)
