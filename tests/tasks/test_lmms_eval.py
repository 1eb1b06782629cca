"""Stage lmms_eval without its extra; tests/efface/evaluation/test_lmms.py has the numbers."""

from __future__ import annotations

import sys

import pytest

from efface.errors import EffaceError
from tasks import lmms_eval
from tasks.config import Params


def test_without_the_extra_the_stage_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delitem(sys.modules, "efface.evaluation.lmms", raising=False)
    with pytest.raises(EffaceError, match=r"pip install -e '\.\[pipeline,lmms\]'"):
        lmms_eval.run(Params(), "base", tmp_path)
