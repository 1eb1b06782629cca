"""Running an unlearning method on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efface.data.samples import Sample
from efface.encoding import Encoder
from efface.unlearning.method import Method
from efface.unlearning.methods import METHODS
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import TrainingConfig, TrainingResult
from efface.unlearning.training.evaluation import EvaluationCallback
from efface.unlearning.training.loop import Terms, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models.lora import Adapter

UnlearningResult = TrainingResult
"""How an unlearning run went."""


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
        retain: training facts to keep, at least as many.
        mask: saliency mask of the forget term, by the names of the parameters that train; None lets it reach
            every weight.
        settings: the method's settings, such as ``METHODS["npo"].settings(beta=0.2)``; None: the defaults.
        config: what does not depend on the method; None: the defaults.
        adapter: LoRA factors of the model, from ``efface.models.lora.add_lora``; they train, and merging them
            is up to the caller.
        checkpoints: where to save progress and to resume from.
        evaluation: what to measure between steps, such as the points of the forget-retain curve.

    Raises:
        ValueError: if the method is unknown, a set is empty, the retain set is smaller than the forget set,
            or the mask reaches no weight that trains.
        DivergenceError: if a loss is not finite; the weights are those of the last checkpoint.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: expected one of: {', '.join(METHODS)}")
        method = METHODS[method]
    settings = method.settings() if settings is None else settings
    config = TrainingConfig() if config is None else config
    if method.edit is not None:
        method.edit(model, processor, settings)
        return UnlearningResult(steps=0, history=[], stopped_by=None)
    _check_sets(method, forget, retain, uses_retain=settings.uses_retain_set)
    alternative = None
    if method.alternative_answers is not None:
        alternative = Encoder(processor, method.alternative_answers(forget, config.seed))
    terms = Terms(
        forget=Encoder(processor, forget),
        retain=None if method.retain_loss is None else Encoder(processor, retain),
        method=method,
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
        evaluation=evaluation,
        label=method.name,
    )


def _check_sets(
    method: Method, forget: Sequence[Sample], retain: Sequence[Sample], *, uses_retain: bool
) -> None:
    if not forget:
        raise ValueError("forget is empty: expected training facts about the people to forget")
    if method.retain_loss is None:
        return
    if not retain:
        raise ValueError(f"retain is empty: {method.name} expects training facts about the people to keep")
    if uses_retain and len(retain) < len(forget):
        raise ValueError(
            f"retain has {len(retain)} samples and forget {len(forget)}: expected at least as many, so that "
            "none comes back within a pass over the forget set; keep more people, or forget fewer at a time"
        )
