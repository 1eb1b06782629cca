"""The one training loop: fine-tuning and every unlearning method go through it.

A step takes forget batches and their retain batches, and descends on

    forget_weight * L_forget(forget batches) + retain_weight * L_retain(retain batches)

A saliency mask acts on the forget gradient alone. The two gradients are clipped each by itself, so a weight
outside the mask gets exactly the update the retain term alone would give it. A method may ask for alternating
steps instead: a forget step and a retain step, one after the other.

Several processes share the batches of a step, or, where those cannot be dealt out evenly, the samples of each
batch: their number alters no result beyond rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from efface.encoding import Encoder
from efface.unlearning.method import Method, Quantity
from efface.unlearning.settings import TrainingSettings
from efface.unlearning.training import sharding
from efface.unlearning.training.checkpoint import Checkpoints, TrainingState
from efface.unlearning.training.config import DivergenceError, LoopConfig, LoopResult
from efface.unlearning.training.gradients import mask_for, place_gradients, take_gradients
from efface.unlearning.training.masked import MaskedWeights, adamw, masked_weights
from efface.unlearning.training.precision import Precision
from efface.unlearning.training.processes import Processes
from efface.unlearning.training.recomputing import recomputing
from efface.unlearning.training.references import AdapterOff, InMemory, OnDisk, Question, References
from efface.unlearning.training.sides import Ahead, Side
from efface.unlearning.training.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efface.models.lora import Adapter

__all__ = ["DivergenceError", "LoopConfig", "LoopResult", "Terms", "schedule", "train"]


FINE_TUNING = Method(name="fine_tuning", paper="plain descent; no unlearning")
"""The loop's method when there is nothing to forget."""


@dataclass
class Terms:
    """What a run minimises: either set may be missing.

    Attributes:
        forget: forget samples.
        retain: retain samples.
        method: gives the two losses and says what they read.
        other: the forget samples with the method's other answers.
        settings: the method's own settings.
        mask: parameter name -> bool tensor, True where the forget term may change the weight; a parameter
            without an entry gets no forget gradient. None: the forget term reaches every parameter.
    """

    forget: Encoder | None = None
    retain: Encoder | None = None
    method: Method = FINE_TUNING
    other: Encoder | None = None
    settings: Any = field(default_factory=TrainingSettings)
    mask: Mapping[str, Tensor] | None = None


def train(
    model: PreTrainedModel,
    terms: Terms,
    config: LoopConfig,
    *,
    checkpoints: Checkpoints | None = None,
    adapter: Adapter | None = None,
    references: Path | None = None,
    watch: Watch | None = None,
    label: str = "training",
) -> LoopResult:
    """Train in place until the steps are done or a stop rule ends the run.

    Args:
        model: trained in place; its ``requires_grad`` flags say which weights train. Left in evaluation mode.
        terms: forget and retain terms.
        config: settings.
        checkpoints: where to save progress, and to resume from; None keeps none.
        adapter: LoRA factors of the model. References then come from the model without them.
        references: folder for reference quantities, measured before training; None keeps them beside the
            checkpoint, or in memory. Given with an adapter, they are measured and kept as well.
        watch: what to measure between steps; its values join the history of the steps they follow.
        label: text before the progress bar.

    Raises:
        DivergenceError: if a loss or gradient is not finite; the weights are those of the last checkpoint, or
            those before the step.
        ValueError: if no term is left to minimise, or the mask reaches no trainable parameter.
    """
    run = _Run(model, terms, config, checkpoints)
    # Dropout draws from generators of the run's own, so a run does not depend on what was drawn before it.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + run.processes.rank)
        run.begin(adapter, references)
        with recomputing(model, config.gradient_checkpointing):
            return run.go(label, watch)


