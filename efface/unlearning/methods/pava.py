"""PAVA: negative preference on the forget answers, while answers about the pictures' other content stay.

Only those decoder MLPs train that lead from a face to its facts, located by causal tracing; no retain set.

    S(x)  = log p(answer | picture, question)
    IE_l  = S(restored_l) - S(corrupted)
    L     = L_NPO(D_f) + lambda E [ -log p(a | picture, q) ]       lambda = ``retain_weight``

The corrupted run has another person's picture; in the restored run, the output of MLP l at the picture tokens
is that of the clean run. The K layers with the highest mean IE train. q asks about attributes other than the
identity (hair, clothes) of the forget pictures, and a is the answer of the model before unlearning. If only
one person is to be forgotten, noise replaces the other person's picture. The paper leaves K, beta and the
learning rate open; the defaults are this implementation's.

    selection    traced    as above
                 random    as many layers drawn by the seed, the paper's control

Reference:
    "Pathway-aware visual-attribute anchoring", arXiv:2608.30649.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from efface.data.samples import Sample
from efface.encoding import Encoder, Inputs, collate, draw, encode_prompts, to_device
from efface.encoding.answers import answer_log_probs
from efface.encoding.forward import model_inputs, separable, supports_batches
from efface.errors import DataError, ModelError
from efface.models.anatomy import image_token_id
from efface.models.lora import weight_of
from efface.neurons.retained import decoder_mlps
from efface.neurons.statistics import measuring_mode
from efface.unlearning.method import Batch, Job, Method, Term
from efface.unlearning.methods.npo import NPOSettings, forget_loss
from efface.unlearning.quantities import answer_totals
from efface.unlearning.settings import require
from efface.unlearning.training.config import TrainingResult
from efface.unlearning.training.gradients import training_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Selection = Literal["traced", "random"]
QUESTIONS = (
    "What is this person's hair colour?",
    "What is this person's skin tone?",
    "What is this person's clothes colour?",
    "Does this person have glasses?",
    "Does this person have facial hair?",
)
"""Questions about a picture that do not concern the person's identity."""


