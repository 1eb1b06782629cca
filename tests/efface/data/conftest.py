"""One small benchmark for every test of the data."""

from pathlib import Path

import pytest

from efface.data.benchmarks.avatars.generate import Sizes, generate
from efface.data.benchmarks.mllmu import BenchmarkData, read_benchmark

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
    return read_benchmark(folder, name="avatars", forget_percent=10)
