"""Training on a disk that is really full loses nothing, and goes on once there is room."""

import shutil

import pytest

from tasks import unlearn
from tasks.runtime.artifacts import digest
from tests.small_disk import repeated, small_disk
from tests.tasks.test_unlearn import TRAINING, params
from tests.tiny_project import make_root

pytestmark = pytest.mark.slow


def test_unlearning_on_a_full_disk_goes_on_from_its_last_checkpoint(tmp_path):
    from tests.efface.unlearning.training.program import tiny_model

    (tmp_path / "data").mkdir()
    (tmp_path / "disk").mkdir()
    roomy = make_root(tmp_path / "data", *tiny_model())
    section = params({"npo": TRAINING | {"epochs": 4}})
    with small_disk(disk := tmp_path / "disk", 64) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk is not allowed here")
        root = shutil.copytree(roomy, disk / "data")
        vanilla = digest(root / "models" / "vanilla")

        def check():
            assert digest(root / "models" / "vanilla") == vanilla
            assert not (root / "models" / "unlearned" / "npo").exists()

        failures = repeated(disk, lambda: unlearn.run(section, "npo", root=root), check, scale=8)
        assert failures >= 3
        unlearn.run(section, "npo", root=roomy)
        model = "models/unlearned/npo"
        assert digest(root / model) == digest(roomy / model)
