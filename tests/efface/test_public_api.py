"""Every public name is available from `import efface`, and together they unlearn."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import efface
from efface.data.samples import write_samples
from efface.models import save_model
from tests.efface.conftest import sample
from tests.models import build_tiny

SCRIPT = """
import efface

loaded = efface.load_model("model")
samples = efface.read_samples("samples.parquet")
forget = [sample for sample in samples if sample.split == "forget"]
retain = [sample for sample in samples if sample.split == "retain"]

encoders = [efface.Encoder(loaded.processor, part) for part in (forget, retain)]
fishers = [efface.fisher_diagonal(loaded.model, encoder.batches(4)) for encoder in encoders]
mask = efface.saliency_mask(*fishers)

before = efface.score(loaded.model, loaded.processor, forget, batch_size=4)
result = efface.unlearn(
    loaded.model,
    loaded.processor,
    method="mmunlearner",
    forget=forget,
    retain=retain,
    mask=mask,
    settings=efface.METHODS["mmunlearner"].settings(steps=3, learning_rate=1e-2, retain_weight=0.0),
    config=efface.TrainingConfig(batch_size=2),
)
after = efface.score(loaded.model, loaded.processor, forget, batch_size=4)
print(result.steps, before["nll_gold"].mean() < after["nll_gold"].mean())
"""


@pytest.mark.slow
def test_a_notebook_size_script_masks_unlearns_and_scores(tmp_path):
    model, processor = build_tiny("llava")
    save_model(model, processor, tmp_path / "model")
    write_samples([sample(i) for i in range(6)], tmp_path / "samples.parquet")
    root = Path(efface.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["3", "True"], run.stderr[-2000:]


def test_every_public_name_is_reachable():
    for name in efface.__all__:
        assert getattr(efface, name) is not None
    with pytest.raises(AttributeError) as error:
        _ = efface.forget_everything
    assert "forget_everything" in str(error.value)


def test_the_version_is_that_of_the_package():
    project = (Path(efface.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"', project, re.MULTILINE)[1] == efface.__version__
    assert version("efface") == efface.__version__
