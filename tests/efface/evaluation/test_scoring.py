"""The scoring engine: batches and shared prompts equal single samples, definitions, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from efface.encoding import encode
from efface.errors import ModelError
from efface.evaluation import scoring
from efface.evaluation.scoring import Scorer, answer_logprobs, score
from efface.evaluation.scoring.cache import ResultCache
from efface.evaluation.scoring.prompt_style import PromptStyle
from efface.evaluation.scoring.tokens import token_scores
from efface.models import load_model, save_model
from tests.efface.conftest import COLOURS, sample
from tests.efface.unlearning.test_methods import slow_log_prob


def questions():
    rows = []
    for i in range(6):
        for pictured in (True, False):
            kind = ("choice", "cloze", "generation")[i % 3]
            options = COLOURS if kind == "choice" else None
            answer = COLOURS[i % 4] if kind != "generation" else None
            changes = {"part": "test", "task": kind, "options": options, "set": "retain"}
            if kind == "generation":
                changes |= {"paraphrase": "red or blue", "wrong_answers": ["white", "green and white"]}
            rows.append(sample(i, pictured=pictured, answer=answer, **changes))
    return rows


def assert_same(first, second, tolerance=1e-5):
    """Two score tables with the same decisions and the same numbers."""
    assert list(first.columns) == list(second.columns)
    for a, b in zip(first.to_dict("records"), second.to_dict("records"), strict=True):
        for column, value in a.items():
            if isinstance(value, float) or (isinstance(value, list) and isinstance(value[0], float)):
                assert value == pytest.approx(b[column], abs=tolerance, nan_ok=True), column
            else:
                assert value is b[column] or value == b[column], column


@pytest.fixture
def single(model, processor):
    """The slow reference: one sample at a time, every answer with its whole prompt."""
    tables = [
        score(model, processor, [row], batch_size=1, max_new_tokens=6, share_prefix=False)
        for row in questions()
    ]
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize("shared", [True, False])
def test_batches_give_what_single_samples_give(model, processor, single, shared):
    together = score(model, processor, questions(), batch_size=5, max_new_tokens=6, share_prefix=shared)
    assert_same(together, single)


def test_prompts_are_shared_and_read_once(model, processor):
    scorer = Scorer(model, processor, batch_size=6, max_new_tokens=6)
    pictures = []
    tower = model.model.vision_tower
    handle = tower.register_forward_pre_hook(lambda *_: pictures.append(1))
    rows = [row for row in questions() if row.image_bytes is not None]
    scorer.answers(rows)
    assert scorer.shares == {True: True}
    checked = len(pictures)  # generation, and probes of the first batch
    scorer.answers(rows[:3])
    handle.remove()
    assert len(pictures) == checked + 1  # one generation reads the pictures for all answers


def test_a_cache_that_cannot_be_cut_is_not_used(model, processor, single):
    """A family with a sliding window keeps the last few keys only."""
    model.config.get_text_config().layer_types = ["sliding_attention"] * 2
    model.config.get_text_config().sliding_window = 4096
    scorer = Scorer(model, processor, batch_size=4, max_new_tokens=6)
    _, prefix = scorer._generate(questions()[:1])
    assert prefix is None
    assert_same(score(model, processor, questions(), batch_size=5, max_new_tokens=6), single)


def test_a_cache_that_gives_other_numbers_is_not_used(model, processor, single, monkeypatch):
    """Positions counted wrongly, as they are where a family counts pictures in its own way."""
    right = scoring.score_after

    def wrong(*args, **options):
        measured = right(*args, **options)
        for scores in measured:
            scores.logprobs[-1] -= 0.01
        return measured

    monkeypatch.setattr(scoring, "score_after", wrong)
    scorer = Scorer(model, processor, batch_size=4, max_new_tokens=6)
    scorer.answers([row for row in questions() if row.image_bytes is None])
    assert scorer.shares == {False: False}
    assert_same(score(model, processor, questions(), batch_size=5, max_new_tokens=6), single)


MEMORY = 3
"""Rows that the device of the next tests has memory for."""


@pytest.fixture
def small_device(model):
    """A model that raises torch's out-of-memory error from four rows on, and records the batch sizes."""
    calls = []

    def allocate(module, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if calls[-1] > MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = model.register_forward_pre_hook(allocate, with_kwargs=True)
    yield calls
    handle.remove()


@pytest.mark.parametrize("shared", [True, False])
def test_batches_are_halved_when_memory_runs_out(
    model, processor, single, small_device, tmp_path, shared, caplog
):
    small_device.clear()
    cache = ResultCache(tmp_path / "parts", key="k")
    options = {"batch_size": 5, "max_new_tokens": 6, "share_prefix": shared}
    assert_same(score(model, processor, questions(), cache=cache, **options), single)
    assert sum(rows > MEMORY for rows in small_device) == 1  # tried once, then never again
    said = [record.getMessage() for record in caplog.records if record.name.startswith("efface")]
    assert said == ["out of memory with 5 questions at a time; going on with 3"]
    # A run that begins with the larger batches finds the cached ones.
    small_device.clear()
    assert_same(score(model, processor, questions(), cache=cache, **options), single)
    assert small_device == []


def test_memory_for_less_than_one_question_is_an_error(model, processor, small_device, monkeypatch):
    monkeypatch.setitem(globals(), "MEMORY", 0)
    with pytest.raises(ModelError) as error:
        score(model, processor, questions(), batch_size=2)
    assert "CUDA out of memory" in str(error.value) and "max_new_tokens" in str(error.value)


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(model, processor):
    handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken cable")))
    with pytest.raises(RuntimeError) as error:
        score(model, processor, questions(), batch_size=2)
    assert "broken cable" in str(error.value)
    handle.remove()


def test_rows_follow_the_definitions(model, processor):
    rows = questions()
    table = score(model, processor, rows, batch_size=4, max_new_tokens=6)
    assert table["sample_id"].tolist() == [row.sample_id for row in rows]
    for row, measured in zip(rows, table.to_dict("records"), strict=True):
        (encoded,) = encode(processor, [row])
        assert measured["nll_gold"] * measured["n_tokens"] == pytest.approx(
            -slow_log_prob(model, encoded), abs=1e-3
        )
        if row.task == "choice":
            per_token = []
            for option in row.options:
                (encoded,) = encode(
                    processor, [sample(int(row.pair_id), pictured=row.image_bytes is not None, answer=option)]
                )
                per_token.append(slow_log_prob(model, encoded) / int((encoded["labels"] != -100).sum()))
            assert list(measured["option_logprobs"]) == pytest.approx(per_token, abs=1e-4)
            assert measured["correct"] == (row.options[per_token.index(max(per_token))] == row.answer)
        else:
            assert measured["options"] is None and measured["correct"] is None
        if row.task == "generation":
            per_token = []
            for answer in (row.paraphrase, *row.wrong_answers):
                changed = sample(int(row.pair_id), pictured=row.image_bytes is not None, answer=answer)
                (encoded,) = encode(processor, [changed])
                per_token.append(-slow_log_prob(model, encoded) / int((encoded["labels"] != -100).sum()))
            assert [measured["nll_paraphrase"], *measured["nll_wrong"]] == pytest.approx(per_token, abs=1e-4)
        else:
            assert pd.isna(measured["nll_paraphrase"]) and measured["nll_wrong"] is None
        assert sum(measured["token_logprobs"]) == pytest.approx(-measured["nll_gold"] * measured["n_tokens"])
        assert len(measured["token_ranks"]) == len(measured["token_zscores"]) == measured["n_tokens"]


def test_another_models_answers_get_their_mean_log_likelihood_per_token_without_their_pictures(
    model, processor
):
    samples = [sample(i, pictured=pictured) for i in range(3) for pictured in (True, False)]
    answers = ["red", "", "green and blue", " white ", "\n", "blue and red and white"]
    values = answer_logprobs(model, processor, samples, answers, batch_size=4)
    for row, answer, value in zip(samples, answers, values, strict=True):
        if not answer.strip():
            assert value is None
            continue
        # The slow reference, one answer at a time; its end token takes part in the sum and has to go.
        text = sample(0, pictured=False, question=row.question, answer=answer.strip())
        (inputs,) = encode(processor, [text])
        labels = inputs.pop("labels")[0]
        with torch.no_grad():
            logits = model(**inputs).logits[0].double()
        places = (labels >= 0).nonzero().flatten().tolist()[:-1]
        logprobs = [logits[at - 1].log_softmax(-1)[labels[at]].item() for at in places]
        assert value == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-5)


