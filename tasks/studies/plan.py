"""The plan of a study: its methods, the control of each, and the settings to try."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efface.errors import EffaceError
from tasks.config import Params


@dataclass(frozen=True)
class StudyMethod:
    """One method of a study.

    Attributes:
        kind: the section of params.yaml and the stage, `unlearn` or `prune`.
        entry: what to set in that section, for a method that params.yaml does not list there.
        settings: values to try instead of the entry's own, at least one.
        needs: stages whose failure it shares: those of its mask or importance, and of its start model.
    """

    kind: str
    entry: Mapping[str, Any]
    settings: Sequence[Mapping[str, Any]]
    needs: frozenset[str]


@dataclass(frozen=True)
class StudyPlan:
    """The methods by name, in display order, and method to control."""

    methods: Mapping[str, StudyMethod]
    controls: Mapping[str, str]

    @property
    def tried(self) -> int:
        """Number of settings to try per method; 1: nothing is chosen."""
        return max(len(method.settings) for method in self.methods.values())


def plan_of(params: Params) -> StudyPlan:
    """The methods of params.yaml, with a control added for each method that has none.

    The control of a method with a saliency mask is the same method with a random mask of equal density, as
    ``METHOD_random_mask``; that of a pruning method is random pruning.

    Raises:
        EffaceError: if there are fewer people than folds, or methods have different numbers of settings.
    """
    study, methods, controls = params.study, dict[str, StudyMethod](), dict[str, str]()
    if params.benchmark.name == "avatars" and (study.folds or 0) > params.avatars.people:
        raise EffaceError(
            f"study.folds is {study.folds}: expected at most {params.avatars.people}, the number of people "
            "(avatars.people)"
        )
    random = [name for name, entry in params.prune.methods.items() if entry.selection == "random"]
    for name, entry in {**params.unlearn.methods, **study.methods}.items():
        whole = entry.model_dump(mode="json", exclude_unset=True)
        own = {} if name in params.unlearn.methods else whole
        methods[name] = _method("unlearn", own, study.grid.get(name, {}), entry)
        if entry.mask == "saliency":
            control = controls[name] = f"{name}_random_mask"
            if control not in params.unlearn.methods and control not in study.methods:
                grid = study.grid.get(control) or study.grid.get(name, {})
                replaced = entry.model_copy(update={"mask": "random"})
                methods[control] = _method("unlearn", whole | {"mask": "random"}, grid, replaced)
    for name, section in params.prune.methods.items():
        methods[name] = _method("prune", {}, study.grid.get(name, {}), section)
        if section.selection != "random":
            control = controls[name] = random[0] if random else f"{name}_random"
            if control not in params.prune.methods:
                whole = section.model_dump(mode="json", exclude_unset=True) | {"selection": "random"}
                grid = study.grid.get(control) or study.grid.get(name, {})
                methods[control] = _method("prune", whole, grid, section)
    plan = StudyPlan(methods, controls)
    _check_budget(plan)
    return plan


def _method(kind: str, entry: Mapping[str, Any], grid: Mapping[str, list[Any]], section: Any) -> StudyMethod:
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    needs = {"importance"} if kind == "prune" else set()
    if kind == "unlearn":
        needs |= {section.start.replace("unlearned/", "")} - {"vanilla"}
        if section.mask != "none":
            needs |= {"saliency"} | ({section.mask} - {"saliency"})
    return StudyMethod(kind, entry, settings, frozenset(needs))


def _check_budget(plan: StudyPlan) -> None:
    counts = {name: len(method.settings) for name, method in plan.methods.items()}
    fewer = {name: count for name, count in counts.items() if count != plan.tried}
    if fewer and not all(count == 1 and not _trains(name, plan) for name, count in fewer.items()):
        raise EffaceError(
            f"study.grid has {plan.tried} settings of some methods and "
            f"{', '.join(f'{count} of {name}' for name, count in fewer.items())}: expected as many of each"
        )


def _trains(name: str, plan: StudyPlan) -> bool:
    """Whether a method has settings to try; a method that only changes the prompt has none."""
    from efface.unlearning import METHODS

    method = plan.methods[name]
    code = METHODS.get(method.entry.get("method", name))
    return method.kind == "prune" or code is None or code.trains


def settings_file(params: Params, plan: StudyPlan, selected: Mapping[str, int]) -> dict[str, Any]:
    """The chosen settings in the form of params.yaml, for the methods that it lists."""
    sections: dict[str, Any] = {"unlearn": params.unlearn.methods, "prune": params.prune.methods}
    values: dict[str, Any] = {}
    for name, index in selected.items():
        method = plan.methods[name]
        place = method.kind if name in sections[method.kind] else "study"
        listed = place != "study" or name in params.study.methods
        if listed and method.settings[index]:
            values.setdefault(place, {}).setdefault("methods", {})[name] = dict(method.settings[index])
    return values
