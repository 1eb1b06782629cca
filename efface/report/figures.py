"""The figures of the report, with captions and alternative texts that state the numbers.

The same arguments give the same bytes: no dates, fixed ids, text as outlines.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from efface.evaluation import REFERENCE_MODELS
from efface.evaluation.curves import Points, retain_at
from efface.evaluation.intervals import pareto_front
from efface.report.estimates import Cell, Estimates, lookup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from efface.report.attacks import Attacks

WIDTH = 4.7
"""Inches: two fit side by side on a desktop, one stays legible on a phone."""
FORGET = ("forget", "multimodal", "exact_match")
FORGET_TEXT = ("forget", "text", "exact_match")
RETAIN = ("retain", "multimodal", "exact_match")
GROUP_ORDER = ("vision", "projector", "language")
METHOD_MARKERS = ("o", "s", "D", "P", "X", "v", "^", "p")
REFERENCE_MARKERS = ("h", "*", "d")


INK, FAINT, PAPER = "#1f2429", "#c9ced6", "#ffffff"
COLOURS = ("#0b6bb8", "#b84a00", "#00795c", "#a0307f", "#7a6200", "#5a4fcf", "#b3261e", "#3d6b21")
REFERENCE_COLOURS = ("#6b737d", INK, "#565f6a")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "figure.dpi": 72,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """One figure as an SVG file on white paper, with its numbers in words."""

    name: str
    title: str
    alt: str
    caption: str
    svg: bytes


def render(build: Callable[[], Figure], *, name: str, title: str, alt: str, caption: str) -> Plot:
    """Draw a figure.

    Args:
        build: draws it.
        name: file name without suffix; also seeds the ids inside the SVG.
        title: heading.
        alt: what the figure shows, with its numbers.
        caption: how to read it.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        build().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, title, alt, caption, file.getvalue())


def tradeoff_plots(estimates: Mapping[str, Estimates], *, over: str = "people") -> list[Plot]:
    """Forgetting against retention, and forgetting by picture against forgetting by name.

    Args:
        estimates: one point per model.
        over: what the intervals are over, for the caption.
    """
    points = {
        model: (x.value, y.value)
        for model, cells in estimates.items()
        if model not in REFERENCE_MODELS and (x := lookup(cells, *FORGET)) and (y := lookup(cells, *RETAIN))
    }
    front = {model: points[model] for model in sorted(pareto_front(points), key=lambda model: points[model])}
    dotted = " (dotted)" if len(front) > 1 else ""
    best = f" On the Pareto front of the methods{dotted}: {', '.join(front)}." if front else ""
    by_picture = "exact match on the people to forget, by picture"
    return [
        _two_measures(
            estimates,
            name="forget_retain",
            title="Forgetting against retention",
            axes=((FORGET, by_picture), (RETAIN, "exact match on the retain people, by picture")),
            caption="Upper left is better: the people to forget are gone, the rest are retained. "
            f"Bars are 95% intervals over {over}; hollow marks are the reference models.{best}",
            front=list(front.values()),
        ),
        _two_measures(
            estimates,
            name="picture_text",
            title="By picture against by name",
            axes=((FORGET, by_picture), (FORGET_TEXT, "exact match on the people to forget, by name")),
            caption="A method that forgets faces and retains facts known by name is in the upper left; "
            "one that forgets both is in the lower left, near retrained.",
        ),
    ]


def _two_measures(
    estimates: Mapping[str, Estimates],
    *,
    name: str,
    title: str,
    axes: tuple[tuple[tuple[str, str, str], str], tuple[tuple[str, str, str], str]],
    caption: str,
    front: Sequence[tuple[float, float]] = (),
) -> Plot:
    """One point per model with its interval bars, both axes from 0 to 1."""
    (x, x_label), (y, y_label) = axes
    cells = {
        model: (across, up)
        for model, of_model in estimates.items()
        if (across := lookup(of_model, *x)) and (up := lookup(of_model, *y))
    }

    def build() -> Figure:
        figure, panel = _unit_square(x_label, y_label, front)
        for model, (across, up) in cells.items():
            colour, marker = _model_style(model, list(estimates))
            for cell, line in ((across, panel.hlines), (up, panel.vlines)):
                at = up.value if cell is across else across.value
                if cell.low is not None and cell.high is not None:
                    line(at, cell.low, cell.high, color=colour, linewidth=1.4, alpha=0.55)
            panel.plot(
                [across.value],
                [up.value],
                marker=marker,
                color=colour,
                markersize=11 if marker == "*" else 8,
                markerfacecolor=PAPER if model in REFERENCE_MODELS else colour,
                markeredgewidth=1.6,
                linestyle="",
                label=model,
            )
        _legend(figure, panel)
        return figure

    described = [f"{model}: {_words(across)} and {_words(up)}" for model, (across, up) in cells.items()]
    alt = f"One point per model; across, {x_label}; up, {y_label}. " + "; ".join(described) + "."
    return render(build, name=name, title=title, alt=alt, caption=caption)


