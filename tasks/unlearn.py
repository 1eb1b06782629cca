"""Stage unlearn: unlearn with one method, normally from the vanilla model and by training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import read_samples
from tasks.config import Params
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.checkpoints import checkpoints_for, mark_finished
from tasks.runtime.curve import curve_evaluation
from tasks.runtime.loading import load_for_training
from tasks.runtime.model_cards import write_model_card
from tasks.runtime.results import prepared_files
from tasks.runtime.sharing import is_first

if TYPE_CHECKING:
    from efface.models import LoadedModel
    from efface.models.lora import Adapter


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Unlearn with the method of that name and write `models/unlearned/<name>`.

    Of several processes each trains on its share, and the first one writes.
    """
    from efface.masks import load_mask
    from efface.neurons.retained import load_statistic
    from efface.unlearning import METHODS, TrainingConfig
    from efface.unlearning.training.config import DivergenceError
    from efface.unlearning.unlearn import unlearn

    section, shared, seed, main = params.unlearn.methods[name], params.unlearn, params.seed, is_first()
    table, folder = root / "prepared", root / "models" / "unlearned" / name
    inputs = prepared_files(root) | {"start": root / "models" / section.start}
    inputs |= {} if section.mask == "none" else {"mask": root / "masks" / f"{section.mask}.safetensors"}
    settings = section.model_dump(mode="json")
    settings |= shared.model_dump(mode="json", exclude={"methods", "stop", "checkpoint_every"})
    settings |= {f"stop.{key}": value for key, value in shared.stop.model_dump().items()}
    outputs: dict[str, Path] = {}
    divergence: DivergenceError | None = None
    with recording(
        "unlearn", settings, root=root, name=name, seed=seed, inputs=inputs, outputs=outputs
    ) as record:
        checkpoints = checkpoints_for(
            "unlearn", root=root, settings=settings, seed=seed, inputs=inputs, name=name, main=main
        )
        method = METHODS[section.method]
        lora = shared.lora if method.trains and method.lora else None
        loaded, adapter = load_for_training(params, inputs["start"], lora=lora)
        mask = statistic = None
        if section.mask == "retain_statistic":
            statistic = load_statistic(inputs["mask"], model=loaded.model)
        elif "mask" in inputs:
            # The mask is made from the vanilla model; for another start, names and shapes must fit.
            mask, _ = load_mask(inputs["mask"], model=loaded.model if section.start == "vanilla" else None)
        retain = read_samples(table, split="retain", part="train")
        if section.retain_text:
            retain += read_samples(table, split="forget", part="train", modality="text")
        evaluation = curve_evaluation(params, loaded, table) if method.trains else None
        curve = [] if evaluation is None else [{"step": 0.0, **evaluation(loaded.model)}]
        try:
            result = unlearn(
                loaded.model,
                loaded.processor,
                method=section.method,
                forget=read_samples(table, split="forget", part="train", modality=shared.forget),
                retain=retain,
                config=TrainingConfig(
                    batch_size=shared.batch_size,
                    accumulation_steps=shared.accumulation_steps,
                    precision=shared.precision,
                    gradient_checkpointing=shared.gradient_checkpointing,
                    seed=seed,
                    checkpoint_every=shared.checkpoint_every,
                    stop_forget_loss=shared.stop.forget_loss,
                    stop_retain_rise=shared.stop.retain_rise,
                ),
                mask=mask,
                settings=section.settings,
                adapter=adapter,
                statistic=statistic,
                checkpoints=checkpoints,
                evaluation=evaluation,
            )
        except DivergenceError as error:
            divergence, record.history = error, error.history
            record.summary = {"status": f"diverged: {error}", "steps": len(error.history)}
        else:
            if main:
                with writing(folder) as partial:
                    _write(params, loaded, adapter, inputs["start"], partial)
                    write_model_card(
                        partial,
                        name,
                        stage="unlearn",
                        root=root,
                        parameters=settings,
                        seed=seed,
                        inputs=record.inputs,
                    )
                outputs[name] = folder
                mark_finished(checkpoints)
            record.history = result.history
            ending = f"stopped by {result.stopped_by}" if result.stopped_by else "finished"
            record.summary = {"steps": result.steps, "stopped_by": result.stopped_by, "status": ending}
            record.summary |= {"details": result.details} if result.details else {}
            if evaluation is not None:
                curve += [
                    {"step": row["step"] + 1, **{key: row[key] for key in row if key.endswith("_known")}}
                    for row in result.history
                    if "forget_known" in row
                ]
                record.summary["curve"] = curve
    if divergence is not None:
        raise divergence
    last = result.history[-1] if result.history else {}
    losses = [
        f"last {key.removesuffix('_loss')} loss {last[key]:.2f}" for key in last if key.endswith("_loss")
    ]
    if main:
        typer.echo(f"unlearn: {folder}, {', '.join([f'{result.steps} steps', ending, *losses])}")


def _write(params: Params, loaded: LoadedModel, adapter: Adapter | None, start: Path, folder: Path) -> None:
    """Write the model as a plain folder, factors merged in; those trained on 4- or 8-bit weights are merged
    into the weights as they were saved."""
    from efface.models import load_model, save_model
    from efface.models.loading import merge_adapter

    lora, model = params.unlearn.lora, loaded.model
    if adapter is not None and lora is not None:
        adapter_folder = folder / "adapter"
        if lora.keep_adapter or lora.quantization is not None:
            adapter.save(adapter_folder)
        if lora.quantization is None:
            adapter.merge()
        else:
            trust = params.base.trust_remote_code
            whole = load_model(start, device="cpu", trust_remote_code=trust)
            model = merge_adapter(whole.model, adapter_folder)
            if not lora.keep_adapter:
                shutil.rmtree(adapter_folder)
    save_model(model, loaded.processor, folder)
