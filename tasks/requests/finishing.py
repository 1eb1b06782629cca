"""After a run: hold the new model against the gates, and register and certify it, or say what failed.

What is to happen is written down first and then done, step by step; whatever cuts it short, the next command
does the rest. So there is never a new production model without certificates, nor half of them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.certificates.seal import DIGEST, sealed
from efface.subject_hashes import subject_hashes
from tasks.config import Params
from tasks.requests.certificates import KIND, read_certificates, write_certificate
from tasks.requests.intake import FOLDER, ForgetRequest
from tasks.requests.planning import ORIGINAL, RUNS, Plan, method_of
from tasks.requests.registry import CANDIDATE, PRODUCTION, Logged, Registry, Version
from tasks.requests.state import Outcome, now, write_outcome
from tasks.runtime.artifacts import digest, read_json, write_json
from tasks.runtime.results import mask_metadata, project_of, read_scores, read_splits
from tasks.runtime.salt import create_salt

if TYPE_CHECKING:
    import pandas as pd

    from efface.evaluation.gates import Gate

JOURNAL = "journal.json"


@dataclass(frozen=True)
class Verdict:
    """What the gates say about a new model, and the numbers."""

    gates: list[Gate]
    scores: dict[str, Any]
    attacks: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """The gates that do not hold, with their numbers."""
        return [str(gate) for gate in self.gates if not gate.passed]


def judge(made: Plan, params: Params, root: Path) -> Verdict:
    """Hold the new model of a run against the gates.

    Raises:
        ArtifactError: if a score table is missing, damaged or of other samples.
    """
    from efface.evaluation.gates import Gate, gates

    folder, limits = project_of(root) / RUNS / made.run / "data", params.requests.gates
    _, method = method_of(params)
    models = {ORIGINAL: made.models[ORIGINAL], "before": "vanilla", "after": method}
    models |= {"retrained": "retrained"} if params.requests.retrained else {}
    tables = {name: read_scores(folder, model)[0] for name, model in models.items()}
    groups = made.earlier | made.batch
    found = gates(
        tables["after"],
        tables[ORIGINAL],
        groups,
        forget_at_most=limits.forget_at_most,
        retain_at_least=limits.retain_at_least,
        utility_at_least=limits.utility_at_least,
    )
    attacks = _relearning(folder, method)
    if limits.relearn_gap_at_most is not None:
        gap = attacks["relearn"]["gap"] if attacks else None
        found.append(Gate("relearn_gap", None, gap, limits.relearn_gap_at_most, "at most"))
    return Verdict(found, _scores(tables, groups), attacks)


def _scores(tables: Mapping[str, pd.DataFrame], groups: Mapping[str, list[str]]) -> dict[str, Any]:
    from efface.evaluation.gates import KEPT, kept, knowledge

    return {
        "requests": {
            request: {model: knowledge(table, people) for model, table in tables.items()}
            for request, people in groups.items()
        },
        **{
            name: {model: kept(table, sets) for model, table in tables.items()} for name, sets in KEPT.items()
        },
    }


def _relearning(folder: Path, method: str) -> dict[str, Any]:
    """Exact match by picture after steps of relearning, beside the retrained model's; {} if not run."""
    exact: dict[str, dict[str, float]] = {}
    for role, name in (("after", method), ("retrained", "retrained")):
        path = folder / "attacks" / f"{name}.json"
        for result in read_json(path)["results"] if path.is_file() else ():
            cell = result["metrics"].get("forget", {}).get("multimodal", {}).get("exact_match")
            if result["attack"] == "relearn" and cell is not None:
                exact.setdefault(result["variant"], {})[role] = float(cell["value"])
    if not exact:
        return {}
    last = list(exact.values())[-1]
    gap = last["after"] - last["retrained"] if len(last) == 2 else None
    return {"relearn": {"exact_match": exact, "gap": gap}}


def refuse(made: Plan, verdict: Verdict, root: Path) -> None:
    """Mark the batch's requests as in need of attention, with the gates that failed; nothing else changes."""
    write_json(
        project_of(root) / RUNS / made.run / "gates.json",
        {"gates": [gate.plain() for gate in verdict.gates], "scores": verdict.scores},
    )
    for request, people in made.batch.items():
        outcome = Outcome(
            status="needs-attention", run=made.run, subjects=people, reasons=verdict.failures, time=now()
        )
        write_outcome(root, request, outcome)


def accept(
    made: Plan,
    verdict: Verdict,
    params: Params,
    root: Path,
    registry: Registry,
    requests: Mapping[str, ForgetRequest],
) -> Version:
    """Register the new model, certify each request, and point the alias at it.

    Raises:
        RegistryError: if MLflow does not answer; the next run then goes on from here.
    """
    project = project_of(root)
    _, method = method_of(params)
    folder = RUNS / made.run / "data" / "models" / "unlearned" / method
    new = Version(
        0, digest(project / folder), folder.as_posix(), made.run, tuple(made.batch), made.start.number
    )
    version = registry.register(new, _logged(made, verdict, params, root))
    certificates, previous = [], next(reversed(read_certificates(root)), None)
    salt = create_salt(project)
    shared = _shared(made, verdict, params, root, registry, version)
    for request, people in made.batch.items():
        about = _about(requests[request], people, salt, root)
        previous = sealed(
            {**shared, "request": about, "files": shared["files"] | _request_file(request, root)}, previous
        )
        certificates.append(previous)
    status = "done" if params.requests.auto_promote else "candidate"
    outcomes = {
        each["request"]["id"]: Outcome(
            status=status,
            run=made.run,
            subjects=made.batch[each["request"]["id"]],
            version=version.number,
            certificate=each[DIGEST],
            time=now(),
        ).model_dump(mode="json")
        for each in certificates
    }
    alias = PRODUCTION if params.requests.auto_promote else CANDIDATE
    journal = {
        "alias": alias,
        "version": version.number,
        "certificates": certificates,
        "outcomes": outcomes,
    }
    write_json(project / RUNS / made.run / JOURNAL, journal)
    settle(root, registry)
    return version


