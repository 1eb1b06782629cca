"""Stage base: the model before it is trained on the people to forget.

The stage checks an existing model (`base.source`) and writes a pointer to it, or trains the sandbox's model:
its vision tower on faces, then projector and decoder on skills and the `real` people. That model starts from
random weights, or around a decoder that knows language (`base.decoder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.data.samples import Sample, check_special_tokens, read_samples
from tasks.config import Params
from tasks.runtime.artifacts import recording, writing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

    from tasks.config.models import Base


def run(params: Params, root: Path = Path("data")) -> None:
    """Train the sandbox's model, or check an existing one and point to it; write `models/base`."""
    if params.base.source == "sandbox":
        _train(params, root)
    else:
        _point(params, root)


def _point(params: Params, root: Path) -> None:
    """Check, without loading weights, that the model is usable, and write `models/base/model.json`."""
    from dataclasses import replace

    from efface.encoding import check_template
    from efface.errors import ModelError
    from efface.models import Source, anatomy
    from efface.models.memory import meta_model
    from efface.models.processors import check_processor, load_processor
    from efface.models.source import base_of, write_pointer

    section, folder = params.base, root / "models" / "base"
    source = Source(
        section.source,
        revision=section.revision,
        dtype=section.dtype,
        chat_template=section.chat_template,
        template_arguments=section.template_arguments,
        system=section.system,
        pad_token=section.pad_token,
        trust_remote_code=section.trust_remote_code,
    )
    with recording(
        "base", section, root=root, seed=params.seed, inputs={}, outputs={"base": folder}
    ) as record:
        model = meta_model(source)
        processor = load_processor(source)
        adapter = base_of(source) is not source
        check_processor(model, processor, new_tokens=adapter)
        check_template(processor)
        _check_texts(root, processor)
        try:
            parts = f"{len(anatomy(model).mlps)} MLP blocks"
        except ModelError as error:
            parts = f"parts that saliency, importance and pruning cannot tell apart ({error})"
        if not adapter:
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
        f"{parts}"
    )


def _check_texts(root: Path, processor: ProcessorMixin) -> None:
    """Refuse samples with a special token of the model in their text, before anything is trained on them."""
    table = root / "prepared" / "samples.parquet"
    if not table.is_file():  # the model can be checked without a table
        return
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    tokens = {*tokenizer.all_special_tokens, getattr(processor, "image_token", None)}
    tokens |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    # A padding token may be any word, and one or two letters cannot be told from text.
    check_special_tokens(read_samples(table), {token for token in tokens if token and len(token) > 2})


def _train(params: Params, root: Path) -> None:
    """Train the sandbox's model."""
    import torch

    from efface.models import default_device, save_model
    from efface.sandbox.pretraining import pretrain_vision

    section = params.base
    table = root / "prepared" / "samples.parquet"
    benchmark = params.benchmark.name
    strangers = root / "benchmarks" / benchmark / "train" / "Strangers"
    folder = root / "models" / "base"
    inputs = {"prepared": table} | ({"strangers": strangers} if strangers.is_dir() else {})
    with recording(
        "base", section, root=root, seed=params.seed, inputs=inputs, outputs={"base": folder}
    ) as record:
        samples = read_samples(table)
        torch.manual_seed(params.seed)  # draws the weights
        model, processor, decoder = _untrained(section, samples)
        model.to(default_device())  # type: ignore[arg-type]
        _check_texts(root, processor)
        if section.attention is not None:
            model.set_attn_implementation(section.attention)
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
        # An imported benchmark may have neither strangers nor `real` people.
        if lessons := read_samples(table, split=("real", "utility"), part="train"):
            record.history = _teach(params, model, processor, lessons)
        with writing(folder) as partial:
            save_model(model, processor, partial)
        record.summary = {
            "vision_accuracy": accuracy,
            "decoder": decoder,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    accuracies = ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
    vision = f"accuracy of its vision tower on new faces: {accuracies}"
    typer.echo(f"base: {folder} trained; {vision if accuracies else f'no strangers in {benchmark}'}")


def _untrained(
    section: Base, samples: Sequence[Sample]
) -> tuple[PreTrainedModel, ProcessorMixin, str | None]:
    """The model before training, its processor, and the origin of its decoder if that is pretrained.

    All other weights are drawn from torch's generator.
    """
    from efface import sandbox
    from efface.sandbox import pretrained

    vision = {
        "image_size": section.image_size,
        "patch_size": section.patch_size,
        "width": section.width,
        "mlp_width": section.mlp_width,
        "vision_layers": section.vision_layers,
        "heads": section.heads,
    }
    sizes = {"image_size": section.image_size, "patch_size": section.patch_size}
    if section.decoder is not None:
        decoder, tokenizer, origin = pretrained.load_decoder(section.decoder)
        pretrained.prepare_tokenizer(tokenizer)
        processor = sandbox.build_processor(tokenizer, **sizes)
        processor.chat_template = pretrained.chat_template(tokenizer)
        return pretrained.build_model(decoder, tokenizer, **vision), processor, origin
    tokenizer = sandbox.build_tokenizer(text for sample in samples for _, text in _spoken(sample))
    model = sandbox.build_model(tokenizer, language_layers=section.language_layers, **vision)
    return model, sandbox.build_processor(tokenizer, **sizes), None


def _spoken(sample: Sample) -> Iterator[tuple[str, str]]:
    """The texts that a model reads or writes."""
    return ((name, text) for name, text in sample.texts() if name != "attribute")


def _teach(
    params: Params, model: PreTrainedModel, processor: ProcessorMixin, lessons: Sequence[Sample]
) -> list[dict[str, float]]:
    """Teach skills and the `real` people; before a pretrained decoder, the projector learns skills first."""
    from efface.models import anatomy
    from efface.unlearning.finetuning import finetune

    section, history = params.base, []
    for label, steps in (("projector", section.align_steps), ("base", section.steps)):
        if not steps:
            continue
        alone = label == "projector"
        if alone:
            names = anatomy(model).groups["projector"]
            for name, weight in model.named_parameters():
                weight.requires_grad_(name in names)
        history += finetune(
            model,
            processor,
            [sample for sample in lessons if sample.image_bytes] if alone else lessons,
            steps=steps,
            learning_rate=section.learning_rate * (10 if alone else 1),
            batch_size=section.batch_size,
            seed=params.seed,
            precision=params.finetune.precision,
            label=label,
        ).history
        model.requires_grad_(True)
    return history


def _strangers(folder: Path, processor: ProcessorMixin) -> tuple[Tensor, dict[str, list[str]]]:
    """Pixels (P, 3, H, W) and labels by attribute of the pictures for vision pre-training."""
    import pyarrow.parquet as pq

    from efface.data.pictures import decode_picture

    table = pq.read_table(folder)
    pictures = [decode_picture(row["bytes"]) for row in table.column("image").to_pylist()]
    names = [name for name in table.column_names if name not in ("image", "ID")]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels, {name: [str(value) for value in table.column(name).to_pylist()] for name in names}
