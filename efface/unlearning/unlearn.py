"""Running an unlearning method on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efface.data.samples import Sample
from efface.encoding import Encoder
from efface.unlearning.method import Job, Method
from efface.unlearning.methods import METHODS
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import TrainingConfig, TrainingResult
from efface.unlearning.training.evaluation import EvaluationCallback
from efface.unlearning.training.loop import Terms, train
from efface.unlearning.training.sine import sine_projector

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models.lora import Adapter
    from efface.neurons.retained import RetainStatistic

UnlearningResult = TrainingResult
"""The result of an unlearning run."""


def unlearn(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    method: str | Method,
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    mask: Mapping[str, Tensor] | None = None,
    settings: Any = None,
    config: TrainingConfig | None = None,
    adapter: Adapter | None = None,
    statistic: RetainStatistic | None = None,
    checkpoints: Checkpoints | None = None,
    evaluation: EvaluationCallback | None = None,
) -> UnlearningResult:
    """Make a model forget, in place.

    Args:
        model: the vanilla model, or one that has unlearned something already; its ``requires_grad`` flags say
            which weights train.
        processor: its processor.
        method: a name from ``METHODS``, or a method of your own.
        forget: training facts to forget.
        retain: training facts to retain, at least as many; may be empty for a method that reads none
            (``Method.reads``), whose settings use none, or that has a statistic.
        mask: saliency mask of the forget term, by the names of the parameters that train; None lets it reach
            every weight.
        settings: the method's settings, such as ``METHODS["npo"].settings(beta=0.2)``; None: the defaults.
        config: settings that do not depend on the method; None: the defaults.
        adapter: LoRA factors of the model, from ``efface.models.lora.add_lora``; they train, and the caller
            merges them.
        statistic: saved retain statistic, used instead of measuring it on ``retain`` (``Method.statistic``).
        checkpoints: where to save progress and resume from.
        evaluation: what to measure between steps, such as the points of the forget-retain curve.

    Raises:
        ValueError: if the method is unknown, a set that it reads is empty, the retain set is smaller than the
            forget set, or the mask reaches no weight that trains.
        DivergenceError: if a loss is not finite; the weights are those of the last checkpoint.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: expected one of: {', '.join(METHODS)}")
        method = METHODS[method]
    settings = method.settings() if settings is None else settings
    config = TrainingConfig() if config is None else config
    _check_sets(method, settings, forget, retain, statistic)
    if adapter is not None and not method.lora:
        raise ValueError(f"adapter: {method.name} trains no LoRA factors; call it with a model without them")
    selected = method

    def train_on(
        forget: Sequence[Sample],
        retain: Sequence[Sample],
        *,
        begin: Callable[[], None] | None = None,
        evaluated: bool = True,
    ) -> TrainingResult:
        alternative = None
        if selected.alternatives is not None:
            alternative = Encoder(processor, selected.alternatives(forget, settings, config.seed))
        terms = Terms(
            forget=Encoder(processor, forget),
            retain=Encoder(processor, retain) if retain and selected.retain_loss is not None else None,
            method=selected,
            settings=settings,
            alternative=alternative,
            mask=mask,
        )
        return train(
            model,
            terms,
            config,
            checkpoints=checkpoints,
            adapter=adapter,
            evaluation=evaluation if evaluated else None,
            begin=begin,
            label=selected.name,
        )

    sine = method.trains and settings.projector == "sine"
    if sine and mask is not None:
        raise ValueError("projector is 'sine' and there is a mask: expected no mask, or projector plain")
    with sine_projector(model) if sine else nullcontext():
        if method.edit is None:
            return train_on(forget, retain)
        job = Job(model, processor, forget, retain, settings, config, train_on, adapter, statistic)
        return method.edit(job) or UnlearningResult(steps=0, history=[], stopped_by=None)


def _check_sets(
    method: Method,
    settings: Any,
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    statistic: RetainStatistic | None,
) -> None:
    if "forget" in method.reads and not forget:
        raise ValueError("forget is empty: expected training facts about the people to forget")
    if statistic is not None and not method.statistic:
        raise ValueError(f"statistic: {method.name} reads no retain statistic; call it without one")
    if "retain" not in method.reads or statistic is not None:
        return
    uses_retain = method.retain_loss is not None and getattr(settings, "uses_retain_set", False)
    if not retain and (uses_retain or method.statistic):
        hint = ", or a saved retain statistic" if method.statistic else ""
        raise ValueError(
            f"retain is empty: {method.name} expects training facts about the people to retain{hint}"
        )
    if uses_retain and len(retain) < len(forget):
        raise ValueError(
            f"retain has {len(retain)} samples and forget {len(forget)}: expected at least as many, so that "
            "none recurs within a pass over the forget set; retain more people, or forget fewer at a time"
        )
