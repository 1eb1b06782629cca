"""The one training loop: fine-tuning and every unlearning method go through it.

A step takes one forget batch and its retain batches, and descends on

    forget_weight * L_forget(forget batch) + retain_weight * L_retain(retain batches)

A saliency mask acts on the forget gradient alone. The two gradients are clipped each by itself, so a weight
outside the mask gets exactly the update the retain term alone would give it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from efface.data.encoding import Encoder, to_device
from efface.errors import EffaceError
from efface.models.answers import answer_log_probs, nll
from efface.unlearning.checkpoint import Checkpoints, TrainingState
from efface.unlearning.method import ForgetLoss, RetainLoss, ascent_loss
from efface.unlearning.streams import BatchStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DivergenceError(EffaceError):
    """Training produced a loss that is not a number, or infinite."""


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop.

    Attributes:
        learning_rate: peak learning rate.
        steps: number of optimizer steps; None counts ``epochs``.
        epochs: passes over the forget set (over the retain set when there is no forget set).
        batch_size: samples per batch.
        forget_weight: factor of the forget term.
        retain_weight: factor of the retain term; at 0 the retain set is not touched.
        retain_batches_per_forget_batch: retain batches that meet one forget batch.
        max_grad_norm: each term's gradient is scaled down to this norm; None leaves it.
        warmup_fraction: share of the steps with a linear rise, in [0, 1); a cosine to zero follows.
        weight_decay: AdamW's decoupled weight decay.
        seed: seed of the batch order.
        checkpoint_every: steps between checkpoints.
        stop_forget_loss: end when a forget batch's NLL passes this many nats per token; None never.
        stop_retain_rise: end when the retain NLL is this much above its start (both averaged over 10
            steps); None never.
    """

    learning_rate: float
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    retain_batches_per_forget_batch: int = 1
    max_grad_norm: float | None = 1.0
    warmup_fraction: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    checkpoint_every: int = 100
    stop_forget_loss: float | None = None
    stop_retain_rise: float | None = None


@dataclass(frozen=True)
class LoopResult:
    """How a run went.

    Attributes:
        steps: optimizer steps done.
        history: per step ``step, learning_rate`` and, as far as the terms exist, ``forget_loss, retain_loss``
            (NLL in nats per token), ``forget_grad_norm, retain_grad_norm`` (before clipping).
        stopped_by: the stop rule that ended the run, or None when it ran its length.
    """

    steps: int
    history: list[dict[str, float]]
    stopped_by: str | None


@dataclass
class Terms:
    """What a run minimises: either term may be missing.

    Attributes:
        forget: forget samples, with ``forget_loss`` and the method's ``settings``.
        retain: retain samples, with ``retain_loss``.
        mask: parameter name -> bool tensor, True where the forget term may change the weight; a parameter
            without an entry gets no forget gradient. None: the forget term reaches every parameter.
    """

    forget: Encoder | None = None
    retain: Encoder | None = None
    forget_loss: ForgetLoss = ascent_loss
    retain_loss: RetainLoss = nll
    needs_reference: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)
    mask: Mapping[str, Tensor] | None = None


def train(
    model: PreTrainedModel,
    terms: Terms,
    config: LoopConfig,
    *,
    checkpoints: Checkpoints | None = None,
    label: str = "training",
) -> LoopResult:
    """Train in place until the steps are done or a stop rule ends the run.

    Args:
        model: trained in place; its ``requires_grad`` flags say which weights train. Left in evaluation mode.
        terms: forget and retain terms.
        config: settings.
        checkpoints: where to save progress, and to resume from; None keeps none.
        label: text before the progress bar.

    Raises:
        DivergenceError: if a loss is not finite; the weights are those of the last checkpoint.
        ValueError: if no term is left to minimise, or the mask reaches no trainable parameter.
    """
    return _Run(model, terms, config, checkpoints).go(label)


