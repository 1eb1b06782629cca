"""Planning the next run of requests: whom it forgets, from which model, and in which folder."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.data.samples import read_labels
from efface.data.splits import attributes_of, check_attributes
from efface.errors import ArtifactError, DataError
from tasks.config import Params
from tasks.config.root import ORIGINAL
from tasks.requests.certificates import read_certificates
from tasks.requests.intake import (
    ForgetRequest,
    People,
    RequestError,
    parse_request,
    read_requests,
    unused_ids,
    write_request,
)
from tasks.requests.state import (
    CANDIDATE,
    PRODUCTION,
    RUNS,
    RequestState,
    read_states,
    reconcile,
)
from tasks.runtime.artifacts import digest, writing
from tasks.runtime.results import project_of
from tasks.tracking.registry import (
    FOLDER,
    REQUESTS,
    RUN,
    ModelPayload,
    Registry,
    Version,
    registered_name,
)
from tasks.tracking.runs import RunPayload, send

VANILLA = Path("data/models/vanilla")


@dataclass(frozen=True)
class Overview:
    """All requests and their states."""

    requests: dict[str, ForgetRequest]
    """By id, the earliest due date first."""
    states: dict[str, RequestState]
    """Of the requests that are not pending."""
    problems: dict[str, str]
    """Request to why it cannot be carried out."""
    pending: dict[str, list[str]]
    """Pending request to its subjects, the earliest due date first."""
    known: dict[str, dict[str, float]]
    """Request to what the production model knew of its people; see `RequestState.known`."""

    def with_status(self, status: str) -> dict[str, list[str]]:
        """Requests of that status and their subjects."""
        return {name: state.subjects for name, state in self.states.items() if state.status == status}


@dataclass(frozen=True)
class Plan:
    """One run."""

    run: str
    batch: dict[str, list[str]]
    """Request to the entity ids of its subjects."""
    earlier: dict[str, list[str]]
    """The same for the requests that the production model carries out."""
    attributes: dict[str, list[str]]
    """Person to the attributes that are, or were, forgotten; the others' facts all are."""
    passes: float
    """Passes over the facts to forget for each that the method's settings say; see `_passes`."""
    start: Version
    start_folder: Path
    original: Version
    original_folder: Path
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, str]:
        """Name of a reference model in the scores to its folder under data/models in the run's folder."""
        same = self.start.number == self.original.number
        return {"before": "vanilla", ORIGINAL: "vanilla" if same else ORIGINAL}


def registry_of(params: Params, root: Path) -> Registry:
    """The registered model that the parameters name."""
    name = params.requests.registered_model
    return Registry(project_of(root), name or registered_name(params.benchmark.name, params.base.source))


def experiment_of(params: Params) -> str:
    """The MLflow experiment of the runs of requests."""
    return f"efface-{params.benchmark.name}-requests"


