"""The end of a run: gates, registration of the new model, and certificates of its requests."""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.certificates.seal import DIGEST, sealed
from efface.errors import ArtifactError
from efface.subject_hashes import subject_hashes
from tasks.config import Params
from tasks.config.root import ORIGINAL
from tasks.requests.annex import annex, limits_in_words
from tasks.requests.certificates import KIND, RECORD_KIND, read_certificates, sign
from tasks.requests.intake import FOLDER as REQUEST_FOLDER
from tasks.requests.intake import ForgetRequest
from tasks.requests.plan import Plan, experiment_of, floor_of, method_of
from tasks.requests.promotion import apply_change
from tasks.requests.state import (
    CANDIDATE,
    PRODUCTION,
    RUNS,
    RequestState,
    Status,
    now,
    read_states,
    write_state,
)
from tasks.runtime.artifacts import digest, read_json, write_json
from tasks.runtime.results import (
    mask_metadata,
    project_of,
    read_attacks,
    read_records,
    read_scores,
    read_splits,
)
from tasks.runtime.salt import create_salt
from tasks.tracking.registry import FLOW_RUN, FOLDER, REQUESTS, RUN, ModelPayload, Registry, Version
from tasks.tracking.runs import model_payload, send

if TYPE_CHECKING:
    import pandas as pd

    from efface.evaluation.gates import Gate


@dataclass(frozen=True)
class Verdict:
    """The gates of a new model, and the numbers behind them."""

    gates: list[Gate]
    scores: dict[str, Any]
    attacks: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)
    """Request to the measurements on its people."""

    @property
    def failures(self) -> list[str]:
        """The gates that fail, with their numbers."""
        return [str(gate) for gate in self.gates if not gate.passed]


def unknown_requests(plan: Plan, params: Params, root: Path) -> list[str]:
    """Requests of the run whose people the model in production does not know; they then need attention.

    What it knows about each request's people goes into the request's state. A confirmed request is carried
    out anyway.

    Raises:
        ArtifactError: if a score table is missing, damaged or made from other samples.
    """
    from efface.evaluation.evidence import known

    folder = project_of(root) / RUNS / plan.run / "data"
    before, floor = (read_scores(folder, model)[0] for model in ("vanilla", floor_of(params)))
    states, unknown = read_states(root), []
    for request, subjects in plan.batch.items():
        state = states.get(request) or RequestState(status="pending", time=now())
        measured = known(before, floor, subjects)
        update: dict[str, Any] = {"known": measured.numbers}
        if not measured.learnt and not state.confirmed:
            unknown.append(request)
            numbers = {"knowledge": 0.0, "floor": 0.0} | measured.numbers
            reason = (
                "the model in production does not know its people: probability of their facts "
                f"{numbers['knowledge']:.3f}, and {numbers['floor']:.3f} in a model that never met them; "
                f"withdraw it, or python -m flows.requests confirm {request}"
            )
            update |= {"status": "needs-attention", "subjects": subjects, "reasons": [reason], "time": now()}
        write_state(root, request, state.model_copy(update=update))
    return unknown


