"""The benchmarks' published prompts, byte for byte.

A sample holds the bare question and the bare options, and likelihoods are measured on these. For the answer
that a model generates, a published prompt is rendered from them during scoring, so one prepared table serves
every wording:

- ``bare``: the question itself, as in the embedded benchmark.
- ``published``: the words of the benchmark's code as one user turn in the model's own chat template, as CLEAR
  asks all models and MLLMU-Bench asks Qwen2-VL.
- ``published_llava``: MLLMU-Bench's whole string for LLaVA-1.5 without a chat template. It has a line break
  before ``ASSISTANT:`` where LLaVA's template has a space; a model trained on the other one loses a little.

CLEAR's captions, names and open questions need no words beyond the question; its choices are MMUnlearner's.

A few-shot prompt (``published_llava`` only, as no code publishes another) puts solved questions of the same
task and modality before the question. They come from people set aside for validation, so the evaluated people
are never shown, and the denominators are those of the zero-shot run.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from efface.data.samples import Sample
from efface.errors import DataError

_ONE_LETTER = "Just give ONE letter representing the answer directly."
_ONLY_THE_BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
_NO_EXPLANATION = "Please **ONLY** provide the correct answer without any explanation"
_SENTENCE_ABOUT_PICTURE = (
    "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
)
_SENTENCE = "Answer the question based on your trained knowledge in one sentence in ENGLISH."


def user_turn(sample: Sample, *, benchmark: str, style: str) -> str:
    """The text of the user turn, for the model's chat template.

    Args:
        sample: the question to ask.
        benchmark: whose words to use: ``clear``, ``fiubench``, ``umu``, or MLLMU-Bench's for any other.
        style: ``bare`` or ``published``; ``published_llava`` has no turns, see :func:`llava_prompt`.
    """
    if style == "bare":
        return sample.question
    turns = {"clear": _clear_turn, "fiubench": lambda sample: sample.question, "umu": _umu_turn}
    return turns.get(benchmark, _mllmu_turn)(sample)


def llava_prompt(sample: Sample, shots: Sequence[Sample] = ()) -> str:
    """MLLMU-Bench's whole prompt for LLaVA-1.5.

    One ``<image>`` stands for the picture of each multimodal shot, in order, and one for the sample's.

    Args:
        sample: the question to ask.
        shots: solved questions to put before it, see `shots_for`.
    """
    pictured = sample.modality == "multimodal"
    turn = _mllmu_turn(sample)
    if _kind(sample) == "sentence":
        return f"USER: <image>\n{turn}\nASSISTANT: " if pictured else f"USER: {turn}\nASSISTANT:"
    opening = "USER: <image>\n" if pictured else "USER:\n"
    return "".join(map(_solved, shots)) + f"{opening}{turn}\nASSISTANT:"


def draw_shots(samples: Sequence[Sample], *, people: int, seed: int) -> list[Sample]:
    """Solved questions to show, the same in every run: all questions of some validation people.

    Args:
        samples: evaluation samples, including those of validation people.
        people: number of retain people to show; 0 shows none.
        seed: draws them.

    Raises:
        DataError: if there are fewer retain people for validation.
    """
    if people == 0:
        return []
    pool = [s for s in samples if s.part == "validation" and s.set == "retain"]
    entities = sorted({s.entity_id for s in pool})
    if len(entities) < people:
        raise DataError(
            f"shots is {people}, and only {len(entities)} of the retain people are set aside for validation; "
            "raise split.validation_fraction, or lower evaluate.shots"
        )
    people_shown = set(random.Random(f"{seed}/shots").sample(entities, people))
    return [s for s in pool if s.entity_id in people_shown]


def shots_for(sample: Sample, shots: Sequence[Sample]) -> list[Sample]:
    """The shots of the sample's task and modality; none for sentences, and none about the same person."""
    if _kind(sample) == "sentence":
        return []
    kind = (_kind(sample), sample.modality)
    return [s for s in shots if (_kind(s), s.modality) == kind and s.entity_id != sample.entity_id]


def _kind(sample: Sample) -> str:
    if sample.options is not None:
        return "choice"
    return "cloze" if sample.task == "cloze" else "sentence"


def _mllmu_turn(sample: Sample) -> str:
    kind = _kind(sample)
    if kind == "choice":
        return f"{sample.question}\n{_lettered(sample, ': ')}\n{_ONE_LETTER}"
    if kind == "cloze":
        return _blanked(sample.question)
    words = _SENTENCE_ABOUT_PICTURE if sample.modality == "multimodal" else _SENTENCE
    return f"{sample.question}\n{words}"


def _umu_turn(sample: Sample) -> str:
    kind = _kind(sample)
    if kind == "choice":
        return f"{sample.question}\nSelect answer in {list(sample.options or ())}"
    return f"{sample.question}\n{_NO_EXPLANATION}" if kind == "cloze" else _mllmu_turn(sample)


def _clear_turn(sample: Sample) -> str:
    return sample.question if sample.options is None else f"{sample.question}\n{_lettered(sample, '. ')}\n"


def _solved(shot: Sample) -> str:
    """A question with its answer, as the published few-shot prompts write it."""
    pictured = shot.modality == "multimodal"
    if _kind(shot) == "cloze":
        return (
            f"{'USER:<image>' if pictured else 'USER:'}\n{_blanked(shot.question)}\n"
            f"Correct Answer: {shot.answer}\n"
        )
    letter = string.ascii_uppercase[(shot.options or ()).index(shot.answer)]
    return (
        f"{'USER: <image>' if pictured else 'USER:'}\nQuestion: {shot.question}\n{_lettered(shot, ': ')}\n"
        f"Correct Answer: {letter}\n"
    )


def _blanked(question: str) -> str:
    return question.replace("__", "[Blank]") + f"\n{_ONLY_THE_BLANK}"


def _lettered(sample: Sample, mark: str) -> str:
    options = sample.options or ()
    return "\n".join(f"{string.ascii_uppercase[i]}{mark}{option}" for i, option in enumerate(options))
