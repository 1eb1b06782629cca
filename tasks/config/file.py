"""Reading params.yaml, and writing a profile into it."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from efface.errors import EffaceError
from tasks.config.root import Params
from tasks.config.section import UNLISTED, Section
from tasks.config.unlearning import UnlearningMethod, method_class, method_names

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")


class ParamsError(EffaceError):
    """Mistakes in params.yaml or a profile, one line each."""

    def __init__(self, path: str | Path, mistakes: Sequence[str]) -> None:
        lines = dict.fromkeys(" ".join(mistake.splitlines()) for mistake in mistakes)
        super().__init__("\n".join(f"{path}: {line}" for line in lines))


def load_params(path: str | Path = PARAMS) -> Params:
    """Read and check the file.

    Raises:
        ParamsError: one line per mistake, with key, value and what is allowed.
    """
    return checked(read_yaml(Path(path)), path)


def checked(values: Mapping[str, Any], path: str | Path = PARAMS) -> Params:
    """The parameters with these values; a key left out has its default.

    Args:
        values: what the file at `path` holds, or will hold.
        path: named in errors.

    Raises:
        ParamsError: one line per mistake, with key, value and what is allowed.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(path, [_line(item) for item in error.errors(include_url=False)]) from None


def use_profile(name: str, project: Path = Path()) -> Params:
    """Write the defaults, overlaid with profiles/NAME.yaml, into params.yaml; its comments stay.

    A path ending in .yaml, such as that of the settings a study chose, is laid over what params.yaml holds.

    Raises:
        ParamsError: if there is no such profile, or it holds a mistake.
    """
    from ruamel.yaml import YAML

    target, profiles = project / PARAMS, {file.stem: file for file in (project / PROFILES).glob("*.yaml")}
    path = project / name if name.endswith(".yaml") else profiles.get(name)
    if path is None:
        raise ParamsError(PROFILES, [f"profile is {name!r}: expected one of: {', '.join(sorted(profiles))}"])
    values = overlaid(read_yaml(target) if name.endswith(".yaml") else default_values(), read_yaml(path))
    params = checked(values, path)
    yaml = YAML()
    yaml.width = 1000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(target.read_text(encoding="utf-8")) if target.is_file() else {}
    _update(document, values)
    with target.open("w", encoding="utf-8") as handle:
        yaml.dump(document, handle)
    return params


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file, read as DVC reads it: 1e-3 is a number, a repeated key an error.

    Raises:
        ParamsError: if the file is missing, not YAML, or not a mapping.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(path, ["no such file; run this in the project's root"]) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(path, [f"not readable as YAML: {' '.join(str(error).split())}"]) from None
    if values is None and path.parent.name == PROFILES.name:
        return {}
    if not isinstance(values, dict):
        raise ParamsError(path, [f"is {_short(values)}: expected sections: {', '.join(Params.model_fields)}"])
    return values


def default_values() -> dict[str, Any]:
    """The defaults of all keys that params.yaml lists."""
    values: dict[str, Any] = _listed(Params())
    return values


def _listed(value: Any) -> Any:
    if isinstance(value, Section):
        fields = type(value).model_fields.items()
        return {key: _listed(getattr(value, key)) for key, field in fields if UNLISTED not in field.metadata}
    return {key: _listed(item) for key, item in value.items()} if isinstance(value, dict) else value


def overlaid(values: Any, override: Any) -> Any:
    """`values` merged with `override`, mapping by mapping; null instead of a mapping removes it."""
    if not (isinstance(values, dict) and isinstance(override, dict)):
        return override
    merged = values | {key: overlaid(values.get(key), value) for key, value in override.items()}
    removed = {key for key in override if override[key] is None and isinstance(values.get(key), dict)}
    return {key: value for key, value in merged.items() if key not in removed}


def _update(document: Any, values: Mapping[str, Any]) -> None:
    """Set these values in a YAML document, in place, keeping the comments of the keys that stay."""
    for key in [key for key in document if key not in values]:
        del document[key]
    for position, (key, value) in enumerate(values.items()):
        if isinstance(value, dict) and value and isinstance(document.get(key), dict):
            _update(document[key], value)
        elif key not in document and document:  # not after the last key: a blank line may follow that one
            document.insert(min(position, len(document) - 1), key, value)
        elif key not in document or document[key] != value:
            document[key] = value


def _line(item: Any) -> str:
    """A mistake reported by pydantic as one line with key, value and what is allowed."""
    where = [str(part) for part in item["loc"] if part != "[key]"]
    key, kind = ".".join(where), item["type"]
    if (
        kind == "value_error"
    ):  # raised by our own checks: the message begins with the key, relative to `where`
        message = str(item["ctx"]["error"])
        above = where[:-1] if where and message.startswith(f"{where[-1]} is") else where
        return ".".join([*above, message])
    if kind == "extra_forbidden":
        allowed_keys = _keys_at(where[:-1])
        suggestions = difflib.get_close_matches(where[-1], allowed_keys, n=3, cutoff=0.5) or allowed_keys
        return f"{key} is {_short(item['input'])}: unknown key; expected one of: {', '.join(suggestions)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("model_type", "dict_type"):
        return f"{key} is {_short(item['input'])}: expected a mapping"
    allowed = item["msg"].replace("Input should be", "expected").replace("String should", "expected to")
    allowed = re.sub("expected (greater|less)", r"expected a number \1", allowed)
    return f"{key} is {_short(item['input'])}: {allowed}"


def _keys_at(where: Sequence[str]) -> list[str]:
    """Keys that a mapping in params.yaml may have."""
    if len(where) == 2 and where[1] == "methods" and where[0] in ("unlearn", "study"):
        return method_names()
    if len(where) == 3 and where[1] == "methods" and where[0] in ("unlearn", "study"):
        return list((method_class(where[2]) if where[2] in method_names() else UnlearningMethod).model_fields)
    section: type[BaseModel] | None = Params
    for part in where:
        field = section.model_fields.get(part) if section else None
        section = _section_in(field.annotation) if field else section  # a name of one's own
    return list(section.model_fields) if section else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a type such as `Lora | None` or `dict[str, PruningMethod]` holds."""
    for option in (annotation, *typing.get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
