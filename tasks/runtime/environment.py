"""Environment variables that every process of this project sets before heavy imports."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import MutableMapping

QUIET = {
    "DO_NOT_TRACK": "true",  # MLflow accepts no other spelling
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # DO_NOT_TRACK silences Prefect's client, not its server
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}
"""Switches all telemetry off. Variables that are already set take precedence."""

CALM = {
    # Threads that spin for long while waiting slow each other down as soon as anything else runs; this short
    # spin costs nothing on an idle machine, where sleeping at once would cost half as much again.
    "GOMP_SPINCOUNT": "10000",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven idle processes beside `mlflow ui`
    "TOKENIZERS_PARALLELISM": "false",  # warns in every process that forks
    "TRANSFORMERS_VERBOSITY": "error",
}


GPUS = "/dev/nvidia[0-9]*"


def unused_gpu() -> str | None:
    """What to do if the machine has a GPU that torch cannot use; None otherwise."""
    if not glob.glob(GPUS) or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    import torch

    if torch.cuda.is_available():
        return None
    cuda = torch.version.cuda
    build = (
        f"built for CUDA {cuda}, newer than the driver may be (nvidia-smi)" if cuda else "built without CUDA"
    )
    return (
        f"this machine has a GPU, and torch {torch.__version__} cannot use it: it is {build}. Take the build "
        "for your driver: make clean-venv run TORCH_INDEX=https://download.pytorch.org/whl/cu126; without "
        "one, everything runs on the processor"
    )


def apply(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that are not set already; progress bars are shown only on a terminal."""
    bars = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    for name, value in (QUIET | CALM | bars).items():
        environment.setdefault(name, value)
