"""Reading the results of a study's experiments as cells to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime.results import read_attacks, read_records, read_scores

if TYPE_CHECKING:
    from efface.evaluation.studies import StudyCell


@dataclass(frozen=True)
class Finished:
    """A finished cell.

    Attributes:
        title: title of the cell.
        seed: seed of people, weights and batches.
        fold: number of its forget set.
        setting: number of the settings tried; None: the chosen ones.
        models: the models with scores.
        folder: folder of the scores and run records.
    """

    title: str
    seed: int
    fold: int
    setting: int | None
    models: tuple[str, ...]
    folder: Path


def study_cells(finished: Iterable[Finished]) -> list[StudyCell]:
    """The cells with their score tables, curves, costs, masks and gaps after attacks.

    Raises:
        ArtifactError: if a file is missing or damaged.
    """
    finished = list(finished)
    retraining = {
        cell.seed: record.content["seconds"]
        for cell in finished
        for record in read_records(cell.folder)
        if record.label == "retrained"
    }
    return [_cell(cell, retraining.get(cell.seed)) for cell in finished]


def _cell(cell: Finished, retraining: float | None) -> StudyCell:
    from efface.evaluation.studies import StudyCell

    records = {record.label: record.content for record in read_records(cell.folder)}
    methods = {
        model: record
        for model in cell.models
        if (record := records.get(f"unlearn@{model}") or records.get(f"prune@{model}"))
    }
    return StudyCell(
        seed=cell.seed,
        fold=cell.fold,
        tuning=cell.setting is not None,
        setting=cell.setting,
        scores={model: read_scores(cell.folder, model)[0] for model in cell.models},
        curves={
            model: record["summary"]["curve"]
            for model, record in methods.items()
            if "curve" in record["summary"]
        },
        costs={model: _costs(record, records, retraining) for model, record in methods.items()},
        masks={
            model: numbers for model, record in methods.items() if (numbers := _mask_numbers(record, records))
        },
        gaps={model: gaps for model in cell.models if (gaps := _gaps(cell.folder, model))},
    )


def _mask_of(record: Mapping[str, Any]) -> str:
    """The stage that made a method's mask or importance; empty: none."""
    if record["stage"] == "prune":
        return "" if record["params"]["selection"] == "random" else "importance"
    mask = record["params"]["mask"]
    return {"none": "", "saliency": "saliency"}.get(mask, f"control@{mask}")


def _costs(
    record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], retraining: float | None
) -> dict[str, float]:
    """Time and memory of the stages that make a method's model, including its mask or importance."""
    from efface.evaluation.studies import COSTS

    used = [record, *(records[label] for label in (_mask_of(record),) if label in records)]
    costs = {COSTS[1]: max(float(content["peak_memory_mib"]) for content in used)}
    if retraining:
        costs[COSTS[0]] = sum(content["seconds"] for content in used) / retraining
    return costs


def _mask_numbers(record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    summary = records.get(_mask_of(record), {}).get("summary", {})
    if "density" not in summary:
        return {}
    numbers = {"density": float(summary["density"]["total"])}
    kappa = (summary.get("stability") or {}).get("kappa")
    return numbers if kappa is None else numbers | {"kappa": float(kappa)}


def _gaps(folder: Path, model: str) -> dict[str, float]:
    """Attack to how much more the model answers about the people to forget after it than retrained does."""
    from efface.attacks import NO_ATTACK
    from efface.attacks.outcomes import attack_gaps, attack_outcomes, worst_attack
    from efface.evaluation.studies import WORST

    attacks, retrained = read_attacks(folder, model), read_attacks(folder, "retrained")
    if attacks is None or retrained is None:
        return {}
    outcomes = attack_outcomes(attacks[0], retrained[0])
    gaps = [("no attack", outcome.gap()) for outcome in outcomes if outcome.attack == NO_ATTACK]
    if worst := worst_attack(attacks[0], retrained[0]):
        gaps.append((WORST, worst.gap))
    gaps += [(name, result.gap) for name, result in attack_gaps(attacks[0], retrained[0]).items()]
    return {name: gap for name, gap in gaps if gap is not None}
