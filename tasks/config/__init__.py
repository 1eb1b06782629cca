"""params.yaml as frozen classes, one per section, checked before anything runs.

Every key is spelled out in the file: the classes hold no defaults. A mistake becomes one line that names the
key as it stands in the file, the value found, and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from efface.data.benchmarks import FRACTIONS
from tasks.config.attribution import Importance, Saliency
from tasks.config.data import Avatars, Benchmark, Prepare
from tasks.config.errors import ParamsError, explain
from tasks.config.evaluation import Attack, Evaluate, Report
from tasks.config.file import PROFILES, for_sections_only, merged, profiles_of, read
from tasks.config.models import Base, Finetuning
from tasks.config.pruning import Prune
from tasks.config.requests import Requests
from tasks.config.section import Section
from tasks.config.study import Study
from tasks.config.unlearning import Unlearn

__all__ = [
    "ORIGINAL",
    "PROFILES",
    "SECTIONS",
    "YARDSTICKS",
    "Params",
    "ParamsError",
    "checked",
    "load_params",
]

YARDSTICKS = ("base", "vanilla", "retrained")
ORIGINAL = "original"
"""A model that is given, not made: the first vanilla model, where requests have put another in its place."""


class Params(Section):
    """All of params.yaml with the chosen profile applied."""

    seed: Annotated[int, Field(ge=0)]
    """Seed of training and drawing."""
    avatars: Avatars
    benchmark: Benchmark
    prepare: Prepare
    base: Base
    vanilla: Finetuning
    retrained: Finetuning
    saliency: Saliency
    importance: Importance
    unlearn: Unlearn
    prune: Prune
    evaluate: Evaluate
    attack: Attack
    report: Report
    study: Study
    requests: Requests

    @model_validator(mode="after")
    def _every_mask_is_made(self) -> Params:
        for name, method in self.unlearn.methods.items():
            if method.mask not in ("saliency", "none", *self.saliency.controls):
                raise ValueError(
                    f"unlearn.methods.{name}.mask is {method.mask}: no stage makes that mask; "
                    f"add {method.mask} to saliency.controls"
                )
        return self

    @model_validator(mode="after")
    def _the_benchmark_can_be_split_so(self) -> Params:
        name, known = self.benchmark.name, FRACTIONS.get(self.benchmark.name)
        if known is not None and self.prepare.forget_fraction not in known:
            raise ValueError(
                f"prepare.forget_fraction is {self.prepare.forget_fraction}: expected one of "
                f"{', '.join(map(str, known))}, which {name} has"
            )
        return self

    @model_validator(mode="after")
    def _every_model_is_evaluated(self) -> Params:
        twice = sorted(self.unlearn.methods.keys() & self.prune.methods.keys())
        if twice:
            raise ValueError(
                f"prune.methods.{twice[0]} is also a method of unlearn: both would make "
                f"models/unlearned/{twice[0]}; choose another name"
            )
        folders = {name: name for name in YARDSTICKS}
        folders |= {name: f"unlearned/{name}" for name in (*self.unlearn.methods, *self.prune.methods)}
        for name, folder in folders.items():
            if self.evaluate.models.get(name) != folder:
                raise ValueError(
                    f"evaluate.models must hold every model; add this entry to it: {name}: {folder}"
                )
        for name, folder in self.evaluate.models.items():
            if folder not in (*folders.values(), ORIGINAL):
                raise ValueError(
                    f"evaluate.models.{name} is {folder!r}: no stage makes that model; "
                    f"expected one of: {', '.join(folders.values())}"
                )
        return self

    @model_validator(mode="after")
    def _attacked_models_are_evaluated(self) -> Params:
        for name, folder in self.attack.models.items():
            known = self.evaluate.models.get(name)
            if folder != known:
                wanted = f"{name}: {known}" if known else f"a name of: {', '.join(self.evaluate.models)}"
                raise ValueError(
                    f"attack.models.{name} is {folder!r}: expected an entry of evaluate.models, {wanted}"
                )
        return self

    @model_validator(mode="after")
    def _every_start_is_made(self) -> Params:
        self.unlearn.starts_from(self.prune.methods)
        return self

    @property
    def study_methods(self) -> tuple[str, ...]:
        """All methods that a study can run."""
        return (*self.unlearn.methods, *self.study.extra, *self.prune.methods)

    @model_validator(mode="after")
    def _a_study_names_known_methods(self) -> Params:
        both = sorted(self.study.extra.keys() & self.unlearn.methods.keys())
        if both:
            raise ValueError(
                f"study.extra.{both[0]} is under unlearn.methods too, and a study runs that one; remove one"
            )
        known = self.study_methods
        for key, names in (("methods", self.study.methods or ()), ("grid", self.study.grid)):
            for name in names:
                if name not in known:
                    raise ValueError(f"study.{key} names {name}; expected some of: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _requests_name_a_method(self) -> Params:
        name = self.requests.method
        known = (*self.unlearn.methods, *self.prune.methods)
        if name not in known:
            raise ValueError(f"requests.method is {name!r}: expected one of: {', '.join(known)}")
        method = self.unlearn.methods.get(name)
        if method is not None and method.start != "vanilla":
            raise ValueError(
                f"requests.method is {name}, which starts from {method.start}: expected a method that starts "
                "from vanilla"
            )
        return self


SECTIONS = tuple(name for name in Params.model_fields if name != "seed")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read the file, check all of it (every profile), and return it with the chosen profile applied.

    Raises:
        ParamsError: one line per mistake, naming key, value and what is allowed.
    """
    return checked(read(Path(path), SECTIONS), path)


def checked(data: dict[str, Any], path: str | Path) -> Params:
    """What `load_params` makes of what the file at `path` holds, or will hold.

    Raises:
        ParamsError: one line per mistake, naming key, value and what is allowed.
    """
    profiles = profiles_of(data, path, SECTIONS)
    sections = {key: value for key, value in data.items() if key != "profiles"}
    avatars = sections.get("avatars")
    chosen = avatars.get("profile") if isinstance(avatars, dict) else None
    mistakes: list[str] = []
    loaded: Params | None = None
    for name in sorted(profiles, key=lambda name: name != chosen):  # the chosen one's mistakes come first
        try:
            params = Params.model_validate(merged(sections, profiles[name]))
        except ValidationError as error:
            mistakes += explain(error, Params.model_json_schema(), name, profiles[name])
        else:
            loaded = params if name == chosen else loaded
        mistakes += for_sections_only(name, profiles[name], data)
    if mistakes or loaded is None:
        raise ParamsError(path, mistakes)
    return loaded
