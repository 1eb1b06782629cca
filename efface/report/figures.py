"""The figures of the report, drawn twice: dark ink for light pages, light ink for dark ones.

Every function returns a matplotlib figure and reads nothing but its arguments; :func:`render` makes the
bytes. The same arguments give the same bytes: no dates, fixed ids, text drawn as outlines.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from efface.report.labels import place_labels
from efface.report.measures import Estimate, Estimates, lookup
from efface.report.scores import YARDSTICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.7
"""Inches: wide enough for two beside each other on a desk, still legible scaled to a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours of one rendering."""

    ink: str
    faint: str
    paper: str
    series: tuple[str, ...]
    yardsticks: tuple[str, ...]


LIGHT = Theme(
    ink="#1f2429",
    faint="#c9ced6",
    paper="#ffffff",
    series=("#0b6bb8", "#b84a00", "#00795c", "#a0307f", "#7a6200", "#5a4fcf", "#b3261e", "#3d6b21"),
    yardsticks=("#6b737d", "#1f2429", "#565f6a"),
)
DARK = Theme(
    ink="#e4e7eb",
    faint="#454c55",
    paper="#171b20",
    series=("#6cb6ff", "#ff9d5c", "#4fd1a5", "#f08ccc", "#e0c04a", "#a9a1ff", "#ff8a80", "#9fd37a"),
    yardsticks=("#8d96a1", "#e4e7eb", "#b6bec8"),
)
GROUP_ORDER = ("vision", "projector", "language")
METHOD_MARKERS = ("o", "s", "D", "P", "X", "v", "^", "p")
YARDSTICK_MARKERS = ("h", "*", "d")


@dataclass(frozen=True)
class Plot:
    """One figure as two SVG files, with the words for whoever cannot see it."""

    name: str
    title: str
    alt: str
    caption: str
    light: bytes
    dark: bytes


def render(build: Callable[[Theme], Figure], *, name: str, title: str, alt: str, caption: str) -> Plot:
    """Draw a figure for light and for dark pages.

    Args:
        build: draws the figure in the colours it is given.
        name: file name without suffix; also salts the ids inside the SVG.
        title: heading.
        alt: what the picture shows, with its numbers, for readers who cannot see it.
        caption: how to read it.
    """
    images = []
    for theme in (LIGHT, DARK):
        with _style(theme, name):
            out = io.BytesIO()
            build(theme).savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            images.append(out.getvalue())
    return Plot(name, title, alt, caption, *images)


def _style(theme: Theme, salt: str) -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.hashsalt": salt,
            "svg.fonttype": "path",
            "figure.dpi": 72,
            "font.family": ["DejaVu Sans"],
            "font.size": 9.5,
            "axes.titlesize": 9.5,
            "axes.labelsize": 9.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.faint,
            "axes.facecolor": theme.paper,
            "figure.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.faint,
            "grid.linewidth": 0.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def new_figure(height: float) -> Figure:
    """An empty figure of the report's width, ``height`` inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text before anything is saved
    return figure


def model_style(model: str, models: Sequence[str], theme: Theme) -> tuple[str, str]:
    """Colour and marker of a model: grey shapes for the yardsticks, hues for the methods."""
    if model in YARDSTICKS:
        index = YARDSTICKS.index(model)
        return theme.yardsticks[index], YARDSTICK_MARKERS[index]
    index = [name for name in models if name not in YARDSTICKS].index(model)
    return theme.series[index % len(theme.series)], METHOD_MARKERS[index % len(METHOD_MARKERS)]


