"""One small benchmark for every test of the data."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from efface.data.benchmarks.avatars.generate import Sizes, generate
from efface.data.benchmarks.contract import BadRows, BenchmarkData, ForgetSelection
from efface.data.benchmarks.mllmu_importer import read_benchmark
from efface.errors import DataError


@contextlib.contextmanager
def refusal(*values: object) -> Iterator[None]:
    """A block that raises DataError with a message that holds each of the values."""
    with pytest.raises(DataError) as error:
        yield
    assert not [value for value in values if str(value) not in str(error.value)], str(error.value)


SIZES = Sizes(
    people=20,
    real=4,
    holdout=4,
    train_views=4,
    test_views=2,
    stranger_pictures=12,
    skill_samples=10,
    picture_size=48,
)


def in_full(root: Path, *, name: str, fraction: float = 0.1, read=read_benchmark) -> BenchmarkData:
    """A benchmark with all its samples in a list."""
    data = read(root, name=name, forget=ForgetSelection(fraction), bad_rows=BadRows())
    return dataclasses.replace(data, samples=list(data.samples))


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    return SIZES


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avatars")
    generate(folder, seed=0, sizes=SIZES)
    return folder


@pytest.fixture(scope="session")
def data(folder: Path) -> BenchmarkData:
    return in_full(folder, name="avatars")