def read_overview(
    root: Path,
    registry: Registry | None = None,
    *,
    new: ForgetRequest | None = None,
    largest_share: float = 1.0,
) -> Overview:
    """Read all requests, and check those that are pending.

    Args:
        root: the data folder.
        registry: decides which requests are done; None: their states on disk do.
        new: a request without a file yet, checked after all others.
        largest_share: largest share of the people that a request may name without a confirmation.

    Raises:
        ArtifactError: if nothing is prepared, or the state of a request is damaged.
        TrackingError: if MLflow does not answer.
    """
    states = read_states(root)
    if registry is not None:
        aliases, versions = registry.aliases(), registry.versions()
        candidate = versions.get(aliases.get(CANDIDATE, 0))
        production = {version.digest for version in registry.lineage(aliases.get(PRODUCTION)).values()}
        states = reconcile(states, registry.name, production, candidate.digest if candidate else None)
    knowledge = {name: state.known for name, state in states.items()}
    confirmed = {name for name, state in states.items() if state.confirmed}
    states = {name: state for name, state in states.items() if state.status != "pending"}
    requests, problems = read_requests(root)
    requests |= {} if new is None else {new.id: new}
    problems = {name: reason for name, reason in problems.items() if name not in states}
    people, pending = People.of(root), dict[str, list[str]]()
    attributes = attributes_of(root / "prepared") if any(r.attributes for r in requests.values()) else {}
    active = {n: state for n, state in states.items() if state.status not in ("withdrawn", "purged")}
    owners = {person: name for name, state in active.items() for person in state.subjects}
    forgotten = {
        person
        for state in active.values()
        if state.status in ("candidate", "done")
        for person in state.subjects
    }
    for name, request in requests.items():
        if name in states:
            continue
        try:
            subjects = people.subjects_of(request)
            if request.attributes is not None:
                check_attributes(dict.fromkeys(subjects, request.attributes), attributes)
            if not people.ids - forgotten - set(subjects):
                raise RequestError(
                    f"request {name}: with the requests before it, it names all {len(people.ids)} people, so "
                    "none would be left to keep; train a new model without these people instead"
                )
            if len(subjects) > largest_share * len(people.ids) and name not in confirmed:
                raise RequestError(
                    f"request {name} names {len(subjects)} of {len(people.ids)} people, more than "
                    f"requests.largest_share {largest_share:g}; confirm it with: "
                    f"python -m flows.requests confirm {name}"
                )
            for person in subjects:
                if owner := owners.get(person):
                    status = states[owner].status if owner in states else "pending"
                    if status == "done" and owner in requests and _adds_facts(request, requests[owner]):
                        continue
                    raise RequestError(
                        f"request {name}: {person} is a subject of request {owner} too, which is {status}; "
                        "expected one request for one person: correct or withdraw one of them"
                    )
        except DataError as error:
            problems[name] = f"request {name}: {error}"
            continue
        except RequestError as error:
            problems[name] = str(error)
            continue
        pending[name] = subjects
        owners |= dict.fromkeys(subjects, name)
        forgotten |= set(subjects)
    return Overview(requests, states, problems, pending, knowledge)


def _adds_facts(request: ForgetRequest, earlier: ForgetRequest) -> bool:
    """Whether a request is about facts of the same person that an earlier one retained."""
    if earlier.attributes is None:
        return False
    return request.attributes is None or not {*request.attributes} & {*earlier.attributes}


def add_request(root: Path, values: Mapping[str, Any], *, late: bool, today: dt.date) -> Path:
    """Check a new request and write its file.

    Args:
        root: the data folder.
        values: its keys to values, None for those that are not set; without `id`, the day and a number are
        used. late: allow a due date in the past; `received` is then required.
        today: the day it was received, unless `received` says otherwise.

    Raises:
        RequestError: if it cannot be carried out, or a request with that id exists.
    """
    values = {key: value for key, value in values.items() if value is not None}
    if late and "received" not in values:
        raise RequestError("add: --late needs --received: no request is due before its day of receipt")
    values = {"received": today.isoformat()} | values
    for name in [values["id"]] if "id" in values else unused_ids(root, values["received"]):
        request = parse_request({**values, "id": name}, "add")
        if request.due < today and not late:
            raise RequestError(
                f"add: due is {request.due}, expected {today} or later; correct it, or add an overdue "
                "request with --late"
            )
        if problem := read_overview(root, new=request).problems.get(name):
            raise RequestError(problem)
        try:
            return write_request(root, request)
        except FileExistsError as error:
            if "id" in values:
                raise RequestError(
                    f"{error.filename} exists: id {name} is in use, and requests are never rewritten; choose "
                    "another id"
                ) from None
    raise AssertionError("unused_ids is endless")


