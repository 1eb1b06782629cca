"""Whom the stage evaluate asks about."""

from types import SimpleNamespace

from tasks.evaluate import draw_people


def rows(kind, part, people):
    return [
        SimpleNamespace(set=kind, part=part, entity_id=f"{kind}/{i}")
        for i in people
        for _question in range(2)
    ]


def people(subset, kind, part):
    return {sample.entity_id for sample in subset if (sample.set, sample.part) == (kind, part)}


def test_people_for_choosing_settings_are_drawn_apart_from_the_others():
    samples = [
        *rows("retain", "test", range(40)),
        *rows("retain", "validation", range(40, 48)),
        *rows("forget", "test", range(3)),
        *rows("utility", "test", range(100)),
    ]
    subset = draw_people(samples, 5, seed=0)
    assert len(people(subset, "retain", "test")) == len(people(subset, "retain", "validation")) == 5
    assert len(people(subset, "forget", "test")) == 3
    assert len(people(subset, "utility", "test")) == 100, "one stranger a row"
    assert len(subset) == 2 * (5 + 5 + 3 + 100), "all rows of those who are asked about"
    assert [s.entity_id for s in draw_people(samples, 5, seed=0)] == [s.entity_id for s in subset]
    assert people(draw_people(samples, 5, seed=1), "retain", "test") != people(subset, "retain", "test")
    assert draw_people(samples, None, seed=0) == samples
