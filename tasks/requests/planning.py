"""What the next run of requests is to do: whom to forget, from which model, and in which folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.errors import ArtifactError
from tasks.config import Params
from tasks.requests.intake import ForgetRequest, People, RequestError, read_requests
from tasks.requests.registry import CANDIDATE, PRODUCTION, Logged, Registry, Version
from tasks.requests.state import Outcome, agreed, read_outcomes
from tasks.runtime.artifacts import digest, writing
from tasks.runtime.results import project_of

RUNS = Path(".requests")
"""Folders of the runs, in the project."""
VANILLA = Path("data/models/vanilla")
ORIGINAL = "original"
"""Name of the first vanilla model, where another model is in production."""


@dataclass(frozen=True)
class Desk:
    """All requests, and what the registry says has become of them."""

    requests: dict[str, ForgetRequest]
    """By id, the one due first first."""
    outcomes: dict[str, Outcome]
    problems: dict[str, str]
    """Request to why it cannot be honoured as it stands."""
    meant: dict[str, list[str]]
    """Pending request to its people."""

    @property
    def pending(self) -> list[str]:
        """Requests that can be taken up, the one due first first."""
        return list(self.meant)

    def with_status(self, status: str) -> dict[str, list[str]]:
        """Requests of that status and their people."""
        return {r: outcome.subjects for r, outcome in self.outcomes.items() if outcome.status == status}


@dataclass(frozen=True)
class Plan:
    """One run."""

    run: str
    batch: dict[str, list[str]]
    """Request to the entity ids of its people."""
    earlier: dict[str, list[str]]
    """The same of the requests that the production model has forgotten."""
    start: Version
    start_folder: Path
    original: Version
    original_folder: Path
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, str]:
        """Name of a yardstick in the scores to its folder under data/models in the run's folder."""
        same = self.start.number == self.original.number
        return {"before": "vanilla", ORIGINAL: "vanilla" if same else ORIGINAL}


def registry_of(params: Params, root: Path) -> Registry:
    """The registered model of the base model and benchmark that the parameters name."""
    benchmark = params.benchmark.name
    name = params.requests.registered_model
    if name is None:
        name = f"efface-{benchmark}-{params.base.source.rstrip('/').rpartition('/')[2]}"
    return Registry(project_of(root), name, f"efface-{benchmark}-requests")


def look(root: Path, production: Collection[int] | None = None, candidate: int | None = None) -> Desk:
    """Read all requests and check those that are pending.

    Args:
        root: the data folder.
        production: version in production and those it was made from; None: what is on disk is believed.
        candidate: version that waits to be promoted.

    Raises:
        ArtifactError: if nothing is prepared, or the state of a request is damaged.
    """
    requests, problems = read_requests(root)
    outcomes = read_outcomes(root)
    outcomes = outcomes if production is None else agreed(outcomes, production, candidate)
    people, meant = People.of(root), dict[str, list[str]]()
    taken = {
        person: request for request, outcome in outcomes.items() for person in outcome.subjects
    }  # by requests that are done or at least begun
    for name, request in requests.items():
        if name in outcomes:
            continue
        try:
            found = people.meant_by(request)
            _must_be_free(name, found, taken, outcomes)
        except RequestError as error:
            problems[name] = str(error)
            continue
        meant[name] = found
        taken |= dict.fromkeys(found, name)
    return Desk(requests, outcomes, problems, meant)


def _must_be_free(
    name: str, people: list[str], taken: Mapping[str, str], outcomes: Mapping[str, Outcome]
) -> None:
    for person in people:
        other = taken.get(person)
        if other is None:
            continue
        if other in outcomes and outcomes[other].status == "done":
            raise RequestError(
                f"request {name}: {person} is forgotten already, with request {other} (version "
                f"{outcomes[other].version}); take them out of this one"
            )
        raise RequestError(
            f"request {name}: {person} is named by request {other} too; expected one request for one person: "
            "take them out of one of the two"
        )


def must_fit(root: Path, request: ForgetRequest) -> None:
    """Refuse a new request that could not be taken up.

    Raises:
        RequestError: if it names somebody unknown, forgotten already, or named by another request.
    """
    desk = look(root)
    taken = {person: name for name, outcome in desk.outcomes.items() for person in outcome.subjects}
    taken |= {person: name for name, people in desk.meant.items() for person in people}
    _must_be_free(request.id, People.of(root).meant_by(request), taken, desk.outcomes)


def plan(
    params: Params, root: Path, registry: Registry, *, only: Collection[str] = ()
) -> Plan | dict[str, str]:
    """What to do next; if there is nothing, what is wrong with the requests that could not be taken up.

    Pending requests come in the order in which they are due, and with them those whose candidate was not
    promoted: the production model has not forgotten them.

    Args:
        params: the whole file.
        root: the data folder.
        registry: the registered model; the vanilla model becomes its first version.
        only: ids to take up; empty: as many as `requests.batch_size`.

    Raises:
        RequestError: if one of `only` is not pending, or nobody would be left to keep.
        RegistryError: if MLflow does not answer.
        ArtifactError: if the model in production is nowhere to be found.
    """
    production = registry.pointed(PRODUCTION) or _register_vanilla(params, root, registry).number
    lineage = registry.lineage(production)
    desk = look(root, lineage, registry.pointed(CANDIDATE))
    if unknown := sorted(set(only) - set(desk.pending)):
        reasons = [desk.problems.get(name, f"request {name} is not pending") for name in unknown]
        raise RequestError("\n".join(reasons))
    chosen = [name for name in desk.pending if not only or name in only][: params.requests.batch_size]
    if not chosen:
        return desk.problems
    batch = desk.with_status("candidate") | {name: desk.meant[name] for name in chosen}
    earlier = desk.with_status("done")
    gone = {person for people in (*batch.values(), *earlier.values()) for person in people}
    if not People.of(root).everybody - gone:
        raise RequestError(
            f"requests {', '.join(batch)} ask to forget everybody there is, so nothing would be left to "
            "keep; train a new model without these people instead"
        )
    start, original = lineage[production], list(lineage.values())[-1]
    return Plan(
        run=_run_name(chosen[0], start, batch, params, root),
        batch=batch,
        earlier=earlier,
        start=start,
        start_folder=model_folder(start, root, registry),
        original=original,
        original_folder=model_folder(original, root, registry),
        problems=desk.problems,
    )


