"""Stage importance: how much every neuron matters for the forget people and for the others."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import Sample, read_samples
from efface.errors import DataError
from tasks.config import Params
from tasks.runtime.artifacts import digest, recording, writing
from tasks.runtime.results import prepared_files
from tasks.runtime.sharing import is_first


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure activations on the vanilla model and write `masks/importance.safetensors`."""
    from efface.models import load_model, weights_digest
    from efface.neurons.importance import measure_importance, save_importance

    section = params.importance
    table, vanilla = root / "prepared", root / "models" / "vanilla"
    path = root / "masks" / "importance.safetensors"
    inputs = prepared_files(root) | {"vanilla": vanilla}
    with recording(
        "importance", section, root=root, seed=params.seed, inputs=inputs, outputs={"importance": path}
    ) as record:
        loaded = load_model(vanilla, trust_remote_code=params.base.trust_remote_code)
        pairs = {split: _pairs(table, split, params) for split in ("forget", "retain")}
        tables, units = measure_importance(
            loaded.model,
            loaded.processor,
            forget=pairs["forget"],
            retain=pairs["retain"],
            variant=section.variant,
            active_above=section.active_above,
            vision_text_reference=section.vision_text_reference,
            batch_size=section.batch_size,
        )
        if not is_first():
            return
        metadata = {
            "variant": section.variant,
            "active_above": section.active_above,
            "vision_text_reference": section.vision_text_reference,
            "model_digest": weights_digest(loaded.model),
            "data_digest": digest(table),
            "seed": params.seed,
        }
        with writing(path) as partial:
            save_importance(partial, tables, units=units, metadata=metadata)
        record.summary = {"samples": {split: len(selected) for split, selected in pairs.items()}}
    count = sum(unit.width for unit in units)
    typer.echo(f"importance: {path} scores {count} units in {len(units)} modules")


def _pairs(table: Path, split: str, params: Params) -> list[tuple[Sample, Sample]]:
    """Multimodal samples, each with the text rendering of the same fact."""
    from efface.encoding import draw

    text = {s.pair_id: s for s in read_samples(table, split=split, part="train", modality="text")}
    pictured = read_samples(table, split=split, part="train", modality="multimodal")
    paired = [(sample, text[sample.pair_id]) for sample in pictured if sample.pair_id in text]
    if not paired:
        raise DataError(
            f"the {split} set has no training fact both with a picture and in text; check "
            "split.forget_fraction and the benchmark's `pair_id` column"
        )
    return [paired[i] for i in draw(len(paired), params.importance.samples, params.seed)]
