"""The section about unlearning by switching neurons off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.params.section import Section

PRUNING_METHODS = ("manu", "random_pruning")


class PruningMethod(Section):
    """One way of choosing neurons to switch off."""

    selection: Literal["importance", "random"]
    """What ranks the neurons."""
    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of neurons to switch off, in (0, 1)."""
    scope: Literal["tower", "global", "layer"]
    """Within what the share is taken."""


class Prune(Section):
    """Unlearning by switching neurons off, one model per method."""

    methods: dict[Literal[PRUNING_METHODS], PruningMethod]  # type: ignore[valid-type]
    """The methods to run."""