def curve_plot(points: Sequence[Mapping[str, Any]], *, models: Sequence[str]) -> Plot:
    """Forget-retain curves of methods, measured while they unlearned.

    Args:
        points: rows of :func:`efface.report.estimates.curve_rows`, at least one.
        models: all models of the report.
    """
    paths: dict[str, list[tuple[float, float]]] = {}
    for row in points:
        paths.setdefault(row["model"], []).append((row["forget_known"], row["retain_known"]))
    front = sorted({(row["forget_known"], row["retain_known"]) for row in points if row["on_front"]})

    def build() -> Figure:
        x_label, y_label = "right about the people to forget", "right about the retain people"
        figure, panel = _unit_square(x_label, y_label, front)
        for model, path in paths.items():
            colour, marker = _model_style(model, models)
            across, up = zip(*path, strict=True)
            panel.plot(across, up, "-", color=colour, linewidth=1.2, alpha=0.7)
            panel.plot(across, up, marker, color=colour, markersize=4, label=model)
            panel.plot(across[-1:], up[-1:], marker, color=colour, markersize=9)
        _legend(figure, panel)
        return figure

    described = [
        f"{model} from {path[0][0]:.2f} and {path[0][1]:.2f} to {path[-1][0]:.2f} and {path[-1][1]:.2f}"
        for model, path in paths.items()
    ]
    return render(
        build,
        name="forget_retain_curve",
        title="Forgetting and retention, step by step",
        alt="One path per method; across, share of answers still right about the people to forget; up, the "
        "same for the retain people. " + "; ".join(described) + ".",
        caption="Measured while the methods unlearn, on a draw of test questions by picture; the large mark "
        "is the last step. Dotted: the Pareto front of all points, for viewing, not for choosing settings.",
    )


def front_plot(curves: Mapping[str, Sequence[Points]], *, models: Sequence[str]) -> Plot:
    """What each method retains at every level of forgetting, mean over folds.

    Args:
        curves: method to its curve on each fold.
        models: all models of the page.
    """
    levels = [level / 20 for level in range(21)]
    fronts = {
        model: [fmean(retain_at(points, level) for points in of_folds) for level in levels]
        for model, of_folds in curves.items()
    }

    def build() -> Figure:
        figure = _new_figure(4.2)
        panel = figure.add_subplot(
            xlabel="share right about the people to forget, at most", ylabel="right about the retain people"
        )
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        for model, front in fronts.items():
            colour, marker = _model_style(model, models)
            panel.plot(levels, front, marker=marker, color=colour, linewidth=1.4, markersize=4, label=model)
        _legend(figure, panel)
        return figure

    described = [
        f"{model} keeps " + ", ".join(f"{front[at]:.2f} at {levels[at]:.2f}" for at in (2, 5, 10))
        for model, front in fronts.items()
    ]
    return render(
        build,
        name="fronts",
        title="Retention at equal forgetting",
        alt="One line per method; across, the share still right about the people to forget, at most; up, the "
        "share right about the retain people. " + "; ".join(described) + ".",
        caption="At each level of forgetting, the most that any measured point of a method retains, mean "
        "over folds; 0 if a method never forgets that much.",
    )


BUDGET_PLOTS = {
    "relearn": (
        "relearning",
        "Fine-tuned on facts about some of the forgotten people, asked about the others. Facts that "
        "are gone return no faster than in retrained (dashed), which never met them.",
    ),
    "benign_relearn": (
        "benign relearning",
        "Fine-tuned on data that tells nothing about the forgotten people. What rises was hidden.",
    ),
    "soft_prompt": (
        "soft prompt",
        "Vectors behind the question, optimised on facts about some of the forgotten people, asked about the "
        "others. Facts that are gone return no faster than in retrained (dashed).",
    ),
}
"""Attack with a budget to its name and the caption of its curves."""