class _Run:
    def __init__(
        self, model: PreTrainedModel, terms: Terms, config: LoopConfig, checkpoints: Checkpoints | None
    ):
        self.model, self.terms, self.config, self.checkpoints = model, terms, config, checkpoints
        self.processes = Processes()
        if self.processes.device is not None:
            model.to(self.processes.device)  # type: ignore[arg-type]  # wrapped by transformers
        self.device = next(model.parameters()).device
        self.sharded = sharding.wanted(self.processes)
        if self.sharded:
            sharding.shard(model, self.processes)
            self.checkpoints = None  # written by one process, which holds only its part
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.precision = Precision(config.precision, self.device, self.trained)
        self.ahead = Ahead(config.prefetch)
        self.forget, self.retain = self._sides()
        self.alternating = terms.settings.alternating and self.retain is not None
        self.batches_per_step = config.accumulation_steps
        # A step that cannot be shared batch by batch is shared sample by sample.
        self.split = self.sharded or config.accumulation_steps % self.processes.count != 0
        self.batches, self.total = self._length()
        self.masked: MaskedWeights | None = None
        if terms.mask is not None:
            mask: Mapping[str, Tensor] = mask_for(self.trained, terms.mask, self.device)
            if self.sharded:
                mask = {name: sharding.like(mask[name], self.trained[name]) for name in mask}
            self.masked = masked_weights(self.trained, mask, config, only=self.retain is None)
        self.updated = self.masked.updated if self.masked else self.trained
        maker = self.masked.optimizer if self.masked else functools.partial(adamw, self.trained)
        self.optimizer = maker(config, self.device)
        self.state = TrainingState()

    def begin(self, adapter: Adapter | None, folder: Path | None) -> None:
        """Measure references, then go back to the checkpoint if there is one."""
        if self.sharded:
            folder = None  # no file: the weights cannot be told by their digest
        elif folder is None and adapter is None and self.checkpoints is not None:
            folder = self.checkpoints.references
        method = self.terms.method
        for kind, side, quantity in (
            ("forget", self.forget, method.forget_reference),
            ("retain", self.retain, method.retain_reference),
        ):
            if side is not None and quantity is not None:
                side.compare(self._references(quantity, adapter, folder), self._walked(kind))
        self._resume()
        self.model.train()

    def _references(
        self, quantity: Quantity, adapter: Adapter | None, folder: Path | None
    ) -> Callable[[Encoder, Sequence[int]], References]:
        def made(encoder: Encoder, needed: Sequence[int]) -> References:
            settings, size = self.terms.settings, self.config.batch_size
            question = Question(self.model, encoder, quantity, settings, self.precision, size, needed)
            if folder is not None:
                return OnDisk(question, folder, self.processes)
            return InMemory(question) if adapter is None else AdapterOff(question, adapter)

        return made

    def go(self, label: str, watch: Watch | None) -> LoopResult:
        stopped_by = None
        bar = tqdm(
            total=self.total,
            initial=self.state.step,
            desc=label,
            unit="step",
            mininterval=0.5,
            disable=not self.processes.main,
        )
        with bar, closing(self.ahead):
            while self.state.step < self.total and stopped_by is None:
                record = self._step(self.state.step)
                self.state.step += 1
                self.state.history.append(record)
                bar.update()
                bar.set_postfix(
                    {k.removesuffix("_loss"): f"{v:.3f}" for k, v in record.items() if k.endswith("_loss")}
                )
                stopped_by = self._stop_rule()
                last = stopped_by is not None or self.state.step == self.total
                record |= {} if watch is None else watch.after(self.state.step, self.model, last=last)
                if self.checkpoints and self.state.step % self.config.checkpoint_every == 0:
                    self._save(self.checkpoints)
        self.model.eval()
        if self.sharded:
            sharding.gather(self.model)
        return LoopResult(steps=self.state.step, history=self.state.history, stopped_by=stopped_by)

    def _sides(self) -> tuple[Side | None, Side | None]:
        terms, config, method = self.terms, self.config, self.terms.method
        forget = retain = None
        if terms.forget is not None and config.forget_weight:
            loss, other = method.forget_loss, terms.other
            forget = Side(terms.forget, loss, config, config.seed, other=other, ahead=self.ahead)
        wanted = config.retain_weight and config.retain_batches_per_forget_batch
        if terms.retain is not None and method.retain_loss is not None and wanted:
            retain = Side(terms.retain, method.retain_loss, config, config.seed + 1, ahead=self.ahead)
        return forget, retain

    def _length(self) -> tuple[int, int]:
        """How many batches the run walks, of the forget set unless steps alternate, and in how many steps."""
        side = self.retain if self.alternating else self.forget or self.retain
        if side is None:
            raise ValueError(
                "nothing to train on: both the forget and the retain term are missing or weighted 0"
            )
        if self.config.steps is not None:
            return self.config.steps * self.batches_per_step, self.config.steps
        if self.config.epochs is None:
            raise ValueError("set either steps or epochs")
        batches = self.config.epochs * side.stream.batches_per_epoch
        return batches, -(-batches // self.batches_per_step)

    def _step(self, step: int) -> dict[str, float]:
        rate = self.config.learning_rate * schedule(step, self.total, self.config.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        record = {"step": float(step), "learning_rate": rate}
        if self.alternating and self.retain is not None:
            if self.forget is not None:
                every = self.retain.stream.batches_per_epoch // self.forget.stream.batches_per_epoch
                if step % max(1, every) == 0:
                    forget_step = step // max(1, every)
                    forgetting = self._gradient("forget", self.forget, forget_step, record)
                    self._update({"forget": forgetting}, record)
            self._update({"retain": self._gradient("retain", self.retain, step, record)}, record)
            return record
        gradients = {}
        if self.forget is not None:
            gradients["forget"] = self._gradient("forget", self.forget, step, record)
        if self.retain is not None:
            gradients["retain"] = self._gradient("retain", self.retain, step, record)
        self._update(gradients, record)
        return record

    def _positions(self, kind: str, step: int) -> tuple[list[int], int]:
        """Batches that this process works on in a step, and how many the step has."""
        first = step * self.batches_per_step
        count = min(self.batches_per_step, self.batches - first)
        if self.alternating and kind == "forget":  # walked in circles beside the retain set
            count = self.batches_per_step
        mine = range(first, first + count)
        if not self.split:
            mine = mine[self.processes.rank :: self.processes.count]
        if kind == "forget" or self.forget is None or self.alternating:
            return list(mine), count
        beside = self.config.retain_batches_per_forget_batch
        return [position * beside + k for position in mine for k in range(beside)], count * beside

    def _walked(self, kind: str) -> int:
        """How many batches of a side the whole run walks."""
        if kind == "forget" and self.alternating:
            return self.total * self.batches_per_step
        if kind == "forget" or self.forget is None or self.alternating:
            return self.batches
        return self.batches * self.config.retain_batches_per_forget_batch

    def _gradient(self, kind: str, side: Side, step: int, record: dict[str, float]) -> dict[str, Tensor]:
        weight = self.config.forget_weight if kind == "forget" else self.config.retain_weight
        positions, count = self._positions(kind, step)
        sharing = self.processes if self.split else None
        side.expect([*positions, *self._positions(kind, step + 1)[0]], sharing)
        total = 0.0
        for position in positions:
            batch, share = side.batch(position, self.device, sharing)
            if batch is None and self.sharded:  # nothing to add, but the layers need this process
                batch, share = side.batch(position, self.device)[0], 0.0
            if batch is None:
                continue
            with self.precision.computing():
                term = side.loss(self.model, batch, self.terms.settings)
            self.precision.backward(weight / count * share * term.loss)
            # A loss that is not a number must not hide behind a likelihood that still is one.
            loss = term.loss.item()
            total += share * (term.nll.mean().item() if math.isfinite(loss) else loss)
        record[f"{kind}_loss"] = self._sum(total) / count
        gradients, record[f"{kind}_grad_norm"] = take_gradients(
            self.trained,
            mask=self.masked if kind == "forget" else None,
            max_norm=self.config.max_grad_norm,
            clip_first=self.alternating,
            precision=self.precision,
            processes=None if self.sharded else self.processes,
        )
        return gradients

    def _sum(self, value: float) -> float:
        if self.processes.count == 1:
            return value
        return float(self.processes.sum(torch.tensor([value], dtype=torch.float32, device=self.device)))

    def _update(self, gradients: Mapping[str, dict[str, Tensor]], record: dict[str, float]) -> None:
        """One optimizer step on the sum of gradients, which are emptied: one is in memory while it works."""
        self._guard(record)
        place_gradients(self.updated, gradients, self.masked)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.masked:
            self.masked.stepped()

    def _guard(self, record: dict[str, float]) -> None:
        """End the run before a number that is not finite reaches the weights."""
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if not bad:
            return
        if self.precision.overflows and all(name.endswith("_grad_norm") for name in bad):
            for name in bad:
                del record[name]
            record["skipped"] = 1.0
            return
        steps = self.state.history
        resumed = self._resume()
        kept = (
            f"the checkpoint of step {self.state.step} is kept"
            if resumed
            else "no checkpoint had been written yet"
        )
        self.model.eval()
        error = DivergenceError(
            f"{bad[0]} is {record[bad[0]]} at step {int(record['step'])} of {self.total}; {kept}. "
            "Lower the learning rate, or set stop rules that end the run earlier"
        )
        error.history = steps
        raise error

    def _save(self, checkpoints: Checkpoints) -> None:
        states = {"cpu": self.processes.collect(torch.get_rng_state().to(self.device))}
        if self.device.type == "cuda":
            states["cuda"] = self.processes.collect(torch.cuda.get_rng_state(self.device).to(self.device))
        self.state.random = {
            f"{kind}/{rank}": s for kind, all_ in states.items() for rank, s in enumerate(all_)
        }
        self.state.scaler = self.precision.state()
        if self.processes.main:
            checkpoints.save(self.model, self.optimizer, self.state)
        self.processes.wait()

    def _resume(self) -> bool:
        """Go back to the last checkpoint; False if there is none."""
        resumed = self.checkpoints.load(self.model, self.optimizer) if self.checkpoints else None
        if resumed is None:
            return False
        self.state = resumed
        if self.masked:
            self.masked.resumed()
        self.precision.restore(resumed.scaler)
        own = {
            name.split("/")[0]: s
            for name, s in resumed.random.items()
            if name.endswith(f"/{self.processes.rank}")
        }
        if "cpu" in own:
            torch.set_rng_state(own["cpu"])
        if "cuda" in own and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.device)
        return True

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


def schedule(step: int, total: int, warmup_fraction: float) -> float:
    """Factor of the learning rate at a step: linear rise over the warm-up, then a cosine to zero.

    The first step already has a positive rate and the last is not yet zero.
    """
    warmup = round(total * warmup_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)
