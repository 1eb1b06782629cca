"""The section about requests to be forgotten: docs/requests.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tasks.config.section import Count, Level, Section


class Gates(Section):
    """What a new model must hold before it may take the place of the one in production."""

    forget_at_most: Level
    """Exact match by picture on the people of each request, the earlier ones too; the higher of the values on
    pictures seen in training and on others."""
    retain_at_least: Annotated[float, Field(ge=0)]
    """Exact match on the people to keep, as a share of the vanilla model's; 0: not asked."""
    utility_at_least: Annotated[float, Field(ge=0)]
    """Exact match on real people and general skills, likewise; 0: not asked."""
    relearn_gap_at_most: Level | None
    """After the longest relearning of `attack.relearn`, exact match by picture above that of the retrained
    model; needs `retrained`; null: not asked."""


class Requests(Section):
    """python -m flows.requests: make the model in production forget people who ask for it."""

    method: str
    """Name under `unlearn.methods` or `prune.methods`; it starts from vanilla, which is the model in
    production here."""
    batch_size: Count
    """Pending requests taken up by one run."""
    auto_promote: bool
    """A model that passes the gates goes into production at once; false: it becomes the candidate."""
    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None
    """Name in MLflow's registry; null: efface-, the benchmark, and the base model's name."""
    retrained: bool
    """Train the yardstick of each run too, the base model on the people to keep: costs a fine-tuning."""
    gates: Gates

    @model_validator(mode="after")
    def _a_gap_has_a_yardstick(self) -> Requests:
        if self.gates.relearn_gap_at_most is not None and not self.retrained:
            raise ValueError(
                "gates.relearn_gap_at_most needs the retrained model: expected null, or set retrained to true"
            )
        return self
