"""Orchestration: the stages of dvc.yaml as Prefect tasks, studies, and requests to be forgotten."""

import os

from tasks.runtime import environment

environment.apply()  # Prefect reads its settings when it is imported
for _name in ("NO_PROXY", "no_proxy"):  # Prefect's temporary server listens on 127.0.0.1
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))
