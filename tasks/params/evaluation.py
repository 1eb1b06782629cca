"""The sections about questions to the models and about the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.params.section import Count, Level, Section


class Evaluate(Section):
    """Questions to every model."""

    batch_size: Count
    """Questions answered side by side."""
    max_new_tokens: Count
    """Longest answer, tokens."""
    max_people: Count | None
    """People asked about per set, drawn by the seed; null: everybody."""
    share_prefix: bool
    """Read picture and question once for all answers scored after them, where the family allows it."""
    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]
    """Name in the report: folder under data/models."""


class Targets(Section):
    """What a run must show before its comparison means anything: exact match, in [0, 1]."""

    vanilla_forget: Level
    """Vanilla on the forget people, pictures it saw: at least."""
    vanilla_unseen: Level
    """Vanilla on the forget people, pictures it never saw: at least."""
    vanilla_text: Level
    """Vanilla on the forget people by name: at least."""
    retrained_forget: Level
    """Retrained on the forget people, either modality: at most."""
    skills_kept: Level
    """Vanilla's skills as a share of the base model's: at least."""


class Report(Section):
    """What the report shows."""

    targets: Targets

    gallery_people: Annotated[int, Field(ge=0)]
    """Faces shown with every model's answers."""
