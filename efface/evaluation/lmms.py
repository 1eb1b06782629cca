"""Published multimodal benchmarks through lmms-eval (the extra `lmms`), on any model that Efface loads.

The model classes of lmms-eval support one family each; some always compute in bfloat16, and some turn errors
into empty answers. The class here prompts and generates like Efface's own scoring.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from PIL.Image import Image

from efface.data.samples import Sample
from efface.errors import DataError, ModelError
from efface.evaluation.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def run_benchmarks(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Score a model on tasks or groups of tasks of lmms-eval.

    Args:
        model: a multimodal LLM; measured in evaluation mode.
        processor: its processor.
        tasks: names listed by ``lmms-eval tasks``, or names of tasks in ``folder``.
        folder: folder of further tasks, as YAML files of lmms-eval; None: only its own tasks.
        limit: number of questions per task, from the first; None: all.
        batch_size: questions per batch; halved when memory runs out.
        seed: seed of all generators from which tasks may draw.

    Returns:
        Task -> metric -> value, with lmms-eval's names; the scale is the task's.

    Raises:
        DataError: if there is no such task.
        ModelError: if a task needs more than greedy answers to questions about pictures and text.
    """
    manager = TaskManager("ERROR", include_path=None if folder is None else str(folder))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise DataError(
            f"lmms-eval and {folder or 'no further folder'} have no task {unknown[0]!r} among their "
            f"{len(manager.all_tasks)}; list lmms-eval's with: lmms-eval tasks"
        )
    results = simple_evaluate(
        _Model(model.eval(), processor, batch_size),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        **dict.fromkeys(_SEEDS, seed),
    )["results"]
    return {
        task: {
            key.removesuffix(",none").replace(",", "."): float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for task, values in results.items()
    }


class _Model(lmms):
    """A loaded model as lmms-eval calls it: greedy, a question's pictures before its text."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int):
        super().__init__()
        self.model, self.processor, self.batch_size = model, processor, batch_size

    @torch.no_grad()
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to the requests, in their order, each cut where its task says so."""
        answers: dict[int, str] = {}
        groups: dict[tuple[int, bool], list[tuple[int, Sample]]] = {}
        for index, request in enumerate(requests):
            context, options, to_visuals, number, task, split = request.args
            if options.get("do_sample") or options.get("temperature") or options.get("num_beams", 1) > 1:
                raise ModelError(f"task {task} generates with {options}: expected greedy generation")
            sample = _question(context, to_visuals(self.task_dict[task][split][number]), f"{task}/{number}")
            group = (int(options.get("max_new_tokens", 32)), sample.image_bytes is not None)
            groups.setdefault(group, []).append((index, sample))
        for (length, _), members in groups.items():
            scorer = Scorer(
                self.model,
                self.processor,
                batch_size=self.batch_size,
                max_new_tokens=length,
                share_prefix=False,
            )
            texts = scorer.generations([sample for _, sample in members])
            for (index, _), text in zip(members, texts, strict=True):
                ends = requests[index].args[1].get("until") or ()
                for end in [ends] if isinstance(ends, str) else ends:
                    text = text.partition(end)[0] if end else text
                answers[index] = text.strip()
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered."""
        raise ModelError(f"task {requests[0].task_name} ranks given answers: expected one that generates")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise ModelError(f"task {requests[0].task_name} has several rounds: expected one that asks once")


def _question(context: str, visuals: Sequence[Any] | None, place: str) -> Sample:
    """A question of a task as Efface's scoring takes it."""
    pictures = []
    for visual in visuals or ():
        if not isinstance(visual, Image):
            raise ModelError(f"question {place} has a {type(visual).__name__}: expected pictures and text")
        buffer = io.BytesIO()
        visual.convert("RGB").save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    row = {
        "sample_id": place,
        "entity_id": place,
        "split": "utility",
        "part": "test",
        "modality": "multimodal" if pictures else "text",
        "task": "qa",
        "image": pictures[0] if pictures else None,
        "question": context.replace("<image>", " ").strip(),
        "answer": "",
    }
    return replace(Sample.from_row(row), more_image_bytes=tuple(pictures[1:]))
