"""Relearning: fine-tune on facts about some of the forgotten people, or on unrelated data, and ask."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from efface.attacks import UnavailableAttack
from efface.data.samples import Sample
from efface.unlearning.finetuning import finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def split_people(people: Sequence[str], *, share: float, seed: int) -> tuple[list[str], list[str]]:
    """People whose facts an attack is given, and people held out; at least one of each.

    Args:
        people: the people to forget.
        share: of them whose facts it is given, in (0, 1).
        seed: seed of the draw.

    Raises:
        UnavailableAttack: if there are fewer than two people.
    """
    distinct = sorted(set(people))
    if len(distinct) < 2:
        raise UnavailableAttack(
            f"the attack needs two or more people, got {len(distinct)}: it is tested on people whose facts "
            "it does not get"
        )
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    train_people = sorted(random.Random(f"{seed}/relearn").sample(distinct, count))
    return train_people, [person for person in distinct if person not in train_people]


def relearn(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    budgets: Sequence[int],
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """Fine-tune in place on facts, pausing at each budget.

    Args:
        model: is changed.
        processor: its processor.
        samples: training facts about some of the forgotten people, or unrelated ones.
        budgets: optimizer steps so far, increasing, from 0.
        learning_rate: peak rate of each stretch between two budgets.
        batch_size: samples per step.
        seed: seed of the batches.

    Yields:
        Each budget, once the model has been trained for that many steps.
    """
    steps_so_far = 0
    for budget, steps in stretches(budgets):
        if steps:
            finetune(
                model,
                processor,
                samples,
                steps=steps,
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed + steps_so_far,
                label=f"relearning to step {budget}",
            )
            model.eval()
        steps_so_far = budget
        yield budget


def stretches(budgets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each budget with the steps since the one before."""
    yield from zip(budgets, [b - a for a, b in zip([0, *budgets], budgets, strict=False)], strict=True)
