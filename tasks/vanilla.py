"""Stage vanilla: the base model fine-tuned on everybody, the model that unlearning starts from."""

from __future__ import annotations

from pathlib import Path

from tasks.finetuning import finetune_stage
from tasks.params import Params


def run(params: Params, root: Path = Path("data")) -> None:
    """Fine-tune and write `models/vanilla`."""
    finetune_stage("vanilla", params.vanilla, splits=("forget", "retain"), seed=params.seed, root=root)