def test_nothing_to_score_is_an_error(model, processor):
    with pytest.raises(ValueError) as error:
        score(model, processor, [], batch_size=4)
    assert "samples" in str(error.value)


def test_token_scores_by_the_definition():
    """Slow reference: the vocabulary sorted, mean and spread summed word by word."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [6, -100, 0]])
    for row, measured in enumerate(token_scores(logits, targets)):
        places = [t for t in range(3) if targets[row, t] != -100]
        assert len(measured.logprobs) == len(places)
        for t, logprob, rank, zscore in zip(
            places, measured.logprobs, measured.ranks, measured.zscores, strict=True
        ):
            p = torch.softmax(logits[row, t].double(), 0)
            target = int(targets[row, t])
            assert logprob == pytest.approx(float(p[target].log()), abs=1e-6)
            assert rank == p.argsort(descending=True).tolist().index(target)
            mean = sum(float(q * q.log()) for q in p)
            variance = sum(float(q * q.log() ** 2) for q in p) - mean**2
            assert zscore == pytest.approx((logprob - mean) / variance**0.5, abs=1e-5)
    flat = token_scores(torch.zeros(1, 1, 4), torch.tensor([[2]]))[0]
    assert flat.ranks == [0] and flat.zscores == [0.0]  # nothing is likelier, nothing stands out
    with pytest.raises(ValueError) as error:
        token_scores(logits, torch.tensor([[1, 2, 3], [-100, -100, -100]]))
    assert "row 1" in str(error.value)


def test_a_model_that_has_diverged_is_an_error(model, processor):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError) as error:
        score(model, processor, questions(), batch_size=4, max_new_tokens=2)
    assert "finite" in str(error.value)


def test_cache_are_not_scored_again(model, processor, tmp_path, monkeypatch):
    rows = questions()
    whole = score(model, processor, rows, batch_size=4, max_new_tokens=6)
    cache = ResultCache(tmp_path / "parts", key="this model")
    assert_same(score(model, processor, rows, batch_size=4, max_new_tokens=6, cache=cache), whole, 0)
    files = sorted(cache.folder.iterdir())
    assert len(files) == 4
    files[0].write_text(files[0].read_text()[:100])  # damaged: scored again
    files[1].unlink()
    calls = []
    answers = Scorer.answers
    monkeypatch.setattr(Scorer, "answers", lambda self, part: calls.append(1) or answers(self, part))
    assert_same(score(model, processor, rows, batch_size=4, max_new_tokens=6, cache=cache), whole, 0)
    assert len(calls) == 2
    second_cache = ResultCache(tmp_path / "parts", key="another model")
    score(model, processor, rows, batch_size=4, max_new_tokens=6, cache=second_cache)
    assert len(calls) == 6
    changed = [sample(0, pictured=False, answer="white")]
    score(model, processor, changed, batch_size=4, max_new_tokens=6, cache=cache)
    assert len(calls) == 7
    cache.remove()
    assert not cache.folder.exists()


SLOW_SCORING = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from efface.evaluation.scoring.cache import ResultCache
from efface.evaluation.scoring import score
from efface.evaluation.scoring import Scorer, answer_logprobs
from efface.models import load_model
from tests.efface.evaluation.test_scoring import questions

answers = Scorer.answers
def slow(self, part):
    time.sleep(0.5)
    return answers(self, part)
Scorer.answers = slow
folder = Path(sys.argv[1])
loaded = load_model(folder / "model")
score(loaded.model, loaded.processor, questions(), batch_size=2, max_new_tokens=6,
      cache=ResultCache(folder / "parts", key="k"))
"""