@dataclass(frozen=True, kw_only=True)
class PAVASettings(NPOSettings):
    """Settings of PAVA; ``retain_weight`` is the weight of the attribute answers, 1 to 5 in the paper."""

    learning_rate: float = 2.0e-4
    beta: float = 0.1
    retain_weight: float = 3.0
    retain_batches_per_forget_batch: int = 1
    layers: int = 2
    """Number of decoder MLPs that train (K), at least 1 and at most all."""
    selection: Selection = "traced"
    """``traced``: those with the highest indirect effect. ``random``: drawn by the seed."""
    traced_samples: int = 32
    """Number of forget samples with a picture to trace, at least 1."""
    questions: list[str] | None = None
    """Questions about the pictures apart from identity; None: hair, skin, clothes, glasses, beard."""
    max_new_tokens: int = 16
    """Longest answer to them, at least 1 token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("layers", "traced_samples", "max_new_tokens"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number from 1 on")
        selections = get_args(Selection)
        require(self.selection in selections, "selection", self.selection, f"one of: {', '.join(selections)}")
        require(
            self.questions is None or any(question.strip() for question in self.questions),
            "questions",
            self.questions,
            "None or at least one question about what a picture shows besides the person's identity",
        )


def edit(job: Job) -> TrainingResult:
    """Trace, let the selected MLPs train, and train.

    Raises:
        DataError: if no forget sample has a picture, or the model answers none of the attribute questions.
        ModelError: if the decoder has too few MLP layers, or no weight of the selected ones trains.
    """
    settings: PAVASettings = job.settings
    pictured = [sample for sample in job.forget if sample.image_bytes is not None]
    if not pictured:
        raise DataError(
            "no sample to forget has a picture: pava asks about pictures; use a method such as npo"
        )
    blocks = mlp_modules(job.model)
    if settings.layers > len(blocks):
        raise ModelError(f"layers is {settings.layers}: expected 1 to {len(blocks)}, the MLPs of the decoder")
    effects = None
    if settings.selection == "traced":
        traced = [pictured[i] for i in draw(len(pictured), settings.traced_samples, job.config.seed)]
        effects = trace(job, traced, blocks)
        selected = sorted(effects.argsort(descending=True)[: settings.layers].tolist())
    else:
        selected = sorted(random.Random(job.config.seed).sample(range(len(blocks)), settings.layers))
    prefixes = tuple(f"{blocks[i]}." for i in selected)
    names = [
        name
        for name, parameter in job.model.named_parameters()
        if parameter.requires_grad and weight_of(name).startswith(prefixes)
    ]
    if not names:
        raise ModelError(
            f"no weight of {', '.join(blocks[i] for i in selected)} trains: expected `language` among the "
            "components of LoRA, or full training"
        )
    attributes = attribute_samples(job, pictured)
    with training_only(job.model, names):
        result = job.train(job.forget, attributes)
    details: dict[str, Any] = {"layers": [i + 1 for i in selected], "attribute_samples": len(attributes)}
    if effects is not None:
        details["indirect_effects"] = [round(effect, 6) for effect in effects.tolist()]
    return replace(result, details=details)


def retain_loss(model: nn.Module, batch: Batch, settings: PAVASettings) -> Term:
    """Descent on the attribute answers, by their total log-probability."""
    answers = answer_log_probs(model, batch.inputs)
    return Term(loss=-answers.total.mean(), nll=answers.nll.detach())


def mlp_modules(model: nn.Module) -> list[str]:
    """Names of the decoder's MLPs, one per layer; for experts, the module that holds them all."""
    return list(
        dict.fromkeys(
            mlp.name if mlp.expert is None else mlp.down.rpartition(".")[0] for mlp in decoder_mlps(model)
        )
    )


def trace(job: Job, samples: Sequence[Sample], modules: Sequence[str]) -> Tensor:
    """Mean indirect effect of each module over samples with a picture, in nats, (M,)."""
    device, size = next(job.model.parameters()).device, job.config.batch_size
    corrupted_samples = list(with_other_pictures(samples, job.forget, job.config.seed))
    total = torch.zeros(len(modules))
    clean, corrupted = (
        Encoder(job.processor, versions).batches(size) for versions in (samples, corrupted_samples)
    )
    for one, two in zip(clean, corrupted, strict=True):
        total += indirect_effects(job.model, to_device(one, device), to_device(two, device), modules).cpu()
    return total / len(samples)


@torch.no_grad()
def indirect_effects(model: nn.Module, clean: Inputs, corrupted: Inputs, modules: Sequence[str]) -> Tensor:
    """IE of each module, summed over the samples of a batch, (M,).

    Args:
        model: a multimodal LLM.
        clean: samples with their pictures.
        corrupted: the same questions and answers with other pictures of equally many tokens.
        modules: names of modules whose output has one row per token.

    Raises:
        ModelError: if the model names no picture token, or the pictures differ in their number of tokens.
    """
    token = image_token_id(model)
    if token is None:
        raise ModelError(f"the configuration of {type(model).__name__} names no image token id")
    if not torch.equal(clean["input_ids"], corrupted["input_ids"]):
        raise ModelError("a picture and its replacement differ in their number of tokens")
    saved: dict[str, Tensor] = {}
    effects = torch.zeros(len(modules))

    def save(name: str, module: nn.Module, output: Any) -> None:
        saved[name] = _hidden(output).flatten(0, -2)[positions].clone()

    def restore(name: str, output: Any) -> Any:
        hidden = _hidden(output)
        rows = hidden.flatten(0, -2).clone()
        rows[positions] = saved[name]
        rows = rows.view_as(hidden)
        return rows if torch.is_tensor(output) else (rows, *output[1:])

    with measuring_mode(model):
        for one, two in zip(separable(model, clean), separable(model, corrupted), strict=True):
            positions = (one["input_ids"] == token).flatten()
            handles = [
                model.get_submodule(name).register_forward_hook(
                    lambda module, args, output, name=name: save(name, module, output)
                )
                for name in modules
            ]
            try:
                answer_log_probs(model, one)
            finally:
                for handle in handles:
                    handle.remove()
            before = answer_log_probs(model, two).total
            for i, name in enumerate(modules):
                handle = model.get_submodule(name).register_forward_hook(
                    lambda module, args, output, name=name: restore(name, output)
                )
                try:
                    effects[i] += (answer_log_probs(model, two).total - before).sum().item()
                finally:
                    handle.remove()
    return effects


