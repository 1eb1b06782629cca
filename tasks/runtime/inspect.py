"""Command inspect: the parts of a model and the memory that work with it needs, without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tasks.config import Params

if TYPE_CHECKING:
    from efface.models import Anatomy


def run(params: Params, name: str, root: Path = Path("data")) -> None:
    """Print groups, MLP blocks and estimated memory of a Hub id, a folder, or a model under `data/models`."""
    from dataclasses import asdict, replace

    from efface.models import anatomy
    from efface.models.memory import estimate_memory, lora_parameters, meta_model
    from efface.models.source import resolve

    folder = root / "models" / name
    source = resolve(folder if folder.is_dir() else Path(name) if Path(name).is_dir() else name)
    source = replace(source, trust_remote_code=params.base.trust_remote_code)
    if source.id == params.base.source and source.revision is None:
        source = replace(source, revision=params.base.revision)
    model = meta_model(source)
    parts = anatomy(model)
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    groups = params.saliency.groups
    measured = set(parts.maskable) & {key for group in groups for key in parts.groups[group]}
    section = params.unlearn.lora
    lora = None if section is None else section.shape
    factors = None if lora is None else lora_parameters(model, parts, lora)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    typer.echo(f"{source.id}: {type(model).__name__}, {sum(sizes.values()):,} parameters, {dtype}\n")
    typer.echo(_table(parts, sizes, measured, factors))
    typer.echo("")
    quantization = None if section is None else section.quantization
    training = "all weights train, in float32"
    if section is not None:
        training = f"LoRA factors of rank {section.rank} train, on weights {quantization or 'as saved'}"
    typer.echo(f"memory if {training}; weights included, activations left out:")
    needed = estimate_memory(model, parts, measured=measured, lora=lora, quantization=quantization)
    for label, value in asdict(needed).items():
        typer.echo(f"  {label:<11} {value / 2**30:8.2f} GiB")


def _table(parts: Anatomy, sizes: dict[str, int], measured: set[str], factors: dict[str, int] | None) -> str:
    """One line per group: parameters, share of the model, shares of the group that train and that a saliency
    mask may select, MLP blocks. With LoRA the factors train, and a mask selects among them."""
    import pandas as pd

    total, rows = sum(sizes.values()), []
    for group, names in parts.groups.items():
        count = sum(sizes[name] for name in names)
        blocks = [mlp for mlp in parts.mlps if mlp.tower == group]
        widths = sorted({mlp.width for mlp in blocks})
        trained = count if factors is None else factors[group]
        selectable = sum(sizes[name] for name in names if name in measured) if factors is None else trained
        rows.append(
            {
                "group": group,
                "tensors": len(names),
                "parameters": f"{count:,}",
                "share": f"{count / total:.1%}",
                "trained": f"{trained / count:.1%}" if count else "-",
                "maskable": f"{selectable / count:.1%}" if count else "-",
                "MLP blocks": f"{len(blocks)} of {' or '.join(map(str, widths))}" if blocks else "-",
                "neurons": f"{sum(mlp.width for mlp in blocks):,}",
            }
        )
    return pd.DataFrame(rows).to_string(index=False)
