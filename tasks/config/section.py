"""The base class of every section of params.yaml, and ranges that several sections use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A name that dvc.yaml puts into commands and paths: a lower-case letter, then letters, digits and _."""


def _unique(values: list[Any], info: ValidationInfo) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"{info.field_name} is {values}: expected each value once")
    return values


UNIQUE = AfterValidator(_unique)
"""Annotates a list that holds each value once."""
UNLISTED = "unlisted"
"""Annotates a key that `tasks use` writes into params.yaml only if the profile sets it. DVC must track the
key's whole section, as it tracks single keys only if the file holds them."""


class Section(BaseModel):
    """Frozen, strict, and closed to unknown keys. Defaults are the laptop profile."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )
