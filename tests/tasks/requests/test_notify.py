"""The letter, the list of those to be told, and the webhook, tried against a receiver on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.requests import notify
from tasks.requests.certificates import certificate_of
from tasks.requests.intake import RequestError
from tasks.tracking.registry import Version
from tests.requests_project import NAMES, PEOPLE, params_with


@pytest.fixture
def receiver(monkeypatch):
    """A webhook that answers with the status in `codes`, or 200; what it got."""
    posted, codes = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes.pop() if codes else 200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(notify.WEBHOOK, f"http://127.0.0.1:{server.server_port}/?token=hush-hush")
    yield posted, codes
    server.shutdown()


def test_others_are_told_hashes_and_versions_and_no_person(project, receiver):
    posted, codes = receiver
    project.params = params_with(auto_promote=True, recipients=["Ours Ltd"])
    project.forget("A", PEOPLE[1])
    values = notify.event(project.params, project.root, project.registry, "A")
    assert notify.post(values)
    assert posted == [values] and values["event"] == "request done"
    assert values["recipients"] == ["Ours Ltd"] and values["models_that_know_them"] == [1]
    assert values["certificate"] == certificate_of(project.root, "A")["digest"]
    assert PEOPLE[1] not in json.dumps(posted) and NAMES[PEOPLE[1]] not in json.dumps(posted)
    codes.append(503)
    with pytest.raises(notify.NotificationError) as error:
        notify.post(values)
    assert notify.WEBHOOK in str(error.value) and "503" in str(error.value) and "hush" not in str(error.value)


def test_without_a_webhook_nothing_is_sent(monkeypatch):
    monkeypatch.delenv(notify.WEBHOOK, raising=False)
    assert notify.post({}) is False


def test_models_made_from_the_one_that_forgot_do_not_know_them():
    versions = {
        1: Version(1, "a"),
        2: Version(2, "b", parent=1),
        3: Version(3, "c", parent=2),
        4: Version(4, "d", parent=1),
        5: Version(5, "e", base=True),
        6: Version(6, "f", purged=True),
        7: Version(7, "g", parent=4),
    }
    assert notify.models_that_know(versions, forgot=2) == [1, 4, 7]


def test_a_letter_is_written_for_a_request_that_is_done(project):
    project.forget("A", PEOPLE[1])
    with pytest.raises(RequestError) as error:
        notify.write_letter(project.params, project.root, "A")
    assert "request A is candidate" in str(error.value)
    project.params = params_with(auto_promote=True)
    project.add("B", PEOPLE[2])
    run = project.plan()
    project.accept(run, project.judge(run))
    text, page = notify.write_letter(project.params, project.root, "B")
    assert "case 7" in text.read_text() and "<title>Your request case 7</title>" in page.read_text()
    assert not any(word in text.read_text() for word in (PEOPLE[2], NAMES[PEOPLE[2]]))


def test_after_a_promotion_the_letter_is_there_and_a_deaf_webhook_is_only_a_line(project, receiver):
    posted, codes = receiver
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    letter, _ = paths = [project.root / "requests" / "letters" / f"A.{kind}" for kind in ("txt", "html")]
    codes.append(503)
    first, second = notify.tell_done(project.params, project.root, project.registry, ["A"])
    assert str(letter) in first and notify.WEBHOOK in second and "hush" not in second
    assert all(path.is_file() for path in paths)
    assert notify.tell_done(project.params, project.root, project.registry, ["A"]) == [first]
    assert [values["request"] for values in posted] == ["A", "A"]