class _Run:
    def __init__(
        self, model: PreTrainedModel, terms: Terms, config: LoopConfig, checkpoints: Checkpoints | None
    ):
        self.model, self.terms, self.config, self.checkpoints = model, terms, config, checkpoints
        self.device = next(model.parameters()).device
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.forget, self.retain = self._streams()
        self.total = self._total_steps()
        self.mask = _mask_for(self.trained, terms.mask, self.device) if terms.mask is not None else None
        # Weights that no term may move: with a mask and no retain term. Restoring them after each step
        # holds them
        # against weight decay as well.
        self.frozen = self.mask is not None and self.retain is None
        self.start = {n: p.detach().clone() for n, p in self.trained.items()} if self.frozen else {}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.state = TrainingState()

    def go(self, label: str) -> LoopResult:
        self._begin()
        stopped_by = None
        bar = tqdm(total=self.total, initial=self.state.step, desc=label, unit="step", mininterval=0.5)
        with bar:
            while self.state.step < self.total and stopped_by is None:
                record = self._step(self.state.step)
                self._guard(record)
                self.state.step += 1
                self.state.history.append(record)
                bar.update()
                bar.set_postfix(
                    {k.removesuffix("_loss"): f"{v:.3f}" for k, v in record.items() if k.endswith("_loss")}
                )
                stopped_by = self._stop_rule()
                if self.checkpoints and self.state.step % self.config.checkpoint_every == 0:
                    self.checkpoints.save(self.model, self.optimizer, self.state)
        self.model.eval()
        return LoopResult(steps=self.state.step, history=self.state.history, stopped_by=stopped_by)

    def _streams(self) -> tuple[BatchStream | None, BatchStream | None]:
        terms, config = self.terms, self.config
        forget = retain = None
        if terms.forget is not None and config.forget_weight:
            forget = BatchStream(terms.forget, batch_size=config.batch_size, seed=config.seed)
        if terms.retain is not None and config.retain_weight and config.retain_batches_per_forget_batch:
            retain = BatchStream(terms.retain, batch_size=config.batch_size, seed=config.seed + 1)
        return forget, retain

    def _total_steps(self) -> int:
        stream = self.forget or self.retain
        if stream is None:
            raise ValueError(
                "nothing to train on: both the forget and the retain term are missing or weighted 0"
            )
        if self.config.steps is not None:
            return self.config.steps
        if self.config.epochs is None:
            raise ValueError("set either steps or epochs")
        return self.config.epochs * stream.batches_per_epoch

    def _begin(self) -> None:
        resumed = self.checkpoints.load(self.model, self.optimizer) if self.checkpoints else None
        if resumed is not None:
            self.state = resumed
        elif self.terms.needs_reference and self.forget is not None:
            self.state.extra["reference"] = reference_log_probs(
                self.model, self.forget.encoder, self.config.batch_size
            )
        self.model.train()

    def _step(self, step: int) -> dict[str, float]:
        rate = self.config.learning_rate * schedule(step, self.total, self.config.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        record = {"step": float(step), "learning_rate": rate}
        gradients = []
        if self.forget is not None:
            gradients.append(self._forget_gradient(self.forget, step, record))
        if self.retain is not None:
            gradients.append(self._retain_gradient(self.retain, step, record))
        for name, parameter in self.trained.items():
            parts = [gradient[name] for gradient in gradients if name in gradient]
            parameter.grad = (parts[0] if len(parts) == 1 else parts[0] + parts[1]) if parts else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mask is not None and self.frozen:
            self._restore(self.mask)
        return record

    def _forget_gradient(self, stream: BatchStream, step: int, record: dict[str, float]) -> dict[str, Tensor]:
        indices = stream.indices_at(step)
        batch = to_device(stream.encoder.batch(indices), self.device)
        reference = self.state.extra.get("reference")
        rows = None if reference is None else reference[list(indices)].to(self.device)
        term = self.terms.forget_loss(self.model, batch, rows, self.terms.settings)
        (self.config.forget_weight * term.loss).backward()
        record["forget_loss"] = term.nll.mean().item()
        return self._take_gradient("forget", record, self.mask)

    def _retain_gradient(self, stream: BatchStream, step: int, record: dict[str, float]) -> dict[str, Tensor]:
        count = self.config.retain_batches_per_forget_batch if self.forget is not None else 1
        losses = []
        for k in range(count):
            batch = to_device(stream.batch_at(step * count + k), self.device)
            loss = self.terms.retain_loss(self.model, batch)
            (self.config.retain_weight / count * loss).backward()
            losses.append(loss.item())
        record["retain_loss"] = sum(losses) / count
        return self._take_gradient("retain", record, None)

    def _take_gradient(
        self, kind: str, record: dict[str, float], mask: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Move the gradient out of the parameters, masked and clipped."""
        taken = {}
        for name, parameter in self.trained.items():
            if parameter.grad is not None and (mask is None or name in mask):
                taken[name] = parameter.grad if mask is None else parameter.grad * mask[name]
            parameter.grad = None
        norm = torch.nn.utils.get_total_norm(taken.values())
        record[f"{kind}_grad_norm"] = norm.item()
        if self.config.max_grad_norm is not None and norm > self.config.max_grad_norm:
            torch._foreach_mul_(list(taken.values()), self.config.max_grad_norm / float(norm))
        return taken

    def _restore(self, mask: Mapping[str, Tensor]) -> None:
        """Put every weight outside the mask back to where it started."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                kept = mask.get(name)
                before = self.start[name]
                parameter.copy_(before if kept is None else torch.where(kept, parameter, before))

    def _guard(self, record: dict[str, float]) -> None:
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if not bad:
            return
        resumed = self.checkpoints.load(self.model, self.optimizer) if self.checkpoints else None
        kept = (
            f"the checkpoint of step {resumed.step} is kept"
            if resumed
            else "no checkpoint had been written yet"
        )
        self.model.eval()
        raise DivergenceError(
            f"{bad[0]} is {record[bad[0]]} at step {int(record['step'])} of {self.total}; {kept}. "
            "Lower the learning rate, or set stop rules that end the run earlier"
        )

    def _stop_rule(self) -> str | None:
        history, config = self.state.history, self.config
        forget = history[-1].get("forget_loss")
        if config.stop_forget_loss is not None and forget is not None and forget > config.stop_forget_loss:
            return f"forget_loss {forget:.2f} > {config.stop_forget_loss}"
        if config.stop_retain_rise is not None and self.retain is not None and len(history) >= 20:
            rise = _mean(history[-10:], "retain_loss") - _mean(history[:10], "retain_loss")
            if rise > config.stop_retain_rise:
                return f"retain_loss rose by {rise:.2f} > {config.stop_retain_rise}"
        return None


def schedule(step: int, total: int, warmup_fraction: float) -> float:
    """Factor of the learning rate at a step: linear rise over the warm-up, then a cosine to zero.

    The first step already has a positive rate and the last is not yet zero.
    """
    warmup = round(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@torch.no_grad()
def reference_log_probs(model: PreTrainedModel, encoder: Encoder, batch_size: int) -> Tensor:
    """Summed log-probability of every sample's answer under the model as it is now, shape (samples,),
    float32."""
    model.eval()
    device = next(model.parameters()).device
    result = torch.empty(len(encoder))
    for multimodal in (True, False):
        chosen = [
            i for i, sample in enumerate(encoder.samples) if (sample.image_bytes is not None) == multimodal
        ]
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            result[part] = answer_log_probs(model, to_device(encoder.batch(part), device)).total.float().cpu()
    return result


def _mask_for(
    trained: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """The mask entries of the parameters that train, on the model's device."""
    chosen = {name: mask[name].to(device) for name in trained if name in mask}
    if not any(bool(entry.any()) for entry in chosen.values()):
        raise ValueError(
            f"the saliency mask selects no weight that trains: it names {len(mask)} parameters "
            f"({_some(mask)}), the model "
            f"trains {len(trained)} ({_some(trained)}); compute the mask on the parameters that train"
        )
    for name, entry in chosen.items():
        if entry.shape != trained[name].shape:
            raise ValueError(
                f"the saliency mask of {name} has shape {tuple(entry.shape)}, the parameter "
                f"{tuple(trained[name].shape)}; "
                "compute the mask on this model"
            )
    return chosen


def _some(names: Mapping[str, object]) -> str:
    shown: Sequence[str] = list(names)[:2]
    return ", ".join(shown) + (", ..." if len(names) > 2 else "")


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)