@pytest.mark.slow
def test_a_killed_scoring_resumes(model, processor, tmp_path, monkeypatch):
    save_model(model, processor, tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SCORING, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("parts/*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cached = len(list(tmp_path.glob("parts/*.json")))
    assert 2 <= cached < 6
    calls = []
    answers = Scorer.answers
    monkeypatch.setattr(Scorer, "answers", lambda self, part: calls.append(1) or answers(self, part))
    loaded = load_model(tmp_path / "model", device="cpu")
    resumed = score(
        loaded.model,
        loaded.processor,
        questions(),
        batch_size=2,
        max_new_tokens=6,
        cache=ResultCache(tmp_path / "parts", key="k"),
    )
    assert len(calls) == 6 - cached
    assert_same(resumed, score(loaded.model, loaded.processor, questions(), batch_size=2, max_new_tokens=6))


def test_other_words_change_what_is_generated_and_no_likelihood(model, processor):
    rows = questions()
    bare = score(model, processor, rows, batch_size=4, max_new_tokens=6)
    prompted = score(
        model,
        processor,
        rows,
        batch_size=4,
        max_new_tokens=6,
        style=PromptStyle(benchmark="mllmu", style="published"),
    )
    assert prompted["generation"].tolist() != bare["generation"].tolist()
    assert prompted["nll_gold"].tolist() == pytest.approx(bare["nll_gold"].tolist(), abs=1e-4)
    assert prompted["question"].tolist() == [row.question for row in rows]
    plain = score(model, processor, rows, batch_size=4, max_new_tokens=6, style=PromptStyle("mllmu"))
    assert plain["generation"].tolist() == bare["generation"].tolist()