def two_measures(
    estimates: Mapping[str, Estimates],
    *,
    x: tuple[str, str, str],
    y: tuple[str, str, str],
    x_label: str,
    y_label: str,
    theme: Theme,
    front: Sequence[tuple[float, float]] = (),
) -> Figure:
    """One labelled point per model with its interval bars, both axes from 0 to 1.

    Args:
        estimates: estimates per model, in the order of the table.
        x: set, modality and measure of the horizontal axis.
        y: the same for the vertical axis.
        x_label: words under the horizontal axis.
        y_label: words beside the vertical axis.
        theme: colours.
        front: points of the Pareto front, left to right, drawn as the stairs between them.
    """
    figure = new_figure(4.2)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    drawn: list[tuple[str, float, float]] = []
    spans = [step for (x0, y0), (x1, y1) in pairwise(front) for step in ((x0, y0, x1, y0), (x1, y0, x1, y1))]
    for x0, y0, x1, y1 in spans:
        axes.plot([x0, x1], [y0, y1], ":", color=theme.ink, linewidth=1.2)
    for model, cells in estimates.items():
        across, up = lookup(cells, *x), lookup(cells, *y)
        if across is None or up is None:
            continue
        colour, marker = model_style(model, list(estimates), theme)
        for cell, is_x in ((across, True), (up, False)):
            low, high = _span(cell)
            line = (low, up.value, high, up.value) if is_x else (across.value, low, across.value, high)
            axes.plot([line[0], line[2]], [line[1], line[3]], color=colour, linewidth=1.4, alpha=0.55)
            spans.append(line)
        axes.plot(
            [across.value],
            [up.value],
            marker=marker,
            color=colour,
            markersize=11 if marker == "*" else 8,
            markerfacecolor=theme.paper if model in YARDSTICKS else colour,
            markeredgewidth=1.6,
            linestyle="",
        )
        drawn.append((model, across.value, up.value))
    _name_points(figure, axes, drawn, spans, list(estimates), theme)
    return figure


def _span(cell: Estimate) -> tuple[float, float]:
    low = cell.value if cell.low is None else cell.low
    high = cell.value if cell.high is None else cell.high
    return low, high


def _name_points(
    figure: Figure,
    axes: Axes,
    drawn: Sequence[tuple[str, float, float]],
    spans: Sequence[tuple[float, float, float, float]],
    models: Sequence[str],
    theme: Theme,
) -> None:
    """Write each model's name near its point, with a thin line where it had to move away."""
    texts = [axes.text(x, y, name, ha="center", va="center", fontsize=9) for name, x, y in drawn]
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the places below are for the layout as it is now
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    boxes = [text.get_window_extent() for text in texts]
    pixels = [tuple(map(float, to_pixels.transform((x, y)))) for _, x, y in drawn]
    lines = []
    for x0, y0, x1, y1 in spans:
        (a, b), (c, d) = to_pixels.transform((x0, y0)), to_pixels.transform((x1, y1))
        lines.append((a - 1, b - 1, c + 1, d + 1))
    area = axes.get_window_extent()
    centres = place_labels(
        [(p[0], p[1]) for p in pixels],
        [(box.width + 4, box.height + 2) for box in boxes],
        (area.x0, area.y0, area.x1, area.y1),
        gap=9,
        lines=lines,
    )
    for (name, x, y), text, centre, pixel, box in zip(drawn, texts, centres, pixels, boxes, strict=True):
        place = tuple(map(float, to_data.transform(centre)))
        text.set_position((place[0], place[1]))
        colour, _ = model_style(name, models, theme)
        text.set_color(colour)
        far = abs(centre[1] - pixel[1]) > 2 * box.height or abs(centre[0] - pixel[0]) > box.width / 2 + 18
        if far:
            axes.annotate(
                "",
                (x, y),
                xytext=(place[0], place[1]),
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 8, "shrinkB": 4},
            )


def saliency_density(density: Mapping[str, Any], theme: Theme) -> Figure:
    """Share of weights a method may change, per layer, one panel per group.

    Args:
        density: ``{"total", "groups": {group: share}, "layers": {"group.layer": share}}``, shares in [0, 1].
        theme: colours.
    """
    groups = layer_densities(density)
    figure = new_figure(3.0)
    widths = [max(1.5, len(layers)) for layers in groups.values()]
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=widths)[0]
    for index, (panel, (group, layers)) in enumerate(zip(panels, groups.items(), strict=True)):
        panel.bar(range(len(layers)), list(layers.values()), color=theme.series[index], width=0.75)
        whole = density.get("groups", {}).get(group)
        if whole is not None:
            panel.axhline(whole, color=theme.ink, linewidth=1, linestyle="--")
        _layer_ticks(panel, list(layers))
        panel.set_title(group if whole is None else f"{group}\nall {whole:.0%}")
        panel.grid(axis="x", visible=False)
    panels[0].set(ylabel="share of weights in the mask")
    panels[0].set_ylim(bottom=0)
    figure.supxlabel("layer", fontsize=9.5)
    return figure


