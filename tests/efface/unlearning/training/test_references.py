"""Reference values: whose they are, from disk or from the model without its factors, and after a resume."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from efface.encoding import Encoder, collate, encode
from efface.errors import ArtifactError
from efface.models.lora import Lora, add_lora
from efface.unlearning import METHODS
from efface.unlearning.quantities import answer_distributions, answer_totals, hidden_states
from efface.unlearning.training.checkpoint import Checkpoints
from efface.unlearning.training.references import CachedReferences, ReferenceComputation
from efface.unlearning.unlearn import unlearn
from tests.efface.unlearning.losses import SETTINGS
from tests.efface.unlearning.runs import options, weights
from tests.efface.unlearning.test_methods import slow_log_prob

COMPARING = ["npo", "kl_min", "idk_dpo", "undial", "rmu", "vgid"]
VALUES = {"learning_rate": 2e-3, "steps": 6, "seed": 1, "checkpoint_every": 3}
LORA = Lora(rank=4, alpha=8.0, dropout=0.0, components=("language", "projector", "vision"))


def run(model, processor, pictured, written, method, **keywords):
    return unlearn(
        model,
        processor,
        method=method,
        forget=pictured[:3],
        retain=pictured[3:] + written[3:],
        **options(method, **VALUES, **SETTINGS.get(method, {})),
        **keywords,
    )


def test_every_method_that_compares_is_tested():
    plain = [
        name for name in METHODS if METHODS[name].edit is None
    ]  # an edit decides itself what it compares
    comparing = [n for n in plain if METHODS[n].forget_reference or METHODS[n].retain_reference]
    assert sorted(COMPARING) == sorted(comparing)


def test_references_belong_to_their_samples(model, processor, pictured, written, tmp_path):
    encoder = Encoder(processor, [pictured[0], written[3], pictured[5]])
    expected = [slow_log_prob(model, row) for row in encode(processor, encoder.samples)]
    computation = ReferenceComputation(model, answer_totals, None)
    cached = CachedReferences(computation, encoder, [0, 1, 2], batch_size=2, folder=tmp_path)
    for references in (computation, cached):
        values = references([2, 0], encoder.batch([2, 0]))
        assert [float(v) for v in values] == pytest.approx([expected[2], expected[0]], abs=1e-4)


def test_only_the_samples_of_the_run_are_computed(model, processor, pictured, written):
    """Two steps of two retain samples draw four at most, however many there are."""
    count = 0
    kl_min = METHODS["kl_min"]

    def counting(model, inputs, settings):
        nonlocal count
        count += len(inputs["input_ids"])
        return answer_distributions(model, inputs, settings)

    method = replace(kl_min, name="counted", retain_reference=counting)
    retain = pictured[3:] + written[3:]
    assert len(retain) > 4
    unlearn(
        model,
        processor,
        method=method,
        forget=pictured[:3],
        retain=retain,
        **options(method, learning_rate=1e-5, steps=2, seed=1),
    )
    assert 2 <= count <= 4


@pytest.mark.parametrize("quantity", [answer_totals, answer_distributions, hidden_states])
def test_a_reference_does_not_depend_on_the_batch(model, processor, pictured, quantity):
    rows, settings = encode(processor, pictured[:4]), METHODS["rmu"].settings(layer=1)
    with torch.no_grad():
        together = quantity(model, collate(rows, processor.tokenizer.pad_token_id), settings)
        single = [quantity(model, row, settings)[0] for row in rows]
    for a, b in zip(together, single, strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32 and torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", COMPARING)
def test_factors_of_zero_give_the_references_of_the_model_before(
    model, processor, pictured, written, tmp_path, method
):
    """LoRA references are computed batch by batch without the factors: compared with those on disk."""
    settings = METHODS[method].settings(**SETTINGS.get(method, {}))
    encoder = Encoder(processor, pictured[:3] + written[:2])
    quantity = METHODS[method].forget_reference or METHODS[method].retain_reference
    computation = ReferenceComputation(model, quantity, settings)
    cached = CachedReferences(computation, encoder, range(5), batch_size=2, folder=tmp_path)
    adapter = add_lora(model, LORA, seed=0)
    run(model, processor, pictured, written, method, adapter=adapter)
    inputs = encoder.batch([2, 0])
    without = ReferenceComputation(model, quantity, settings, adapter=adapter)([2, 0], inputs)
    trained = ReferenceComputation(model, quantity, settings)([2, 0], inputs)
    for a, b, c in zip(cached([2, 0], inputs), without, trained, strict=True):
        assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, c, atol=1e-3)


def test_values_on_disk_are_read_and_damage_is_an_error(model, processor, pictured, tmp_path):
    encoder = Encoder(processor, pictured[:3])
    computation = ReferenceComputation(model, answer_totals, None)
    CachedReferences(computation, encoder, range(3), batch_size=2, folder=tmp_path)
    unused = ReferenceComputation(model, lambda *_: pytest.fail("recomputed"), None)
    cached = CachedReferences(unused, encoder, range(3), batch_size=2, folder=tmp_path)
    file = tmp_path / "0-1.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    assert len(cached([2], encoder.batch([2]))) == 1
    with pytest.raises(ArtifactError) as error:
        cached([1], encoder.batch([1]))
    assert str(file) in str(error.value)


@pytest.mark.parametrize("method", COMPARING)
@pytest.mark.parametrize("references", [True, False], ids=["on disk", "deleted"])
def test_a_resumed_run_compares_with_the_model_before_the_first_step(
    model, processor, pictured, written, tmp_path, method, references
):
    """References that are recomputed come from the model as it is given, not from the checkpoint."""
    whole, halfway, resumed = (copy.deepcopy(model) for _ in range(3))
    checkpoints = Checkpoints(tmp_path / "run", key="k")
    run(whole, processor, pictured, written, method)
    run(halfway, processor, pictured, written, method, checkpoints=checkpoints)
    assert checkpoints.references.is_dir()
    if not references:
        shutil.rmtree(checkpoints.references)
    result = run(resumed, processor, pictured, written, method, checkpoints=checkpoints)
    assert result.steps == 6
    for name, parameter in weights(whole).items():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_a_run_of_another_key_does_not_read_the_values(tmp_path):
    first, second = (Checkpoints(tmp_path / "run", key=key) for key in ("one", "two"))
    assert first.references != second.references
