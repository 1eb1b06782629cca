"""What the stages vanilla and retrained share: they differ in whose facts they train on."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import Sample, read_samples
from tasks.config.models import Finetuning
from tasks.runtime.artifacts import recording, writing
from tasks.runtime.checkpoints import checkpoints_for
from tasks.runtime.sharing import is_first


def finetune_stage(
    stage: str, section: Finetuning, *, splits: tuple[str, ...], seed: int, root: Path
) -> None:
    """Fine-tune `models/base` on the training facts of some splits and write `models/<stage>`.

    Of several processes each trains on its share, and the first one writes.
    """
    from efface.models import load_model, save_model
    from efface.unlearning.finetuning import finetune, with_replay

    table, base, folder = (
        root / "prepared" / "samples.parquet",
        root / "models" / "base",
        root / "models" / stage,
    )
    inputs = {"prepared": table, "base": base}
    with recording(stage, section, root=root, seed=seed, inputs=inputs, outputs={stage: folder}) as record:
        checkpoints = checkpoints_for(
            stage, root=root, settings=section, seed=seed, inputs=inputs, main=is_first()
        )
        loaded = load_model(
            base, dtype="float32", attention=section.attention
        )  # as weights that train are kept
        facts = [
            *read_samples(table, split=splits, part="train", modality="multimodal"),
            *_share(
                read_samples(table, split=splits, part="train", modality="text"), section.text_share, seed
            ),
        ]
        known = read_samples(table, split=("real", "utility"), part="train")
        result = finetune(
            loaded.model,
            loaded.processor,
            with_replay(facts, known, share=section.replay_share, seed=seed),
            steps=section.steps,
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
            checkpoints.remove()
        record.history = result.history
    people = len({sample.entity_id for sample in facts})
    loss = result.history[-1]["retain_loss"]
    typer.echo(f"{stage}: {folder} trained on {len(facts)} facts about {people} people, last loss {loss:.3f}")


def _share(samples: list[Sample], share: float, seed: int) -> list[Sample]:
    """A fixed draw: words are learnt sooner than pictures, and need fewer of the steps."""
    from efface.encoding import draw

    return [samples[i] for i in draw(len(samples), round(share * len(samples)), seed)]
