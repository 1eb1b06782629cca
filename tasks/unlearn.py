"""Stage unlearn: make the vanilla model forget by training, with one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import read_samples
from tasks.artifacts import recording, writing
from tasks.checkpoints import checkpoints_for
from tasks.params import Params
from tasks.params.unlearning import Unlearn, UnlearningMethod

if TYPE_CHECKING:
    from efface.unlearning.loop import LoopConfig


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Unlearn with the method of that name and write `models/unlearned/<name>`."""
    from efface.models import load_model, save_model
    from efface.saliency import load_mask
    from efface.unlearning import unlearn

    section = params.unlearn.methods[name]
    table, vanilla = root / "prepared" / "samples.parquet", root / "models" / "vanilla"
    folder = root / "models" / "unlearned" / name
    masked = None if section.mask == "none" else root / "masks" / f"{section.mask}.safetensors"
    inputs = {"prepared": table, "vanilla": vanilla} | ({"mask": masked} if masked else {})
    settings = {**section.model_dump(mode="json"), "batch_size": params.unlearn.batch_size}
    settings |= {f"stop.{key}": value for key, value in params.unlearn.stop.model_dump().items()}
    with recording(
        "unlearn", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs={name: folder}
    ) as record:
        checkpoints = checkpoints_for(
            "unlearn", root=root, settings=settings, seed=params.seed, inputs=inputs, name=name
        )
        loaded = load_model(vanilla)
        mask = load_mask(masked, model=loaded.model)[0] if masked else None
        result = unlearn(
            loaded.model,
            loaded.processor,
            method=name,
            forget=read_samples(table, split="forget", part="train", modality="multimodal"),
            retain=read_samples(table, split="retain", part="train"),
            config=_loop_config(section, params.unlearn, params.seed),
            mask=mask,
            settings={} if section.beta is None else {"beta": section.beta},
            checkpoints=checkpoints,
        )
        with writing(folder) as partial:
            save_model(loaded.model, loaded.processor, partial)
        checkpoints.remove()
        record.history = result.history
        record.summary = {"steps": result.steps, "stopped_by": result.stopped_by}
    last = result.history[-1]
    losses = ", ".join(
        f"{k.removesuffix('_loss')} {last[k]:.2f}" for k in ("forget_loss", "retain_loss") if k in last
    )
    ending = f"stopped by {result.stopped_by}" if result.stopped_by else "ran its length"
    typer.echo(f"unlearn: {folder} made by {name} in {result.steps} steps ({ending}); last losses: {losses}")


def _loop_config(section: UnlearningMethod, shared: Unlearn, seed: int) -> LoopConfig:
    from efface.unlearning.loop import LoopConfig

    return LoopConfig(
        learning_rate=section.learning_rate,
        epochs=section.epochs,
        batch_size=shared.batch_size,
        forget_weight=section.forget_weight,
        retain_weight=section.retain_weight,
        retain_batches_per_forget_batch=section.retain_batches_per_forget_batch,
        max_grad_norm=section.max_grad_norm,
        warmup_fraction=section.warmup_fraction,
        weight_decay=section.weight_decay,
        seed=seed,
        checkpoint_every=shared.checkpoint_every,
        stop_forget_loss=shared.stop.forget_loss,
        stop_retain_rise=shared.stop.retain_rise,
    )
