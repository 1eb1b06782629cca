"""Requests as files: one YAML file each in data/requests, written by `add` or by hand, never rewritten."""

from __future__ import annotations

import datetime as dt
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efface.errors import EffaceError
from tasks.runtime.artifacts import writing
from tasks.runtime.results import read_splits

FOLDER = Path("requests")
"""Under the data folder."""
Words = Annotated[str, Field(min_length=1, pattern=r"\S")]


class RequestError(EffaceError):
    """A request that cannot be honoured as it stands; it is kept."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Selector(_Closed):
    """People described instead of listed; each pattern is a shell's: * and ? stand for anything."""

    id: Words | None = None
    """Pattern of the entity id: fictitious/04?"""
    name: Words | None = None
    """Pattern of the name: *Marlow"""

    @model_validator(mode="after")
    def _says_something(self) -> Selector:
        if self.id is None and self.name is None:
            raise ValueError("it is empty: expected id, name or both")
        return self


class ForgetRequest(_Closed):
    """What somebody asks for."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The file's name without .yaml."""
    subjects: Annotated[list[Words], Field(min_length=1)] | None = None
    """Entity ids, as in data/prepared/splits.json: fictitious/042."""
    selector: Selector | None = None
    """In place of `subjects`."""
    reason: Words
    legal_basis: Words
    received: dt.date
    due: dt.date
    """The day by which it must be done."""
    requester: Words
    """A reference to who asked: a case number, no name."""

    @model_validator(mode="after")
    def _names_people_one_way(self) -> ForgetRequest:
        if (self.subjects is None) == (self.selector is None):
            given = "neither" if self.subjects is None else "both"
            raise ValueError(f"it has {given} of subjects and selector: expected one of them")
        if self.subjects is not None and len(set(self.subjects)) < len(self.subjects):
            raise ValueError("subjects names somebody twice: expected each once")
        if self.due < self.received:
            raise ValueError(f"due is {self.due}, before received, {self.received}: expected a later day")
        return self


@dataclass(frozen=True)
class People:
    """Who there is: entity ids of those the model was fine-tuned on, and names."""

    everybody: frozenset[str]
    names: Mapping[str, str]

    @classmethod
    def of(cls, root: Path) -> People:
        """Those of the prepared benchmark.

        Raises:
            ArtifactError: if nothing is prepared.
        """
        splits = read_splits(root)
        entities = splits["entities"]
        return cls(frozenset([*entities["forget"], *entities["retain"]]), splits["names"])

    def meant_by(self, request: ForgetRequest) -> list[str]:
        """Entity ids of the people a request is about, sorted.

        Raises:
            RequestError: if it names somebody unknown, or its selector fits nobody or everybody.
        """
        if request.subjects is not None:
            if unknown := sorted(set(request.subjects) - self.everybody):
                some = ", ".join(sorted(self.everybody)[:3])
                raise RequestError(
                    f"request {request.id}: nobody is called {', '.join(unknown)}; expected entity ids of "
                    f"data/prepared/splits.json such as {some}; correct subjects in the file"
                )
            return sorted(request.subjects)
        selector = request.selector
        found = [person for person in sorted(self.everybody) if selector and self._fits(selector, person)]
        if not found:
            raise RequestError(
                f"request {request.id}: the selector fits none of {len(self.everybody)} people; correct it "
                "in the file"
            )
        return found

    def _fits(self, selector: Selector, person: str) -> bool:
        wanted = ((selector.id, person), (selector.name, self.names.get(person, "")))
        return all(pattern is None or fnmatch.fnmatchcase(text, pattern) for pattern, text in wanted)


def read_request(path: Path) -> ForgetRequest:
    """The request in a file.

    Raises:
        RequestError: if it is not YAML, or not a request.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path} is not readable as YAML ({' '.join(str(error).split())}); correct it"
        ) from error
    if not isinstance(data, dict):
        raise RequestError(f"{path}: expected keys such as id and subjects, got {type(data).__name__}")
    request = made_request(data, str(path))
    if request.id != path.stem:
        raise RequestError(f"{path}: id is {request.id!r}, expected the file's name, {path.stem!r}")
    return request


def made_request(values: Mapping[str, Any], where: str) -> ForgetRequest:
    """A request of these values.

    Raises:
        RequestError: with a line for each mistake, naming the key, its value and what is allowed.
    """
    try:
        return ForgetRequest.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(f"{where}: {_line(each)}" for each in error.errors())) from None


def _line(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "extra_forbidden":
        return f"{key} is an unknown key; allowed: {', '.join(ForgetRequest.model_fields)}"
    return f"{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def read_requests(root: Path) -> tuple[dict[str, ForgetRequest], dict[str, str]]:
    """All requests by id, the one due first first; and those that cannot be read, with the reason."""
    found, broken = {}, {}
    for path in sorted((root / FOLDER).glob("*.yaml")):
        try:
            found[path.stem] = read_request(path)
        except RequestError as error:
            broken[path.stem] = str(error)
    in_order = sorted(found.values(), key=lambda each: (each.due, each.received, each.id))
    return {request.id: request for request in in_order}, broken


def write_request(root: Path, request: ForgetRequest) -> Path:
    """Write a new request's file.

    Raises:
        RequestError: if there is one of that id.
    """
    from ruamel.yaml import YAML

    path = root / FOLDER / f"{request.id}.yaml"
    if path.exists():
        raise RequestError(f"{path} is there already: requests are never rewritten; choose another id")
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with writing(path) as partial, partial.open("w", encoding="utf-8") as handle:
        yaml.dump(request.model_dump(exclude_none=True), handle)
    return path


def next_id(root: Path, received: str) -> str:
    """An id that is free: the day, and a number."""
    taken = {path.stem for path in (root / FOLDER).glob("*.yaml")}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{received}-{n:02}") not in taken)