def with_other_pictures(samples: Sequence[Sample], people: Sequence[Sample], seed: int) -> Iterator[Sample]:
    """Each sample with a picture of another person, drawn by the seed and scaled to the original's size.

    Without another person, the picture is noise.
    """
    pictures: dict[str, list[Sample]] = {}
    for person in people:
        if person.image_bytes is not None:
            pictures.setdefault(person.entity_id, []).append(person)
    for sample in samples:
        chance = random.Random(f"{seed}/{sample.sample_id}")
        candidates = [entity for entity in pictures if entity != sample.entity_id]
        original = sample.images[0]
        if candidates:
            replacement = chance.choice(pictures[chance.choice(candidates)]).images[0].resize(original.size)
        else:
            noise = np.random.default_rng(seed).integers(
                0, 256, (original.height, original.width, 3), dtype=np.uint8
            )
            replacement = Image.fromarray(noise)
        buffer = io.BytesIO()
        replacement.save(buffer, format="PNG")
        yield replace(sample, image_bytes=buffer.getvalue())


def attribute_samples(job: Job, pictured: Sequence[Sample]) -> list[Sample]:
    """The attribute questions about each forget picture, with the model's own answers.

    Raises:
        DataError: if the model gives no answer.
    """
    settings: PAVASettings = job.settings
    questions = QUESTIONS if settings.questions is None else settings.questions
    questions_asked = [
        replace(sample, sample_id=f"{sample.sample_id}/attribute-{number}", question=question)
        for sample in {sample.image_bytes: sample for sample in pictured}.values()
        for number, question in enumerate(questions)
    ]
    answers = greedy_answers(
        job.model,
        job.processor,
        questions_asked,
        batch_size=job.config.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )
    answered = [
        replace(sample, answer=answer)
        for sample, answer in zip(questions_asked, answers, strict=True)
        if answer
    ]
    if not answered:
        raise DataError(
            f"questions is {list(questions)}: the model answers none of them; expected questions that it can "
            "answer about a picture"
        )
    return answered


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """What the model answers to the samples' questions, which all have pictures, by greedy decoding."""
    tokenizer, texts = processor.tokenizer, []
    with measuring_mode(model):
        start = 0
        while start < len(samples):
            chunk = samples[start : start + batch_size]
            prompts = encode_prompts(processor, [s.question for s in chunk], [s.images for s in chunk])
            batch = to_device(collate(prompts, tokenizer.pad_token_id, side="left"), model.device)
            if len(chunk) > 1 and not supports_batches(model, batch):
                batch_size = 1
                continue
            tokens = model.generate(  # type: ignore[operator]  # a mixin that transformers adds to the class
                **model_inputs(model, batch),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )[:, batch["input_ids"].shape[1] :]
            texts += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
            start += len(chunk)
    return texts


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output if torch.is_tensor(output) else output[0]
    return hidden


METHOD = Method(
    name="pava",
    paper="arXiv:2608.30649",
    forget_loss=forget_loss,
    retain_loss=retain_loss,
    forget_reference=answer_totals,
    settings=PAVASettings,
    edit=edit,
    reads=("forget",),
)
