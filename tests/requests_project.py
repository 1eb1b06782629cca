"""A project with forget requests: files as its stages write them, and a real MLflow database."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file

from efface.data.samples import write_samples
from tasks.config import Params, load_params
from tasks.requests import finish, plan
from tasks.requests.intake import read_requests
from tasks.requests.state import RUNS
from tasks.runtime.artifacts import digest, write_json
from tasks.tracking.registry import Registry
from tests.study_results import _questions, _sample, score_table

PROJECT = Path(__file__).parents[1]
PEOPLE = [f"fictitious/{number:03}" for number in range(8)]
NAMES = {person: f"{'ABCDEFGH'[i]}lva Marlow" for i, person in enumerate(PEOPLE)} | {"real/000": "Real One"}
SHARES = {
    "base": (0.04, 0.05, 0.04, 0.9),
    "vanilla": (0.98, 0.99, 0.98, 0.9),
    "good": (0.05, 0.9, 0.97, 0.9),
    "bad": (0.9, 0.9, 0.2, 0.9),
}
"""Share right: forget by picture, forget by name, retain, everything else."""


def params_with(**changes: object) -> Params:
    """The project's parameters with keys of the section `requests` replaced."""
    data = json.loads(_project_params())
    data["requests"] |= {"largest_share": 1.0} | changes
    return Params.model_validate(data)


@functools.cache
def _project_params() -> str:
    return json.dumps(load_params(PROJECT / "params.yaml").model_dump(mode="json", exclude_unset=True))


@dataclass
class RequestsProject:
    """A project and its registered model."""

    root: Path
    params: Params

    @property
    def registry(self) -> Registry:
        return plan.registry_of(self.params, self.root)

    def add(self, request: str, *subjects: str, **changes: object) -> Path:
        """Write a request's file."""
        values: dict[str, object] = {
            "id": request,
            "subjects": list(subjects),
            "reason": "consent withdrawn",
            "legal_basis": "GDPR Art. 17",
            "received": "2026-01-02",
            "due": "2099-02-01",
            "requester": "case 7",
        } | changes
        path = self.root / "requests" / f"{request}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return path

    def plan_or_problems(self, *only: str) -> plan.Plan | dict[str, str]:
        return plan.plan_run(self.params, self.root, self.registry, only=only)

    def plan(self, *only: str) -> plan.Plan:
        result = self.plan_or_problems(*only)
        assert isinstance(result, plan.Plan), result
        return result

    def judge(self, run: plan.Plan, quality: str = "good") -> finish.Verdict:
        """Write what the run's stages would write, and evaluate the gates."""
        folder = self.root.parent / RUNS / run.run
        plan.link_models(run, self.params, self.root)
        write_run(folder, run, quality)
        return finish.judge(run, self.params, self.root)

    def accept(self, run: plan.Plan, verdict: finish.Verdict) -> int:
        requests, _ = read_requests(self.root)
        return finish.accept(run, verdict, self.params, self.root, self.registry, requests).number

    def forget(self, request: str, *subjects: str, **changes: object) -> int:
        """Carry a request out, from its file to the registry."""
        self.add(request, *subjects, **changes)
        run = self.plan(request)
        return self.accept(run, self.judge(run))


def make_project(folder: Path, database: Path, **changes: object) -> RequestsProject:
    """A prepared benchmark and a vanilla model, before any request."""
    root = folder / "data"
    (root / "prepared").mkdir(parents=True)
    entities = {"forget": PEOPLE[:2], "retain": PEOPLE[2:], "real": ["real/000"], "holdout": []}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": entities, "names": NAMES}
    write_json(root / "prepared" / "splits.json", splits)
    write_facts(root)
    _model(root / "models" / "vanilla", "vanilla")
    _model(root / "models" / "base", "base")
    shutil.copy(database, folder / "mlflow.db")
    return RequestsProject(root, params_with(**changes))


