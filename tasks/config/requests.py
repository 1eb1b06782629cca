"""The section about requests to be forgotten: docs/how-to/requests.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tasks.config.section import UNLISTED, Count, Level, Name, Section, Weight


class Gates(Section):
    """Conditions on a new model before it may replace the one in production."""

    forget_at_most: Level = 0.35
    """Exact match by picture on the people of each request, earlier ones included; the higher of the values
    on training pictures and on unseen ones."""
    retain_at_least: Weight = 0.9
    """Exact match on the retain people, as a share of the vanilla model's; 0: no condition."""
    utility_at_least: Weight = 0.9
    """Exact match on real people and general skills, likewise; 0: no condition."""
    relearn_gap_at_most: Annotated[Level | None, UNLISTED] = None
    """Exact match by picture after the longest relearning of `attack.relearn`, above the retrained model's;
    needs `retrained`; null: no condition."""


class Requests(Section):
    """python -m flows.requests: unlearn the people who ask for it from the model in production."""

    method: Name = "mmunlearner"
    """Name under `unlearn.methods` or `prune.methods`; it starts from vanilla, which here is the model in
    production."""
    batch_size: Count = 10
    """Pending requests in one run."""
    auto_promote: bool = False
    """A model that passes the gates goes into production at once; false: it becomes the candidate."""
    registered_model: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None, UNLISTED
    ] = None
    """Name in MLflow's registry; null: efface-, the benchmark, and the base model's name."""
    retrained: Annotated[bool, UNLISTED] = False
    """Train the retrained model of each run too, on the retain people: costs a fine-tuning."""
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _a_gap_needs_the_retrained_model(self) -> Requests:
        if self.gates.relearn_gap_at_most is not None and not self.retrained:
            raise ValueError(
                f"gates.relearn_gap_at_most is {self.gates.relearn_gap_at_most}: expected null where "
                "retrained is false"
            )
        return self
