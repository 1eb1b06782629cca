"""Read params.yaml and its profiles, before the classes of tasks/config check the values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.config.errors import ParamsError

SANDBOX = ("quick", "laptop", "study")
"""Profiles of the embedded benchmark."""
PUBLISHED = ("mllmu-llava-1.5-7b", "mllmu-qwen2-vl-7b", "clear-llava-1.5-7b", "clear-qwen2-vl-7b")
"""Profiles of published benchmarks and models; docs/reproducing-the-papers.md."""
PROFILES = (*SANDBOX, *PUBLISHED)


def read(path: Path, sections: Sequence[str]) -> dict[str, Any]:
    """What the file holds.

    Raises:
        ParamsError: if it is missing, is not YAML or is no mapping.
    """
    # The parser DVC uses: it reads 1e-3 as a number and refuses a key given twice, which PyYAML does not.
    from ruamel.yaml import YAML, YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(
            path, ["no such file; run this from the project's root, where params.yaml is"]
        ) from error
    except (YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise ParamsError(path, [f"not readable as YAML: {what}"]) from error
    if not isinstance(data, dict):
        raise ParamsError(path, [f"expected sections ({', '.join(sections)}), got {type(data).__name__}"])
    return data


def profiles_of(data: dict[str, Any], path: str | Path, sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The overrides of each profile; every profile lists every section, so DVC can track each of them."""
    given = data.get("profiles")
    if not isinstance(given, dict):
        raise ParamsError(
            path, [f"profiles is missing: expected {', '.join(PROFILES)}, each with every section"]
        )
    profiles = _by_name(given)
    mistakes = [
        f"profiles.{name} is missing: add it with every section" for name in PROFILES if name not in profiles
    ]
    for name, overrides in profiles.items():
        if name not in PROFILES:
            mistakes.append(f"profiles.{name} is not a known profile; allowed: {', '.join(PROFILES)}")
        elif not isinstance(overrides, dict):
            mistakes.append(
                f"profiles.{name} is {overrides!r}: expected every section, each with its overrides or {{}}"
            )
        else:
            mistakes += _profile_mistakes(f"profiles.{name}", overrides, sections)
    if mistakes:
        raise ParamsError(path, mistakes)
    return profiles


def _by_name(profiles: dict[str, Any]) -> dict[str, Any]:
    """Profiles by their names. DVC takes a dot in a name for a level, so the file writes it as one."""
    found: dict[str, Any] = {}
    for key, value in profiles.items():
        dotted = any(name.startswith(f"{key}.") for name in PROFILES) and isinstance(value, dict)
        found |= {f"{key}.{inner}": each for inner, each in value.items()} if dotted else {key: value}
    return found


def _profile_mistakes(where: str, overrides: dict[str, Any], sections: Sequence[str]) -> list[str]:
    mistakes = [f"{where}.{key} is missing: add `{key}: {{}}`" for key in sections if key not in overrides]
    for key, section in overrides.items():
        if key not in sections:
            mistakes.append(f"{where}.{key} is not a section; allowed: {', '.join(sections)}")
        elif not isinstance(section, dict):
            mistakes.append(f"{where}.{key} is {section!r}: expected keys to replace, or {{}}")
    return mistakes


def for_sections_only(name: str, overrides: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """Mistakes of a profile that replaces what only the sections may say."""
    # These shape dvc.yaml (which stages there are, what they read), and dvc.yaml reads the sections only.
    fixed = ["avatars.profile", "evaluate.models", "attack.models"]
    for kind in ("unlearn", "prune"):
        methods = overrides[kind].get("methods") or {}
        fixed += [f"{kind}.methods.{name}.{key}" for name in methods for key in ("mask", "start")]
        fixed += [f"{kind}.methods.{name}" for name in methods if not _has(data, f"{kind}.methods.{name}")]
    return [
        f"profiles.{name}.{key} is for the section only, not for a profile; set {key} instead"
        for key in sorted(fixed)
        if _has(overrides, key)
    ]


def _has(tree: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def merged(base: Any, override: Any) -> Any:
    """`base` with the values of `override`, mapping by mapping; nothing else is merged.

    Roots are replaced as a whole: those of one benchmark are not those of another.
    """
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    return {
        **base,
        **{
            key: merged(base[key], value) if key in base and key != "roots" else value
            for key, value in override.items()
        },
    }
