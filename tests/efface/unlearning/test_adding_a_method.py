"""The page on adding a method: its code is a method, and its entry is valid."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.runs import options

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "a-method-of-your-own.md").read_text(
    encoding="utf-8"
)
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
ENTRY = re.search(r"```yaml\n(    hinge:\n.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def hinge(tmp_path, monkeypatch):
    (tmp_path / "documented_hinge.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import documented_hinge

    return documented_hinge.METHOD


def test_the_method_does_what_the_page_says(hinge, model, processor, pictured):
    encoder = Encoder(processor, pictured[:2])
    before = nll(model, encoder.batch([0, 1])).item()
    result = unlearn(
        model,
        processor,
        method=hinge,
        forget=pictured[:2],
        retain=pictured[2:],
        **options(hinge, learning_rate=3e-3, steps=60, retain_weight=0.0, margin=1.5),
    )
    after = nll(model, encoder.batch([0, 1])).item()
    assert before + 0.7 < after < before + 4 and result.history[-1]["forget_grad_norm"] == pytest.approx(0)


def test_the_entry_is_valid(hinge):
    entry = YAML(typ="safe", pure=True).load(ENTRY)["hinge"]
    assert entry.pop("start") == "vanilla" and entry.pop("mask") == "none"
    assert entry.keys() <= {field.name for field in fields(hinge.settings)}
    assert hinge.settings(**entry).margin == 3.0


def test_a_margin_out_of_range_is_an_error(hinge):
    with pytest.raises(ValueError) as error:
        hinge.settings(margin=0.0)
    assert "margin is 0.0" in str(error.value)
