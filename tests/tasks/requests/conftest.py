"""An office per test, from one database made once."""

import pytest

from tasks.tracking.client import create_database
from tests.made_requests import make_office


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path)
    return path


@pytest.fixture
def office(tmp_path, database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("EFFACE_REQUESTS_SALT", raising=False)
    return make_office(tmp_path, database)
