"""The sections about which weights and neurons hold what must be forgotten."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import Count, Section, Weight


class Saliency(Section):
    """Which weights matter more for the forget set than for what must stay."""

    variant: Literal["paper", "official_code"]
    """MMUnlearner's mask as the paper defines it, or as the code released with it computes it."""
    groups: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)]
    """Parts of the model that may change at all (official_code: parts where the mask acts)."""
    threshold: Annotated[float, Field(gt=0)]
    """A weight may change when forget saliency / preserve saliency is at least this, > 0."""
    fisher_samples: Count | None
    """Samples drawn from each set; null: all."""
    batch_size: Count
    """Samples per forward pass; no influence on the result (official_code: always 4, where it has)."""
    sums: Literal["auto", "device", "cpu", "disk"]
    """Where sums of squares are kept: beside the weights, in main memory, in a file, or the first of these
    with room; no influence on the result."""
    both_in_one: bool
    """Keep forget Fisher - threshold x preserve Fisher instead of both: half the memory; weights within
    rounding of the threshold may fall on its other side."""
    controls: list[Literal["random", "magnitude"]]
    """Masks of equal count per tensor to make beside the saliency mask, for `unlearn.methods.*.mask`."""

    @model_validator(mode="after")
    def _each_control_once(self) -> Saliency:
        if len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls is [{', '.join(self.controls)}]: expected each control once")
        return self


class Importance(Section):
    """How much each MLP neuron works for the forget set and for the retain set."""

    variant: Literal["paper", "official_code"]
    """MANU's score as the paper defines it, or as the code released with it computes it."""
    active_above: Weight
    """A neuron counts as active when |activation| exceeds this."""
    samples: Count | None
    """Samples drawn from each set; null: all."""
    vision_text_reference: Literal["blank_image", "variance_only"]
    """What the vision tower is given for a text-only question: a grey picture, or nothing, so that its
    neurons are scored by their variance over pictures alone (official_code needs neither)."""
    batch_size: Count
    """Samples per forward pass; no influence on the result."""
