"""The sections about which weights and neurons hold what must be forgotten."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.params.section import Count, Section, Weight


class Saliency(Section):
    """Which weights matter more for the forget set than for what must stay."""

    variant: Literal["paper"]
    """How the mask is built."""
    groups: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    """Parts of the model that may change at all."""
    threshold: Annotated[float, Field(gt=0)]
    """A weight may change when forget saliency / preserve saliency is at least this."""
    fisher_samples: Count | None
    """Samples drawn from each set; null: all."""
    batch_size: Count
    """Samples per forward pass; no influence on the result."""


class Importance(Section):
    """How much each MLP neuron works for the forget set and for the retain set."""

    variant: Literal["paper"]
    """How statistics become a score."""
    active_above: Weight
    """A neuron counts as active when |activation| exceeds this."""
    samples: Count | None
    """Samples drawn from each set; null: all."""
    vision_text_reference: Literal["blank_image"]
    """What the vision tower sees for a text-only question."""
    batch_size: Count
    """Samples per forward pass; no influence on the result."""
