"""Deletes everything that holds the data of a request's people, and records what was deleted.

The model that forgot them stays, as do the models made from it. All deletions are planned first and written
to the journal, so that the record names everything that is deleted, and a killed purge can be completed.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from efface.certificates.seal import DIGEST, sealed
from efface.subject_hashes import subject_hashes
from tasks.config import Params
from tasks.requests.certificates import (
    RECORD_KIND,
    certificate_of,
    read_certificates,
    sign,
    write_certificate,
)
from tasks.requests.intake import FOLDER, People, RequestError, read_requests
from tasks.requests.plan import read_overview
from tasks.requests.promotion import JOURNAL, resume
from tasks.requests.state import (
    CANDIDATE,
    PRODUCTION,
    RUNS,
    RequestState,
    now,
    read_states,
    state_path,
    write_state,
)
from tasks.requests.storage import delete_objects, stored_objects
from tasks.runtime.artifacts import read_json, write_json, writing
from tasks.runtime.purged import PURGED
from tasks.runtime.results import project_of
from tasks.runtime.salt import read_salt
from tasks.tracking.client import redact, tracking_uri
from tasks.tracking.registry import Registry, Version

_ARTIFACTS: tuple[str, ...] = (
    "benchmarks",
    "prepared",
    "models",
    "masks",
    "runs",
    "answers",
    "scores",
    "metrics",
    "report",
    "attacks",
)
_ARTIFACTS += ("checkpoints", "study")
_RETAINED = ("models/base", "masks/none.safetensors", "attacks/.gitkeep", "runs/base.json")
"""Under the data folder; the base model met none of the people."""
_OTHER_PLACES = ("dvc.lock", ".study", ".scripts", ".prefect/results", ".dvc/tmp/exps")
_SHORTEST_NAME = 4


def plan_purge(
    params: Params,
    root: Path,
    registry: Registry,
    request: str,
    *,
    elsewhere: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a purge would delete, keep and not reach; nothing is changed.

    Args:
        params: the whole file.
        root: the data folder.
        registry: the registered model.
        request: id of a request that the model in production carries out.
        elsewhere: place to what the caller itself deletes there.

    Returns:
        `deleted`, place to what is deleted there; `kept` and `not_reached`, lines; and what `carry_out`
        needs.

    Raises:
        RequestError: if the production model knows its people, or something else still needs their data.
        StorageError, TrackingError: if a DVC remote or MLflow does not answer.
    """
    resume(root)
    project, state = project_of(root), read_overview(root, registry).states.get(request)
    if state is None or state.status != "done":
        raise RequestError(
            f"request {request} is {state.status if state else 'pending or unknown'}: expected one that is "
            "done; a purge deletes the data of people whom the model in production has forgotten"
        )
    certificate = certificate_of(root, request)
    if "attributes" in certificate["request"]:
        raise RequestError(
            f"request {request} is for some facts, {', '.join(certificate['request']['attributes'])}, and a "
            "purge deletes all data of its people; take those facts out of the benchmark's source instead"
        )
    if subject_hashes(state.subjects, read_salt(project)) != certificate["request"]["subjects"]:
        raise RequestError(
            f"request {request}: its people and the salt do not give the hashes of certificate "
            f"{certificate['number']}; restore the salt, and data/requests with git"
        )
    requests = [request, *_same_people(root, request, state.subjects)]
    names = People.of(root).names
    words = [*state.subjects, *(names[p] for p in state.subjects if len(names.get(p, "")) >= _SHORTEST_NAME)]
    if files := mentions([project / "params.yaml", *(project / "profiles").glob("*.yaml")], words):
        raise RequestError(f"{', '.join(map(str, files))}: remove the people of request {request} first")
    retained = _kept_versions(registry, state)
    outs = _outputs(project, retained)
    keep = {project / version.folder for version in retained}
    keep |= {project / RUNS / "models" / version.digest[:16] for version in retained}
    keep |= {
        project / RUNS / v.run / ".dvc" / name
        for v in retained
        if v.run
        for name in ("config", "config.local")
    }
    keep |= {root.absolute() / name for name in _RETAINED} | {project / JOURNAL}
    places = [root.absolute() / name for name in _ARTIFACTS] + [
        project / RUNS,
        *(project / o for o in _OTHER_PLACES),
    ]
    paths = [path for place in places for path in _outside(place, keep)]
    paths += [path for r in requests if (path := root.absolute() / FOLDER / f"{r}.yaml").exists()]
    files_in_mlflow = registry.stored_files(
        f"efface-{params.benchmark.name}", keep=[version.number for version in retained]
    )
    stores = stored_objects(project, keep=[*outs.values(), *_base_outputs(project)])
    uri = tracking_uri(project)
    place = "mlflow.db" if uri == f"sqlite:///{project / 'mlflow.db'}" else redact(uri)
    return {
        "kind": "purge",
        "completed": False,
        "registered_model": registry.name,
        "request": request,
        "requests": requests,
        "certificate": certificate[DIGEST],
        "subjects": certificate["request"]["subjects"],
        "words": words,
        "outs": {path: {"md5": md5} for path, md5 in outs.items()},
        "deleted": {
            "project": [path.relative_to(project).as_posix() for path in paths],
            **{
                name: {"objects": store["objects"], "run_cache": store["run_cache"]}
                for name, store in stores.items()
            },
            f"MLflow {place}": files_in_mlflow,
            **(elsewhere or {}),
        },
        "mlflow": f"MLflow {place}",
        "stores": list(stores),
        "kept": [
            f"version {version.number} of {registry.name} in {version.folder} and MLflow: it forgot them, "
            "or was made from a version that did"
            for version in retained
        ]
        + [f"{root.name}/models/base, its version in MLflow: the base model met none of the people"],
        "not_reached": [
            *_sources(params),
            *(
                f"{store['others']} objects in {name} that no lock file or run cache of this project names"
                for name, store in stores.items()
                if store["others"]
            ),
            *(["the history of this git repository"] if (project / ".git").exists() else []),
            "clones, back-ups, other machines, and models that were passed on",
        ],
    }