def settle(root: Path, registry: Registry) -> list[str]:
    """Do what an earlier run wrote down and could not finish; returns the names of such runs.

    Raises:
        RegistryError: if MLflow does not answer; it stays written down.
    """
    settled = []
    for path in sorted((project_of(root) / RUNS).glob(f"*/{JOURNAL}")):
        journal = read_json(path)
        registry.point(journal["alias"], journal["version"])
        if journal["alias"] == PRODUCTION:
            registry.unpoint(CANDIDATE)
        for certificate in journal["certificates"]:
            write_certificate(root, certificate)
        for request, outcome in journal["outcomes"].items():
            write_outcome(root, request, Outcome.model_validate(outcome))
        path.rename(path.with_name(f"settled-{JOURNAL}"))
        settled.append(path.parent.name)
    return settled


def _shared(
    made: Plan, verdict: Verdict, params: Params, root: Path, registry: Registry, version: Version
) -> dict[str, Any]:
    """What the certificates of one run have in common."""
    project, run = project_of(root), RUNS / made.run
    kind, method = method_of(params)
    record = read_json(project / run / "data" / "runs" / f"{kind}@{method}.json")
    samples = run / "data" / "prepared" / "samples.parquet"
    mask = _mask(params, run)
    files = {
        "samples": samples,
        "model before": run / "data" / "models" / "vanilla",
        "model after": Path(version.folder),
        "scores after": run / "data" / "scores" / f"{method}.parquet",
    }
    files |= {} if mask is None else {"mask": mask}
    about = {} if mask is None else mask_metadata(project / mask) or {}
    splits = read_splits(project / run / "data")
    return {
        "kind": KIND,
        "format": 1,
        "run": run.as_posix(),
        "files": {role: _file(path, project) for role, path in files.items()},
        "data": {
            "benchmark": splits["benchmark"],
            "people_to_keep": len(splits["entities"]["retain"]),
            "people_forgotten": len(splits["entities"]["forget"]),
        },
        "models": {
            "registered_name": registry.name,
            "base": f"{params.base.source}@{params.base.revision or 'newest'}",
            "original": {"version": made.original.number, "digest": made.original.digest},
            "before": {"version": made.start.number, "digest": made.start.digest},
            "after": {"version": version.number, "digest": version.digest},
        },
        "method": {
            "name": method,
            "parameters": record["params"],
            "seed": record["seed"],
            "mask": {key: about[key] for key in ("variant", "threshold", "density") if key in about} or None,
        },
        "scores": verdict.scores,
        "attacks": verdict.attacks,
        "gates": [gate.plain() for gate in verdict.gates],
        "made": {
            "time": now(),
            "git_commit": record.get("git_commit"),
            "device": record.get("device"),
            "versions": record.get("versions", {}),
        },
    }


def _mask(params: Params, run: Path) -> Path | None:
    kind, method = method_of(params)
    name = params.unlearn.methods[method].mask if kind == "unlearn" else "importance"
    return None if name == "none" else run / "data" / "masks" / f"{name}.safetensors"


def _file(path: Path, project: Path) -> dict[str, str]:
    return {"path": path.as_posix(), "digest": digest(project / path)}


def _request_file(request: str, root: Path) -> dict[str, Any]:
    path = Path(root.name) / FOLDER / f"{request}.yaml"
    return {"request": _file(path, project_of(root))}


def _about(request: ForgetRequest, people: list[str], salt: bytes, root: Path) -> dict[str, Any]:
    today = dt.datetime.now(dt.UTC).date()
    return {
        "id": request.id,
        "reason": request.reason,
        "legal_basis": request.legal_basis,
        "received": request.received.isoformat(),
        "due": request.due.isoformat(),
        "days_late": max(0, (today - request.due).days),
        "requester": request.requester,
        "subjects": subject_hashes(people, salt),
    }


def _logged(made: Plan, verdict: Verdict, params: Params, root: Path) -> Logged:
    kind, method = method_of(params)
    run = project_of(root) / RUNS / made.run
    record = read_json(run / "data" / "runs" / f"{kind}@{method}.json")
    people = sum(map(len, made.batch.values()))
    files = [run / "params.yaml", run / "dvc.lock", run / "data" / "scores" / f"{method}.json"]
    mask = _mask(params, RUNS / made.run)
    files += [] if mask is None else [project_of(root) / mask]
    metrics = {
        f"gate/{gate.name}" + (f"/{gate.about}" if gate.about else ""): gate.value
        for gate in verdict.gates
        if gate.value is not None
    }
    return Logged(
        description=(
            f"Version {made.start.number} made to forget {people} people more "
            f"({', '.join(made.batch)}), with {method}."
        ),
        tags={"git.commit": str(record.get("git_commit")), "efface.method": method},
        params={f"{kind}.{key}": str(value) for key, value in record["params"].items()},
        metrics=metrics,
        files=[file for file in files if file.is_file()],
    )
