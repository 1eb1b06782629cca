"""Stage vanilla: the base model fine-tuned on everybody, the model that unlearning starts from."""

from __future__ import annotations

from pathlib import Path

from tasks.config import Params
from tasks.runtime.finetuning import finetune_stage


def run(params: Params, root: Path = Path("data")) -> None:
    """Fine-tune and write `models/vanilla`."""
    finetune_stage("vanilla", params.vanilla, splits=("forget", "retain"), seed=params.seed, root=root)
