"""Every method on facts with pictures and in words, and those that need no retain data without any."""

from __future__ import annotations

import pytest

from efface.neurons.retained import measure_retained
from efface.unlearning import METHODS
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.losses import SETTINGS
from tests.efface.unlearning.runs import options, weights

SYSTEM = "system_prompt"


def run(model, processor, name, forget, retain, **keywords):
    values = SETTINGS.get(name, {}) | ({"steps": 3} if METHODS[name].trains else {})
    return unlearn(
        model, processor, method=name, forget=forget, retain=retain, **keywords, **options(name, **values)
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name != SYSTEM])
def test_every_method_forgets_pictures_and_words(model, processor, pictured, written, name):
    before = weights(model)
    retain = [*pictured[3:], *written[3:]]
    run(model, processor, name, [*pictured[:2], *written[:2]], retain)
    assert any(bool((weight != before[key]).any()) for key, weight in weights(model).items())


@pytest.mark.parametrize("name", [name for name in METHODS if name != SYSTEM])
def test_a_method_that_needs_retain_data_says_so_and_the_others_run_without(model, processor, pictured, name):
    method = METHODS[name]
    if "retain" not in method.reads:
        run(model, processor, name, pictured[:2], [])
        return
    with pytest.raises(ValueError) as error:
        run(model, processor, name, pictured[:2], [])
    assert "retain is empty" in str(error.value) and name in str(error.value)
    if method.statistic:
        statistic = measure_retained(model, processor, pictured[3:], batch_size=4)
        run(model, processor, name, pictured[:2], [], statistic=statistic)


def test_without_its_term_the_retain_set_may_be_empty(model, processor, pictured):
    values = options("npo", steps=1, retain_weight=0.0)
    assert unlearn(model, processor, method="npo", forget=pictured[:2], retain=[], **values).steps == 1


def test_a_statistic_is_for_methods_that_read_it(model, processor, pictured):
    statistic = measure_retained(model, processor, pictured[3:], batch_size=4)
    with pytest.raises(ValueError) as error:
        run(model, processor, "npo", pictured[:2], pictured[2:], statistic=statistic)
    assert "npo" in str(error.value) and "statistic" in str(error.value)
