"""Did the run work? What a run of the pipeline must show before its comparison means anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from efface.report.measures import Estimates, lookup


@dataclass(frozen=True)
class Target:
    """One thing the models the methods start from must show.

    Attributes:
        meaning: in plain words.
        value: what was measured, by exact match; None where nothing was scored.
        bound: what it is held against.
        at_least: whether the value must be at least the bound, or at most.
    """

    meaning: str
    value: float | None
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the bound."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def targets(estimates: Mapping[str, Estimates], bounds: Mapping[str, float]) -> list[Target]:
    """The targets of a run, with what it reached.

    Args:
        estimates: model -> set -> modality -> measure.
        bounds: ``vanilla_forget``, ``vanilla_unseen``, ``vanilla_text``, ``retrained_forget`` and
            ``skills_kept``, each in [0, 1].
    """

    def exact(model: str, set_name: str, modality: str) -> float | None:
        cell = lookup(estimates[model], set_name, modality, "exact_match")
        return None if cell is None else cell.value

    known = [exact("retrained", "forget", modality) for modality in ("multimodal", "text")]
    skills, before = exact("vanilla", "utility", "multimodal"), exact("base", "utility", "multimodal")
    return [
        Target(
            "vanilla knows the forget people in the pictures it saw",
            exact("vanilla", "forget", "multimodal"),
            bounds["vanilla_forget"],
        ),
        Target(
            "vanilla knows them in pictures it never saw",
            exact("vanilla", "unseen", "multimodal"),
            bounds["vanilla_unseen"],
        ),
        Target("vanilla knows them by name", exact("vanilla", "forget", "text"), bounds["vanilla_text"]),
        Target(
            "retrained, which never met them, does not",
            None if None in known else max(value for value in known if value is not None),
            bounds["retrained_forget"],
            at_least=False,
        ),
        Target(
            "vanilla keeps this share of the base model's skills",
            skills / before if skills is not None and before else None,
            bounds["skills_kept"],
        ),
    ]
