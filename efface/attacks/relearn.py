"""Relearning: fine-tune on facts about some of the forgotten people, and see whether the others come back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from efface.data.samples import Sample
from efface.errors import DataError
from efface.unlearning.finetuning import finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def split_people(people: Sequence[str], *, share: float, seed: int) -> tuple[list[str], list[str]]:
    """People to relearn from, and people held out; at least one of each.

    Args:
        people: the people to forget.
        share: of them to relearn from, in (0, 1).
        seed: seed of the draw.

    Raises:
        DataError: if there are fewer than two people, or the share is out of range.
    """
    distinct = sorted(set(people))
    if len(distinct) < 2 or not 0 < share < 1:
        raise DataError(
            f"relearning needs two or more people and a share in (0, 1), got {len(distinct)} and {share}: "
            "the attack is tested on people whom it does not train on"
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
    """Fine-tune in place on facts about some forgotten people, pausing at each budget.

    Args:
        model: is changed.
        processor: its processor.
        samples: training facts about the people to relearn from.
        budgets: optimizer steps so far, increasing, from 0.
        learning_rate: peak rate of each stretch between two budgets.
        batch_size: samples per step.
        seed: seed of the batches.

    Yields:
        Each budget, once the model has been trained for that many steps.

    Raises:
        ValueError: if the budgets do not increase.
    """
    if list(budgets) != sorted(set(budgets)) or not budgets or budgets[0] < 0:
        raise ValueError(f"budgets are {list(budgets)}: expected increasing numbers of steps from 0")
    steps_so_far = 0
    for budget in budgets:
        if budget > steps_so_far:
            finetune(
                model,
                processor,
                samples,
                steps=budget - steps_so_far,
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed + steps_so_far,
                label=f"relearning to step {budget}",
            )
            model.eval()
        steps_so_far = budget
        yield budget
