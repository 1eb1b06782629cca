"""Stage unlearn: make a model forget with one method, normally the vanilla model and by training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import read_samples
from efface.errors import DataError
from tasks.config import Params
from tasks.config.unlearning import Unlearn, UnlearningMethod
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.checkpoints import checkpoints_for
from tasks.runtime.loading import load_for_training
from tasks.runtime.model_cards import write_model_card
from tasks.runtime.sharing import is_first

if TYPE_CHECKING:
    from efface.models import LoadedModel
    from efface.models.lora import Adapter
    from efface.unlearning import TrainingConfig, UnlearningResult
    from efface.unlearning.training.checkpoint import Checkpoints
    from efface.unlearning.training.evaluation import EvaluationCallback

SENTENCES = ("generation", "caption")
"""Tasks whose answers are free text, which nobody gives word for word."""


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Unlearn with the method of that name and write `models/unlearned/<name>`.

    Of several processes each trains on its share, and the first one writes.
    """
    from efface.unlearning.training.config import DivergenceError

    section, folder = params.unlearn.methods[name], root / "models" / "unlearned" / name
    inputs = {"prepared": root / "prepared" / "samples.parquet", "start": root / "models" / section.start}
    inputs |= {} if section.mask == "none" else {"mask": root / "masks" / f"{section.mask}.safetensors"}
    settings, main = _settings(section, params.unlearn), is_first()
    made: dict[str, Path] = {}
    record_of = recording(
        "unlearn", settings, root=root, name=name, seed=params.seed, inputs=inputs, outputs=made
    )
    failure: DivergenceError | None = None
    with record_of as record:
        checkpoints = checkpoints_for(
            "unlearn", root=root, settings=settings, seed=params.seed, inputs=inputs, name=name, main=main
        )
        try:
            loaded, adapter, result, curve = _train(params, name, inputs, checkpoints)
        except DivergenceError as error:
            failure = error
            record.history = [*error.history]
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
                        seed=params.seed,
                        inputs=record.inputs,
                    )
                made[name] = folder
                checkpoints.remove()
            status = f"stopped by {result.stopped_by}" if result.stopped_by else "finished"
            record.history = [*result.history]
            record.summary = {"steps": result.steps, "stopped_by": result.stopped_by, "status": status}
            record.summary |= {"curve": curve} if curve else {}
    if failure is not None:
        raise failure
    if main:
        _tell(folder, name, result)


def _settings(section: UnlearningMethod, shared: Unlearn) -> dict[str, Any]:
    """Everything the run depends on, flat enough to read."""
    settings = section.model_dump(mode="json")
    settings |= shared.model_dump(mode="json", exclude={"methods", "stop", "checkpoint_every"})
    return settings | {f"stop.{key}": value for key, value in shared.stop.model_dump().items()}


def _train(
    params: Params, name: str, inputs: dict[str, Path], checkpoints: Checkpoints
) -> tuple[LoadedModel, Adapter | None, UnlearningResult, list[dict[str, float]]]:
    """Load the model the method starts from and unlearn with it; last the points of its curve, if any."""
    from efface.masks import load_mask
    from efface.unlearning import METHODS, unlearn

    section, trains = params.unlearn.methods[name], METHODS[name].trains
    lora = params.unlearn.lora if trains else None
    loaded, adapter = load_for_training(params, inputs["start"], lora=lora)
    mask = None
    if "mask" in inputs:
        # The mask is made from the vanilla model; where another one trains, names and shapes must do.
        mask, _ = load_mask(inputs["mask"], model=loaded.model if section.start == "vanilla" else None)
    evaluation = _evaluation(params, loaded, inputs["prepared"]) if trains else None
    start = [] if evaluation is None else [{"step": 0.0, **evaluation(loaded.model)}]
    result = unlearn(
        loaded.model,
        loaded.processor,
        method=name,
        forget=read_samples(inputs["prepared"], split="forget", part="train", modality=params.unlearn.forget),
        retain=read_samples(inputs["prepared"], split="retain", part="train"),
        config=_training_config(params.unlearn, params.seed),
        mask=mask,
        settings=section.settings,
        adapter=adapter,
        checkpoints=checkpoints,
        evaluation=evaluation,
    )
    points = [
        {"step": row["step"] + 1, **{key: row[key] for key in row if key.endswith("_known")}}
        for row in result.history
        if "forget_known" in row
    ]
    return loaded, adapter, result, start + points


def _evaluation(params: Params, loaded: LoadedModel, table: Path) -> EvaluationCallback | None:
    """Draws the questions of the forget-retain curve: facts of a word or a few, which are right or wrong."""
    from efface.encoding import Encoder, draw
    from efface.unlearning.training.evaluation import EvaluationCallback

    curve = params.unlearn.curve
    if curve is None:
        return None
    sides = {}
    for side in ("forget", "retain"):
        asked = read_samples(table, set=side, part="test", modality="multimodal")
        asked = [sample for sample in asked if sample.task not in SENTENCES] or asked
        if not asked:
            raise DataError(
                f"unlearn.curve: {table} holds no test questions about the {side} people by picture; set it "
                "to null"
            )
        chosen = draw(len(asked), curve.questions, params.seed)
        sides[side] = Encoder(loaded.processor, [asked[i] for i in chosen])
    return EvaluationCallback(curve.every, sides, params.unlearn.batch_size)


def _write(params: Params, loaded: LoadedModel, adapter: Adapter | None, start: Path, folder: Path) -> None:
    """Write the model as a plain folder, factors merged in; those trained on 4- or 8-bit weights are merged
    into the weights as they were saved."""
    from efface.models import load_model, save_model
    from efface.models.loading import merge_adapter

    lora, model = params.unlearn.lora, loaded.model
    if adapter is not None and lora is not None:
        kept = folder / "adapter"
        if lora.keep_adapter or lora.quantization is not None:
            adapter.save(kept)
        if lora.quantization is None:
            adapter.merge()
        else:
            trust = params.base.trust_remote_code
            whole = load_model(start, device="cpu", trust_remote_code=trust)
            model = merge_adapter(whole.model, kept)
            if not lora.keep_adapter:
                shutil.rmtree(kept)
    save_model(model, loaded.processor, folder)


def _training_config(shared: Unlearn, seed: int) -> TrainingConfig:
    from efface.unlearning import TrainingConfig

    return TrainingConfig(
        batch_size=shared.batch_size,
        accumulation_steps=shared.accumulation_steps,
        precision=shared.precision,
        gradient_checkpointing=shared.gradient_checkpointing,
        seed=seed,
        checkpoint_every=shared.checkpoint_every,
        stop_forget_loss=shared.stop.forget_loss,
        stop_retain_rise=shared.stop.retain_rise,
    )


def _tell(folder: Path, name: str, result: UnlearningResult) -> None:
    if not result.history:
        typer.echo(f"unlearn: {folder} made by {name}, without training")
        return
    last = result.history[-1]
    losses = ", ".join(
        f"{k.removesuffix('_loss')} {last[k]:.2f}" for k in ("forget_loss", "retain_loss") if k in last
    )
    ending = f"stopped by {result.stopped_by}" if result.stopped_by else "ran its length"
    typer.echo(f"unlearn: {folder} made by {name} in {result.steps} steps ({ending}); last losses: {losses}")
