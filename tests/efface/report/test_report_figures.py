"""Labels stay apart, figures are the same bytes each time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from efface.report.compose import pruning_plot, saliency_plot, tradeoff_plots, training_plot
from efface.report.figures import by_tower
from efface.report.labels import place_labels
from efface.report.measures import Estimate

BOUNDS = (0.0, 0.0, 320.0, 300.0)
SIZE = (80.0, 12.0)
spot = st.tuples(st.floats(5, 315), st.floats(5, 295))


def boxes(centres):
    return [(x - SIZE[0] / 2, y - SIZE[1] / 2, x + SIZE[0] / 2, y + SIZE[1] / 2) for x, y in centres]


def shared(a, b):
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(spot, min_size=1, max_size=10), st.booleans())
def test_labels_cover_neither_each_other_nor_a_point(points, together):
    points = [points[0]] * len(points) if together else points
    placed = boxes(place_labels(points, [SIZE] * len(points), BOUNDS))
    for i, box in enumerate(placed):
        assert all(shared(box, other) < 1e-6 for other in placed[i + 1 :])
        assert all(shared(box, (x - 2, y - 2, x + 2, y + 2)) < 1e-6 for x, y in points)
        assert box[0] >= -1e-6
        assert box[1] >= -1e-6
        assert box[2] <= BOUNDS[2] + 1e-6
        assert box[3] <= BOUNDS[3] + 1e-6


def test_a_lone_label_is_near_its_point_and_avoids_a_line_through_it():
    (free,) = place_labels([(160, 150)], [SIZE], BOUNDS)
    assert abs(free[0] - 160) < 60
    assert abs(free[1] - 150) < 25
    bar = (60.0, 149.0, 260.0, 151.0)
    (aside,) = boxes(place_labels([(160, 150)], [SIZE], BOUNDS, lines=[bar]))
    assert shared(aside, bar) == 0


def cell(value):
    return Estimate(value, max(0.0, value - 0.1), min(1.0, value + 0.1), 30, 6)


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


def test_the_same_numbers_give_the_same_bytes_in_light_and_in_dark():
    first, second = plots(), plots()
    assert first == second
    for plot in first:
        assert plot.light != plot.dark
        assert b"<dc:date>" not in plot.light


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
    sides = comparison()
    assert "On the Pareto front of the methods: npo." in tradeoff_plots(sides)[0].caption
    sides["manu"]["retain"]["multimodal"]["exact_match"] = cell(0.95)
    sides["worse"] = sides["npo"] | {"retain": {"multimodal": {"exact_match": cell(0.8)}}}
    drawn = tradeoff_plots(sides)
    assert "(dotted): npo, manu." in drawn[0].caption
    assert "Pareto" not in drawn[1].caption
    yardsticks = {model: cells for model, cells in sides.items() if model in ("base", "vanilla", "retrained")}
    assert "Pareto" not in tradeoff_plots(yardsticks)[0].caption


def test_layers_come_in_their_natural_order():
    names = ["language.10", "language.2", "vision.head", "vision.0", "projector"]
    found = by_tower(dict.fromkeys(names, 0.1))
    assert [(group, list(layers)) for group, layers in found.items()] == [
        ("vision", ["0", "head"]),
        ("projector", [""]),
        ("language", ["2", "10"]),
    ]
