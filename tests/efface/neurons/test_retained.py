"""The retain statistic: its numbers by the slow way, its span, and the file that holds it."""

from __future__ import annotations

import pytest
import torch

from efface.encoding import Encoder
from efface.errors import ArtifactError, ModelError
from efface.models import anatomy, weights_digest
from efface.neurons.retained import (
    decoder_mlps,
    layers_between,
    load_statistic,
    measure_retained,
    save_statistic,
    span_of,
)


def slow_values(model, processor, sample, mlp):
    """Values of a block's neurons at answer-predicting and at other positions, (positions, N) float64."""
    row, values = Encoder(processor, [sample]).batch([0]), []
    handle = model.get_submodule(mlp.down).register_forward_pre_hook(
        lambda module, args: values.append(args[0])
    )
    with torch.no_grad():
        model(**{key: value for key, value in row.items() if key != "labels"})
    handle.remove()
    answer, other = [], []
    for t in range(values[0].shape[1]):
        following = row["labels"][0, t + 1] if t + 1 < values[0].shape[1] else -100
        (answer if following != -100 else other).append(values[0][0, t].double())
    return torch.stack(answer), torch.stack(other)


def test_the_statistic_is_that_of_the_slow_way(model, processor, pictured, written):
    samples = [*pictured[:3], *written[:2]]
    statistic = measure_retained(model, processor, samples, batch_size=2)
    for mlp in decoder_mlps(model):
        values = [slow_values(model, processor, sample, mlp) for sample in samples]
        mean = torch.cat([answers for answers, _ in values]).abs().mean(dim=0)
        assert torch.allclose(statistic.mean_abs[mlp.name].double(), mean, atol=1e-5)
        rows = torch.stack([part.mean(dim=0) for pair in values for part in pair])
        span = statistic.span[mlp.name].double()
        assert torch.allclose(span.T @ span, rows.T @ rows, atol=1e-4)


def test_the_span_of_many_rows_is_stored_in_few(model, processor, pictured, written):
    whole = measure_retained(model, processor, [*pictured, *written], batch_size=4)
    assert all(len(rows) == 32 <= rows.shape[1] for rows in whole.span.values())
    many = measure_retained(model, processor, [*pictured, *written] * 2, batch_size=4)
    for name, rows in many.span.items():
        assert len(rows) == rows.shape[1] == 48
        assert torch.allclose(rows.T @ rows, 2 * whole.span[name].T @ whole.span[name], atol=1e-3)


def test_the_span_has_the_directions_that_hold_the_energy():
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert span_of(rows, 1.0).shape == (3, 4)
    assert span_of(rows, 13 / 14).shape == (2, 4)
    assert torch.allclose(span_of(rows, 0.5).abs(), torch.tensor([[1.0, 0, 0, 0]]))


def test_the_file_gives_back_the_statistic_and_belongs_to_one_model(model, processor, pictured, tmp_path):
    statistic = measure_retained(model, processor, pictured, batch_size=4)
    path = tmp_path / "retain_statistic.safetensors"
    save_statistic(path, statistic, metadata={"model_digest": weights_digest(model)})
    loaded = load_statistic(path, model=model)
    for part in ("mean_abs", "span"):
        one, two = getattr(statistic, part), getattr(loaded, part)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ArtifactError) as error:
        load_statistic(path, model=model)
    assert str(path) in str(error.value) and "digest" in str(error.value)


def test_layers_are_counted_from_one(model):
    mlps = decoder_mlps(model)
    assert layers_between(mlps, 2, None) == mlps[1:] and layers_between(mlps, 1, 2) == mlps
    with pytest.raises(ModelError) as error:
        layers_between(mlps, 1, 3)
    assert "1 to 3" in str(error.value) and "1 to 2" in str(error.value)
    assert [mlp for mlp in anatomy(model).mlps if mlp.tower == "language"] == mlps


def test_no_samples(model, processor):
    with pytest.raises(ValueError) as error:
        measure_retained(model, processor, [], batch_size=4)
    assert "retain is empty" in str(error.value)
