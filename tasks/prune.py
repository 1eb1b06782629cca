"""Stage prune: make the vanilla model forget by switching neurons off; nothing is trained."""

from __future__ import annotations

from pathlib import Path

import typer

from tasks.artifacts import recording, write_json, writing
from tasks.params import Params


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Prune with the method of that name and write `models/unlearned/<name>`."""
    from efface.importance.files import load_importance
    from efface.importance.scores import random_neurons, select_neurons
    from efface.models import anatomy, load_model, save_model
    from efface.pruning import zero_neurons
    from efface.saliency.files import require_model

    section = params.prune.methods[name]
    vanilla, path = root / "models" / "vanilla", root / "masks" / "importance.safetensors"
    folder = root / "models" / "unlearned" / name
    inputs = {"vanilla": vanilla, "importance": path}
    with recording(
        "prune", section, root=root, name=name, seed=params.seed, inputs=inputs, outputs={name: folder}
    ) as record:
        importance, metadata = load_importance(path)
        loaded = load_model(vanilla)
        require_model(path, metadata, loaded.model)
        mlps = anatomy(loaded.model).mlps
        selection = select_neurons(**importance, fraction=section.fraction, scope=section.scope, mlps=mlps)
        if section.selection == "random":
            selection = random_neurons(selection, {mlp.name: mlp.width for mlp in mlps}, seed=params.seed)
        summary = zero_neurons(loaded.model, selection)
        record.summary = {
            **section.model_dump(mode="json"),
            "units": {mlp: units.tolist() for mlp, units in selection.items()},
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
    counts = ", ".join(
        f"{sum(layers.values())} in the {tower} tower" for tower, layers in summary.pruned.items()
    )
    typer.echo(f"prune: {folder} made by {name}; {summary.total} neurons off ({counts})")
