"""The section about requests to be forgotten: docs/how-to/requests.md."""

from __future__ import annotations

from typing import Annotated, Literal

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
    """Exact match on real people and general skills, as a share of the vanilla model's; 0: no condition."""
    knowledge_at_most: Level | None = 0.35
    """Probability of each request's facts, as a share of the way from a model that never met the people
    (retrained where it is trained, else base) to vanilla; knowing less than the former counts alike. By
    picture, and by name too where `unlearn.forget` has text. null: no condition, as below."""
    membership_at_most: Annotated[Level | None, UNLISTED] = 0.8
    """AUC of telling each request's people from holdout people, whom no model met; 0.5 is ideal. Without
    holdout people there is no condition."""
    tpr_at_most: Annotated[Level | None, UNLISTED] = 0.4
    """True-positive rate of the same attack at a false-positive rate of 1 %."""
    relative_p_at_most: Annotated[Level | None, UNLISTED] = None
    """p value of the test that the new model is nearer to one that never met the people than to vanilla. With
    n people it is at best 2 / 2**n, so few people cannot pass a small limit."""
    neighbours_at_least: Annotated[Weight | None, UNLISTED] = 0.8
    """Exact match on the five retain people who share most facts with a request's people, as a share of
    vanilla's."""
    relearn_gap_at_most: Annotated[Level | None, UNLISTED] = None
    """Exact match by picture after the longest relearning of `attack.relearn`, minus the retrained model's.
    Needs `retrained: true`, which trains that model in each run; null: no condition."""


class Requests(Section):
    """python -m flows.requests: make the model in production forget the people who ask for it."""

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
    served_bits: Annotated[Literal[8, 4] | None, UNLISTED] = None
    """Bits of the weights as the model is served, where it is quantised for that: the gate on forgetting must
    hold then too; null: it is served as it is."""
    release: Annotated[str | None, UNLISTED] = None
    """Who can use the model, and how, for the certificate: weights in the office, answers to the public."""
    largest_share: Annotated[Weight, UNLISTED] = 0.2
    """Share of the people that one request may name before it needs a confirmation."""
    recipients: Annotated[list[str], UNLISTED] = []
    """Who received the data or the model and is to be told of each request that is done."""
    timestamp_server: Annotated[Annotated[str, Field(pattern=r"^https?://\S+$")] | None, UNLISTED] = None
    """Address of a time stamp server (RFC 3161) that stamps each certificate; its root certificates belong in
    data/requests/certificates/timestamp_roots.pem. Needs the extra timestamps; null: no stamps."""
    purge_after_days: Annotated[Annotated[int, Field(ge=0)] | None, UNLISTED] = None
    """Days after promotion on which the deployed flow deletes the data of a request's people, and models that
    know them; 0: with its next run; null: only the command `purge` does."""
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _a_gap_needs_the_retrained_model(self) -> Requests:
        if self.gates.relearn_gap_at_most is not None and not self.retrained:
            raise ValueError(
                f"gates.relearn_gap_at_most is {self.gates.relearn_gap_at_most}: expected null where "
                "retrained is false"
            )
        return self
