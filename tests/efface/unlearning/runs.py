"""Runs from one set of keywords: those of the method's settings and of the run's configuration."""

from __future__ import annotations

from dataclasses import fields, replace

from efface.unlearning import METHODS, TrainingConfig
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.loop import train

DEFAULTS = {"learning_rate": 1e-3, "retain_batches_per_forget_batch": 1, "batch_size": 2}


def options(method, **values):
    """Keywords ``settings`` and ``config`` of ``unlearn``."""
    method = METHODS[method] if isinstance(method, str) else method
    field_names = {field.name for field in fields(method.settings)}
    shared = {field.name for field in fields(TrainingConfig)}
    values = {key: value for key, value in DEFAULTS.items() if key in field_names | shared} | values
    return {
        "settings": method.settings(**{key: value for key, value in values.items() if key not in shared}),
        "config": TrainingConfig(**{key: value for key, value in values.items() if key in shared}),
    }


def fit(model, terms, *, checkpoints=None, adapter=None, evaluation=None, **values):
    """Train with the terms' method; its own settings, such as ``beta``, may be among the keywords."""
    run = options(terms.method, **values)
    return train(
        model,
        replace(terms, settings=run["settings"]),
        run["config"],
        checkpoints=checkpoints,
        adapter=adapter,
        evaluation=evaluation,
    )


def weights(model):
    """A copy of every weight."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def interrupted(folder):
    """Checkpoints under a folder that are interrupted instead of saved for the second time."""
    checkpoints = Checkpoints(folder, key="k")
    save, saved = checkpoints.save, []

    def save_once(*arguments):
        if saved:
            raise KeyboardInterrupt
        saved.append(True)
        save(*arguments)

    checkpoints.save = save_once
    return checkpoints
