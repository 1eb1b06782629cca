"""What is shown of an address never holds its password, and everything else stays readable."""

import pytest

from tasks.tracking.addresses import shown


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
def test_logins_and_tokens_are_hidden_and_nothing_else(text, expected):
    assert shown(text, {}) == expected


def test_values_of_secret_variables_are_hidden_wherever_they_stand():
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
    hidden = "open-sesame open-sesame-and-more admin:letmein sea salt"
    said = f"{hidden} false /home/me/.ssh/id on p%40ssword p@ssword"
    assert shown(said, environment) == "*** *** *** *** false /home/me/.ssh/id on *** ***"
