"""Stages vanilla and retrained: the base model fine-tuned, on all people or on the retain people only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from efface.data.samples import PEOPLE, read_samples
from tasks.config import Params
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.checkpoints import checkpoints_for, mark_finished
from tasks.runtime.memory import require_memory
from tasks.runtime.results import prepared_files
from tasks.runtime.sharing import is_first


def run(params: Params, stage: Literal["vanilla", "retrained"], root: Path = Path("data")) -> None:
    """Fine-tune `models/base` and write `models/<stage>`.

    Each of several processes trains on its share, and the first one writes.
    """
    from efface.encoding import draw
    from efface.models import load_model, save_model
    from efface.unlearning.finetuning import finetune, with_replay

    section, seed = params.finetune, params.seed
    # Vanilla learns all people, so it does not depend on who is forgotten.
    split = PEOPLE if stage == "vanilla" else "retain"
    steps = params.vanilla.steps if stage == "vanilla" else params.retrained.steps
    settings = section.model_dump(mode="json") | {"steps": steps}
    base, folder, inputs = root / "models" / "base", root / "models" / stage, prepared_files(root)
    if stage == "vanilla":
        del inputs["split"]
    table = inputs["prepared"] if stage == "vanilla" else inputs["prepared"].parent
    inputs["base"] = base
    with recording(stage, settings, root=root, seed=seed, inputs=inputs, outputs={stage: folder}) as record:
        checkpoints = checkpoints_for(
            stage, root=root, settings=settings, seed=seed, inputs=inputs, main=is_first()
        )
        require_memory(params, base, "training")
        loaded = load_model(
            base,
            dtype="float32",  # weights that train
            attention=section.attention,
            trust_remote_code=params.base.trust_remote_code,
        )
        pictured = read_samples(table, split=split, part="train", modality="multimodal")
        text = read_samples(table, split=split, part="train", modality="text")
        facts = pictured + [text[i] for i in draw(len(text), round(section.text_share * len(text)), seed)]
        replayed = read_samples(table, split=("real", "utility"), part="train")
        result = finetune(
            loaded.model,
            loaded.processor,
            with_replay(facts, replayed, share=section.replay_share, seed=seed),
            steps=steps,
            learning_rate=section.learning_rate,
            batch_size=section.batch_size,
            seed=seed,
            precision=section.precision,
            gradient_checkpointing=section.gradient_checkpointing,
            checkpoints=checkpoints,
            checkpoint_every=section.checkpoint_every,
            label=stage,
        )
        if is_first():
            with writing(folder) as partial:
                save_model(loaded.model, loaded.processor, partial)
            mark_finished(checkpoints)
        record.history = result.history
    people = len({sample.entity_id for sample in facts})
    loss = result.history[-1]["retain_loss"]
    typer.echo(f"{stage}: {folder} trained on {len(facts)} facts about {people} people, last loss {loss:.3f}")
