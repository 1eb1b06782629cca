"""The folder of a run of requests: a DVC project with a copy of the code and the main project's cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.commands import query

_CODE = ("efface", "tasks")
_FILES = (
    ".dvcignore",
    "data/masks/none.safetensors",
    "data/requests/purged.txt",
    ".dvc/config",
    ".dvc/config.local",
)
_RELATIVE = re.compile(r"^(\s*url = )(\.\.?/.*)$", re.MULTILINE)
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def make_project(folder: Path, parameters: Mapping[str, Any], *, without: Collection[str] = ()) -> Path:
    """Make the folder a DVC project, keeping its earlier outputs.

    Args:
        folder: path relative to the project in the current directory.
        parameters: dotted key to value, set in the folder's params.yaml.
        without: stages to omit, because their outputs are put there.

    Returns:
        The folder.
    """
    for name in _CODE:
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(name, folder / name, ignore=_IGNORED)
    for name in filter(lambda name: Path(name).exists(), _FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, folder / name)
        if name.startswith(".dvc/config"):  # an address in it is relative to the main project
            text = _RELATIVE.sub(_absolute, (folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(text, encoding="utf-8")
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    for key, value in parameters.items():
        *sections, last = key.split(".")
        section = params
        for name in sections:
            section = section[name]
        section[last] = value
    yaml.dump(params, folder / "params.yaml")
    stages = yaml.load(Path("dvc.yaml"))
    for name in without:
        del stages["stages"][name]
    evaluated = stages["stages"]["evaluate"]["foreach"]
    evaluated["original"] = {"answers": "models/original"}  # the first vanilla model, which is put there
    stages.pop("plots", None)  # of the report
    yaml.dump(stages, folder / "dvc.yaml")
    cache = query("cache", "dir").strip()
    for setting in (("core.no_scm", "true"), ("core.autostage", "false"), ("cache.dir", cache)):
        query("config", "--local", *setting, folder=str(folder))
    return folder


def _absolute(match: re.Match[str]) -> str:
    return f"{match[1]}{Path('.dvc', match[2]).resolve()}"
