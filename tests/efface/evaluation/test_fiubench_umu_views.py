"""The numbers FIUBench and UMU-Bench publish, by hand from made answers."""

import math

import pandas as pd
import pytest

from efface.data.samples import Sample
from efface.evaluation.benchmarks import view_of
from efface.evaluation.benchmarks.fiubench import min_k
from efface.evaluation.scoring.question_prompts import user_turn

OPTIONS = ["Nurse", "Baker"]


def fiubench_row(name, number, **values):
    return {
        "set": name,
        "part": "test",
        "modality": "multimodal",
        "task": "generation",
        "sample_id": f"{name}/{number}",
        "gold": "The person lives in Oslo.",
        "generation": "The person lives there. In Oslo.",
        "nll_gold": math.log(2),
        "nll_paraphrase": 1.0,
        "nll_wrong": [1.0 + math.log(4), 1.0 + math.log(4)],
        "token_logprobs": [-9.0, *[math.log(0.5)] * 10, -9.0],
    } | values


def test_fiubench_reads_the_first_sentence_and_turns_round_on_people_to_forget():
    rows = [fiubench_row("forget", 0), fiubench_row("retain", 0), fiubench_row("retain", 1, modality="text")]
    tables = view_of(pd.DataFrame(rows), "fiubench")["tables"]
    assert set(tables) == {"forget", "retain"} and tables["retain"]["min_k"]["n"] == 1  # by picture alone
    assert tables["forget"]["rouge_l_recall"]["value"] == pytest.approx(3 / 5)  # "Oslo" is not in the first
    assert tables["forget"]["probability"]["value"] == pytest.approx(0.5)
    wrong = math.exp(-1 - math.log(4))
    assert tables["retain"]["probability"]["value"] == pytest.approx(0.5 / (0.5 + 2 * wrong))
    assert tables["forget"]["truth_ratio"]["value"] == pytest.approx(1 / 4)  # R is 4
    assert tables["retain"]["truth_ratio"]["value"] == pytest.approx(1 - 1 / 4)


def test_min_k_leaves_out_the_first_and_the_end_token_and_weighs_the_shares():
    assert min_k(fiubench_row("forget", 0)) == pytest.approx(0.5)  # ten tokens at 0.5; the weights sum to 1
    two = fiubench_row("forget", 0, token_logprobs=[-9.0, math.log(0.2), math.log(0.9), -9.0])
    assert min_k(two) == pytest.approx(0.1 * 0.2)  # only half of two tokens is a token
    assert min_k(fiubench_row("forget", 0, token_logprobs=[-1.0, -1.0])) is None


def umu_rows(name, task, answers, gold, options=None):
    return [
        {
            "set": name,
            "part": "test",
            "modality": modality,
            "task": task,
            "sample_id": f"{name}/{task}/{fact}/{modality}",
            "pair_id": f"{name}/{task}/{fact}",
            "gold": gold,
            "generation": generation,
            "options": options,
            "correct": None,
        }
        for fact, pair in enumerate(answers)
        for modality, generation in zip(("multimodal", "text"), pair, strict=True)
    ]


def test_umu_counts_a_fact_in_both_forms():
    choices = [("Baker", "Baker"), ("Baker", "Nurse"), ("Nurse", "Nurse"), ("A baker", "Nurse")]
    blanks = [("It is OSLO", "Bergen"), ("Bergen", "Bergen")]
    rows = umu_rows("forget", "choice", choices, "Baker", OPTIONS)
    rows += umu_rows("forget", "cloze", blanks, "Oslo. Norway")
    table = view_of(pd.DataFrame(rows), "umu")["tables"]["forget"]
    classification = table["classification"]
    assert classification["multimodal"]["accuracy_option"]["value"] == 0.5
    assert classification["text"]["accuracy_option"]["value"] == 0.25
    assert classification["both"]["all_modal_accuracy"] == {"value": 0.25, "n": 4}
    assert classification["both"]["all_modal_error"] == {"value": 0.5, "n": 4}
    assert table["cloze"]["multimodal"]["accuracy_first_sentence"]["value"] == 0.5
    assert table["cloze"]["both"]["all_modal_error"]["value"] == 0.5


def test_umu_weighs_sentences_by_the_form_that_knows_more_on_people_to_forget():
    answers = [("chess and tea", "chess")]  # ROUGE-L F: 1 and 0.5
    rows = [
        row for name in ("forget", "retain") for row in umu_rows(name, "generation", answers, "chess and tea")
    ]
    tables = view_of(pd.DataFrame(rows), "umu")["tables"]
    both = {name: tables[name]["generation"]["both"]["all_modal_rouge_l"]["value"] for name in tables}
    assert both == pytest.approx({"forget": (1 + 0.25) / 1.5, "retain": 2 * 0.5 / 1.5})
    single = [row for row in rows if row["modality"] == "text"]
    assert "both" not in view_of(pd.DataFrame(single), "umu")["tables"]["forget"]["generation"]


def test_questions_are_put_in_the_words_of_their_benchmark():
    base = {"sample_id": "1", "entity_id": "p/1", "split": "forget", "part": "test", "set": "forget"}
    base |= {"modality": "text", "question": "Which job?", "answer": "Baker"}
    choice = Sample.from_row(base | {"task": "choice", "options": OPTIONS})
    cloze, sentence = (Sample.from_row(base | {"task": task}) for task in ("cloze", "generation"))
    words = [user_turn(sample, benchmark="umu", style="published") for sample in (choice, cloze, sentence)]
    assert words[0] == "Which job?\nSelect answer in ['Nurse', 'Baker']"
    assert words[1] == "Which job?\nPlease **ONLY** provide the correct answer without any explanation"
    assert words[2].startswith("Which job?\nAnswer the question based on your trained knowledge")
    assert user_turn(sentence, benchmark="fiubench", style="published") == "Which job?"