def start(root: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan to the journal; from then on the purge can only be completed."""
    write_json(project_of(root) / JOURNAL, plan)


def unfinished(root: Path) -> dict[str, Any] | None:
    """The plan of a purge that was interrupted."""
    path = project_of(root) / JOURNAL
    journal: dict[str, Any] = read_json(path) if path.is_file() else {"completed": True}
    return None if journal["completed"] or journal.get("kind") != "purge" else journal


def carry_out(root: Path) -> dict[str, Any]:
    """Carry out the purge in the journal, and return its record; it stays in the journal until `complete`.

    Raises:
        StorageError, TrackingError: if a DVC remote or MLflow does not answer; run it again to continue.
    """
    project, journal = project_of(root), unfinished(root)
    assert journal is not None
    if "record" not in journal:
        deleted = journal["deleted"]
        registry = Registry(project, journal["registered_model"])
        versions = registry.delete_files(deleted[journal["mlflow"]], time=now())
        delete_objects(project, {name: deleted[name] for name in journal["stores"]})
        _write_pointers(project, journal["outs"])
        for name in deleted["project"]:
            _remove(project / name)
        journal["record"] = _record(root, journal, versions)
        write_json(project / JOURNAL, journal)
    record: dict[str, Any] = journal["record"]
    write_certificate(root, record)
    hashes = {*record["request"]["subjects"]}
    path = root / PURGED
    hashes |= set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    with writing(path) as partial:
        partial.write_text("".join(f"{value}\n" for value in sorted(hashes)), encoding="utf-8")
    states = read_states(root)
    for name in journal["requests"]:
        if (state := states.get(name)) is not None:
            update: dict[str, Any] = {"subjects": [], "time": record["purge"]["time"]}
            if name == journal["request"]:
                update |= {"status": "purged", "purge_record": record[DIGEST], "reasons": []}
            write_state(root, name, state.model_copy(update=update))
    return record


def complete(root: Path, request: str) -> None:
    """Take the purge from the journal, which also holds the names of its people."""
    write_json(project_of(root) / JOURNAL, {"kind": "purge", "completed": True, "request": request})


def mentions(files: Iterable[Path], words: Sequence[str]) -> list[Path]:
    """The files that contain one of these words, as UTF-8, in their content or name."""
    encoded_words = [word.encode() for word in words]
    result = []
    for path in files:
        if not path.is_file() or path.is_symlink():
            continue
        named = any(word in path.as_posix() for word in words)
        if named or (path.stat().st_size and _holds(path, encoded_words)):
            result.append(path)
    return result


def _holds(path: Path, encoded_words: Sequence[bytes]) -> bool:
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(word) >= 0 for word in encoded_words)


def _same_people(root: Path, request: str, subjects: Collection[str]) -> list[str]:
    """Withdrawn requests that name these people, and those for some of their facts; their files go too.

    Raises:
        RequestError: if another request names one.
    """
    people, states, result = People.of(root), read_states(root), []
    requests, problems = read_requests(root)
    for name in sorted({*requests, *states, *problems} - {request}):
        state, some_facts = states.get(name), name in requests and requests[name].attributes is not None
        named = set(state.subjects if state else [])
        if name in requests:
            with contextlib.suppress(RequestError):  # it names no person of the benchmark
                named |= set(people.subjects_of(requests[name]))
        if not named & set(subjects):
            continue
        if state is None or (state.status != "withdrawn" and not (state.status == "done" and some_facts)):
            raise RequestError(
                f"request {request}: request {name}, which is {state.status if state else 'pending'}, names "
                f"one of its people too; withdraw it first: python -m flows.requests withdraw {name}"
            )
        result.append(name)
    return result


def _kept_versions(registry: Registry, state: RequestState) -> list[Version]:
    """The production version and those it was made from, up to the one that forgot them; the candidate too.

    Raises:
        RequestError: if the candidate was not made from a version that forgot them.
    """
    aliases, versions = registry.aliases(), registry.versions()
    lineage = list(registry.lineage(aliases[PRODUCTION]).values())
    first = next(i for i, version in enumerate(lineage) if version.digest == state.model_digest)
    retained = lineage[: first + 1]
    candidate = versions.get(aliases.get(CANDIDATE, 0))
    if candidate is not None and candidate.number not in [version.number for version in retained]:
        if candidate.parent not in [version.number for version in retained]:
            raise RequestError(
                f"candidate {candidate.number} was not made from version {state.version}, which forgot them; "
                "make a new one first with: python -m flows.requests run"
            )
        retained.append(candidate)
    return retained


def _outputs(project: Path, versions: Sequence[Version]) -> dict[str, str]:
    """Model folder to its hash in the lock file of the run that made it, or in the pointer of a purge."""
    outs = {}
    for version in versions:
        run, folder = project / RUNS / (version.run or ""), project / version.folder
        pointer = folder.with_name(f"{folder.name}.dvc")
        for path in (run / "dvc.lock", pointer):
            values = YAML(typ="safe").load(path) if path.is_file() else {}
            stages = [values, *values.get("stages", {}).values()]
            for out in (out for stage in stages for out in stage.get("outs", ())):
                if (path.parent / out["path"]).resolve() == folder.resolve():
                    outs[version.folder] = str(out["md5"])
    return outs


def _base_outputs(project: Path) -> list[str]:
    path = project / "dvc.lock"
    stages = (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}
    return [str(out["md5"]) for out in stages.get("base", {}).get("outs", ()) if "md5" in out]


def _outside(place: Path, keep: Collection[Path]) -> list[Path]:
    """The place, or its parts outside the paths to keep; empty if it does not exist."""
    if place in keep or not (place.exists() or place.is_symlink()):
        return []
    if not any(path.is_relative_to(place) for path in keep):
        return [place]
    return [path for child in sorted(place.iterdir()) for path in _outside(child, keep)]


def _sources(params: Params) -> list[str]:
    return [f"the source of the benchmark: {root}" for root in params.benchmark.roots.values()]


def _write_pointers(project: Path, outs: Mapping[str, Mapping[str, str]]) -> None:
    """Write the files by which `dvc checkout` restores the models that stay, instead of the lock files."""
    for path, out in outs.items():
        with writing(project / f"{path}.dvc") as partial, partial.open("w", encoding="utf-8") as handle:
            YAML().dump({"outs": [{**out, "hash": "md5", "path": Path(path).name}]}, handle)


def _record(root: Path, journal: Mapping[str, Any], versions: Sequence[str]) -> dict[str, Any]:
    project = project_of(root)
    states = {state_path(project / root.name, name) for name in journal["requests"]} | {project / JOURNAL}
    files = (p for p in project.rglob("*") if ".git" not in p.relative_to(project).parts and p not in states)
    remaining = [path.relative_to(project).as_posix() for path in mentions(files, journal["words"])]
    body = {
        "kind": RECORD_KIND,
        "format": 1,
        "request": {"id": journal["request"], "subjects": journal["subjects"]},
        "certificate": journal["certificate"],
        "purge": {
            "time": now(),
            "deleted": journal["deleted"],
            "versions": sorted(set(versions)),
            "kept": journal["kept"],
            "not_reached": [
                *journal["not_reached"],
                *(f"{path}, which names one of them" for path in remaining),
            ],
        },
    }
    return sign(root, sealed(body, next(reversed(read_certificates(root)), None)))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