def budget_plot(
    attack: str, curves: Mapping[str, Mapping[int, float]], *, models: Sequence[str], metric: str
) -> Plot:
    """What an attack brings back, by the steps it takes.

    Args:
        attack: one of `BUDGET_PLOTS`.
        curves: attacked model to optimizer steps to value, in [0, 1].
        models: all models of the report.
        metric: metric of the values: ``exact_match`` or ``rouge_l``.
    """
    name, caption = BUDGET_PLOTS[attack]
    label = f"{metric.replace('_', ' ')} on the people to forget"

    def build() -> Figure:
        figure = _new_figure(3.3)
        panel = figure.add_subplot(xlabel=f"steps of {name}", ylabel=label)
        panel.set_ylim(-0.04, 1.04)
        for model, curve in curves.items():
            colour, marker = _model_style(model, models)
            reference = model in REFERENCE_MODELS
            panel.plot(
                list(curve),
                list(curve.values()),
                marker=marker,
                color=colour,
                linestyle="--" if reference else "-",
                markerfacecolor=PAPER if reference else colour,
                linewidth=1.4,
                markersize=5.5,
                label=model,
            )
        _legend(figure, panel)
        return figure

    described = [
        f"{model} " + ", ".join(f"{value:.2f} at {steps}" for steps, value in curve.items())
        for model, curve in curves.items()
    ]
    return render(
        build,
        name=name.replace(" ", "_"),
        title=name.capitalize(),
        alt=f"One line per model over the steps of {name}; up, {label}. " + "; ".join(described) + ".",
        caption=caption,
    )


def robustness_plot(attacks: Attacks, *, models: Sequence[str]) -> Plot:
    """How far each model is above retrained after the worst attack, with intervals, and without attack.

    Args:
        attacks: results of attacks, retrained's among them.
        models: all models of the report.
    """

    def build() -> Figure:
        rows = list(attacks.worst.items())[::-1]  # the first on top
        figure = _new_figure(1.1 + 0.32 * len(rows))
        panel = figure.add_subplot(xlabel=f"{attacks.metric.replace('_', ' ')} above retrained")
        panel.axvline(0, color=INK, linewidth=0.8)
        for row, (model, worst) in enumerate(rows):
            colour, marker = _model_style(model, models)
            if worst.interval is not None:
                panel.hlines(row, *worst.interval, color=colour, linewidth=1.4)
            panel.plot(worst.gap, row, marker=marker, color=colour, markersize=6)
            if (gap := attacks.unattacked_gap(model)) is not None:
                panel.plot(gap, row, marker="|", color=INK, markersize=11)
        panel.set_yticks(range(len(rows)), [model for model, _ in rows])
        panel.set_ylim(-0.6, len(rows) - 0.4)
        return figure

    described = [f"{model} {worst.sentence}" for model, worst in attacks.worst.items()]
    return render(
        build,
        name="robustness",
        title="Robustness",
        alt="One row per model; across, " + "; ".join(described) + ".",
        caption="How much more of the forgotten a model answers than retrained after the same attack, for "
        "the worst attack. It is chosen on half of the people and counted on the other half; bars are "
        "95% intervals over people for the gap of the truly worst attack. Strokes: no attack.",
    )


