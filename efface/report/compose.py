"""The figures of one comparison with titles, captions, and alternative texts that hold the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from efface.evaluation.people import forget_retain_curve
from efface.report import figures
from efface.report.curves import forget_retain_paths, relearning_curves
from efface.report.figures import Plot, render
from efface.report.measures import Estimate, Estimates, lookup
from efface.report.scores import YARDSTICKS

FORGET = ("forget", "multimodal", "exact_match")
FORGET_TEXT = ("forget", "text", "exact_match")
RETAIN = ("retain", "multimodal", "exact_match")


def tradeoff_plots(estimates: Mapping[str, Estimates], *, over: str = "people") -> list[Plot]:
    """Forgetting against keeping, and forgetting by picture against forgetting by name.

    Args:
        estimates: one point per model.
        over: what the intervals are over, for the caption.
    """
    front = _front(estimates)
    dotted = " (dotted)" if len(front) > 1 else ""
    best = f" On the Pareto front of the methods{dotted}: {', '.join(front)}." if front else ""
    return [
        _two(
            estimates,
            "forget_retain",
            "Forgetting against keeping",
            (FORGET, "exact match on the people to forget, by picture"),
            (RETAIN, "exact match on the people to keep, by picture"),
            "Upper left is better: the people to forget gone, the others kept. "
            f"Bars are 95% intervals over {over}; hollow marks are the yardsticks.{best}",
            list(front.values()),
        ),
        _two(
            estimates,
            "picture_text",
            "By picture against by name",
            (FORGET, "exact match on the people to forget, by picture"),
            (FORGET_TEXT, "exact match on the people to forget, by name"),
            "A method that unlearns what it sees but keeps what it knows by name lies in the upper left; "
            "one that forgets both lies in the lower left, near retrained.",
        ),
    ]


def _two(
    estimates: Mapping[str, Estimates],
    name: str,
    title: str,
    x: tuple[tuple[str, str, str], str],
    y: tuple[tuple[str, str, str], str],
    caption: str,
    front: Sequence[tuple[float, float]] = (),
) -> Plot:
    described = [
        f"{model}: {_words(across)} and {_words(up)}"
        for model, cells in estimates.items()
        if (across := lookup(cells, *x[0])) and (up := lookup(cells, *y[0]))
    ]
    return render(
        partial(_draw_two, estimates, x, y, front),
        name=name,
        title=title,
        alt=f"One point per model; across, {x[1]}; up, {y[1]}. " + "; ".join(described) + ".",
        caption=caption,
    )


def _draw_two(
    estimates: Mapping[str, Estimates],
    x: tuple[tuple[str, str, str], str],
    y: tuple[tuple[str, str, str], str],
    front: Sequence[tuple[float, float]],
    theme: figures.Theme,
) -> Any:
    return figures.two_measures(
        estimates, x=x[0], y=y[0], x_label=x[1], y_label=y[1], theme=theme, front=front
    )


def _front(estimates: Mapping[str, Estimates]) -> dict[str, tuple[float, float]]:
    """The methods that no other beats on both counts, from the one that forgets most."""
    points = {
        model: (across.value, up.value)
        for model, cells in estimates.items()
        if model not in YARDSTICKS
        and (across := lookup(cells, *FORGET)) is not None
        and (up := lookup(cells, *RETAIN)) is not None
    }
    chosen = {str(row["name"]) for row in forget_retain_curve(points) if row["on_front"]}
    return {model: points[model] for model in sorted(chosen, key=lambda model: points[model])}


def _words(cell: Estimate) -> str:
    if cell.low is None or cell.high is None:
        return f"{cell.value:.2f}"
    return f"{cell.value:.2f} ({cell.low:.2f} to {cell.high:.2f})"


def saliency_plot(density: Mapping[str, Any], *, variant: str, threshold: float | None) -> Plot:
    """Share of weights in the mask per layer.

    Args:
        density: ``total``, ``groups`` and ``layers`` of a mask file's metadata, shares in [0, 1].
        variant: how the saliency was computed.
        threshold: ratio of forget to retain saliency from which a weight is in the mask, if there is one.
    """
    towers = figures.layer_densities(density)
    described = [
        f"{group} "
        + ", ".join(f"{layer}: {share:.2f}" if layer else f"{share:.2f}" for layer, share in layers.items())
        for group, layers in towers.items()
    ]
    cut = "" if threshold is None else f", threshold {threshold:g}"
    return render(
        partial(figures.saliency_density, density),
        name="saliency_density",
        title="Saliency mask: density per layer",
        alt="Bars, share of weights that may change in each layer. " + "; ".join(described) + ".",
        caption=f"{density['total']:.1%} of the weights may change (variant {variant}{cut}). "
        "Dashed: the whole group.",
    )


def pruning_plot(pruned: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Plot:
    """Units switched off per layer and tower.

    Args:
        pruned: ``{method: {tower: {layer: units}}}``.
    """
    totals = {
        method: sum(units for layers in towers.values() for units in layers.values())
        for method, towers in pruned.items()
    }
    described = [
        f"{method}, {tower} "
        + ", ".join(f"layer {layer}: {units}" for layer, units in sorted(layers.items()))
        for method, towers in pruned.items()
        for tower, layers in towers.items()
    ]
    return render(
        partial(figures.pruned_units, pruned),
        name="pruned_units",
        title="Pruned units per layer",
        alt="Bars, MLP units switched off in each layer. " + "; ".join(described) + ".",
        caption="MLP units switched off, together: "
        + ", ".join(f"{m} {n:,}" for m, n in totals.items())
        + ".",
    )


def training_plot(
    model: str, history: Sequence[Mapping[str, Any]], *, ended_by: str, steps: int | None = None
) -> Plot:
    """The losses of one training run.

    Args:
        model: what was trained.
        history: as in the run's record, at least one entry.
        ended_by: what ended the run, in words.
        steps: optimiser steps done; counted from the history if not given.
    """
    ends = []
    for key, word in figures.loss_words(history):
        _, values = figures.series(history, key)
        if values:
            ends.append(f"{word} loss from {values[0]:.2f} to {values[-1]:.2f}")
    last = steps or len(history)
    return render(
        partial(figures.training_curve, history),
        name=f"training_{model}",
        title=model,
        alt=f"Training of {model} over {last} steps: {', '.join(ends) or 'no losses recorded'}.",
        caption=f"{last:,} steps. Ended by {ended_by}. Losses in mean nats per answer token.",
    )


def relearning_plot(curves: Mapping[str, Mapping[int, float]], *, models: Sequence[str], metric: str) -> Plot:
    """What relearning a few of the forgotten people brings back about the others.

    Args:
        curves: attacked model to optimizer steps to value, in [0, 1].
        models: all models of the report.
        metric: what the values are: ``exact_match`` or ``rouge_l``.
    """
    label = f"{metric.replace('_', ' ')}, people held out"
    described = [
        f"{model} " + ", ".join(f"{value:.2f} at {steps}" for steps, value in curve.items())
        for model, curve in curves.items()
    ]
    return render(
        partial(relearning_curves, curves, models, label),
        name="relearning",
        title="Relearning",
        alt=f"One line per model over the steps of relearning; up, {label}. " + "; ".join(described) + ".",
        caption="Fine-tuned on facts about some of the forgotten people, asked about the others. What was "
        "gone rises no faster than retrained (dashed), which never met them.",
    )


def curve_plot(points: Sequence[Mapping[str, Any]], *, models: Sequence[str]) -> Plot:
    """The forget-retain curve of the methods that were watched while they unlearned.

    Args:
        points: rows of :func:`efface.report.measures.curve_rows`, at least one.
        models: all models of the report.
    """
    paths: dict[str, list[tuple[float, float]]] = {}
    for row in points:
        paths.setdefault(row["model"], []).append((row["forget_known"], row["retain_known"]))
    front = sorted({(row["forget_known"], row["retain_known"]) for row in points if row["on_front"]})
    described = [
        f"{model} from {path[0][0]:.2f} and {path[0][1]:.2f} to {path[-1][0]:.2f} and {path[-1][1]:.2f}"
        for model, path in paths.items()
    ]
    return render(
        partial(forget_retain_paths, paths, front, models),
        name="forget_retain_curve",
        title="Forgetting and keeping, step by step",
        alt="One path per method; across, share of answers about the people to forget that are still known; "
        "up, the same of the people to keep. " + "; ".join(described) + ".",
        caption="Measured while the methods unlearn, on a draw of test questions by picture; the large mark "
        "is the last step. Dotted: the Pareto front of all points, to look at, not to choose by.",
    )