def judge(plan: Plan, params: Params, root: Path) -> Verdict:
    """Evaluate the gates on the new model of a run.

    Raises:
        ArtifactError: if a score table is missing, damaged or made from other samples.
    """
    from efface.evaluation.evidence import Goal, evidence, evidence_gates
    from efface.evaluation.gates import Gate, gates

    folder, limits = project_of(root) / RUNS / plan.run / "data", params.requests.gates
    _, method = method_of(params)
    models = {ORIGINAL: plan.models[ORIGINAL], "before": "vanilla", "after": method}
    models |= {(floor := floor_of(params)): floor}
    tables = {name: read_scores(folder, model)[0] for name, model in models.items()}
    groups = plan.earlier | plan.batch
    results = gates(
        tables["after"],
        tables[ORIGINAL],
        groups,
        forget_at_most=limits.forget_at_most,
        retain_at_least=limits.retain_at_least,
        utility_at_least=limits.utility_at_least,
    )
    results = [_carried(gate, plan, root) for gate in results]
    goal: Goal = "full" if "text" in params.unlearn.forget else "visual"
    measured = {
        request: evidence(tables["after"], tables[ORIGINAL], tables[floor], people)
        for request, people in groups.items()
    }
    results += _other_facts(plan, tables["after"], tables[ORIGINAL], limits.retain_at_least)
    confirmed = {request for request, state in read_states(root).items() if state.confirmed}
    for request, about in measured.items():
        conditions = evidence_gates(
            request,
            about,
            goal=goal,
            knowledge_at_most=limits.knowledge_at_most,
            membership_at_most=limits.membership_at_most,
            tpr_at_most=limits.tpr_at_most,
            relative_p_at_most=limits.relative_p_at_most,
            neighbours_at_least=limits.neighbours_at_least,
        )
        # After a purge the oldest model may itself have forgotten people of earlier requests.
        results += [
            gate
            for gate in conditions
            if (request in plan.batch or gate.value is not None)
            and not (gate.name == "neighbours" and request in confirmed)
        ]
    attacks = _attacks(folder, method)
    if limits.relearn_gap_at_most is not None:
        gap = attacks["relearn"]["gap"] if "relearn" in attacks else None
        results.append(Gate("relearn_gap", None, gap, limits.relearn_gap_at_most, "at most"))
    if params.requests.served_bits is not None:
        results += _as_served(folder, method, groups, limits.forget_at_most)
    plain = {request: about.plain() | {"goal": goal} for request, about in measured.items()}
    return Verdict(results, _scores(tables, groups), attacks, plain)


def _other_facts(plan: Plan, after: pd.DataFrame, vanilla: pd.DataFrame, limit: float) -> list[Gate]:
    """Of requests for some facts: what is left of their people's other facts, as a share of vanilla's."""
    from efface.evaluation.gates import Gate, share_retained

    results = []
    for request, people in (plan.earlier | plan.batch).items():
        partly = [person for person in people if person in plan.attributes]
        if partly and limit:
            own, before = (table[table["entity_id"].isin(partly)] for table in (after, vanilla))
            share = share_retained(own, before, ["retain"])
            results.append(Gate("other_facts", request, share, limit, "at least"))
    return results


def _carried(gate: Gate, plan: Plan, root: Path) -> Gate:
    """A share of the oldest model still available as a share of the first, which a purge may have deleted."""
    if gate.value is None or gate.name not in ("retain", "utility"):
        return gate
    shares = [
        item["value"]
        for certificate in read_certificates(root)
        if certificate["kind"] == KIND and certificate["models"]["after"]["digest"] == plan.original.digest
        for item in certificate["gates"]
        if item["name"] == gate.name
    ]
    return replace(gate, value=gate.value * shares[-1]) if shares and shares[-1] is not None else gate


def _scores(tables: Mapping[str, pd.DataFrame], groups: Mapping[str, list[str]]) -> dict[str, Any]:
    from efface.evaluation.gates import RETAINED_SETS, knowledge, retained

    return {
        "requests": {
            request: {model: knowledge(table, subjects) for model, table in tables.items()}
            for request, subjects in groups.items()
        },
        **{
            name: {model: retained(table, sets) for model, table in tables.items()}
            for name, sets in RETAINED_SETS.items()
        },
    }


def _attacks(folder: Path, method: str) -> dict[str, Any]:
    """Attack to exact match by picture after each variant, of the new and the retrained model."""
    results: dict[str, Any] = {}
    for role, name in (("after", method), ("retrained", "retrained")):
        path = folder / "attacks" / f"{name}.json"
        for result in read_json(path)["results"] if path.is_file() else ():
            cell = result["metrics"].get("forget", {}).get("multimodal", {}).get("exact_match")
            if result["attack"] in ("relearn", "quantize") and cell is not None:
                variants = results.setdefault(result["attack"], {"exact_match": {}})["exact_match"]
                variants.setdefault(result["variant"], {})[role] = float(cell["value"])
    if "relearn" in results:
        last = list(results["relearn"]["exact_match"].values())[-1]
        results["relearn"]["gap"] = last["after"] - last["retrained"] if len(last) == 2 else None
    return results


