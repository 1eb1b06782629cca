"""Stage retrained: the base model fine-tuned on the retain people only, the yardstick of unlearning."""

from __future__ import annotations

from pathlib import Path

from tasks.finetuning import finetune_stage
from tasks.params import Params


def run(params: Params, root: Path = Path("data")) -> None:
    """Fine-tune and write `models/retrained`."""
    finetune_stage("retrained", params.retrained, splits=("retain",), seed=params.seed, root=root)
