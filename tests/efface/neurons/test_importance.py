"""MANU's statistics and scores: parity with a two-pass float64 reference, properties, selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from efface.encoding import Encoder, encode
from efface.encoding.forward import supports_batches
from efface.errors import ArtifactError, ModelError
from efface.models import anatomy
from efface.neurons import activation_statistics, neuron_importance
from efface.neurons.importance import load_importance, save_importance
from efface.neurons.official_code import output_statistics, output_units
from efface.neurons.scores import importance_terms, paper_tables
from efface.neurons.selection import select_highest
from efface.neurons.statistics import ActivationStatistics, neuron_units

TAU = 0.1


def slow_values(model, processor, samples, mlp):
    """z of every sample for one MLP, (samples, N), from unpadded single-sample passes, mean in float64."""
    rows = []
    handle = model.get_submodule(mlp.down).register_forward_pre_hook(
        lambda module, args: rows.append(args[0][0])
    )
    for row in encode(processor, samples):
        with torch.no_grad():
            model(**{k: v for k, v in row.items() if k != "labels"})
    handle.remove()
    tokens = [row.double().numpy()[1 if mlp.tower == "vision" else 0 :] for row in rows]
    return np.stack([values.mean(axis=0) for values in tokens])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_statistics_equal_a_two_pass_reference(model, processor, pictured, batch_size):
    mlps = anatomy(model).mlps
    batches = Encoder(processor, pictured).batches(batch_size)
    measured = activation_statistics(model, batches, mlps=mlps, active_above=TAU)
    assert {mlp.tower for mlp in mlps} == {"vision", "language"}
    for mlp in mlps:
        z = np.abs(slow_values(model, processor, pictured, mlp))
        mean = z.mean(axis=0)
        expected = {
            "mean_abs": mean,
            "variance": ((z - mean) ** 2).mean(axis=0),
            "sum_square": (z**2).sum(axis=0),
            "active": (z > TAU).sum(axis=0),
        }
        for field, value in expected.items():
            assert np.abs(getattr(measured[mlp.name], field).numpy() - value).max() <= 1e-6 * max(
                1, np.abs(value).max()
            ), field


def test_padding_does_not_count(model, processor, written):
    mlps = [mlp for mlp in anatomy(model).mlps if mlp.tower == "language"]
    together = activation_statistics(
        model, Encoder(processor, written).batches(8), mlps=mlps, active_above=TAU
    )
    alone = activation_statistics(model, Encoder(processor, written).batches(1), mlps=mlps, active_above=TAU)
    for name in alone:
        assert torch.allclose(together[name].sum_abs, alone[name].sum_abs, atol=1e-5)


def test_text_does_not_reach_the_vision_tower(model, processor, written):
    measured = activation_statistics(
        model, Encoder(processor, written).batches(4), mlps=anatomy(model).mlps, active_above=TAU
    )
    assert all("language_model" in name for name in measured)


def test_hooks_and_mode_are_put_back_even_after_an_error(model, processor, pictured):
    model.train()
    bad = next(iter(Encoder(processor, pictured).batches(4)))
    bad["pixel_values"] = bad["pixel_values"][:2]
    with pytest.raises((ModelError, RuntimeError, ValueError)):
        activation_statistics(model, [bad], mlps=anatomy(model).mlps, active_above=TAU)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_no_samples_is_an_error(model):
    with pytest.raises(ValueError) as error:
        activation_statistics(model, [], mlps=anatomy(model).mlps, active_above=TAU)
    assert "batches" in str(error.value)


def statistics(z, tau=TAU):
    z = torch.as_tensor(z, dtype=torch.float64)
    return ActivationStatistics(len(z), z.abs().sum(0), z.square().sum(0), (z.abs() > tau).sum(0).double())


def test_importance_by_hand():
    # One neuron, two samples: |z| = 1, 3 with the picture; 0, 2 in text.
    importance = neuron_importance({"m": statistics([[1.0], [-3.0]])}, {"m": statistics([[0.0], [2.0]])})["m"]
    i_abs, i_freq = (2 - 1) / (2 + 1), (2 - 1) / (2 + 1)
    i_var, i_rms = (1 + 1) ** 0.5, ((10 - 4) / (10 + 4)) ** 0.5
    assert importance.item() == pytest.approx(i_abs + i_freq + i_var + i_rms, abs=1e-7)


def test_a_neuron_alike_and_constant_in_both_renderings_has_no_importance():
    same = {"m": statistics([[0.7], [0.7], [0.7]])}
    assert neuron_importance(same, same)["m"].item() == pytest.approx(0, abs=1e-7)


def test_repeating_all_samples_changes_nothing():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    once, text = statistics(z), statistics(z.roll(1, 1))
    twice = neuron_importance({"m": once.repeated(2)}, {"m": text.repeated(2)})["m"]
    assert torch.allclose(twice, neuron_importance({"m": once}, {"m": text})["m"], atol=1e-7)


def test_renderings_of_different_size_are_refused():
    with pytest.raises(ValueError) as error:
        neuron_importance({"block": statistics([[1.0], [2.0]])}, {"block": statistics([[1.0]])})
    assert all(part in str(error.value) for part in ("2 multimodal", "1 text", "block"))
    with pytest.raises(ValueError) as error:
        neuron_importance({"block": statistics([[1.0]])}, {})
    assert "block" in str(error.value)


def test_importance_is_the_sum_of_its_terms():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    once, text = {"m": statistics(z)}, {"m": statistics(z.roll(1, 1))}
    terms = importance_terms(once, text)
    assert list(terms) == ["abs", "freq", "var", "rms"]
    total = sum(values["m"] for values in terms.values())
    assert torch.equal(neuron_importance(once, text)["m"], total)


def test_without_a_second_rendering_the_variance_over_pictures_stands_alone():
    pictured = {"pictures": statistics([[1.0], [-3.0]]), "both": statistics([[1.0], [-3.0]])}
    written = {"both": statistics([[0.0], [2.0]])}
    importance = neuron_importance(pictured, written, variance_only=["pictures"])
    assert importance["pictures"].item() == pytest.approx(1.0)  # |z| = 1 and 3
    assert importance["both"].item() == pytest.approx(
        neuron_importance({"both": pictured["both"]}, written)["both"].item()
    )
    with pytest.raises(ValueError) as error:
        neuron_importance(pictured, written)
    assert "pictures" in str(error.value)
    with pytest.raises(ValueError) as error:
        neuron_importance(pictured, written, variance_only=["pictures", "nose"])
    assert "nose" in str(error.value)


def test_file_round_trip_gives_other_fractions_without_the_model(model, tmp_path):
    mlps = anatomy(model).mlps
    generator = torch.Generator().manual_seed(0)
    measured = {
        f"{split}.{rendering}": {
            mlp.name: statistics(torch.randn(5, mlp.width, generator=generator)) for mlp in mlps
        }
        for split in ("forget", "retain")
        for rendering in ("multimodal", "text")
    }
    tables, path = paper_tables(measured), tmp_path / "importance.safetensors"
    save_importance(path, tables, units=neuron_units(mlps), metadata={"model_digest": "x"})
    loaded, units, metadata = load_importance(path)
    assert metadata["model_digest"] == "x" and units == neuron_units(mlps)
    assert loaded.keys() == tables.keys()
    for table, values in tables.items():
        assert list(loaded[table]) == list(values)
        assert all(torch.equal(loaded[table][name], value.float()) for name, value in values.items())
    for fraction in (0.05, 0.3):
        a = select_highest(tables["score"], fraction=fraction, units=neuron_units(mlps))
        b = select_highest(loaded["score"], fraction=fraction, units=units)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    again = tmp_path / "again.safetensors"
    save_importance(again, tables, units=neuron_units(mlps), metadata={"model_digest": "x"})
    assert again.read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError) as error:
        load_importance(path)
    assert "importance.safetensors" in str(error.value)
    save_file({"w": torch.zeros(1)}, path, metadata={"efface": '{"kind": "saliency_mask"}'})
    with pytest.raises(ArtifactError) as error:
        load_importance(path)
    assert "'saliency_mask'" in str(error.value) and "'neuron_importance'" in str(error.value)


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for a device: numbers and lengths that it asks tensors for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in ("aten._local_scalar_dense.default", "aten.nonzero.default")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["paper", "official_code"])
def test_no_batch_waits_for_the_device(model, processor, written, variant):
    """As many waits as the model's own passes have, however many batches and layers there are."""
    batches = list(Encoder(processor, written).batches(2))
    parts = anatomy(model)
    supports_batches(model, batches[0])  # compared once for each model
    with torch.no_grad(), Waits() as plain:
        for batch in batches:
            model(**{key: value for key, value in batch.items() if key != "labels"})
    with Waits() as measured:
        if variant == "paper":
            activation_statistics(model, batches, mlps=parts.mlps, active_above=0.1)
        else:
            units = [unit for unit in output_units(model, parts.mlps) if unit.tower == "language"]
            output_statistics(model, batches, units=units, active_above=0.1)
    # official_code looks the padding up in main memory, once per batch.
    allowed = len(batches) if variant == "official_code" else 0
    assert measured.count <= plain.count + allowed