def pruned_units(pruned: Mapping[str, Mapping[str, Mapping[str, int]]], theme: Theme) -> Figure:
    """Units set to zero per layer, one panel per tower, one bar per method.

    Args:
        pruned: ``{method: {tower: {layer: units}}}``.
        theme: colours.
    """
    towers = [
        tower
        for tower in (*GROUP_ORDER, *sorted({t for m in pruned.values() for t in m} - {*GROUP_ORDER}))
        if any(tower in per_tower for per_tower in pruned.values())
    ]
    layers = {
        tower: sorted(
            {layer for towers_ in pruned.values() for layer in towers_.get(tower, {})}, key=_natural
        )
        for tower in towers
    }
    figure = new_figure(3.1)
    panels = figure.subplots(
        1, len(towers), sharey=True, squeeze=False, width_ratios=[max(1.5, len(layers[t])) for t in towers]
    )[0]
    step = 0.8 / len(pruned)
    for panel, tower in zip(panels, towers, strict=True):
        for index, (method, per_tower) in enumerate(pruned.items()):
            places = [place - 0.4 + step * (index + 0.5) for place in range(len(layers[tower]))]
            counts = [per_tower.get(tower, {}).get(layer, 0) for layer in layers[tower]]
            panel.bar(
                places, counts, width=step * 0.92, color=theme.series[index % len(theme.series)], label=method
            )
        _layer_ticks(panel, layers[tower])
        panel.set_title(tower)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("pruned units")
    figure.supxlabel("layer", fontsize=9.5)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(names)))
    return figure


def training_curve(history: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Forget and retain loss over the optimiser steps, the learning rate below.

    Args:
        history: entries with ``step`` and any of ``forget_loss``, ``retain_loss`` (mean nats per answer
            token) and ``learning_rate``.
        theme: colours.
    """
    figure = new_figure(2.9)
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    highest, lowest = 0.0, float("inf")
    for index, (key, label) in enumerate(loss_words(history)):
        steps, values = series(history, key)
        if values:
            losses.plot(
                steps, values, "--" if index else "-", color=theme.series[index], label=label, linewidth=1.4
            )
            highest, lowest = max(highest, *values), min(lowest, *values)
    if lowest > 0 and highest > 20 * lowest and len(losses.lines) > 1:  # one loss driven up, one held down
        losses.set_yscale("log")
    if losses.lines:
        losses.legend(loc="best", ncols=2)
    losses.set_ylabel("loss")
    steps, values = series(history, "learning_rate")
    rate.plot(steps, values, color=theme.ink, linewidth=1.2)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set(xlabel="step", ylabel="rate")
    rate.set_ylim(bottom=0)
    return figure


def loss_words(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The losses of a history and what to call them; without a forget term it is just the training loss."""
    if any(entry.get("forget_loss") is not None for entry in history):
        return [("forget_loss", "forget"), ("retain_loss", "retain")]
    return [("retain_loss", "training")]


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity, without the entries that lack it."""
    kept = [(float(entry["step"]), float(entry[key])) for entry in history if entry.get(key) is not None]
    return [step for step, _ in kept], [value for _, value in kept]


def layer_densities(density: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Density per group and layer; a group without layers, such as a projector, is one entry named ``""``."""
    layers = dict(density["layers"])
    found = {name.partition(".")[0] for name in layers}
    return by_tower(layers | {g: share for g, share in density.get("groups", {}).items() if g not in found})


def by_tower(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``{"language.0": x}`` as ``{"language": {"0": x}}``, groups and layers in their natural order."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, _, layer = name.partition(".")
        groups.setdefault(group, {})[layer] = value
    order = [g for g in GROUP_ORDER if g in groups] + sorted(set(groups) - set(GROUP_ORDER))
    return {
        group: {layer: groups[group][layer] for layer in sorted(groups[group], key=_natural)}
        for group in order
    }


def _natural(layer: str) -> tuple[int, int, str]:
    return (0, int(layer), "") if layer.isdigit() else (1, 0, layer)


def _layer_ticks(panel: Axes, layers: Sequence[str]) -> None:
    """Label every layer while they fit, then every fourth; words stand upright."""
    stride = 1 if len(layers) <= 12 else 4
    shown = [i for i, layer in enumerate(layers) if i % stride == 0 or not layer.isdigit()]
    panel.set_xticks(shown, [layers[i] for i in shown])
    for tick in panel.get_xticklabels():
        if not tick.get_text().isdigit():
            tick.set_rotation(90)
