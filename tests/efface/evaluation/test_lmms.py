"""Benchmarks of lmms-eval on a tiny model: the numbers are those of the model's own greedy answers."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("lmms_eval", reason="the extra lmms is not installed")

from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from efface.errors import DataError, ModelError
from efface.evaluation.lmms import run_benchmarks
from efface.evaluation.scoring import score
from tests.efface.conftest import sample

TASK = """
task: colours
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function helpers.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {generation}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
HELPERS = """
def pictures(doc):
    return [doc["image"].convert("RGB")] if doc["image"] is not None else []
"""


@pytest.fixture
def task(model, processor, tmp_path, monkeypatch):
    """Six questions with a picture and six without; a third of the answers are what the model says."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    samples = [sample(i, pictured=pictured) for i in range(6) for pictured in (True, False)]
    says = score(model, processor, samples, batch_size=4, max_new_tokens=3)["generation"]
    rows = [
        {
            "image": None if s.image_bytes is None else Pictures.open(io.BytesIO(s.image_bytes)),
            "question": s.question,
            "answer": says[i] if i < 4 else "no such answer",
        }
        for i, s in enumerate(samples)
    ]
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "colours.parquet")
    (tmp_path / "helpers.py").write_text(HELPERS)

    def write(generation="{max_new_tokens: 3}"):
        text = TASK.format(data=tmp_path / "colours.parquet", generation=generation)
        (tmp_path / "colours.yaml").write_text(text)
        return tmp_path

    return write


def test_a_task_counts_the_models_own_greedy_answers(model, processor, task):
    results = run_benchmarks(model, processor, ["colours"], folder=task(), batch_size=4)
    assert results["colours"]["exact_match"] == pytest.approx(4 / 12)
    first = run_benchmarks(model, processor, ["colours"], folder=task(), limit=4, batch_size=3)
    assert first["colours"]["exact_match"] == 1


def test_what_is_not_greedy_generation_is_refused(model, processor, task):
    with pytest.raises(ModelError, match="temperature"):
        run_benchmarks(model, processor, ["colours"], folder=task("{temperature: 0.7}"))
    with pytest.raises(DataError, match="colors"):
        run_benchmarks(model, processor, ["colors"], folder=task())
