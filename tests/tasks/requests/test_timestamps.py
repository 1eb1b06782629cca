"""Time stamps of certificates, from a time stamp authority on this machine."""

import shutil
import socket
import sys

import pytest

from tasks.config.requests import Requests
from tasks.requests import timestamps
from tasks.requests.certificates import (
    TIMESTAMP_ROOTS,
    certificate_folder,
    certificate_of,
    certificate_path,
    stamp_path,
    verify,
    write_page,
)
from tasks.requests.intake import RequestError
from tasks.requests.timestamps import add_stamps, check_timestamps
from tests.efface.certificates.authority import Authority, serving
from tests.requests_project import PEOPLE, params_with

pytest.importorskip("rfc3161_client")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority") / "own")


@pytest.fixture
def trusting(project, authority):
    """A project with request A certified, and the authority's root beside the certificate."""
    project.params = params_with(auto_promote=True)
    project.forget("A", PEOPLE[1])
    (certificate_folder(project.root) / TIMESTAMP_ROOTS).write_bytes(authority.root)
    return project


@pytest.fixture
def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


def test_certificates_are_stamped_once_and_verified(trusting, authority):
    with serving(authority) as address:
        params = params_with(timestamp_server=address)
        assert add_stamps(params, trusting.root) == []
        path = stamp_path(trusting.root, certificate_of(trusting.root, "A"))
        stamp = path.read_bytes()
        trusting.forget("B", PEOPLE[2])
        assert "certificate B has no time stamp" in verify(trusting.root, trusting.registry).notes[0]
        assert add_stamps(params, trusting.root) == []
    assert path.read_bytes() == stamp
    assert authority.accepts(stamp, certificate_of(trusting.root, "A")["digest"])
    result = verify(trusting.root, trusting.registry)
    assert (result.faults, result.stamps) == ([], 2)
    assert not any("stamp" in note for note in result.notes)
    assert path.name in path.with_suffix(".html").read_text(encoding="utf-8")


def test_a_changed_exchanged_or_missing_stamp_is_a_fault(trusting, authority, tmp_path):
    with serving(authority) as address:
        add_stamps(params_with(timestamp_server=address), trusting.root)
        trusting.forget("B", PEOPLE[2])
        add_stamps(params_with(timestamp_server=address), trusting.root)
    own, other = (stamp_path(trusting.root, certificate_of(trusting.root, name)) for name in "AB")
    roots = certificate_folder(trusting.root) / TIMESTAMP_ROOTS

    def faults_with(path, content):
        original = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        faults = verify(trusting.root, trusting.registry).faults
        path.write_bytes(original)
        return "\n".join(faults)

    stamp = own.read_bytes()
    for content in (other.read_bytes(), stamp[:-1] + bytes([stamp[-1] ^ 1]), b""):
        assert f"certificate A: {own}" in faults_with(own, content)
    assert "0001-A.html is changed" in faults_with(own, None), "the page names the stamp"
    for content in (Authority(tmp_path / "other").root, b"", None):
        assert str(own) in faults_with(roots, content)
    assert verify(trusting.root, trusting.registry).faults == []


def test_without_an_answer_the_certificate_stays_and_a_later_call_stamps_it(trusting, authority, closed_port):
    away = params_with(timestamp_server=f"http://me:hush-hush@127.0.0.1:{closed_port}/")
    (line,) = add_stamps(away, trusting.root)
    assert "0001-A" in line and f"***@127.0.0.1:{closed_port}" in line and "hush" not in line
    assert "flows.requests stamp" in line
    result = verify(trusting.root, trusting.registry)
    assert result.faults == [] and "certificate A has no time stamp" in result.notes[0]
    with serving(authority) as address:
        assert add_stamps(params_with(timestamp_server=address), trusting.root) == []
    assert verify(trusting.root, trusting.registry).stamps == 1


def test_a_stamp_that_was_interrupted_is_added_by_the_next_call(trusting, authority, monkeypatch):
    def interrupt(*args, **kwargs):
        write_page(*args, **kwargs)
        raise KeyboardInterrupt

    with serving(authority) as address:
        params = params_with(timestamp_server=address)
        with monkeypatch.context() as patch:
            patch.setattr(timestamps, "write_page", interrupt)
            with pytest.raises(KeyboardInterrupt):
                add_stamps(params, trusting.root)
        assert verify(trusting.root, trusting.registry).faults != []
        assert add_stamps(params, trusting.root) == []
    result = verify(trusting.root, trusting.registry)
    assert (result.faults, result.stamps) == ([], 1)


def test_an_answer_that_is_no_valid_stamp_is_not_stored(trusting, tmp_path, monkeypatch):
    stranger = Authority(tmp_path / "stranger")
    path = stamp_path(trusting.root, certificate_of(trusting.root, "A"))
    with serving(stranger) as address:
        params = params_with(timestamp_server=address)
        (line,) = add_stamps(params, trusting.root)
        assert address in line and not path.exists(), "another root certifies it"
        roots = certificate_folder(trusting.root) / TIMESTAMP_ROOTS
        roots.write_bytes(stranger.root)
        monkeypatch.setattr(timestamps, "content_of", lambda certificate: b"another certificate")
        (line,) = add_stamps(params, trusting.root)
        assert address in line and not path.exists(), "it stamps something else"
        monkeypatch.setattr(stranger, "answer", lambda query: b"<html>")
        (line,) = add_stamps(params, trusting.root)
    assert address in line and not path.exists()


def test_without_root_certificates_or_the_package_nothing_starts(project, authority, monkeypatch):
    params, path = params_with(timestamp_server="http://127.0.0.1:9"), certificate_folder(project.root)
    for content in (None, "no certificate"):
        if content is not None:
            path.mkdir(parents=True)
            (path / TIMESTAMP_ROOTS).write_text(content)
        with pytest.raises(RequestError) as error:
            check_timestamps(params, project.root)
        assert "requests.timestamp_server" in str(error.value) and TIMESTAMP_ROOTS in str(error.value)
    (path / TIMESTAMP_ROOTS).write_bytes(authority.root)
    check_timestamps(params, project.root)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError) as error:
        check_timestamps(params, project.root)
    assert "timestamps" in str(error.value)
    check_timestamps(project.params, project.root)


def test_stamps_of_another_machine_are_noted_where_the_package_is_missing(trusting, authority, monkeypatch):
    with serving(authority) as address:
        add_stamps(params_with(timestamp_server=address), trusting.root)
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    result = verify(trusting.root, trusting.registry)
    path = certificate_path(trusting.root, certificate_of(trusting.root, "A")).with_suffix(".tsr")
    assert result.faults == [] and str(path) in result.notes[0]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "127.0.0.1", "", 3])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ValueError) as error:
        Requests(timestamp_server=address)
    assert "timestamp_server" in str(error.value)
