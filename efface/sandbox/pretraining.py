"""Pre-training the sandbox's vision tower to see what faces look like.

A vision tower with random weights does not learn identities from a few hundred pictures. So it is first
trained to recognise the visible attributes of random faces, as the towers of real models come pre-trained on
many pictures. The classification heads are discarded.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from efface.models.anatomy import vision_tower
from efface.unlearning.training.loop import schedule


def pretrain_vision(
    model: PreTrainedModel,
    pixels: Tensor,
    labels: Mapping[str, Sequence[str]],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """Train the vision tower in place to classify every attribute from its mean patch feature.

    Args:
        model: a multimodal LLM; only its vision tower changes.
        pixels: pictures as the image processor returns them, (P, 3, H, W).
        labels: attribute -> class name of each picture, P each.
        steps: optimizer steps.
        learning_rate: peak of a warm-up and cosine schedule.
        batch_size: pictures per step.
        seed: seed of the order and of the heads.

    Returns:
        Attribute -> accuracy on the last tenth of the pictures, which are not used for training; in [0, 1].
    """
    tower = vision_tower(model)
    targets, classes = _encode_labels(labels)
    pixels = pixels.to(model.device)  # pictures of a sandbox, which are small
    targets = {name: values.to(model.device) for name, values in targets.items()}
    held_out = max(1, len(pixels) // 10)
    trained = len(pixels) - held_out
    torch.manual_seed(seed)
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in classes.items()})
    heads.to(model.device)
    optimizer = torch.optim.AdamW(
        [*tower.parameters(), *heads.parameters()], lr=learning_rate, weight_decay=0.01, fused=True
    )
    order = random.Random(seed)
    tower.train()
    bar = tqdm(range(steps), desc="vision tower", unit="step", mininterval=0.5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps, 0.1)
        rows = order.sample(range(trained), min(batch_size, trained))
        features = _features(tower, pixels[rows])
        loss = torch.stack([cross_entropy(heads[n](features), targets[n][rows]) for n in classes]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    tower.eval()
    with torch.no_grad():
        features = _features(tower, pixels[trained:])
        return {
            n: (heads[n](features).argmax(1) == targets[n][trained:]).float().mean().item() for n in classes
        }


def _features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Mean over the patch tokens, (B, H)."""
    hidden: Tensor = tower(pixels).last_hidden_state
    return hidden[:, 1:].mean(dim=1)


def _encode_labels(labels: Mapping[str, Sequence[str]]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    classes = {name: sorted(set(values)) for name, values in labels.items()}
    targets = {
        name: torch.tensor([classes[name].index(value) for value in values])
        for name, values in labels.items()
    }
    return targets, classes
