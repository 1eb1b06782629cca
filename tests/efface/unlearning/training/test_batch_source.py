"""Batches: every sample once per epoch, modalities apart."""

from __future__ import annotations

import pytest

from efface.unlearning.training.batch_source import EpochSampler


def test_every_epoch_draws_each_sample_once_and_never_mixes_modalities(pictured, written):
    samples = pictured + written[:5]
    sampler = EpochSampler(samples, batch_size=3, seed=0)
    epochs = []
    for epoch in range(3):
        first = epoch * sampler.batches_per_epoch
        batches = [sampler.indices_at(first + k) for k in range(sampler.batches_per_epoch)]
        assert sorted(i for batch in batches for i in batch) == list(range(13))
        assert all(len({samples[i].image_bytes is None for i in batch}) == 1 for batch in batches)
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    again = EpochSampler(samples, batch_size=3, seed=0)
    assert again.indices_at(2 * sampler.batches_per_epoch) == epochs[2][0]


def test_no_samples_are_an_error():
    with pytest.raises(ValueError) as error:
        EpochSampler([], batch_size=3, seed=0)
    assert "samples" in str(error.value)