def _as_served(folder: Path, method: str, groups: Mapping[str, list[str]], limit: float) -> list[Gate]:
    """The gate on forgetting once more, on the weights as they are served."""
    from efface.evaluation.gates import Gate, knowledge

    table = read_attacks(folder, method)
    if table is None:
        raise ArtifactError(
            f"{folder / 'attacks'} has no table of {method}; make it with: dvc repro attack@{method}"
        )
    rows, gates = table[0][table[0]["attack"] == "quantize"], []
    for request, people in groups.items():
        answers = knowledge(rows, people)
        by_picture = [share for kind in ("seen", "unseen") if (share := answers[kind]) is not None]
        gates.append(Gate("served", request, max(by_picture, default=None), limit, "at most"))
    return gates


def reject(plan: Plan, verdict: Verdict, root: Path) -> None:
    """Set the requests of the run to need attention, with the gates that failed; nothing else changes."""
    write_json(
        project_of(root) / RUNS / plan.run / "gates.json",
        {"gates": [gate.plain() for gate in verdict.gates], "scores": verdict.scores},
    )
    earlier = read_states(root)
    for request, subjects in plan.batch.items():
        state = RequestState(
            status="needs-attention",
            run=plan.run,
            subjects=subjects,
            known=earlier[request].known if request in earlier else {},
            confirmed=request in earlier and earlier[request].confirmed,
            reasons=verdict.failures,
            time=now(),
        )
        write_state(root, request, state)


def accept(
    plan: Plan,
    verdict: Verdict,
    params: Params,
    root: Path,
    registry: Registry,
    requests: Mapping[str, ForgetRequest],
    *,
    flow_run: str = "",
) -> Version:
    """Register the new model, certify each request, and set the alias.

    Args:
        plan: plan of the run.
        verdict: verdict of the run, in which all gates passed.
        params: the whole file.
        root: the data folder.
        registry: the registered model.
        requests: requests by id.
        flow_run: Prefect's id of this run, which then decides on the candidate.

    Raises:
        TrackingError: if MLflow does not answer; the next run resumes here.
    """
    project, salt = project_of(root), create_salt(project_of(root))
    version = _register(plan, verdict, params, root, registry, flow_run)
    common = _common(plan, verdict, params, root, registry, version)
    status: Status = "done" if params.requests.auto_promote else "candidate"
    today = dt.datetime.now(dt.UTC).date()
    certificates, states = [], {}
    previous, earlier = next(reversed(read_certificates(root)), None), read_states(root)
    for name, subjects in plan.batch.items():
        request, path = requests[name], Path(root.name) / REQUEST_FOLDER / f"{name}.yaml"
        about = {
            "id": name,
            "reason": request.reason,
            "legal_basis": request.legal_basis,
            "received": request.received.isoformat(),
            "due": request.due.isoformat(),
            "days_late": max(0, (today - request.due).days),
            "requester": request.requester,
            "subjects": subject_hashes(subjects, salt),
            **({"attributes": list(request.attributes)} if request.attributes else {}),
        }
        files = common["files"] | {"request": _file(path, project)}
        measured = {"annex": annex(name, verdict), "limits": limits_in_words(params, verdict.evidence[name])}
        previous = sign(root, sealed({**common, "request": about, "files": files, **measured}, previous))
        certificates.append(previous)
        states[name] = RequestState(
            status=status,
            run=plan.run,
            subjects=subjects,
            registered_model=registry.name,
            version=version.number,
            model_digest=version.digest,
            certificate=previous[DIGEST],
            known=earlier[name].known if name in earlier else {},
            confirmed=name in earlier and earlier[name].confirmed,
            time=now(),
        )
    aliases: dict[str, int | None] = {CANDIDATE: version.number}
    if params.requests.auto_promote:
        aliases = {PRODUCTION: version.number, CANDIDATE: None}
    apply_change(
        root,
        registry,
        "certify",
        aliases=aliases,
        states=states,
        certificates=certificates,
        result={"version": version.number},
    )
    return version