def _run_name(first: str, start: Version, batch: Mapping[str, list[str]], params: Params, root: Path) -> str:
    """The same as long as nothing was certified since, so that a run that was cut short is taken up."""
    from tasks.requests.certificates import read_certificates

    certified = [each["digest"] for each in read_certificates(root)]
    basis = [start.digest, batch, params.requests.method, certified[-1:]]
    return f"{first}-{hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:8]}"


def _register_vanilla(params: Params, root: Path, registry: Registry) -> Version:
    folder = project_of(root) / VANILLA
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} does not exist: the first model in production is the vanilla one; make or restore it "
            "with: dvc repro vanilla"
        )
    same = [version for version in registry.versions().values() if not version.run]
    version = Version(0, digest(folder), VANILLA.as_posix(), run="")
    if same and same[-1].digest != version.digest:
        raise ArtifactError(
            f"{registry.name} has a vanilla version ({same[-1].number}) of other weights than {folder}, and "
            f"none of its versions is called {PRODUCTION}; give one that alias in MLflow, or set "
            "requests.registered_model to a new name"
        )
    base = {"efface.base": f"{params.base.source}@{params.base.revision or 'newest'}"}
    made = registry.register(
        version,
        Logged("Vanilla: the base model fine-tuned on everybody; nobody is forgotten.", base, {}, {}, ()),
    )
    registry.point(PRODUCTION, made.number)
    return made


def model_folder(version: Version, root: Path, registry: Registry) -> Path:
    """A folder with that version's model, digest checked: where it was made, or fetched from MLflow.

    Raises:
        ArtifactError: if it is in neither place.
    """
    project = project_of(root)
    fetched = project / RUNS / "models" / version.digest[:16]
    for folder in (project / version.folder, fetched / "model"):
        if folder.is_dir() and digest(folder) == version.digest:
            return folder
    folder = registry.fetch(version, fetched)
    if digest(folder) != version.digest:
        raise ArtifactError(
            f"version {version.number} of {registry.name} is no longer what was registered: expected "
            f"{version.digest[:12]} at {project / version.folder} and in MLflow; restore it with: "
            f"dvc checkout --force (in {_dvc_project(version)})"
        )
    return folder


def _dvc_project(version: Version) -> str:
    return (RUNS / version.run).as_posix() if version.run else "the project"


def edits(made: Plan, params: Params) -> dict[str, Any]:
    """The run's own values of params.yaml, by dotted key."""
    _, method = method_of(params)
    to_forget = sorted(person for people in made.batch.values() for person in people)
    before = sorted(person for people in made.earlier.values() for person in people)
    most = params.evaluate.max_people
    attacks = {"attack.models": [method, "retrained"], "attack.run": ["relearn"]} if _relearns(params) else {}
    return {
        "prepare.forget_people": to_forget,
        "prepare.forgotten_people": before or None,
        "prepare.validation_fraction": 0.0,  # everybody to forget is asked about
        "evaluate.max_people": None if most is None else max(most, len(to_forget) + len(before)),
        **attacks,
    }


def _relearns(params: Params) -> bool:
    return params.requests.gates.relearn_gap_at_most is not None


def method_of(params: Params) -> tuple[str, str]:
    """`unlearn` or `prune`, and the method's name."""
    name = params.requests.method
    return ("unlearn" if name in params.unlearn.methods else "prune"), name


def targets(made: Plan, params: Params) -> dict[str, list[str]]:
    """Stages of the run in steps: what makes the new model, what scores it and others, what attacks it."""
    kind, method = method_of(params)
    scored = [method, *dict.fromkeys({"before": "vanilla", ORIGINAL: made.models[ORIGINAL]}.values())]
    if params.requests.retrained:
        scored.append("retrained")
    steps = {"unlearn": [f"{kind}@{method}"], "evaluate": [params.evaluation_of(name) for name in scored]}
    return steps | ({"attack": [f"attack@{method}", "attack@retrained"]} if _relearns(params) else {})


def left_out(params: Params) -> list[str]:
    """Stages a run does not have: the models they make are given to it."""
    return ["base", "vanilla", "report", *([] if params.requests.retrained else ["retrained"])]


def give_models(made: Plan, params: Params, root: Path) -> None:
    """Put the production model, the first vanilla one and, if needed, the base model into the run's folder.

    Raises:
        ArtifactError: if the base model is not there.
    """
    folder = project_of(root) / RUNS / made.run / "data" / "models"
    given = {"vanilla": made.start_folder}
    if made.models[ORIGINAL] == ORIGINAL:
        given[ORIGINAL] = made.original_folder
    if params.requests.retrained:
        given["base"] = root / "models" / "base"
    for name, source in given.items():
        if not source.is_dir():
            raise ArtifactError(f"{source} does not exist; make or restore it with: dvc repro {name}")
        place = folder / name
        if place.is_dir() and digest(place) == digest(source):
            continue
        with writing(place) as partial:
            shutil.copytree(source, partial, copy_function=_link)


def _link(source: str, target: str) -> None:
    """Share the bytes where the disk can: a stage never changes a model that it reads."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
