"""Request files: one YAML file per request in data/requests, written by `add` or by hand, never rewritten."""

from __future__ import annotations

import datetime as dt
import errno
import fnmatch
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efface.data.names import name_key, resolve_people
from efface.errors import DataError, EffaceError
from tasks.runtime.results import read_splits

FOLDER = Path("requests")
"""Under the data folder."""
_LARGEST_FILE = 1 << 20
_DEEPEST = 4
_LINE = r"[^\p{Cc}\p{Zl}\p{Zp}\u202A-\u202E\u2066-\u2069]*"
Text = Annotated[str, Field(min_length=1, max_length=1000, pattern=rf"^{_LINE}[^\s\p{{C}}]{_LINE}$")]
"""One line of text without control characters, among them those that reverse what a reader sees."""


class RequestError(EffaceError):
    """A request that cannot be carried out as it stands."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Selector(_Section):
    """People by pattern instead of by id; shell patterns with * and ?."""

    id: Text | None = None
    """Pattern of the entity id: fictitious/04?"""
    name: Text | None = None
    """Pattern of the name: *Marlow"""

    @model_validator(mode="after")
    def _has_a_pattern(self) -> Selector:
        if self.id is None and self.name is None:
            raise ValueError("it is empty: expected id, name or both")
        return self


class ForgetRequest(_Section):
    """A request to forget people."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The file's name without .yaml."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """People by entity id, as in data/prepared/splits.json (fictitious/042), or by name."""
    selector: Selector | None = None
    """Instead of `subjects`."""
    attributes: Annotated[list[Text], Field(min_length=1)] | None = None
    """Only these facts of them (column attribute: birthplace), the others are retained; null: all."""
    reason: Text
    legal_basis: Text
    received: dt.date
    due: dt.date
    """The last day on which it may be carried out."""
    requester: Text
    """A reference to the requester: a case number, no name."""

    @model_validator(mode="after")
    def _is_consistent(self) -> ForgetRequest:
        if (self.subjects is None) == (self.selector is None):
            number = "neither" if self.subjects is None else "both"
            raise ValueError(f"it has {number} of subjects and selector: expected one of them")
        if self.subjects is not None and len(set(self.subjects)) < len(self.subjects):
            raise ValueError("subjects names a person twice: expected each once")
        if self.due < self.received:
            raise ValueError(f"due is {self.due}, before received, {self.received}: expected a later day")
        return self


@dataclass(frozen=True)
class People:
    """The people that the model was fine-tuned on."""

    ids: frozenset[str]
    names: Mapping[str, str]

    @classmethod
    def of(cls, root: Path) -> People:
        """The people of the prepared benchmark.

        Raises:
            ArtifactError: if nothing is prepared.
        """
        splits = read_splits(root)
        entities = splits["entities"]
        return cls(frozenset([*entities["forget"], *entities["retain"]]), splits["names"])

    def subjects_of(self, request: ForgetRequest) -> list[str]:
        """Entity ids of the people that a request is about, sorted.

        Ids and names match in any Unicode form, case and spacing.

        Raises:
            RequestError: if it names an unknown person, or its selector matches none.
        """
        if request.subjects is not None:
            try:
                return sorted(set(resolve_people(request.subjects, self.ids, self.names, key="subjects")))
            except DataError as error:
                raise RequestError(f"request {request.id}: {error}; correct the file") from None
        patterns = request.selector or Selector(id="")
        matches = [
            person
            for person in sorted(self.ids)
            if all(
                pattern is None or fnmatch.fnmatchcase(name_key(text), name_key(pattern))
                for pattern, text in ((patterns.id, person), (patterns.name, self.names.get(person, "")))
            )
        ]
        if not matches:
            raise RequestError(
                f"request {request.id}: selector matches none of {len(self.ids)} people; correct the file"
            )
        return matches


def parse_request(values: Mapping[str, Any], source: str) -> ForgetRequest:
    """A request with these values.

    Args:
        values: keys of a request to values.
        source: where they come from, for errors.

    Raises:
        RequestError: with a line for each mistake, naming the key, its value and what is allowed.
    """
    try:
        return ForgetRequest.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            if item["type"] == "value_error":
                lines.append(f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"]))
            elif item["type"] == "missing":
                lines.append(f"{key} is missing")
            elif item["type"] == "extra_forbidden":
                lines.append(f"{key} is an unknown key; allowed: {', '.join(ForgetRequest.model_fields)}")
            else:
                lines.append(f"{key} is {item['input']!r:.80}: {item['msg'][0].lower()}{item['msg'][1:]}")
        raise RequestError("\n".join(f"{source}: {line}" for line in lines)) from None


def read_request(path: Path) -> ForgetRequest:
    """The request in a file.

    Raises:
        RequestError: if it cannot be read, or is not a request.
    """
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.events import AliasEvent

    yaml = YAML(typ="safe", pure=True)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise RequestError(f"{path} has {path.stat().st_size} bytes, expected at most {_LARGEST_FILE}")
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text):  # building the values first could take all memory
            kind = type(event).__name__
            depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
            if isinstance(event, AliasEvent) or depth > _DEEPEST + 2:  # beside the stream and the document
                raise RequestError(f"{path} has aliases or more than {_DEEPEST} levels; write the values out")
        values = yaml.load(text)
    except RequestError:
        raise
    except (YAMLError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{path} is not readable as YAML ({reason:.200}); correct it") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path}: expected keys such as id and subjects, got {type(values).__name__}")
    request = parse_request({str(key): value for key, value in values.items()}, str(path))
    if request.id != path.stem:
        raise RequestError(f"{path}: id is {request.id!r}, expected the file's name, {path.stem!r}")
    return request


def read_requests(root: Path) -> tuple[dict[str, ForgetRequest], dict[str, str]]:
    """All requests by id, the earliest due date first; and the reasons why others cannot be read."""
    requests, problems = [], {}
    for path in sorted((root / FOLDER).glob("*")):
        if path.suffix != ".yaml":
            if path.suffix.lower() in (".yaml", ".yml") and not path.with_suffix(".yaml").exists():
                problems[path.stem] = f"{path} ends in {path.suffix}; rename it to {path.stem}.yaml"
            continue
        try:
            requests.append(read_request(path))
        except RequestError as error:
            problems[path.stem] = str(error)
    requests.sort(key=lambda request: (request.due, request.received, request.id))
    return {request.id: request for request in requests}, problems


def write_request(root: Path, request: ForgetRequest) -> Path:
    """Write the file of a new request; of two processes with the same id one fails.

    Raises:
        FileExistsError: if a request of that id exists, or its state does.
    """
    from ruamel.yaml import YAML

    path, state = root / FOLDER / f"{request.id}.yaml", root / FOLDER / "state" / f"{request.id}.json"
    if state.exists():
        raise FileExistsError(errno.EEXIST, "request exists", str(state))
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with partial.open("w", encoding="utf-8") as handle:
        yaml.dump(request.model_dump(exclude_none=True), handle)
    try:
        os.link(partial, path)  # atomic and, unlike renaming, never over another request
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "request exists", str(path)) from None
    finally:
        partial.unlink()
    return path


def unused_ids(root: Path, received: str) -> Iterator[str]:
    """Ids that no request has yet: the day and a number."""
    used = {path.stem for folder in ("", "state") for path in (root / FOLDER / folder).glob("*.*")}
    return (name for number in itertools.count(1) if (name := f"{received}-{number:02}") not in used)
