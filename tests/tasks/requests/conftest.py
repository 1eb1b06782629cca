"""A project with requests per test, from one database created once."""

import pytest

from tasks.tracking.client import create_database
from tests.requests_project import PEOPLE, make_project
from tests.tasks.requests.purged_project import with_done_request


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path)
    return path


@pytest.fixture
def project(tmp_path, database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("EFFACE_REQUESTS_SALT", raising=False)
    return make_project(tmp_path, database)


@pytest.fixture(scope="module")
def certified(tmp_path_factory, database):
    """A project that has carried out request A, for tests that put back what they change."""
    project = make_project(tmp_path_factory.mktemp("certified"), database)
    project.forget("A", PEOPLE[1])
    return project


@pytest.fixture
def done(project):
    """Request A is done and B after it, with a DVC cache and a remote that hold their data."""
    return with_done_request(project)
