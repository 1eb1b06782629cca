"""What the stages train on and measure with: training facts alone, in no words of the evaluation."""

import importlib
import re
from collections import defaultdict

import pytest

from efface.data.samples import read_samples
from efface.encoding import Encoder
from tests.efface.data.clear_fixture import write_clear
from tests.efface.data.mllmu_fixture import MllmuFiles
from tests.small_run import imported, parameters

pytestmark = pytest.mark.slow
STAGES = ("benchmark", "prepare", "split", "base", "vanilla", "retrained", "saliency", "importance")


@pytest.mark.parametrize("benchmark", ["avatars", "mllmu", "clear"])
def test_no_evaluation_question_reaches_training_saliency_or_importance(tmp_path, monkeypatch, benchmark):
    if benchmark == "mllmu":
        files = MllmuFiles(tmp_path / "download").write()
        choice = imported("mllmu", eval=files.eval_root, train=files.train_root)
    elif benchmark == "clear":
        choice = imported("clear", data=write_clear(tmp_path / "download"))
    else:
        choice = {}
    params = parameters(tmp_path, choice)
    used = spy(monkeypatch)
    for stage in STAGES:
        used.stage = stage
        module = "finetune" if stage in ("vanilla", "retrained") else stage
        arguments = [stage] if module == "finetune" else []
        importlib.import_module(f"tasks.{module}").run(params, *arguments, root=tmp_path / "data")
    for method in params.unlearn.methods:
        used.stage = f"unlearn@{method}"
        importlib.import_module("tasks.unlearn").run(params, method, root=tmp_path / "data")

    table = read_samples(tmp_path / "data" / "prepared")
    facts = {s.sample_id for s in table if s.part == "train"}
    questions = {
        text
        for s in table
        if s.part != "train" and not _is_only_taught(s, benchmark)
        for text in (s.question, s.paraphrase, *(s.wrong_answers or ()))
        if text
    }
    names = sorted({s.answer for s in table if s.task == "name"}, key=len, reverse=True)
    questions = {plain(text, names) for text in questions}
    trained = {stage for stage, samples in used.samples.items() if samples}
    expected = {"vanilla", "retrained", "saliency", "importance"}
    assert trained >= expected | {f"unlearn@{method}" for method in params.unlearn.methods}
    for stage, samples in used.samples.items():
        strangers = {s.sample_id for s in samples} - facts
        assert not strangers, f"{stage} uses rows that are no training facts: {strangers}"
        worded = {s.question for s in samples if plain(s.question, names) in questions}
        worded |= {s.answer for s in samples if plain(s.answer, names) in questions}
        assert not worded, f"{stage} uses words of the evaluation: {worded}"


def _is_only_taught(sample, benchmark):
    """CLEAR holds no question in text but those it teaches."""
    return benchmark == "clear" and sample.modality == "text"


class Used:
    """What every stage gave to a model with its answer."""

    def __init__(self):
        self.stage = ""
        self.samples = defaultdict(list)


def spy(monkeypatch):
    used, original = Used(), Encoder.__init__

    def recording(self, processor, samples, **options):
        used.samples[used.stage] += samples
        original(self, processor, samples, **options)

    monkeypatch.setattr(Encoder, "__init__", recording)
    return used


def plain(text, names):
    """A text about any person: names and the like as "this person", no case, no punctuation."""
    for name in names:
        text = text.replace(name, "this person")
    text = re.sub(r"\b(this|the) (person|individual)\b", "this person", text, flags=re.IGNORECASE)
    return re.sub(r"\W+", " ", text).strip().lower()
