"""Figures of what changes step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from efface.report.figures import Theme, model_style, new_figure
from efface.report.scores import YARDSTICKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def relearning_curves(
    curves: Mapping[str, Mapping[int, float]], models: Sequence[str], y_label: str, theme: Theme
) -> Figure:
    """What comes back over the steps of relearning, one line per model.

    Args:
        curves: model to optimizer steps to a share in [0, 1].
        models: all models of the report, which fix the colours.
        y_label: words beside the vertical axis.
        theme: colours.
    """
    figure = new_figure(3.3)
    axes = figure.add_subplot(xlabel="steps of relearning", ylabel=y_label)
    axes.set_ylim(-0.04, 1.04)
    for model, curve in curves.items():
        colour, marker = model_style(model, models, theme)
        yardstick = model in YARDSTICKS
        axes.plot(
            list(curve),
            list(curve.values()),
            marker=marker,
            color=colour,
            linestyle="--" if yardstick else "-",
            markerfacecolor=theme.paper if yardstick else colour,
            linewidth=1.4,
            markersize=5.5,
            label=model,
        )
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)))
    return figure


def forget_retain_paths(
    paths: Mapping[str, Sequence[tuple[float, float]]],
    front: Sequence[tuple[float, float]],
    models: Sequence[str],
    theme: Theme,
) -> Figure:
    """What is still known of both sides while methods unlearn: one path per method, a mark per measurement.

    Args:
        paths: method to (forget, retain), each in [0, 1], from the first step to the last.
        front: points of the Pareto front, from the least of the forget people known.
        models: all models of the report, which fix the colours.
        theme: colours.
    """
    figure = new_figure(4.2)
    axes = figure.add_subplot(xlabel="known of the people to forget", ylabel="known of the people to keep")
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), ":", where="post", color=theme.ink, linewidth=1.2)
    for model, points in paths.items():
        colour, marker = model_style(model, models, theme)
        across, up = zip(*points, strict=True)
        axes.plot(across, up, "-", color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(across, up, marker, color=colour, markersize=4, label=model)
        axes.plot(across[-1:], up[-1:], marker, color=colour, markersize=9)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)))
    return figure
