"""DVC projects beside the main one that share its cache: a study's cells, the runs of requests.

DVC remembers in that cache what every stage made of what. So whatever one project has in common with another,
or with the pipeline itself, is computed once, and fetched everywhere else.
"""

from __future__ import annotations

import configparser
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from tasks.config import Params, checked
from tasks.config.file import read_yaml
from tasks.runtime.artifacts import writing

FOLDER = Path(".study")
_CODE = ("efface", "tasks")
_FILES = ("dvc.yaml", ".dvcignore", "data/masks/none.safetensors")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


class StudyError(EffaceError):
    """A study that cannot be run as it is described."""


@dataclass(frozen=True)
class Cell:
    """One run of a study: a world, and in it a method with its settings.

    Attributes:
        seed: draws people, weights and batches.
        fraction: share of the people to forget.
        method: a name under `unlearn.methods` or `prune.methods`; None: the yardsticks of this world.
        settings: values that replace the method's own.
    """

    seed: int
    fraction: float
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> Cell:
        """The cell of the yardsticks that this one is held against."""
        return Cell(self.seed, self.fraction)

    @property
    def attacked(self) -> tuple[str, ...]:
        """The models of the cell that are attacked, where the study attacks."""
        return (self.method,) if self.method else ("vanilla", "retrained")

    @property
    def variant(self) -> str:
        """Method and settings, the same in all worlds: `npo, learning_rate 2e-05`."""
        return ", ".join([self.method or "yardsticks", *(f"{k} {v}" for k, v in self.settings.items())])

    @property
    def name(self) -> str:
        """What the cell is called in tables and in Prefect."""
        return f"seed {self.seed}, forget {self.fraction:g}: {self.variant}"

    @property
    def folder(self) -> Path:
        """Where its files are, in the project."""
        variant = self.variant.replace(", ", "+").replace(" ", "=").replace("/", "_")
        return FOLDER / f"seed-{self.seed}" / f"forget-{self.fraction:g}" / variant


def cells_of(params: Params) -> list[Cell]:
    """All cells of the study that `params.yaml` describes: the yardsticks of every world, then the methods.

    In that order two worlds are made side by side; a method waiting for its world would hold up the next one.
    """
    study = params.study
    methods = [*params.unlearn.methods, *study.methods, *params.prune.methods]
    fractions = study.fractions or [params.prepare.forget_fraction]
    worlds = [Cell(seed, fraction) for seed, fraction in itertools.product(study.seeds, fractions)]
    return worlds + [
        Cell(world.seed, world.fraction, method, settings)
        for world in worlds
        for method in methods
        for settings in _combinations(study.grid.get(method, {}))
    ]


def first_round(cells: Sequence[Cell], params: Params) -> list[Cell]:
    """The cells that do not depend on which settings are chosen: all but those of the seeds past tuning."""
    tuning = params.study.seeds[: params.study.tuning_seeds]
    tried = Counter((cell.seed, cell.fraction, cell.method) for cell in cells)
    return [c for c in cells if c.seed in tuning or tried[c.seed, c.fraction, c.method] == 1]


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def prepare(cell: Cell, params: Params, project: Path = Path()) -> Path:
    """Make the cell's folder a DVC project with the code and settings of now; what it made before stays.

    Returns:
        The folder.

    Raises:
        StudyError: if a setting is none that the method has.
        ParamsError: if a value is not allowed.
    """
    document = values_of(project)
    edits: dict[str, Any] = {"avatars.seed": cell.seed, "prepare.forget_fraction": cell.fraction}
    if cell.method in params.study.methods:
        document["unlearn"]["methods"][cell.method] = document["study"]["methods"].pop(cell.method)
    document["attack"]["models"] = [*cell.attacked] if params.study.attacks else []
    if cell.method is not None:
        kind = "prune" if cell.method in params.prune.methods else "unlearn"
        edits |= {f"{kind}.methods.{cell.method}.{key}": value for key, value in cell.settings.items()}
    document["seed"] = cell.seed
    replace(document, edits)
    return make_project(cell.folder, document, project)


def make_project(
    place: Path, document: Any, project: Path = Path(), *, without: Collection[str] = ()
) -> Path:
    """Make a folder a DVC project with the code of now; what it made before stays.

    Args:
        place: the folder, relative to the project.
        document: what its params.yaml holds, from `values_of`.
        project: whose code and cache it shares.
        without: stages that it does not have, because what they make is put there.

    Returns:
        The folder.

    Raises:
        ParamsError: if a value is not allowed.
    """
    folder = project / place
    folder.mkdir(parents=True, exist_ok=True)
    for name in _CODE:
        with writing(folder / name) as partial:
            shutil.copytree(project / name, partial, ignore=_IGNORED)
    for name in _FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with writing(folder / name) as partial:
            shutil.copyfile(project / name, partial)
    if without:
        _leave_out(folder / "dvc.yaml", without)
    _write_params(document, folder / "params.yaml")
    _write_config(project, folder)
    return folder


def values_of(project: Path) -> dict[str, Any]:
    """What the project's params.yaml holds, to be changed for another one."""
    source = project / "params.yaml"
    return dict(json.loads(_values(source, source.stat().st_mtime_ns)))


def replace(document: dict[str, Any], edits: Mapping[str, Any]) -> None:
    """Put values into a parameter file's document, by dotted key.

    Raises:
        StudyError: if a key is not there.
    """
    for dotted, value in edits.items():
        _replace(document, dotted, value)


def _write_params(document: Any, target: Path) -> None:
    from ruamel.yaml import YAML

    # The values alone: written back with its comments and anchors, a long file does not always read the same.
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    checked(document, target)
    with writing(target) as partial, partial.open("w", encoding="utf-8") as handle:
        yaml.dump(document, handle)


def _leave_out(path: Path, stages: Collection[str]) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    document = yaml.load(path.read_text(encoding="utf-8"))
    for name in stages:
        document["stages"].pop(name)
    document["stages"]["evaluate"]["foreach"].append("original")  # the first vanilla model, put there
    document.pop("plots", None)  # of a report that may not be there
    with writing(path) as partial, partial.open("w", encoding="utf-8") as handle:
        yaml.dump(document, handle)


@lru_cache(maxsize=1)
def _values(source: Path, changed: int) -> str:
    """What a parameter file holds, as JSON, so that nothing is shared inside; reading takes longest."""
    return json.dumps(read_yaml(source))


def _holds(tree: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _replace(tree: Any, dotted: str, value: Any) -> None:
    if not _holds(tree, dotted):
        above, _, key = dotted.rpartition(".")
        raise StudyError(f"study.grid: {above} has no {key!r} in params.yaml; name one of its settings")
    *path, last = dotted.split(".")
    for key in path:
        tree = tree[key]
    tree[last] = value


def _write_config(project: Path, folder: Path) -> None:
    """DVC's settings as in the project, without git, and with the project's cache."""
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        cache = repo.cache.local_cache_dir
    config = configparser.ConfigParser(interpolation=None)
    config.read([project / ".dvc" / "config", project / ".dvc" / "config.local"], encoding="utf-8")
    for section, key, value in (
        ("core", "no_scm", "true"),
        ("core", "autostage", "false"),
        ("cache", "dir", cache),
    ):
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, key, value)
    (folder / ".dvc").mkdir(exist_ok=True)
    with writing(folder / ".dvc" / "config") as partial, partial.open("w", encoding="utf-8") as handle:
        config.write(handle)
