"""Stage base: the model before it meets the people to forget.

A model that exists (`base.source`) is checked and pointed to. The sandbox's is made here: its vision tower
learns to see faces, then projector and decoder learn skills and the `real` people.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.data.samples import Sample, read_samples
from tasks.config import Params
from tasks.runtime.artifacts import read_json, recording, writing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


def run(params: Params, root: Path = Path("data")) -> None:
    """Train, or point to a model that exists, and write `models/base`."""
    if params.base.source == "sandbox":
        _train(params, root)
    else:
        _point(params, root)


def _point(params: Params, root: Path) -> None:
    """Check without loading weights that the model can be worked with, and write `models/base/model.json`."""
    from dataclasses import replace

    from efface.encoding import prompt_of
    from efface.models import anatomy
    from efface.models.fitting import check_processor, prepare_processor
    from efface.models.loading import Source, write_pointer
    from efface.models.outline import outline

    section, folder = params.base, root / "models" / "base"
    source = Source(
        section.source,
        revision=section.revision,
        dtype=section.dtype,
        chat_template=section.chat_template,
        system=section.system,
        pad_token=section.pad_token,
        trust_remote_code=section.trust_remote_code,
    )
    with recording(
        "base", section, root=root, seed=params.seed, inputs={}, outputs={"base": folder}
    ) as record:
        model = outline(source)
        parts = anatomy(model)
        processor = prepare_processor(source)
        check_processor(model, processor)
        prompt_of(processor, "?", image=True)  # a template that is missing or refuses pictures stops here
        source = replace(source, revision=getattr(model.config, "_commit_hash", None) or source.revision)
        with writing(folder) as partial:
            partial.mkdir(parents=True, exist_ok=True)
            write_pointer(source, partial)
        record.summary = {
            "id": source.id,
            "revision": source.revision,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    typer.echo(
        f"base: {folder} points to {source.id} ({source.revision or 'local'}), a {type(model).__name__} with "
        f"{len(parts.mlps)} MLP blocks"
    )


def _train(params: Params, root: Path) -> None:
    """Train the sandbox's model."""
    from efface import sandbox
    from efface.models import save_model
    from efface.sandbox.pretraining import pretrain_vision
    from efface.unlearning.finetuning import finetune

    section = params.base
    table = root / "prepared" / "samples.parquet"
    benchmark = read_json(table.with_name("splits.json"))["benchmark"]
    strangers = root / "benchmarks" / benchmark / "train" / "Strangers"
    folder = root / "models" / "base"
    inputs = {"prepared": table} | ({"strangers": strangers} if strangers.is_dir() else {})
    with recording(
        "base", section, root=root, seed=params.seed, inputs=inputs, outputs={"base": folder}
    ) as record:
        samples = read_samples(table)
        tokenizer = sandbox.build_tokenizer(text for sample in samples for text in _texts(sample))
        processor = sandbox.build_processor(
            tokenizer, image_size=section.image_size, patch_size=section.patch_size
        )
        model = _untrained(params, tokenizer)
        accuracy = {}
        if "strangers" in inputs:
            pixels, labels = _strangers(strangers, processor)
            accuracy = pretrain_vision(
                model,
                pixels,
                labels,
                steps=section.vision_steps,
                learning_rate=section.vision_learning_rate,
                batch_size=section.batch_size,
                seed=params.seed,
            )
        # An imported benchmark may have neither strangers nor people to know beforehand.
        if known := read_samples(table, split=("real", "utility"), part="train"):
            record.history = finetune(
                model,
                processor,
                known,
                steps=section.steps,
                learning_rate=section.learning_rate,
                batch_size=section.batch_size,
                seed=params.seed,
                label="base",
            ).history
        with writing(folder) as partial:
            save_model(model, processor, partial)
        record.summary = {
            "vision_accuracy": accuracy,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    seen = ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
    told = f"its vision tower tells {seen} on new faces" if seen else f"no strangers in {benchmark}"
    typer.echo(f"base: {folder} trained; {told}")


def _untrained(params: Params, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The sandbox's model with random weights."""
    import torch

    from efface import sandbox

    section = params.base
    torch.manual_seed(params.seed)
    model = sandbox.build_model(
        tokenizer,
        image_size=section.image_size,
        patch_size=section.patch_size,
        width=section.width,
        mlp_width=section.mlp_width,
        vision_layers=section.vision_layers,
        language_layers=section.language_layers,
        heads=section.heads,
    )
    if section.attention is not None:
        model.set_attn_implementation(section.attention)
    return model


def _texts(sample: Sample) -> list[str]:
    """Every text the model may meet, so that the tokenizer knows its words."""
    return [
        sample.question,
        sample.answer,
        *(sample.options or ()),
        *(sample.wrong_answers or ()),
        sample.paraphrase or "",
    ]


def _strangers(folder: Path, processor: ProcessorMixin) -> tuple[Tensor, dict[str, list[str]]]:
    """Pixels (P, 3, H, W) and labels by attribute of the pictures for vision pre-training."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(folder)
    pictures = [
        Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table.column("image").to_pylist()
    ]
    names = [name for name in table.column_names if name not in ("image", "ID")]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels, {name: [str(value) for value in table.column(name).to_pylist()] for name in names}