def saliency_plot(
    density: Mapping[str, Any], *, variant: str, threshold: float | None, kappa: float | None = None
) -> Plot:
    """Share of weights in the mask per layer, one panel per group.

    Args:
        density: ``{"total", "groups": {group: share}, "layers": {"group.layer": share}}``, shares in [0, 1].
        variant: how the saliency was computed.
        threshold: ratio of forget to retain saliency from which a weight is in the mask; None if by density.
        kappa: agreement of the masks of two halves of the samples beyond chance, at most 1, if measured.
    """
    of_groups = density.get("groups", {})
    with_layers = {name.partition(".")[0] for name in density["layers"]}
    whole = {group: share for group, share in of_groups.items() if group not in with_layers}
    groups = by_tower({**density["layers"], **whole})

    def build() -> Figure:
        figure = _new_figure(3.0)
        panels = _tower_panels(figure, groups)
        for index, (panel, (group, layers)) in enumerate(zip(panels, groups.items(), strict=True)):
            panel.bar(range(len(layers)), list(layers.values()), color=COLOURS[index], width=0.75)
            share = of_groups.get(group)
            if share is not None:
                panel.axhline(share, color=INK, linewidth=1, linestyle="--")
            _layer_ticks(panel, list(layers))
            panel.set_title(group if share is None else f"{group}\nall {share:.0%}")
        panels[0].set(ylabel="share of weights in the mask")
        panels[0].set_ylim(bottom=0)
        return figure

    described = [
        f"{group} "
        + ", ".join(f"{layer}: {share:.2f}" if layer else f"{share:.2f}" for layer, share in layers.items())
        for group, layers in groups.items()
    ]
    cut = "" if threshold is None else f", threshold {threshold:g}"
    halves = (
        "" if kappa is None else f"Masks of two halves of the samples agree with a kappa of {kappa:.2f}. "
    )
    return render(
        build,
        name="saliency_density",
        title="Saliency mask: density per layer",
        alt="Bars, share of weights that may change in each layer. " + "; ".join(described) + ".",
        caption=f"{density['total']:.1%} of the weights may change (variant {variant}{cut}). "
        f"{halves}Dashed: the whole group.",
    )


