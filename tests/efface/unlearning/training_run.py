"""One small training run as a program: python training_run.py FOLDER OPTIONS; tests kill it and count.

Writes the batches it drew, process by process, and at the end the weights.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from efface import sandbox
from efface.encoding import Encoder
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import LoopConfig, Terms, train
from efface.unlearning.training.processes import Processes
from efface.unlearning.training.sides import Side
from tests.efface.conftest import SHAPE, sample


def made_model():
    facts = [sample(i, pictured=pictured) for i in range(8) for pictured in (True, False)]
    corpus = [text for fact in facts for text in (fact.question, fact.answer)]
    processor = sandbox.build_processor(sandbox.build_tokenizer(corpus), **SHAPE)
    torch.manual_seed(0)
    model = sandbox.build_model(
        processor.tokenizer, **SHAPE, width=32, mlp_width=48, vision_layers=2, language_layers=2, heads=2
    )
    return model.eval(), processor


def main(folder: Path, *, lora: bool, masked: bool = False, **settings) -> None:
    torch.set_num_threads(1)
    model, processor = made_model()
    processes, drawn = Processes(), []
    watch(drawn)
    adapter = add_lora(model, Lora(4, 8.0, 0.2, ("language",)), seed=0) if lora else None
    terms = Terms(
        forget=Encoder(processor, [sample(i, pictured=i % 3 > 0) for i in range(10)]),
        retain=Encoder(processor, [sample(i, pictured=i % 2 > 0) for i in range(26)]),
        method=METHODS["npo"],
        settings=METHODS["npo"].settings(beta=0.1),
        mask=half_of(model) if masked else None,
    )
    config = LoopConfig(learning_rate=1e-3, batch_size=2, weight_decay=0.01, seed=3, **settings)
    result = train(
        model, terms, config, adapter=adapter, checkpoints=Checkpoints(folder / "checkpoint", key="k")
    )
    named = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    save_file(named, folder / f"weights-{processes.rank}.safetensors")
    record = {"history": result.history, "drawn": drawn, "processes": processes.count}
    (folder / f"run-{processes.rank}.json").write_text(json.dumps(record))


def half_of(model) -> dict[str, torch.Tensor]:
    """A mask of about half of all weights."""
    draws = torch.Generator().manual_seed(0)
    return {name: torch.rand(p.shape, generator=draws) > 0.5 for name, p in model.named_parameters()}


def watch(drawn: list) -> None:
    """Note which samples each side of the run encodes for its steps: [seed of the side, indices]."""
    side_batch, encoder_batch, stepping = Side.batch, Encoder.batch, []

    def batch(self, position, *args):
        drawn.append([self.stream.seed, []])
        stepping.append(True)
        try:
            return side_batch(self, position, *args)
        finally:
            stepping.pop()

    def encode(self, indices):
        if stepping:
            drawn[-1][1] += indices
        return encoder_batch(self, indices)

    Side.batch, Encoder.batch = batch, encode


def slow_steps(seconds: float) -> None:
    """Make every optimizer step take a while, so that a kill lands between them."""
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        time.sleep(seconds)
        return original(self, *args, **kwargs)

    torch.optim.AdamW.step = step


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    slow_steps(options.pop("delay", 0.0))
    main(Path(sys.argv[1]), **options)
