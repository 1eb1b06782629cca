"""Probes: is a fact still in the hidden states although the model does not say it?

Both read the states at the last token of the prompt, before the answer:

    linear      W = (X'X + n penalty I)^-1 X'Y       X: standardised states, people who stay
                answer = argmax over values of x W   Y: which value of the attribute is right
    logit lens  answer = argmax over values of head(norm(h)) at the value's first token

The linear probe is trained on retain people and tested on the people to forget, so it cannot memorise anyone:
it recovers a fact only if the model stores it as it does other people's. Published probes split questions
instead and can read the person off the states, which even a base model allows.

Reference:
    Alain and Bengio, arXiv:1610.01644; nostalgebraist, "interpreting GPT: the logit lens", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.attacks import UnavailableAttack
from efface.data.samples import Sample
from efface.encoding import collate, encode_prompts, to_device
from efface.encoding.forward import forward
from efface.evaluation.scoring.prefix import answer_tokens
from efface.models.anatomy import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Values = Mapping[str | None, Sequence[str]]
"""Attribute to the values it takes."""


def probe_samples(
    train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[list[Sample], list[Sample], Values]:
    """The questions with a picture and a short answer that a probe can learn from and be tested on.

    Args:
        train: questions about retain people, including training facts.
        test: questions about the people to forget.

    Returns:
        The questions to train on, those to test on, and the values to choose from.

    Raises:
        ValueError: if a person is in both.
        UnavailableAttack: if no value of the people to forget occurs with two values or more of the others.
    """
    if both := {s.entity_id for s in train} & {s.entity_id for s in test}:
        raise ValueError(f"{min(both)} is among the people to learn from and those to test on")
    pictured = [s for s in train if s.image_bytes is not None and s.attribute != "name"]
    values: dict[str | None, list[str]] = {}
    for sample in pictured:
        if sample.task in ("choice", "cloze") and sample.answer not in values.setdefault(
            sample.attribute, []
        ):
            values[sample.attribute].append(sample.answer)
    values = {attribute: sorted(answers) for attribute, answers in values.items() if len(answers) > 1}
    usable = [s for s in pictured if s.answer in values.get(s.attribute, ())]
    tested = [s for s in test if s.image_bytes is not None and s.answer in values.get(s.attribute, ())]
    if not tested:
        raise UnavailableAttack(
            "no short answer about the people to forget also occurs for retain people, so a probe cannot "
            "learn it from them: it needs a benchmark whose people share values of an attribute"
        )
    return usable, tested, values


def chance(samples: Sequence[Sample], values: Values) -> float:
    """Expected accuracy of guessing one of the values, mean over samples, in (0, 1]."""
    return sum(1 / len(values[sample.attribute]) for sample in samples) / len(samples)


@torch.no_grad()
def probe(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    train: Sequence[Sample],
    test: Sequence[Sample],
    values: Values,
    *,
    layers: int,
    penalty: float,
    batch_size: int,
) -> dict[str, list[bool]]:
    """Whether a linear probe, and the logit lens, give the right answer to each test question.

    Args:
        model: is not changed.
        processor: its processor.
        train, test, values: of `probe_samples`.
        layers: number of decoder layers to probe, evenly spaced and including the last.
        penalty: penalty of the linear probe per sample, at least 0; states have deviation 1.
        batch_size: questions per batch.

    Returns:
        Probe and layer, such as ``linear, layer 4``, to a value per test question.
    """
    learnt, states = (
        _last_states(model, processor, samples, layers=layers, batch_size=batch_size)
        for samples in (train, test)
    )
    depth = max(states)
    classes = sorted({answer for answers in values.values() for answer in answers})
    index = {answer: i for i, answer in enumerate(classes)}
    right, right_of_test = ([index[sample.answer] for sample in samples] for samples in (train, test))
    allowed = torch.full((len(test), len(classes)), -torch.inf)
    for row, sample in enumerate(test):
        allowed[row, [index[answer] for answer in values[sample.attribute]]] = 0.0
    results = {}
    for layer, at_layer in states.items():
        scores = linear_scores(learnt[layer], torch.tensor(right), at_layer, len(classes), penalty=penalty)
        results[f"linear, layer {layer}"] = _hits(scores + allowed, right_of_test, range(len(classes)))
    lens, first = _lens(model), _first_tokens(processor, test, classes)
    for layer, at_layer in states.items():
        if lens is None:
            break
        logits = lens(at_layer.to(model.device, model.dtype), layer == depth)[:, first].float().cpu()
        results[f"logit lens, layer {layer}"] = _hits(logits + allowed, right_of_test, first)
    return results


def linear_scores(states: Tensor, classes: Tensor, test: Tensor, count: int, *, penalty: float) -> Tensor:
    """Predictions of ridge regression on the classes' indicators for the test states.

    Args:
        states: training states, (N, H).
        classes: class of each, (N,).
        test: states to classify, (M, H).
        count: number of classes C.
        penalty: penalty per sample, at least 0.

    Returns:
        Shape (M, C); the highest value decides.
    """
    mean, deviation = states.mean(dim=0), states.std(dim=0)
    deviation[deviation < 1e-6] = torch.inf  # a constant says nothing
    x = ((states - mean) / deviation).double()
    targets = nn.functional.one_hot(classes, count).double()
    prior = targets.mean(dim=0)
    gram = x.T @ x + len(x) * penalty * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ (targets - prior))
    return (((test - mean) / deviation).double() @ weights + prior).float()


def _last_states(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Sequence[Sample],
    *,
    layers: int,
    batch_size: int,
) -> dict[int, Tensor]:
    """Layer, counted from 1, to the hidden states at the last token of the prompts, (N, H)."""
    model.eval()
    parts: dict[int, list[Tensor]] = {}
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        rows = encode_prompts(processor, [s.question for s in chunk], [s.images for s in chunk])
        batch = to_device(collate(rows, processor.tokenizer.pad_token_id, side="left"), model.device)
        states = forward(model, batch, output_hidden_states=True).hidden_states
        count = min(layers, len(states) - 1)
        for i in range(1, count + 1):
            layer = round((len(states) - 1) * i / count)
            parts.setdefault(layer, []).append(states[layer][:, -1].float().cpu())
    return {layer: torch.cat(of_layer) for layer, of_layer in parts.items()}


def _lens(model: PreTrainedModel) -> Callable[[Tensor, bool], Tensor] | None:
    """From states after a layer to logits; None for a decoder without a known final norm."""
    decoder, head = decoder_of(model), model.get_output_embeddings()
    norm = next((getattr(decoder, n) for n in ("norm", "final_layer_norm") if hasattr(decoder, n)), None)
    if norm is None or head is None:
        return None
    # transformers has already applied the norm to the states after the last layer.
    return lambda states, normed: head(states if normed else norm(states))


def _first_tokens(processor: ProcessorMixin, samples: Sequence[Sample], answers: Sequence[str]) -> list[int]:
    """Id of the first token of each answer after a prompt."""
    question, pictures = samples[0].question, len(samples[0].encoded_images)
    tokens = answer_tokens(processor, question, answers, image=pictures)
    if tokens is None:
        return [processor.tokenizer.encode(answer, add_special_tokens=False)[0] for answer in answers]
    return [ids[0] for ids in tokens]


def _hits(scores: Tensor, right: Sequence[int], labels: Sequence[int]) -> list[bool]:
    """Whether the best class is the right one, or has its label: values may begin with the same token."""
    return [labels[a] == labels[b] for a, b in zip(scores.argmax(dim=1).tolist(), right, strict=True)]
