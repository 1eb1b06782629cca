"""Figures: the same bytes each time, their numbers in words, models told apart."""

import functools
import itertools
import re

from efface.report.estimates import Cell
from efface.report.figures import (
    WIDTH,
    _model_style,
    budget_plot,
    by_tower,
    curve_plot,
    pruning_plot,
    saliency_plot,
    tradeoff_plots,
    training_plot,
)


def cell(value):
    return Cell(value, max(0.0, value - 0.1), min(1.0, value + 0.1), 30, 6)


def comparison():
    shares = {"base": 0.0, "vanilla": 1.0, "retrained": 0.0, "npo": 0.3, "manu": 1.0}
    sides = {
        model: {
            "forget": {m: {"exact_match": cell(share)} for m in ("multimodal", "text")},
            "retain": {"multimodal": {"exact_match": cell(0.9)}},
        }
        for model, share in shares.items()
    }
    return sides


@functools.cache
def plots():
    history = [
        {"step": float(i), "forget_loss": 0.1 + i, "retain_loss": 0.2, "learning_rate": 1e-4}
        for i in range(5)
    ]
    density = {
        "total": 0.25,
        "groups": {"vision": 0.5, "projector": 1.0},
        "layers": {"vision.0": 0.5, "language.10": 0.1},
    }
    return [
        *tradeoff_plots(comparison()),
        saliency_plot(density, variant="paper", threshold=1.0),
        pruning_plot({"manu": {"vision": {"0": 3}, "language": {"0": 5, "1": 7}}}),
        training_plot("npo", history, ended_by="a stop rule"),
        training_plot(
            "vanilla", [{"step": 0, "retain_loss": 2.0, "learning_rate": 1e-3}], ended_by="its last step"
        ),
    ]


def test_the_mask_s_stability_is_told_where_it_was_measured():
    density = {"total": 0.25, "groups": {"vision": 0.5}, "layers": {"vision.0": 0.5}}
    plot = saliency_plot(density, variant="paper", threshold=1.0, kappa=0.321)
    assert "kappa of 0.32" in plot.caption
    assert "kappa" not in saliency_plot(density, variant="paper", threshold=1.0).caption


def test_the_same_numbers_give_the_same_bytes():
    assert plots.__wrapped__() == plots()
    for plot in plots():
        assert b"<dc:date>" not in plot.svg


def test_what_the_figures_show_is_also_said_in_words():
    forget_retain, picture_text, saliency, pruned, training, vanilla = plots()
    assert "npo: 0.30 (0.20 to 0.40) and 0.90 (0.80 to 1.00)" in forget_retain.alt
    assert "manu: 1.00 (0.90 to 1.00) and 1.00" in picture_text.alt
    assert "vision 0: 0.50" in saliency.alt
    assert "projector 1.00" in saliency.alt
    assert "25.0%" in saliency.caption
    assert "manu 15" in pruned.caption
    assert "forget loss from 0.10 to 4.10" in training.alt
    assert "Ended by a stop rule" in training.caption
    assert "training loss from 2.00" in vanilla.alt


def test_the_front_holds_the_methods_that_no_other_beats():
    assert "On the Pareto front of the methods: npo." in plots()[0].caption
    sides = comparison()
    sides["manu"]["retain"]["multimodal"]["exact_match"] = cell(0.95)
    sides["worse"] = sides["npo"] | {"retain": {"multimodal": {"exact_match": cell(0.8)}}}
    pair = tradeoff_plots(sides)
    assert "(dotted): npo, manu." in pair[0].caption
    assert "Pareto" not in pair[1].caption
    references = {model: cells for model, cells in sides.items() if model in ("base", "vanilla", "retrained")}
    assert "Pareto" not in tradeoff_plots(references)[0].caption


def test_layers_come_in_their_natural_order():
    names = ["language.10", "language.2", "vision.head", "vision.0", "projector"]
    groups = by_tower(dict.fromkeys(names, 0.1))
    assert [(group, list(layers)) for group, layers in groups.items()] == [
        ("vision", ["0", "head"]),
        ("projector", [""]),
        ("language", ["2", "10"]),
    ]


def test_curves_say_where_they_begin_and_end():
    points = [
        {"model": "npo", "step": step, "forget_known": forget, "retain_known": 0.9, "on_front": not step}
        for step, forget in ((0, 1.0), (5, 0.25))
    ]
    assert "npo from 1.00 and 0.90 to 0.25 and 0.90" in curve_plot(points, models=["npo"]).alt
    curves = {"retrained": {0: 0.1, 30: 0.3}}
    plot = budget_plot("relearn", curves, models=["retrained"], metric="exact_match")
    assert "retrained 0.10 at 0, 0.30 at 30" in plot.alt


def test_twenty_models_at_one_point_are_told_apart():
    """Every name in the legend is a group of glyphs in the SVG, placed by a translation."""
    methods = [f"mmunlearner_with_mask_{number}" for number in range(20)]
    content = tradeoff_plots(dict.fromkeys(methods, comparison()["npo"]))[0].svg.decode()
    places = []
    for name in methods:
        block = content[content.index(f"<!-- {name} -->") :]
        places.append(tuple(map(float, re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", block).groups())))
    for first, second in itertools.combinations(places, 2):
        assert abs(first[1] - second[1]) >= 8 or abs(first[0] - second[0]) >= 100
    assert max(across for across, _ in places) < 72 * WIDTH - 100
    assert len({_model_style(name, methods) for name in methods}) == len(methods)
