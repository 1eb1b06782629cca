"""Sections about which weights and neurons hold the facts to forget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.section import UNIQUE, UNLISTED, Count, Section, Weight


class Saliency(Section):
    """The saliency mask: weights that matter more for the forget set than for what must be preserved."""

    variant: Literal["paper", "official_code"] = "paper"
    """MMUnlearner's mask as the paper defines it, or as the released code computes it."""
    groups: Annotated[list[Literal["vision", "projector", "language"]], Field(min_length=1)] = [
        "vision",
        "projector",
        "language",
    ]
    """Parts of the model that may change (official_code: parts where the mask acts)."""
    threshold: Annotated[float, Field(gt=0)] = 1.0
    """A weight may change when forget saliency / preserve saliency is at least this, > 0; without density."""
    density: Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Share of weights to select, by the highest ratios, in (0, 1); null: by threshold, as paper and released
    code do. By threshold the share follows the people, and with it how much is forgotten."""
    normalisation: Literal["pooled", "per_group"] = "pooled"
    """Divide by all samples of a set, or for vision and projector by those with a picture, since text gives
    them no gradient."""
    fisher_samples: Count | None = 1024
    """Samples drawn from each set (all of a smaller set); null: all of both."""
    batch_size: Count = 8
    """Samples per forward pass; does not change the result (official_code: always 4, where it would)."""
    storage: Annotated[Literal["device", "cpu"], UNLISTED] = "device"
    """Where the sums of squares are stored: beside the weights, or in main memory; does not change the
    result."""
    controls: Annotated[list[Literal["random", "magnitude"]], UNIQUE] = []
    """Masks with as many weights per tensor as the saliency mask, for `unlearn.methods.*.mask`."""


class Importance(Section):
    """How much each MLP neuron contributes to the forget set and to the retain set."""

    variant: Literal["paper", "official_code"] = "paper"
    """MANU's score as the paper defines it, or as the released code computes it."""
    active_above: Annotated[Weight, UNLISTED] = 0.1
    """A neuron counts as active when |activation| exceeds this."""
    samples: Count | None = 1500
    """Samples drawn from each set, all of a smaller one; null: all of both."""
    vision_text_reference: Annotated[Literal["blank_image", "variance_only"], UNLISTED] = "blank_image"
    """Input of the vision tower for a text-only question: a grey picture, or none, so that its neurons are
    scored by their variance over pictures alone (official_code needs neither)."""
    batch_size: Count = 32
    """Samples per forward pass; does not change the result."""
