"""The training loop that fine-tuning and every unlearning method share.

A step takes forget batches and their retain batches, and descends on

    forget_weight * L_forget(forget batches) + retain_weight * L_retain(retain batches)

A saliency mask acts only on the forget gradient. If the settings say so, forget and retain steps alternate
instead. Several processes share the samples of each batch, which changes results by rounding only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from efface.encoding import Encoder
from efface.errors import ModelError
from efface.processes import (
    gather_from_processes,
    join_processes,
    process_count,
    process_rank,
    sum_over_processes,
)
from efface.unlearning.method import Loss, Method, Quantity
from efface.unlearning.settings import TrainingSettings
from efface.unlearning.training.adversary import with_adversary
from efface.unlearning.training.batch_source import BatchSource
from efface.unlearning.training.checkpoint import Checkpoints, TrainingState
from efface.unlearning.training.config import (
    DivergenceError,
    Precision,
    TrainingConfig,
    TrainingResult,
)
from efface.unlearning.training.evaluation import EvaluationCallback
from efface.unlearning.training.gradients import (
    Gradient,
    add_gradient,
    clip_gradient,
    mask_for,
    mask_gradient,
    moved_along,
    restore_outside,
    sum_gradient,
)
from efface.unlearning.training.references import ReferenceComputation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.models.lora import Adapter

FINE_TUNING = Method(name="fine_tuning", paper="plain descent; no unlearning")
"""The method of a run that does not forget anything."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch has a fused AdamW."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU that has to emulate it.

    Raises:
        ModelError: naming the GPU.
    """
    if precision != "bf16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ModelError(
            f"precision is 'bf16' and {torch.cuda.get_device_name()} computes no bfloat16: expected an "
            "NVIDIA GPU of compute capability 8.0 or more, or an AMD GPU; set precision to fp16 or fp32"
        )


@dataclass
class Terms:
    """The terms that a run minimises; one of the two sets may be empty.

    Attributes:
        forget: forget samples.
        retain: retain samples.
        method: the method, which defines the two losses.
        settings: the method's settings.
        alternative: the forget samples with the method's alternative answers.
        mask: parameter name -> bool tensor, True where the forget term may change the weight; a parameter
            without an entry gets no forget gradient. None: the forget term reaches every parameter.
    """

    forget: Encoder | None = None
    retain: Encoder | None = None
    method: Method = FINE_TUNING
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    alternative: Encoder | None = None
    mask: Mapping[str, Tensor] | None = None


def train(
    model: PreTrainedModel,
    terms: Terms,
    config: TrainingConfig,
    *,
    checkpoints: Checkpoints | None = None,
    adapter: Adapter | None = None,
    evaluation: EvaluationCallback | None = None,
    begin: Callable[[], None] | None = None,
    label: str = "training",
) -> TrainingResult:
    """Train in place until the steps are done or a stop rule ends the run.

    Args:
        model: trained in place; its ``requires_grad`` flags say which weights train. Left in evaluation mode.
        terms: forget and retain terms.
        config: settings that do not depend on the method.
        checkpoints: where to save progress and resume from; None: no checkpoints.
        adapter: LoRA factors of the model; reference values come from the model without them.
        evaluation: what to measure between steps; its values go into the history of the preceding step.
        begin: called after the reference values are computed; it may change weights before the first step.
        label: text before the progress bar.

    Raises:
        DivergenceError: if a loss or gradient is not finite; the weights are those of the last checkpoint, or
            those before the step.
        ValueError: if no term is left to minimise, or the mask reaches no trainable parameter.
    """
    join_processes()
    run = _Run(model, terms, config, checkpoints)
    # Dropout draws from the run's own generator, so a run does not depend on earlier draws.
    with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="efface-") as scratch:
        torch.manual_seed(config.seed + process_rank())
        run.compute_references(adapter, Path(scratch) if checkpoints is None else checkpoints.references)
        if begin is not None:
            begin()
        run.resume()
        with _activation_checkpointing(model, config.gradient_checkpointing):
            return run.train(evaluation, label)


@dataclass
class _Term:
    """The forget or the retain term: its loss, and the batches that make a step and the run."""

    name: str
    loss: Loss
    reference: Quantity | None
    weight: float
    source: BatchSource
    batches_per_step: int = 1
    batches: int = 0

    def positions(self, step: int) -> range:
        """Positions of a step's batches; the run's last step may have fewer."""
        start = step * self.batches_per_step
        return range(start, min(start + self.batches_per_step, self.batches))


class _Run:
    def __init__(
        self, model: PreTrainedModel, terms: Terms, config: TrainingConfig, checkpoints: Checkpoints | None
    ):
        self.model, self.config, self.checkpoints = model, config, checkpoints
        self.method, self.settings = terms.method, terms.settings
        if process_count() > 1 and torch.cuda.is_available():
            model.to(torch.device("cuda", torch.cuda.current_device()))  # type: ignore[arg-type]
        self.device = next(model.parameters()).device
        check_precision(config.precision, self.device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.forget, self.retain = self._terms(terms)
        self.alternating = self.settings.alternating and self.forget is not None and self.retain is not None
        self.steps = self._plan()
        self.mask = None if terms.mask is None else mask_for(self.trained, terms.mask, self.device)
        one_term = self.forget is None or self.retain is None
        self.clips_apart = (
            self.settings.clip == "apart" or one_term or self.alternating or self.mask is not None
        )
        # If only the masked term trains, weight decay must not move weights outside the mask.
        fixed = self.mask is not None and self.retain is None and self.settings.weight_decay > 0
        self.start = {n: p.detach().clone() for n, p in self.trained.items()} if fixed else {}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=self.device.type in _FUSED or None,
        )
        half = [name for name, p in self.trained.items() if p.dtype != torch.float32]
        if config.precision != "fp32" and half:
            raise ModelError(
                f"precision is {config.precision!r} and {half[0]} is {self.trained[half[0]].dtype}: mixed "
                "precision trains weights in float32; load the model with dtype float32"
            )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.state = TrainingState()

    def train(self, evaluation: EvaluationCallback | None, label: str) -> TrainingResult:
        """The loop."""
        stopped_by = None
        self.model.train()
        with tqdm(
            total=self.steps,
            initial=self.state.step,
            desc=label,
            unit="step",
            mininterval=0.5,
            **({"disable": True} if process_rank() > 0 else {}),  # otherwise TQDM_DISABLE decides
        ) as bar:
            while self.state.step < self.steps and stopped_by is None:
                step = self.state.step
                record = {"step": float(step), "learning_rate": self._set_learning_rate(step)}
                if self.alternating:
                    forget_step = self._forget_step(step)
                    if forget_step is not None:
                        self._update(self._gradient(self.forget, forget_step, record), record)
                    self._update(self._gradient(self.retain, step, record), record)
                else:
                    gradient = self._gradient(self.forget, step, record)
                    add_gradient(gradient, self._gradient(self.retain, step, record))
                    if not self.clips_apart:
                        record["total_grad_norm"] = clip_gradient(gradient, self.settings.max_grad_norm)
                    self._update(gradient, record)
                self.state.step += 1
                self.state.history.append(record)
                bar.update()
                losses = {key: f"{value:.3f}" for key, value in record.items() if key.endswith("_loss")}
                bar.set_postfix({key.removesuffix("_loss"): value for key, value in losses.items()})
                stopped_by = self._stop_rule()
                last = stopped_by is not None or self.state.step == self.steps
                if evaluation is not None and (last or self.state.step % evaluation.every == 0):
                    record |= evaluation(self.model)
                if self.checkpoints is not None and self.state.step % self.config.checkpoint_every == 0:
                    self._save(self.checkpoints)
        self.model.eval()
        return TrainingResult(steps=self.state.step, history=self.state.history, stopped_by=stopped_by)

    def _gradient(self, term: _Term | None, step: int, record: dict[str, float]) -> Gradient:
        """A term's gradient by parameter name, masked and clipped; records its loss and norm."""
        if term is None:
            return {}
        loss, gradient = self._backward(term, step)
        if term is self.forget and self.settings.sam_radius:
            with moved_along(self.trained, gradient, self.settings.sam_radius):
                _, gradient = self._backward(term, step)
        record[f"{term.name}_loss"] = loss
        mask = self.mask if term is self.forget else None
        if mask is not None and not self.alternating:
            gradient = mask_gradient(gradient, mask)
        max_norm = self.settings.max_grad_norm if self.clips_apart else None
        record[f"{term.name}_grad_norm"] = clip_gradient(gradient, max_norm)
        if mask is not None and self.alternating:  # the released code clips first
            gradient = mask_gradient(gradient, mask)
        return gradient

    def _backward(self, term: _Term, step: int) -> tuple[float, Gradient]:
        """A term's loss, for the record, and its gradient at the current weights, over all processes."""
        positions = term.positions(step)
        loss_sum = 0.0
        for position in positions:
            batch, share = term.source.batch(position, self.device)
            if batch is None:
                continue
            with self._autocast():
                value = term.loss(self.model, batch, self.settings)
            self.scaler.scale(term.weight / len(positions) * share * value.loss).backward()
            # A finite likelihood must not hide a loss that is not finite.
            loss = value.loss.item()
            loss_sum += share * (value.nll.mean().item() if math.isfinite(loss) else loss)
        gradient = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        if process_count() > 1:
            shared = torch.tensor([loss_sum], device=self.device)
            sum_over_processes([shared])
            loss_sum = shared.item()
            gradient = sum_gradient(gradient, self.trained)
        if self.scaler.is_enabled():
            torch._foreach_mul_([*gradient.values()], 1 / self.scaler.get_scale())
        return loss_sum / len(positions), gradient

    def _update(self, gradient: Gradient, record: dict[str, float]) -> None:
        """Take one optimizer step with a gradient, and empty it."""
        self._check_finite(record)
        for name, parameter in self.trained.items():
            parameter.grad = gradient.pop(name, None)
        if self.scaler.is_enabled():
            # The scaler expects scaled gradients; the scale is a power of two, so scaling is exact.
            scaled = [p.grad for p in self.trained.values() if p.grad is not None]
            torch._foreach_mul_(scaled, self.scaler.get_scale())
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.start and self.mask is not None:
            restore_outside(self.trained, self.mask, self.start)

    def _check_finite(self, record: dict[str, float]) -> None:
        """End the run before a non-finite number reaches the weights."""
        infinite = [name for name, value in record.items() if not math.isfinite(value)]
        norms_alone = all(name.endswith("_grad_norm") for name in infinite)
        if infinite and norms_alone and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            for name in infinite:  # float16 overflow: the scaler skips the step and lowers the scale
                del record[name]
            record["skipped"] = 1.0
        elif infinite:
            history = self.state.history
            resumed = self.resume()
            self.model.eval()
            at = f"the checkpoint of step {self.state.step}" if resumed else "no checkpoint"
            error = DivergenceError(
                f"{infinite[0]} is {record[infinite[0]]} at step {int(record['step'])} of {self.steps}; {at} "
                "was written. Lower the learning rate, or set stop rules that end the run earlier"
            )
            error.history = history
            raise error

    def _set_learning_rate(self, step: int) -> float:
        factor = schedule(step, self.steps, self.settings.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        return self.settings.learning_rate * factor

    def _stop_rule(self) -> str | None:
        config, history = self.config, self.state.history
        at = f"at step {self.state.step}"
        forget = history[-1].get("forget_loss")
        if config.stop_forget_loss is not None and forget is not None and forget > config.stop_forget_loss:
            return f"forget_loss {forget:.2f} > {config.stop_forget_loss} {at}"
        if config.stop_retain_rise is not None and self.retain is not None and len(history) >= 20:
            rise = _mean(history[-10:], "retain_loss") - _mean(history[:10], "retain_loss")
            if rise > config.stop_retain_rise:
                return f"retain_loss rose by {rise:.2f} > {config.stop_retain_rise} {at}"
        return None

    def _terms(self, terms: Terms) -> tuple[_Term | None, _Term | None]:
        """The terms that have samples and weight."""
        method, settings, config = terms.method, terms.settings, self.config
        forget = retain = None
        if terms.forget is not None and settings.forget_weight:
            source = BatchSource(
                terms.forget,
                batch_size=config.batch_size,
                order_seed=config.seed,
                seed=config.seed,
                alternative=terms.alternative,
            )
            loss = method.forget_loss
            if settings.adversarial_radius:
                if config.gradient_checkpointing:  # recomputed activations would not be the moved ones
                    raise ValueError(
                        f"adversarial_radius is {settings.adversarial_radius} and gradient_checkpointing is "
                        "True: expected one of the two"
                    )
                loss = with_adversary(loss, settings.adversarial_layer, settings.adversarial_radius)
            forget = _Term("forget", loss, method.forget_reference, settings.forget_weight, source)
        if terms.retain is not None and method.retain_loss is not None and settings.uses_retain_set:
            source = BatchSource(
                terms.retain, batch_size=config.batch_size, order_seed=config.seed + 1, seed=config.seed
            )
            retain = _Term(
                "retain", method.retain_loss, method.retain_reference, settings.retain_weight, source
            )
        return forget, retain

    def _plan(self) -> int:
        """Set the terms' numbers of batches, and return the number of steps."""
        main = self.retain if self.alternating else self.forget or self.retain
        if main is None:
            raise ValueError("nothing to train on: the forget and the retain term are missing or weighted 0")
        accumulated, settings = self.config.accumulation_steps, self.settings
        if settings.steps is None:
            batches = settings.epochs * main.source.sampler.batches_per_epoch
            steps = -(-batches // accumulated)
        else:
            batches, steps = settings.steps * accumulated, settings.steps
        main.batches_per_step, main.batches = accumulated, batches
        if self.alternating and self.forget is not None and self.retain is not None:
            epochs = -(-steps // self._steps_per_epoch(self.retain))
            self.forget.batches_per_step = accumulated
            self.forget.batches = epochs * self._steps_per_epoch(self.forget) * accumulated
        elif self.forget is not None and self.retain is not None:
            self.retain.batches_per_step = accumulated * settings.retain_batches_per_forget_batch
            self.retain.batches = batches * settings.retain_batches_per_forget_batch
        return steps

    def _steps_per_epoch(self, term: _Term) -> int:
        return -(-term.source.sampler.batches_per_epoch // self.config.accumulation_steps)

    def _forget_step(self, step: int) -> int | None:
        """The forget step before a retain step; None if there is none.

        Forget steps are spread over an epoch, which has at most one pass over the forget set.
        """
        if self.forget is None or self.retain is None:
            return None
        forget_steps, retain_steps = self._steps_per_epoch(self.forget), self._steps_per_epoch(self.retain)
        epoch, iteration = divmod(step, retain_steps)
        number, rest = divmod(iteration, max(1, retain_steps // forget_steps))
        return epoch * forget_steps + number if rest == 0 and number < forget_steps else None

    def compute_references(self, adapter: Adapter | None, folder: Path) -> None:
        """Compute the reference values that the run's batches need, or arrange for it batch by batch."""
        for term in (self.forget, self.retain):
            if term is not None and term.reference is not None:
                computation = ReferenceComputation(
                    self.model, term.reference, self.settings, self._autocast, adapter
                )
                process_folder = folder / f"{term.name}-{process_rank()}of{process_count()}"
                # Without its factors a model is unchanged, unless something else in it trains.
                switchable = adapter is not None and self.settings.projector == "plain"
                term.source.add_references(computation, term.batches, None if switchable else process_folder)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _save(self, checkpoints: Checkpoints) -> None:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        self.state.random = {
            f"{kind}/{rank}": state
            for rank, states in enumerate(gather_from_processes(states))
            for kind, state in states.items()
        }
        self.state.scaler = dict(self.scaler.state_dict())
        if process_rank() == 0:
            checkpoints.save(self.model, self.optimizer, self.state)
        gather_from_processes(None)  # wait for the file

    def resume(self) -> bool:
        """Restore the last checkpoint; False if there is none."""
        state = self.checkpoints.load(self.model, self.optimizer) if self.checkpoints else None
        if state is None:
            return False
        self.state = state
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))
        rank = process_rank()
        if f"cpu/{rank}" in state.random:
            torch.set_rng_state(state.random[f"cpu/{rank}"])
        if f"cuda/{rank}" in state.random and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.random[f"cuda/{rank}"], self.device)
        return True


def schedule(step: int, total: int, warmup_fraction: float) -> float:
    """Factor of the learning rate at a step: a linear warm-up, then a cosine to zero.

    It is positive at the first step and still above zero at the last.
    """
    warmup = round(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@contextmanager
def _activation_checkpointing(model: PreTrainedModel, enabled: bool) -> Iterator[None]:
    if enabled:
        # transformers renamed it within version 5.
        kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if enabled:
            getattr(model, f"{kind}_checkpointing_disable")()


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)
