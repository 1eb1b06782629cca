"""The section about unlearning by switching neurons off."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import Count, Rate, Section

_NAME = re.compile(r"[a-z][a-z0-9_]*")
LayerRange = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class Recovery(Section):
    """A short fine-tuning on the retain people after pruning; what was pruned stays zero."""

    steps: Count
    """Optimiser steps."""
    learning_rate: Rate
    """Peak learning rate, in (0, 1]."""
    batch_size: Count
    """Samples per step."""


class PruningMethod(Section):
    """One way of choosing neurons to switch off."""

    selection: Literal["importance", "random", "activation", "no_retain", "abs", "freq", "var", "rms"]
    """What ranks the neurons: the method's score; chance, as many per module; the mean activation on the
    forget set; the score without its retain part; or one of the score's four functions alone."""
    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of neurons to switch off, in (0, 1)."""
    scope: Literal["tower", "global", "layer"]
    """Within what the share is taken."""
    layers: Literal["all", "early", "middle", "late"] | dict[Literal["vision", "language"], LayerRange]
    """Where to take them: all layers, a third of each tower's, or by tower the first and last layer (from 0).
    The number of neurons stays that of the share of all layers."""
    recovery: Recovery | None = None
    """Training after pruning; left out: none."""

    @model_validator(mode="after")
    def _layers_fit_the_scope(self) -> PruningMethod:
        if self.layers != "all" and self.scope == "layer":
            raise ValueError("scope is layer: a share of each layer goes with layers: all only")
        for tower, (first, last) in self.layers.items() if isinstance(self.layers, dict) else ():
            if first > last:
                raise ValueError(f"layers.{tower} is [{first}, {last}]: expected first layer, last layer")
        return self


class Prune(Section):
    """Unlearning by switching neurons off, one model per method."""

    methods: dict[str, PruningMethod]
    """The methods to run, under names of your choice."""

    @model_validator(mode="after")
    def _names_are_words(self) -> Prune:
        for name in self.methods:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"methods.{name}: expected a name of small letters, digits and _, a letter first"
                )
        return self
