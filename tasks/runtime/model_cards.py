"""Model cards on disk: in the folder of an unlearned model and, with scores, beside the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.model_card import model_card
from tasks.config import REFERENCE_MODELS
from tasks.runtime.artifacts import read_json, writing
from tasks.runtime.results import Record, project_of
from tasks.runtime.salt import read_salt

if TYPE_CHECKING:
    from efface.report.comparison import Comparison

_PROVENANCE = ("git_commit", "seed", "started", "device", "inputs", "outputs", "versions")


def write_model_card(
    folder: Path,
    name: str,
    *,
    stage: str,
    root: Path,
    parameters: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
) -> None:
    """Write ``<folder>/README.md`` of a model that has no scores yet.

    Two runs that make the same model write the same card, as time and commit are only in the run record.

    Args:
        folder: folder of the model.
        name: name of the method and the model.
        stage: stage that makes it, ``unlearn`` or ``prune``.
        root: the data folder.
        parameters: the method's parameters.
        seed: seed of the run.
        inputs: name to digest of the files that it was made from.
    """
    text = model_card(
        name,
        method=name,
        subjects=read_json(root / "prepared" / "splits.json")["entities"]["forget"],
        key=read_salt(project_of(root)),
        parameters=parameters,
        provenance={"seed": seed, "inputs": dict(inputs), "record": f"data/runs/{stage}@{name}.json"},
        scores="This card was written before the model was scored. The card with its scores and those of the "
        f"reference models is data/report/cards/{name}.md in the project.",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_scored_cards(
    folder: Path,
    models: Mapping[str, str],
    records: Iterable[Record],
    splits: Mapping[str, Any],
    comparison: Comparison,
    key: bytes | None,
) -> None:
    """Write ``<folder>/<model>.md`` for every model of an unlearn or prune stage.

    Args:
        folder: replaced as a whole.
        models: name in the report to folder under data/models.
        records: run records of the stages.
        splits: who is in which split.
        comparison: the scores.
        key: key of the hashes of ids; None: no key.
    """
    lines = {line.model: line for line in comparison.lines}
    makers = {record.name: record.content for record in records if record.stage in ("unlearn", "prune")}
    with writing(folder) as partial:
        partial.mkdir()
        for model, place in models.items():
            content = makers.get(Path(place).name)
            if content is None or not place.startswith("unlearned/"):
                continue
            line, scores = lines[model], {}
            for name in (*REFERENCE_MODELS, model):
                if name != "base" and name in lines and lines[name].scores:
                    scores[name] = lines[name].scores
            privacy = attacks = "not available"
            if line.auc is not None and line.auc_gap is not None:
                privacy = f"AUC {line.auc:.2f}, {line.auc_gap:.2f} from the retrained model's"
            if line.attack_gap is not None:
                attacks = f"{line.attack_gap:+.2f} exact match above the retrained model, worst attack"
            text = model_card(
                model,
                method=Path(place).name,
                subjects=splits["entities"]["forget"],
                key=key,
                parameters=content.get("params") or {},
                provenance={name: content[name] for name in _PROVENANCE if content.get(name) is not None},
                scores=scores or "The score is refused: " + " ".join(comparison.refused.values()),
                notes=[f"Membership inference: {privacy}.", f"Attacks: {attacks}."],
            )
            (partial / f"{model}.md").write_text(text, encoding="utf-8")