def pruning_plot(pruned: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Plot:
    """Neurons set to zero per layer, one panel per tower, one bar per method.

    Args:
        pruned: ``{method: {tower: {layer: neurons}}}``.
    """
    counts = {
        method: by_tower(
            {f"{tower}.{layer}": n for tower, layers in towers.items() for layer, n in layers.items()}
        )
        for method, towers in pruned.items()
    }
    names = {
        f"{t}.{layer}": 0 for towers in counts.values() for t, layers in towers.items() for layer in layers
    }
    layers_of = by_tower(names)

    def build() -> Figure:
        figure = _new_figure(3.1)
        panels = _tower_panels(figure, layers_of)
        step = 0.8 / len(counts)
        for panel, (tower, layers) in zip(panels, layers_of.items(), strict=True):
            for index, (method, towers) in enumerate(counts.items()):
                places = [place - 0.4 + step * (index + 0.5) for place in range(len(layers))]
                heights = [towers.get(tower, {}).get(layer, 0) for layer in layers]
                colour = COLOURS[index % len(COLOURS)]
                panel.bar(places, heights, width=step * 0.92, color=colour, label=method)
            _layer_ticks(panel, list(layers))
            panel.set_title(tower)
        panels[0].set_ylabel("pruned neurons")
        _legend(figure, panels[0])
        return figure

    described = [
        f"{method}, {tower} " + ", ".join(f"layer {layer}: {n}" for layer, n in layers.items())
        for method, towers in counts.items()
        for tower, layers in towers.items()
    ]
    totals = {m: int(sum(sum(layers.values()) for layers in towers.values())) for m, towers in counts.items()}
    return render(
        build,
        name="pruned_units",
        title="Pruned neurons per layer",
        alt="Bars, MLP neurons switched off in each layer. " + "; ".join(described) + ".",
        caption=f"MLP neurons switched off in all: {', '.join(f'{m} {n:,}' for m, n in totals.items())}.",
    )


def training_plot(
    model: str, history: Sequence[Mapping[str, Any]], *, ended_by: str, steps: int | None = None
) -> Plot:
    """Losses of one training run, the learning rate below.

    Args:
        model: what was trained.
        history: entries with ``step`` and any of ``forget_loss``, ``retain_loss`` (mean nats per answer
            token) and ``learning_rate``; at least one entry.
        ended_by: what ended the run, in words.
        steps: optimizer steps done; counted from the history if None.
    """
    if any(entry.get("forget_loss") is not None for entry in history):
        labels = {"forget_loss": "forget", "retain_loss": "retain"}
    else:
        labels = {"retain_loss": "training"}
    curves = {label: series for key, label in labels.items() if (series := _series(history, key))[0]}

    def build() -> Figure:
        figure = _new_figure(2.9)
        losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for index, (label, (at, values)) in enumerate(curves.items()):
            losses.plot(at, values, "--" if index else "-", color=COLOURS[index], label=label, linewidth=1.4)
        everything = [value for _, values in curves.values() for value in values]
        if len(curves) > 1 and 0 < 20 * min(everything) < max(everything):  # one driven up, one held down
            losses.set_yscale("log")
        if curves:
            losses.legend(loc="best", ncols=2)
        losses.set_ylabel("loss")
        rate.plot(*_series(history, "learning_rate"), color=INK, linewidth=1.2)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate.set(xlabel="step", ylabel="rate")
        rate.set_ylim(bottom=0)
        return figure

    ends = [f"{label} loss from {values[0]:.2f} to {values[-1]:.2f}" for label, (_, values) in curves.items()]
    count = steps or len(history)
    return render(
        build,
        name=f"training_{model}",
        title=model,
        alt=f"Training of {model} over {count} steps: {', '.join(ends) or 'no losses recorded'}.",
        caption=f"{count:,} steps. Ended by {ended_by}. Losses in mean nats per answer token.",
    )


def by_tower(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``{"language.0": x}`` as ``{"language": {"0": x}}``, groups and layers in their natural order.

    A group without layers, such as a projector, has one entry named ``""``.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, _, layer = name.partition(".")
        groups.setdefault(group, {})[layer] = value
    order = [g for g in GROUP_ORDER if g in groups] + sorted(set(groups) - set(GROUP_ORDER))

    def natural(layer: str) -> tuple[int, int, str]:
        return (0, int(layer), "") if layer.isdigit() else (1, 0, layer)

    return {
        group: {layer: groups[group][layer] for layer in sorted(groups[group], key=natural)}
        for group in order
    }


def _words(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return f"{cell.value:.2f}"
    return f"{cell.value:.2f} ({cell.low:.2f} to {cell.high:.2f})"


def _new_figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text before anything is saved
    return figure


def _unit_square(x_label: str, y_label: str, front: Sequence[tuple[float, float]]) -> tuple[Figure, Axes]:
    """A figure and its panel, both axes from 0 to 1, with a dotted front if it has several points."""
    figure = _new_figure(4.2)
    panel = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    panel.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    if len(front) > 1:
        panel.step(*zip(*front, strict=True), ":", where="post", color=INK, linewidth=1.2)
    return figure, panel


def _model_style(model: str, models: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a model: grey shapes for the reference models, hues for the methods."""
    if model in REFERENCE_MODELS:
        index = REFERENCE_MODELS.index(model)
        return REFERENCE_COLOURS[index], REFERENCE_MARKERS[index]
    turn, index = divmod([name for name in models if name not in REFERENCE_MODELS].index(model), len(COLOURS))
    return COLOURS[index], METHOD_MARKERS[(index + turn) % len(METHOD_MARKERS)]  # 64 different pairs


def _legend(figure: Figure, panel: Axes) -> None:
    """The names of what is drawn, above the panel, which keeps its height."""
    handles, names = panel.get_legend_handles_labels()
    if not names:
        return
    columns = min(3 if max(map(len, names)) < 18 else 2, len(names))  # long names need half the width
    rows = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * (rows - 1))
    figure.legend(handles, names, loc="outside upper center", ncols=columns)


def _tower_panels(figure: Figure, groups: Mapping[str, Mapping[str, float]]) -> Sequence[Axes]:
    widths = [max(1.5, len(layers)) for layers in groups.values()]
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=widths)[0]
    figure.supxlabel("layer", fontsize=9.5)
    for panel in panels:
        panel.grid(axis="x", visible=False)
    return list(panels)


def _layer_ticks(panel: Axes, layers: Sequence[str]) -> None:
    """Label every layer if they fit, else every fourth; words are written vertically."""
    stride = 1 if len(layers) <= 12 else 4
    labelled = [i for i, layer in enumerate(layers) if i % stride == 0 or not layer.isdigit()]
    panel.set_xticks(labelled, [layers[i] for i in labelled])
    for tick in panel.get_xticklabels():
        if not tick.get_text().isdigit():
            tick.set_rotation(90)


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one quantity, without the entries that lack it."""
    pairs = [(float(entry["step"]), float(entry[key])) for entry in history if entry.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]