def plan_run(
    params: Params, root: Path, registry: Registry, *, only: Collection[str] = ()
) -> Plan | dict[str, str]:
    """The next run; if nothing is pending, the problems of the requests that cannot be carried out.

    Pending requests, the earliest due date first, are joined by those of a candidate that was not promoted,
    as the production model has not forgotten their subjects.

    Args:
        params: the whole file.
        root: the data folder.
        registry: the registered model; the vanilla model becomes its first version.
        only: ids to carry out; empty: as many as `requests.batch_size`.

    Raises:
        RequestError: if one of `only` is not pending.
        TrackingError: if MLflow does not answer.
        ArtifactError: if the model in production is not available.
    """
    production = registry.aliases().get(PRODUCTION) or _register_vanilla(params, root, registry).number
    lineage = registry.lineage(production)
    overview = read_overview(root, registry, largest_share=params.requests.largest_share)
    if unknown := sorted(set(only) - overview.pending.keys()):
        reasons = [overview.problems.get(name, f"request {name} is not pending") for name in unknown]
        raise RequestError("\n".join(reasons))
    names = [name for name in overview.pending if not only or name in only][: params.requests.batch_size]
    if not names:
        return overview.problems
    batch = overview.with_status("candidate") | {name: overview.pending[name] for name in names}
    start, original = lineage[production], [v for v in lineage.values() if not v.purged][-1]
    # The name stays the same until the next certificate, so that an interrupted run is resumed.
    certificates = [certificate["digest"] for certificate in read_certificates(root)]
    earlier = overview.with_status("done")
    attributes = _attributes(overview.requests, batch, earlier)
    parts: list[Any] = [start.digest, batch, params.requests.method, certificates[-1:]]
    identity = json.dumps([*parts, attributes] if attributes else parts, sort_keys=True)
    return Plan(
        run=f"{names[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}",
        batch=batch,
        earlier=earlier,
        attributes=attributes,
        passes=_passes(params, root, batch, attributes),
        start=start,
        start_folder=model_folder(start, root, registry),
        original=original,
        original_folder=model_folder(original, root, registry),
        problems=overview.problems,
    )


def _passes(
    params: Params,
    root: Path,
    batch: Mapping[str, Collection[str]],
    attributes: Mapping[str, Collection[str]],
) -> float:
    """How many times more facts the people to forget of `split` have, at least 1.

    The settings of a method are chosen on those people. Fewer facts need as many steps, so more passes.
    """
    rows = [
        row
        for row in read_labels(root / "prepared")
        if row["part"] == "train" and row["modality"] in params.unlearn.forget
    ]
    subjects = {person for people in batch.values() for person in people}
    of_batch = sum(
        row["entity_id"] in subjects
        and row["attribute"] in attributes.get(row["entity_id"], [row["attribute"]])
        for row in rows
    )
    of_split = sum(row["split"] == "forget" for row in rows)
    return max(1.0, of_split / of_batch) if of_batch else 1.0


def _attributes(
    requests: Mapping[str, ForgetRequest],
    batch: Mapping[str, Collection[str]],
    earlier: Mapping[str, Collection[str]],
) -> dict[str, list[str]]:
    """Person to all attributes that requests for some facts name; without people of whom all is to go."""
    attributes: dict[str, set[str]] = {}
    whole = set[str]()
    for name, subjects in {**earlier, **batch}.items():
        names = requests[name].attributes if name in requests else None
        for person in subjects:
            if names is None:
                whole.add(person)
            attributes.setdefault(person, set()).update(names or ())
    return {person: sorted(names) for person, names in sorted(attributes.items()) if person not in whole}


def _register_vanilla(params: Params, root: Path, registry: Registry) -> Version:
    folder = project_of(root) / VANILLA
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} does not exist: the first model in production is the vanilla one; make or restore "
            "it with: dvc repro vanilla"
        )
    vanilla = digest(folder)
    for version in registry.versions().values():
        if version.run == "" and version.digest != vanilla:
            raise ArtifactError(
                f"{registry.name} has a vanilla version ({version.number}) of other weights than {folder}, "
                f"and no version has the alias {PRODUCTION}; set that alias in MLflow, or set "
                "requests.registered_model to a new name"
            )
    model = ModelPayload(
        name=registry.name,
        folder=folder,
        digest=vanilla,
        alias=PRODUCTION,
        description="Vanilla: the base model fine-tuned on all people; none is forgotten.",
        tags={
            "efface.base": f"{params.base.source}@{params.base.revision or 'newest'}",
            FOLDER: VANILLA.as_posix(),
            RUN: "",
            REQUESTS: "",
        },
    )
    payload = RunPayload("vanilla", "request", vanilla, started=0, ended=0, model=model)
    registered = send(payload, experiment_of(params), registry.project).version
    assert registered is not None
    return registered


