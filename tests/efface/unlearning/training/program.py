"""A small training run as a program: python program.py FOLDER OPTIONS.

Each process writes the batches it drew, the history, and at the end the weights.
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
from efface.processes import process_count, process_rank
from efface.unlearning import METHODS
from efface.unlearning.training.batch_source import BatchSource
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import Terms
from tests.efface.conftest import SHAPE, sample
from tests.efface.unlearning.runs import fit


def tiny_model():
    facts = [sample(i, pictured=pictured) for i in range(8) for pictured in (True, False)]
    corpus = [text for fact in facts for text in (fact.question, fact.answer)]
    processor = sandbox.build_processor(sandbox.build_tokenizer(corpus), **SHAPE)
    torch.manual_seed(0)
    model = sandbox.build_model(
        processor.tokenizer, **SHAPE, width=32, mlp_width=48, vision_layers=2, language_layers=2, heads=2
    )
    return model.eval(), processor


def main(folder: Path, *, lora: bool, masked: bool = False, dropout: float = 0.2, **values) -> None:
    torch.set_num_threads(1)
    model, processor = tiny_model()
    batches = []
    log_batches(batches)
    adapter = add_lora(model, Lora(4, 8.0, dropout, ("language",)), seed=0) if lora else None
    terms = Terms(
        forget=Encoder(processor, [sample(i, pictured=i % 3 > 0) for i in range(10)]),
        retain=Encoder(processor, [sample(i, pictured=i % 2 > 0) for i in range(26)]),
        method=METHODS["npo"],
        mask=half_of(model) if masked else None,
    )
    checkpoints = Checkpoints(folder / "checkpoint", key="k")
    result = fit(model, terms, adapter=adapter, checkpoints=checkpoints, seed=3, weight_decay=0.01, **values)
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, folder / f"weights-{process_rank()}.safetensors")
    record = {"history": result.history, "batches": batches, "processes": process_count()}
    (folder / f"run-{process_rank()}.json").write_text(json.dumps(record))


def half_of(model) -> dict[str, torch.Tensor]:
    """A mask of about half of all weights."""
    draws = torch.Generator().manual_seed(0)
    return {name: torch.rand(p.shape, generator=draws) > 0.5 for name, p in model.named_parameters()}


def log_batches(batches: list) -> None:
    """Log which samples this process encodes for its steps: [seed of the order, indices]."""
    source_batch, encoder_batch = BatchSource.batch, Encoder.batch
    logging = False

    def batch(self, *args):
        nonlocal logging
        batches.append([self.sampler.seed, []])
        logging = True
        try:
            return source_batch(self, *args)
        finally:
            logging = False

    def encode(self, indices):
        if logging:
            batches[-1][1] += indices
        return encoder_batch(self, indices)

    BatchSource.batch, Encoder.batch = batch, encode


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
