"""Sections about unlearning by zeroing neurons."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.config.section import UNLISTED, Count, Name, Rate, Section


class Recovery(Section):
    """A short fine-tuning on the retain people after pruning; pruned units stay zero."""

    steps: Count
    """Optimizer steps."""
    learning_rate: Rate
    """Peak learning rate, in (0, 1]."""
    batch_size: Count
    """Samples per step."""


class PruningMethod(Section):
    """One way of selecting neurons to zero."""

    selection: Literal["importance", "random", "activation", "no_retain", "abs", "freq", "var", "rms"]
    """Ranking of the neurons: the importance score; random, as many per module; the mean activation on the
    forget set; the score without its retain part; or one of the score's four functions alone."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of neurons to zero, in (0, 1)."""
    scope: Annotated[Literal["tower", "global", "layer"], UNLISTED] = "tower"
    """What the share is taken of: each tower, the whole model, or each layer."""
    layers: Annotated[Any, UNLISTED] = "all"
    """Which layers: all, early, middle or late (thirds of each tower), or the first and last layer by tower,
    counted from 0: {vision: [0, 1], language: [2, 3]}. The number of neurons does not depend on it."""
    recovery: Annotated[Recovery | None, UNLISTED] = None
    """Fine-tuning after pruning; null: none."""

    @model_validator(mode="after")
    def _layers_exist_and_fit_the_scope(self) -> PruningMethod:
        if isinstance(self.layers, dict):
            ranges = self.layers.items()
            valid = bool(self.layers) and all(
                tower in ("vision", "language")
                and isinstance(layers, list)
                and len(layers) == 2
                and all(type(layer) is int for layer in layers)
                and 0 <= layers[0] <= layers[1]
                for tower, layers in ranges
            )
        else:
            valid = self.layers in ("all", "early", "middle", "late")
        if not valid:
            raise ValueError(
                f"layers is {self.layers!r}: expected all, early, middle, late, or vision and language with "
                "[first layer, last layer]"
            )
        if self.layers != "all" and self.scope == "layer":
            raise ValueError(f"layers is {self.layers!r}: expected all with scope layer")
        return self


class Prune(Section):
    """Unlearning by zeroing neurons, one model per method."""

    methods: dict[Name, PruningMethod] = {
        "manu": PruningMethod(selection="importance"),
        "random_pruning": PruningMethod(selection="random"),
    }
    """Methods to run, under names of your choice."""
