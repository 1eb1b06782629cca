"""Running an unlearning method on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from efface.data.encoding import Encoder
from efface.data.samples import Sample
from efface.models.answers import nll
from efface.unlearning.checkpoint import Checkpoints
from efface.unlearning.loop import LoopConfig, LoopResult, Terms, train
from efface.unlearning.method import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

UnlearningResult = LoopResult
"""How an unlearning run went: unlearning is the loop with a forget term."""


def unlearn(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    method: str,
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    config: LoopConfig,
    mask: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, float] | None = None,
    checkpoints: Checkpoints | None = None,
) -> UnlearningResult:
    """Make a model forget, in place, with one of ``METHODS``.

    Args:
        model: the vanilla model; its ``requires_grad`` flags say which weights train.
        processor: its processor.
        method: name of the method.
        forget: training facts about the people to forget.
        retain: training facts about the people to keep.
        config: settings of the loop.
        mask: saliency mask for the forget term; None lets it reach every weight.
        settings: the method's own settings, such as NPO's ``beta``.
        checkpoints: where to save progress and to resume from.

    Raises:
        EffaceError: if the method is unknown.
        ValueError: if a set is empty, or a setting of the method is missing or unknown to it.
        DivergenceError: if a loss is not finite; the weights are those of the last checkpoint.
    """
    chosen = METHODS[method]
    given = dict(settings or {})
    if set(given) != set(chosen.settings):
        expected = ", ".join(chosen.settings) or "none"
        raise ValueError(f"{method} takes the settings: {expected}; got: {', '.join(given) or 'none'}")
    if not forget:
        raise ValueError(
            "the forget set is empty: name the people to forget (prepare.forget_fraction in params.yaml)"
        )
    if not retain and chosen.retain_loss is not None:
        raise ValueError(f"the retain set is empty, and {method} needs one")
    terms = Terms(
        forget=Encoder(processor, forget),
        retain=None if chosen.retain_loss is None else Encoder(processor, retain),
        forget_loss=chosen.forget_loss,
        retain_loss=chosen.retain_loss or nll,
        needs_reference=chosen.needs_reference,
        settings=given,
        mask=mask,
    )
    return train(model, terms, config, checkpoints=checkpoints, label=method)