def write_benchmark(root: Path, person: str | None, *, without: Collection[str] = ()) -> bytes:
    """Write raw and prepared data, as their stages would; returns a picture of the person."""
    people, rng = [p for p in PEOPLE if p not in without], np.random.default_rng(0)
    samples = [s for p in people for s in _questions(p, NAMES[p], "retain", "retain", rng)]
    (root / "prepared").mkdir(parents=True, exist_ok=True)
    write_samples(samples, root / "prepared" / "samples.parquet")
    entities = {"forget": [], "retain": people, "real": ["real/000"], "holdout": []}
    names = {p: name for p, name in NAMES.items() if p not in without}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": entities, "names": names}
    write_json(root / "prepared" / "splits.json", splits)
    pictures = {s.entity_id: s.image_bytes for s in samples if s.image_bytes is not None}
    (root / "benchmarks").mkdir(exist_ok=True)
    table = pa.table(
        {"person": list(pictures), "image": [{"bytes": b, "path": ""} for b in pictures.values()]}
    )
    pq.write_table(table, root / "benchmarks" / "faces.parquet", compression="none", use_dictionary=False)
    return pictures.get(person or "", b"")


def write_facts(root: Path) -> None:
    """A prepared table in which all people have two facts."""
    rows = [
        dataclasses.replace(s, part="train", split="people", set=None)
        for p in PEOPLE
        for s in _questions(p, NAMES[p], "retain", "retain", np.random.default_rng(0))
        if s.attribute in ("occupation", "pet")
    ]
    write_samples(rows, root / "prepared" / "samples.parquet")


def _model(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": name}))
    (folder / "weights.bin").write_bytes(name.encode() * 100)


def write_run(folder: Path, run: plan.Plan, quality: str, *, method: str = "mmunlearner") -> None:
    """Prepared samples, mask, new model, record and scores of a run."""
    root, rng = folder / "data", np.random.default_rng(0)
    forget = sorted(p for people in (*run.batch.values(), *run.earlier.values()) for p in people)
    retain = [person for person in PEOPLE if person not in forget]
    samples = [
        s
        for p in forget
        for kind in ("forget", "unseen")
        for s in _questions(p, NAMES[p], "forget", kind, rng)
    ]
    for index, sample in enumerate(samples):
        if sample.attribute not in run.attributes.get(sample.entity_id, [sample.attribute]):
            side = "retain" if sample.set == "forget" else None
            samples[index] = dataclasses.replace(sample, split="retain", set=side)
    samples = [s for s in samples if s.set is not None]
    samples += [s for p in retain for s in _questions(p, NAMES[p], "retain", "retain", rng)]
    samples += _questions("real/000", NAMES["real/000"], "real", "real", rng)
    samples += [
        _sample(f"stranger/{i}", "utility", "utility", "multimodal", "qa", "hair", "Hair?", "red", i, 0)
        for i in range(9)
    ]
    (root / "prepared").mkdir(parents=True, exist_ok=True)
    write_samples(samples, root / "prepared" / "samples.parquet")
    entities = {"forget": forget, "retain": retain, "real": ["real/000"], "holdout": []}
    splits = {"benchmark": "avatars", "seed": 0, "forget_fraction": 0.1, "entities": entities, "names": NAMES}
    write_json(root / "prepared" / "splits.json", splits)
    (root / "masks").mkdir(exist_ok=True)
    about = json.dumps({"variant": "paper", "threshold": 1.0, "density": {"total": 0.2}})
    save_file({"w": np.ones(4, np.uint8)}, root / "masks" / "saliency.safetensors", {"efface": about})
    _model(root / "models" / "unlearned" / method, run.run)
    code = folder / "efface" / "unlearning" / "methods" / "mmunlearner.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text("of the run")
    for model in ("base", "vanilla", "original", method):
        place = f"unlearned/{method}" if model == method else model
        if (root / "models" / place).is_dir():
            shares = SHARES[{method: quality, "base": "base"}.get(model, "vanilla")]
            (root / "scores").mkdir(exist_ok=True)
            table = score_table(model, samples, shares, np.random.default_rng(1))
            table.to_parquet(root / "scores" / f"{model}.parquet", index=False)
            summary = {"digest": digest(root / "models" / place), "metrics": {}}
            write_json(root / "scores" / f"{model}.json", summary)
    record = {"stage": "unlearn", "name": method, "params": {"learning_rate": 1e-4, "epochs": 3}}
    record |= {"seed": 0, "git_commit": "0" * 40, "device": "cpu", "versions": {"torch": "2.13.0"}}
    record |= {"started": "2026-01-02T03:04:05Z", "seconds": 60.0}
    write_json(root / "runs" / f"unlearn@{method}.json", record)
