"""Which samples meet in which step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from efface.data.encoding import Encoder
from efface.unlearning.streams import BatchStream


@pytest.fixture
def encoder(processor, written):
    """40 text samples with answers of 1 to 20 words."""
    samples = [
        replace(written[0], sample_id=str(i), answer=" ".join(["word"] * (1 + i % 20))) for i in range(40)
    ]
    return Encoder(processor, samples)


def epoch_of(stream, epoch):
    count = stream.batches_per_epoch
    return [stream.indices_at(epoch * count + k) for k in range(count)]


def padding(stream, batches):
    lengths = [[len(stream.encoder.samples[i].answer) for i in batch] for batch in batches]
    return sum(max(row) * len(row) - sum(row) for row in lengths)


def test_batches_of_like_length_pad_less_and_still_visit_every_sample_once(encoder):
    plain = BatchStream(encoder, batch_size=4, seed=0)
    alike = BatchStream(encoder, batch_size=4, seed=0, alike=5)
    assert alike.batches_per_epoch == plain.batches_per_epoch
    for epoch in range(3):
        batches = epoch_of(alike, epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(40))
        assert padding(alike, batches) < 0.4 * padding(plain, epoch_of(plain, epoch))
    assert epoch_of(alike, 0) != epoch_of(alike, 1), "every epoch has a new order"
    again = BatchStream(encoder, batch_size=4, seed=0, alike=5)
    assert epoch_of(again, 2) == epoch_of(alike, 2), "an order depends on seed and epoch alone"


def test_batches_of_like_length_come_in_random_order(encoder):
    stream = BatchStream(encoder, batch_size=4, seed=0, alike=10)
    means = [sum(len(encoder.samples[i].answer) for i in batch) for batch in epoch_of(stream, 0)]
    assert means != sorted(means) and means != sorted(means, reverse=True)