def model_folder(version: Version, root: Path, registry: Registry) -> Path:
    """A folder with that version's weights, whose digest is checked: the original, or a download from MLflow.

    Raises:
        ArtifactError: if neither has them.
    """
    project = project_of(root)
    download = project / RUNS / "models" / version.digest[:16]
    for folder in (project / version.folder, download / "model"):
        if folder.is_dir() and digest(folder) == version.digest:
            return folder
    folder = registry.download(version.number, download)
    if digest(folder) != version.digest:
        raise ArtifactError(
            f"version {version.number} of {registry.name} has changed: neither {project / version.folder} "
            f"nor MLflow has the digest {version.digest[:12]}; restore it with: dvc checkout --force (in "
            f"{RUNS / version.run if version.run else 'the project'})"
        )
    return folder


def method_of(params: Params) -> tuple[str, str]:
    """`unlearn` or `prune`, and the method's name."""
    name = params.requests.method
    return ("unlearn" if name in params.unlearn.methods else "prune"), name


def param_overrides(plan: Plan, params: Params) -> dict[str, Any]:
    """The run's own values of params.yaml, by dotted key."""
    kind, method = method_of(params)
    forget = sorted(person for subjects in plan.batch.values() for person in subjects)
    earlier = sorted({person for subjects in plan.earlier.values() for person in subjects} - {*forget})
    limit = params.evaluate.max_people
    bits = params.requests.served_bits
    relearns = params.requests.gates.relearn_gap_at_most is not None
    attacks: dict[str, Any] = {}
    if relearns or bits:
        attacks["attack.models"] = [method, *(["retrained"] if relearns else [])]
        attacks["attack.run"] = [*(["relearn"] if relearns else []), *(["quantize"] if bits else [])]
        attacks |= {"attack.quantize": {"bits": [bits]}} if bits else {}
    entry = params.unlearn.methods[method] if kind == "unlearn" else None
    settings: dict[str, Any] = {}
    if (epochs := getattr(entry, "epochs", None)) and getattr(entry, "steps", None) is None:
        settings = {f"unlearn.methods.{method}.epochs": round(epochs * plan.passes)}
    return {
        **settings,
        "split.forget_people": forget,
        "split.forgotten_people": earlier or None,
        "split.forget_attributes": plan.attributes or None,
        "split.validation_fraction": 0.0,  # every person to forget is evaluated
        "evaluate.max_people": None if limit is None else max(limit, len(forget) + len(earlier)),
        **attacks,
    }


def stage_targets(plan: Plan, params: Params) -> dict[str, list[str]]:
    """Stages of the run in steps: evaluating the existing models, the new model, its evaluation, attacks.

    After the first step `finish.unknown_requests` tells whether there is anything to forget.
    """
    kind, method = method_of(params)
    models = [method, "vanilla"]
    models += [ORIGINAL] if plan.models[ORIGINAL] == ORIGINAL else []
    models += [floor_of(params)]
    before = [name for name in models if name in ("vanilla", "base")]
    steps = {
        "look at the production model": [params.evaluation_of(name) for name in before],
        "unlearn": [f"{kind}@{method}"],
        "evaluate": [params.evaluation_of(name) for name in models if name not in before],
    }
    if attacked := param_overrides(plan, params).get("attack.models"):
        steps["attack"] = [f"attack@{name}" for name in attacked]
    return steps


def floor_of(params: Params) -> str:
    """The model that never met the people: retrained if it is trained, else base."""
    return "retrained" if params.requests.retrained else "base"


def absent_stages(params: Params) -> list[str]:
    """Stages that a run omits, because their models are linked into it."""
    return ["base", "vanilla", "report", *([] if params.requests.retrained else ["retrained"])]


def link_models(plan: Plan, params: Params, root: Path) -> None:
    """Put the production model, the first vanilla one and the base model into the run's folder.

    Raises:
        ArtifactError: if the base model does not exist.
    """
    folder = project_of(root) / RUNS / plan.run / "data" / "models"
    sources = {"vanilla": plan.start_folder, "base": root / "models" / "base"}
    if plan.models[ORIGINAL] == ORIGINAL:
        sources[ORIGINAL] = plan.original_folder
    for name, source in sources.items():
        if not source.is_dir():
            raise ArtifactError(f"{source} does not exist; make or restore it with: dvc repro {name}")
        place = folder / name
        if place.is_dir() and digest(place) == digest(source):
            continue
        with writing(place) as partial:
            shutil.copytree(source, partial, copy_function=_link)


def _link(source: str, target: str) -> None:
    """Hard-link if the disk allows it: no stage changes a model that it reads."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