def _register(
    plan: Plan, verdict: Verdict, params: Params, root: Path, registry: Registry, flow_run: str
) -> Version:
    """Send the run to MLflow and register its model."""
    project, (_, method) = project_of(root), method_of(params)
    run = project / RUNS / plan.run
    folder = RUNS / plan.run / "data" / "models" / "unlearned" / method
    weights = digest(project / folder)
    records = {record.label: record for record in read_records(run / "data")}
    payload = model_payload(run / "data", method, records)
    number = sum(map(len, plan.batch.values()))
    description = (
        f"Version {plan.start.number} made to forget {number} more people ({', '.join(plan.batch)}), "
        f"with {method}."
    )
    gates = {
        f"gate/{gate.name}" + (f"/{gate.about}" if gate.about else ""): gate.value
        for gate in verdict.gates
        if gate.value is not None
    }
    texts = {name: run / name for name in ("params.yaml", "dvc.lock")}
    payload = replace(
        payload,
        name=plan.run,
        role="request",
        digest=f"{plan.run}/{weights}",
        metrics={**payload.metrics, **gates},
        tags=payload.tags | {RUN: plan.run},
        texts={name: path.read_text(encoding="utf-8") for name, path in texts.items() if path.is_file()},
        model=ModelPayload(
            name=registry.name,
            folder=project / folder,
            digest=weights,
            parent=plan.start.digest,
            description=description,
            tags={
                "efface.method": method,
                FOLDER: folder.as_posix(),
                RUN: plan.run,
                REQUESTS: ",".join(plan.batch),
                **({FLOW_RUN: flow_run} if flow_run else {}),
            },
        ),
    )
    version = send(payload, experiment_of(params), registry.project).version
    assert version is not None
    return version


def _common(
    plan: Plan, verdict: Verdict, params: Params, root: Path, registry: Registry, version: Version
) -> dict[str, Any]:
    """What the certificates of one run have in common."""
    project, run, (kind, method) = project_of(root), RUNS / plan.run, method_of(params)
    record = read_json(project / run / "data" / "runs" / f"{kind}@{method}.json")
    files = {
        "samples": run / "data" / "prepared" / "samples.parquet",
        "model before": run / "data" / "models" / "vanilla",
        "model after": Path(version.folder),
        "scores after": run / "data" / "scores" / f"{method}.parquet",
    }
    mask, code, metadata = "importance", "efface/neurons", None
    if kind == "unlearn":
        entry = params.unlearn.methods[method]
        mask, code = entry.mask, f"efface/unlearning/methods/{entry.method}.py"
    if mask != "none":
        files["mask"] = run / "data" / "masks" / f"{mask}.safetensors"
        metadata = mask_metadata(project / files["mask"])
    splits = read_splits(project / run / "data")
    return {
        "kind": KIND,
        "format": 2,
        "run": run.as_posix(),
        "files": {role: _file(path, project) for role, path in files.items()},
        "data": {
            "benchmark": splits["benchmark"],
            "people_to_keep": len(splits["entities"]["retain"]),
            "people_forgotten": len(splits["entities"]["forget"]),
        },
        "not_retested": _not_retested(root),
        "models": {
            "registered_name": registry.name,
            "base": f"{params.base.source}@{params.base.revision or 'newest'}",
            "original": {"version": plan.original.number, "digest": plan.original.digest},
            "before": {"version": plan.start.number, "digest": plan.start.digest},
            "after": {"version": version.number, "digest": version.digest},
        },
        "method": {
            "name": method,
            "parameters": record["params"],
            "digest": digest(project / run / code),
            "seed": record["seed"],
            "mask": None
            if metadata is None
            else {key: metadata[key] for key in ("variant", "threshold", "density") if key in metadata},
        },
        "scores": verdict.scores,
        "attacks": verdict.attacks,
        "evidence": verdict.evidence,
        "release": params.requests.release,
        "gates": [gate.plain() for gate in verdict.gates],
        "made": {
            "time": now(),
            "git_commit": record.get("git_commit"),
            "uncommitted": uncommitted_files(project),
            "device": record.get("device"),
            "versions": record.get("versions", {}),
        },
    }


def _not_retested(root: Path) -> dict[str, str]:
    """Purged request to the time of the last certificate that could still test its people."""
    result, last = {}, ""
    for item in read_certificates(root):
        if item["kind"] == RECORD_KIND:
            result[item["request"]["id"]] = last
        else:
            last = item["made"]["time"]
    return result


def uncommitted_files(project: Path) -> list[str] | None:
    """Code and parameters that differ from the commit, without outputs; None without git."""
    command = ["git", "status", "--porcelain", "--", ".", ":!data", ":!dvc.lock"]
    try:
        status = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line[3:] for line in status.stdout.splitlines()]


def _file(path: Path, project: Path) -> dict[str, str]:
    return {"path": path.as_posix(), "digest": digest(project / path)}
