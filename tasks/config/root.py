"""All of params.yaml as one frozen class, and the checks across its sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from efface.data.benchmarks import FRACTIONS
from efface.evaluation import REFERENCE_MODELS
from tasks.config.attribution import Importance, Saliency
from tasks.config.data import Avatars, Benchmark, Prepare, Split
from tasks.config.evaluation import Attack, Evaluate, LmmsEval, Report
from tasks.config.models import Base, Finetune, Retrained, Vanilla
from tasks.config.pruning import Prune
from tasks.config.requests import Requests
from tasks.config.section import Section
from tasks.config.study import Study
from tasks.config.unlearning import Unlearn

SHARED_MODELS = ("base", "vanilla")
"""Models that, like their answers, do not depend on who is forgotten."""
ORIGINAL = "original"
"""Name of the first vanilla model in a run of requests, where vanilla is the model in production."""


class Params(Section):
    """All of params.yaml. `Params()` is the laptop profile."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of training and drawing."""
    avatars: Avatars = Avatars()
    benchmark: Benchmark = Benchmark()
    prepare: Prepare = Prepare()
    split: Split = Split()
    base: Base = Base()
    finetune: Finetune = Finetune()
    vanilla: Vanilla = Vanilla()
    retrained: Retrained = Retrained()
    saliency: Saliency = Saliency()
    importance: Importance = Importance()
    unlearn: Unlearn = Field(default_factory=Unlearn)
    prune: Prune = Prune()
    evaluate: Evaluate = Evaluate()
    attack: Attack = Attack()
    lmms_eval: LmmsEval = LmmsEval()
    report: Report = Report()
    study: Study = Study()
    requests: Requests = Requests()

    @property
    def models(self) -> dict[str, str]:
        """Name of every model that is evaluated to its folder under data/models."""
        methods = (*self.unlearn.methods, *self.prune.methods)
        return {name: name for name in REFERENCE_MODELS} | {name: f"unlearned/{name}" for name in methods}

    def evaluation_of(self, model: str) -> str:
        """The stage of dvc.yaml that evaluates a model."""
        if model in self.unlearn.methods:
            return f"evaluate_unlearned@{model}"
        return f"evaluate_pruned@{model}" if model in self.prune.methods else f"evaluate@{model}"

    @model_validator(mode="after")
    def _the_benchmark_has_this_fraction(self) -> Params:
        fractions = FRACTIONS.get(self.benchmark.name)
        if fractions is not None and self.split.forget_fraction not in fractions:
            raise ValueError(
                f"split.forget_fraction is {self.split.forget_fraction}: expected one of "
                f"{', '.join(map(str, fractions))} for benchmark.name {self.benchmark.name}"
            )
        return self

    @model_validator(mode="after")
    def _method_names_differ(self) -> Params:
        for key, first, second in (
            ("prune.methods", self.prune.methods, self.unlearn.methods),
            ("study.methods", self.study.methods, {**self.unlearn.methods, **self.prune.methods}),
        ):
            for name in first:
                if name in second or name in REFERENCE_MODELS:
                    raise ValueError(f"{key}.{name}: expected a name that no other model has")
        return self

    @model_validator(mode="after")
    def _masks_and_starts_exist(self) -> Params:
        masks = ["saliency", "none", "retain_statistic", *self.saliency.controls]
        starts = ["vanilla", *(f"unlearned/{name}" for name in self.prune.methods)]
        for name, method in self.unlearn.methods.items():
            for key, value, allowed in (("mask", method.mask, masks), ("start", method.start, starts)):
                if value not in allowed:
                    raise ValueError(
                        f"unlearn.methods.{name}.{key} is {value!r}: expected one of: {', '.join(allowed)}"
                        + (" (saliency.controls adds masks)" if key == "mask" else "")
                    )
            starts.append(f"unlearned/{name}")
        return self

    @model_validator(mode="after")
    def _named_models_and_methods_exist(self) -> Params:
        methods = [*self.unlearn.methods, *self.prune.methods]
        for key, names, allowed in (
            ("attack.models", self.attack.models, list(self.models)),
            ("lmms_eval.models", self.lmms_eval.models, list(self.models)),
            ("study.grid", self.study.grid, [*methods, *self.study.methods]),
            ("requests.method", [self.requests.method], methods),
        ):
            for name in names:
                if name not in allowed:
                    raise ValueError(f"{key} is {name!r}: expected one of: {', '.join(allowed)}")
        method = self.unlearn.methods.get(self.requests.method)
        if method is not None and method.start != "vanilla":
            raise ValueError(
                f"requests.method is {self.requests.method!r}, which starts from {method.start}: expected a "
                "method that starts from vanilla"
            )
        return self
