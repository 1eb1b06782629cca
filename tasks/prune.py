"""Stage prune: zero the units that matter most for what to forget, and optionally train to recover."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tasks.config import Params
from tasks.config.pruning import PruningMethod, Recovery
from tasks.runtime.artifacts import recording, write_json, writing
from tasks.runtime.curve import curve_evaluation
from tasks.runtime.model_cards import write_model_card
from tasks.runtime.results import prepared_files

if TYPE_CHECKING:
    from torch import Tensor

    from efface.models import LoadedModel


CURVE_POINTS = 6
"""Number of fractions on the forget-retain curve after 0, evenly spaced up to the method's own."""


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Prune with the method of that name and write `models/unlearned/<name>`."""
    from efface.masks import check_digest
    from efface.models import load_model, save_model
    from efface.neurons.importance import load_importance
    from efface.neurons.pruning import (
        hold_at_zero,
        neuron_regions,
        output_regions,
        zero_neurons,
        zero_outputs,
    )

    section = params.prune.methods[name]
    table, vanilla = root / "prepared", root / "models" / "vanilla"
    path, folder = root / "masks" / "importance.safetensors", root / "models" / "unlearned" / name
    reads_samples = section.recovery is not None or params.unlearn.curve is not None
    inputs = {"vanilla": vanilla, "importance": path} | (prepared_files(root) if reads_samples else {})
    with recording(
        "prune", section, root=root, name=name, seed=params.seed, inputs=inputs, outputs={name: folder}
    ) as record:
        tables, units, metadata = load_importance(path)
        loaded = load_model(vanilla, trust_remote_code=params.base.trust_remote_code)
        check_digest(path, metadata, loaded.model)
        selection = _select(section, tables, units, metadata["variant"], params.seed)
        rows = metadata["variant"] == "official_code"
        zero = zero_outputs if rows else zero_neurons
        curve, evaluation = [], curve_evaluation(params, loaded, table)
        if evaluation is not None:  # before recovery, which only follows the last fraction
            start = {key: value.clone() for key, value in loaded.model.state_dict().items()}
            for step in range(CURVE_POINTS + 1):
                fraction = section.fraction * step / CURVE_POINTS
                if step:
                    part = section.model_copy(update={"fraction": fraction})
                    zero(loaded.model, _select(part, tables, units, metadata["variant"], params.seed))
                curve.append({"step": float(step), "fraction": fraction, **evaluation(loaded.model)})
                loaded.model.load_state_dict(start)
        summary = zero(loaded.model, selection)
        if section.recovery:
            with hold_at_zero((output_regions if rows else neuron_regions)(loaded.model, selection)):
                record.history = _recover(loaded, table, section.recovery, params.seed)
        record.summary = {
            **section.model_dump(mode="json"),
            "units": {module: indices.tolist() for module, indices in selection.items()},
            "pruned": {
                tower: {str(k): v for k, v in layers.items()} for tower, layers in summary.pruned.items()
            },
            "widths": {
                tower: {str(k): v for k, v in layers.items()} for tower, layers in summary.widths.items()
            },
        }
        with writing(folder) as partial:
            save_model(loaded.model, loaded.processor, partial)
            write_json(partial / "pruning.json", record.summary)
            write_model_card(
                partial,
                name,
                stage="prune",
                root=root,
                parameters=section.model_dump(mode="json"),
                seed=params.seed,
                inputs=record.inputs,
            )
        if curve:
            record.summary["curve"] = curve
    counts = ", ".join(
        f"{sum(layers.values())} in the {tower} tower" for tower, layers in summary.pruned.items()
    )
    typer.echo(f"prune: {folder} made by {name}; {summary.total} units zeroed ({counts})")


def _select(
    section: PruningMethod, tables: Any, units: list[Any], variant: str, seed: int
) -> dict[str, Tensor]:
    from efface.neurons.selection import random_neurons, ranking, select_highest

    random = section.selection == "random"  # as many per module as the importance ranking selects
    scores = ranking(tables, "importance" if random else section.selection, variant=variant)
    layers = None if section.layers == "all" else section.layers
    selection = select_highest(
        scores, fraction=section.fraction, scope=section.scope, units=units, layers=layers
    )
    return random_neurons(selection, {u.name: u.width for u in units}, seed=seed) if random else selection


def _recover(loaded: LoadedModel, table: Path, recovery: Recovery, seed: int) -> list[Any]:
    """Train on the retain people's facts; the caller keeps pruned units at zero."""
    from efface.data.samples import read_samples
    from efface.unlearning.finetuning import finetune

    result = finetune(
        loaded.model,
        loaded.processor,
        read_samples(table, split="retain", part="train"),
        steps=recovery.steps,
        learning_rate=recovery.learning_rate,
        batch_size=recovery.batch_size,
        seed=seed,
        label="recovery",
    )
    return result.history
