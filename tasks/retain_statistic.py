"""Command retain-statistic: measures the vanilla model on the retain set, for runs without a retain set."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.data.samples import read_samples
from tasks.config import Params
from tasks.runtime.artifacts import digest, writing
from tasks.runtime.results import prepared_files


def run(params: Params, root: Path = Path("data")) -> None:
    """Measure the vanilla model on the retain people's training facts, and write
    `masks/retain_statistic.safetensors`."""
    from efface.models import load_model, weights_digest
    from efface.neurons.retained import measure_retained, save_statistic

    path = root / "masks" / "retain_statistic.safetensors"
    # In float32, as the stage unlearn loads it for the methods that read the statistic.
    vanilla = root / "models" / "vanilla"
    loaded = load_model(vanilla, dtype="float32", trust_remote_code=params.base.trust_remote_code)
    samples = read_samples(root / "prepared", split="retain", part="train")
    statistic = measure_retained(
        loaded.model, loaded.processor, samples, batch_size=params.unlearn.batch_size
    )
    data = {f"{name}_digest": digest(file) for name, file in prepared_files(root).items()}
    metadata = {"model_digest": weights_digest(loaded.model)} | data
    with writing(path) as partial:
        save_statistic(partial, statistic, metadata=metadata)
    typer.echo(f"retain-statistic: {path} of {len(samples)} samples and {len(statistic.mean_abs)} MLP blocks")
