"""Running an unlearning method on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efface.data.samples import Sample
from efface.encoding import Encoder
from efface.unlearning.method import Method
from efface.unlearning.methods import METHODS
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.config import LoopConfig, LoopResult
from efface.unlearning.training.loop import Terms, train
from efface.unlearning.training.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from efface.models.lora import Adapter

UnlearningResult = LoopResult
"""How an unlearning run went: unlearning is the loop with a forget term."""


def unlearn(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    method: str | Method,
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    config: LoopConfig,
    mask: Mapping[str, Tensor] | None = None,
    settings: Any = None,
    adapter: Adapter | None = None,
    checkpoints: Checkpoints | None = None,
    references: Path | None = None,
    watch: Watch | None = None,
) -> UnlearningResult:
    """Make a model forget, in place, with one of ``METHODS``.

    Args:
        model: the vanilla model, or one that something has been unlearned from already; its ``requires_grad``
            flags say which weights train.
        processor: its processor.
        method: name of the method, or a method of your own.
        forget: training facts about the people to forget.
        retain: training facts about the people to keep; at least as many.
        config: settings of the loop.
        mask: saliency mask for the forget term, keyed by the parameters that train; None lets it reach every
            weight.
        settings: the method's settings, such as ``METHODS["npo"].settings(beta=0.2)``; None: its defaults.
        adapter: LoRA factors of the model, from ``efface.models.lora.add_lora``; they train, and
            merging them is up to the caller.
        checkpoints: where to save progress and to resume from.
        references: folder for what the model said before unlearning; see ``train``.
        watch: what to measure between steps, such as the points of the forget-retain curve.

    Raises:
        ValueError: if the method is unknown, if a set is empty or the retain set smaller than the forget set,
            or if the mask reaches no weight that trains.
        DivergenceError: if a loss is not finite; the weights are those of the last checkpoint.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of: {', '.join(METHODS)}")
    chosen = METHODS[method] if isinstance(method, str) else method
    given = chosen.settings() if settings is None else settings
    if chosen.edit is not None:
        chosen.edit(model, processor, given)
        return UnlearningResult(steps=0, history=[], stopped_by=None)
    _check_sets(chosen, forget, retain, config)
    others = None if chosen.alternative_answers is None else chosen.alternative_answers(forget, config.seed)
    terms = Terms(
        forget=Encoder(processor, forget),
        retain=None if chosen.retain_loss is None else Encoder(processor, retain),
        method=chosen,
        other=None if others is None else Encoder(processor, others),
        settings=given,
        mask=mask,
    )
    return train(
        model,
        terms,
        config,
        checkpoints=checkpoints,
        adapter=adapter,
        references=references,
        watch=watch,
        label=chosen.name,
    )


def _check_sets(
    method: Method, forget: Sequence[Sample], retain: Sequence[Sample], config: LoopConfig
) -> None:
    if not forget:
        raise ValueError("the forget set is empty: name the people to forget")
    if method.retain_loss is None:
        return
    if not retain:
        raise ValueError(f"the retain set is empty, and {method.name} needs one")
    used = config.retain_weight and config.retain_batches_per_forget_batch
    if used and len(retain) < len(forget):
        raise ValueError(
            f"the retain set has {len(retain)} samples, fewer than the {len(forget)} to forget: its samples "
            "would come back before a pass over the forget set is done; keep more people, or forget fewer at "
            "a time"
        )
