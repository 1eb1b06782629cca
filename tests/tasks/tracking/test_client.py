"""Connection errors are one line with a remedy, and no message holds a secret."""

import socket
import sqlite3

import pytest

from tasks.tracking.client import TrackingError, mlflow_client, redact, tracking_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:p@ss@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("cannot reach 'https://token@host/x': refused", "cannot reach 'https://***@host/x': refused"),
        ("https://host/x?sas_token=abc&part=2", "https://host/x?sas_token=***&part=2"),
        ("http://host/x?X-Amz-Signature=0a1b", "http://host/x?X-Amz-Signature=***"),
        ("ssh://git@host/srv, then http://host/a@b", "ssh://***@host/srv, then http://host/a@b"),
        ("max_new_tokens=16, pad_token=<pad>", "max_new_tokens=16, pad_token=<pad>"),
        ("s3://bucket/efface and /mnt/share@home", "s3://bucket/efface and /mnt/share@home"),
        ("a line of a log: 12 it/s", "a line of a log: 12 it/s"),
    ],
)
def test_only_logins_and_tokens_are_redacted(text, expected):
    assert redact(text, {}) == expected


def test_values_of_secret_variables_are_redacted():
    environment = {
        "MLFLOW_TRACKING_PASSWORD": "open-sesame",
        "AWS_SECRET_ACCESS_KEY": "open-sesame-and-more",
        "PREFECT_API_AUTH_STRING": "admin:letmein",
        "EFFACE_REQUESTS_SALT": "sea salt",
        "TOKENIZERS_PARALLELISM": "false",
        "SSH_KEY_PATH": "/home/me/.ssh/id",
        "SHORT_TOKEN": "on",
        "EFFACE_REMOTE": "https://me:p%40ssword@host/x",
        "HOME": "/home/me",
    }
    secrets = "open-sesame open-sesame-and-more admin:letmein sea salt"
    text = f"{secrets} false /home/me/.ssh/id on p%40ssword p@ssword"
    assert redact(text, environment) == "*** *** *** *** false /home/me/.ssh/id on *** ***"


def test_an_unreachable_server_is_one_line_without_its_password(tmp_path, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush@127.0.0.1:{port}")
    with pytest.raises(TrackingError) as error, mlflow_client(tmp_path):
        pass
    message = str(error.value)
    assert f"http://***@127.0.0.1:{port}" in message and "python -m tasks track" in message
    assert "hush" not in message and "\n" not in message


def test_a_file_that_is_not_a_database_is_an_error_and_not_retried(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, though long enough to have a header" * 20)
    with pytest.raises(TrackingError) as error, mlflow_client(tmp_path) as client:
        client.search_experiments()
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in str(error.value) and "DatabaseError" in str(error.value)


def test_an_old_database_names_the_whole_upgrade_command(root):
    with sqlite3.connect(root.parent / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    with pytest.raises(TrackingError) as error, mlflow_client(root.parent) as client:
        client.search_experiments()
    assert f"mlflow db upgrade sqlite:///{root.parent / 'mlflow.db'}" in str(error.value)


def test_a_question_mark_in_the_project_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError) as error:
        tracking_uri(tmp_path / "what?")
    assert str(tmp_path / "what?") in str(error.value) and "MLFLOW_TRACKING_URI" in str(error.value)
