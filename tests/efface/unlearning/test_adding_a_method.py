"""The page on adding a method: its code is a method, its entry is valid, and it fits on 40 lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from efface.settings import check, declared
from ruamel.yaml import YAML

from efface.encoding import Encoder
from efface.encoding.answers import nll
from efface.unlearning import METHODS, unlearn
from efface.unlearning.method import _Registry
from efface.unlearning.training.loop import LoopConfig
from tasks.config.unlearning import UnlearningMethod

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
ENTRY = re.search(r"```yaml\n(    hinge:\n.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def hinge(tmp_path, monkeypatch):
    folder = tmp_path / "documented"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "hinge.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import documented

    yield folder / "hinge.py", _Registry(documented)["hinge"]
    for name in [name for name in sys.modules if name.startswith("documented")]:
        del sys.modules[name]


def test_the_file_has_at_most_forty_lines():
    assert len(CODE.splitlines()) <= 40


def test_the_method_does_what_the_page_says(hinge, model, processor, pictured):
    _, method = hinge
    encoder = Encoder(processor, pictured[:2])
    before = nll(model, encoder.batch([0, 1])).item()
    result = unlearn(
        model,
        processor,
        method=method,
        forget=pictured[:2],
        retain=pictured[2:],
        config=LoopConfig(learning_rate=3e-3, steps=60, batch_size=2, retain_weight=0),
        settings={"margin": 1.5},
    )
    after = nll(model, encoder.batch([0, 1])).item()
    assert before + 0.7 < after < before + 4 and result.history[-1]["forget_grad_norm"] == pytest.approx(0)


def test_the_entry_is_valid(hinge):
    file, method = hinge
    entry = YAML(typ="safe", pure=True).load(ENTRY)["hinge"]
    UnlearningMethod.model_validate(entry)
    check(entry["settings"], declared(file, "SETTINGS"))
    assert declared(file, "SETTINGS") == method.settings


def test_the_settings_named_on_the_page_are_valid():
    named = re.findall(r"`(\w+)`\s+\(`(\{.*?\})`", PAGE)
    assert {name for name, _ in named} == {"kl_min", "simnpo", "idk_dpo", "undial", "rmu"}
    for name, settings in named:
        check(YAML(typ="safe", pure=True).load(settings), METHODS[name].settings)
