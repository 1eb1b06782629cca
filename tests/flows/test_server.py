"""The database of Prefect's temporary server is checked before a server starts."""

import contextlib
import sqlite3

import pytest

from flows.server import ServerError, _check_database


def database(folder, revision):
    file = folder / "prefect.db"
    with contextlib.closing(sqlite3.connect(file)) as tables, tables:
        tables.execute("CREATE TABLE alembic_version (version_num TEXT)")
        tables.execute("INSERT INTO alembic_version VALUES (?)", [revision])
    return file


def test_a_database_of_another_version_is_refused_with_the_remedy(tmp_path):
    file = database(tmp_path, "deadbeef0000")
    with pytest.raises(ServerError) as error:
        _check_database(file)
    assert "deadbeef0000" in str(error.value) and f"delete {file}" in str(error.value)


def test_a_damaged_database_is_refused(tmp_path):
    file = tmp_path / "prefect.db"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(ServerError, match="damaged"):
        _check_database(file)


def test_a_database_of_this_version_an_unfilled_one_and_none_are_accepted(tmp_path):
    _check_database(tmp_path / "prefect.db")
    (tmp_path / "prefect.db").touch()
    _check_database(tmp_path / "prefect.db")
    _check_database(database(tmp_path, "a3b9c7d2e5f1"))  # of prefect 3.8.8
