"""Stage retrained: the base model fine-tuned on the retain people only, the yardstick of unlearning."""

from __future__ import annotations

from pathlib import Path

from tasks.config import Params
from tasks.runtime.finetuning import finetune_stage


def run(params: Params, root: Path = Path("data")) -> None:
    """Fine-tune and write `models/retrained`."""
    finetune_stage("retrained", params.retrained, splits=("retain",), seed=params.seed, root=root)