@pytest.mark.parametrize("fault", ["neighbour", "one row"])
def test_statistics_do_not_depend_on_what_a_family_makes_of_a_batch(
    model, processor, pictured, monkeypatch, fault
):
    """A model that reads the neighbour's picture, and one whose tower sees a batch as one row."""
    mlps, encoder = anatomy(model).mlps, Encoder(processor, pictured)
    expected = activation_statistics(model, encoder.batches(1), mlps=mlps, active_above=0.01)
    features = model.model.get_image_features
    encoder_forward = model.model.vision_tower.encoder.forward

    def neighbour(pixel_values, **options):
        return features(pixel_values.roll(1, dims=0), **options)

    def one_row(inputs_embeds, **options):
        output = encoder_forward(inputs_embeds.flatten(0, 1)[None], **options)
        output.last_hidden_state = output.last_hidden_state.view_as(inputs_embeds)
        return output

    if fault == "neighbour":
        monkeypatch.setattr(model.model, "get_image_features", neighbour)
    else:
        monkeypatch.setattr(model.model.vision_tower.encoder, "forward", one_row)
        monkeypatch.setattr("efface.neurons.statistics.supports_batches", lambda model, batch: True)
    statistics = activation_statistics(model, encoder.batches(4), mlps=mlps, active_above=0.01)
    for name, value in expected.items():
        assert torch.allclose(statistics[name].sum_abs, value.sum_abs, rtol=1e-4), name
        assert statistics[name].count == value.count == 8
