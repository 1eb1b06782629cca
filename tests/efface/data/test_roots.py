"""Roots on the Hub, tested against a local server that answers like the Hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from efface.data.benchmarks.roots import fetch
from tests.efface.data.conftest import refusal

COMMIT = "e91a01eb060b61be8dbde7edb48b121341bd0890"
# The client writes ten megabytes at a time, so only a larger file can be left incomplete.
FILES = {"forget_5/train.parquet": b"x" * 24_000_000, "README.md": b"words"}


class StandIn(BaseHTTPRequestHandler):
    """One repository, as a dataset and as a model, at one commit, which is also `main`."""

    requests: list[tuple[str, str, str | None]] = []  # noqa: RUF012
    cut_short = False

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.split("?")[0]
        if re.fullmatch(rf"/api/(datasets|models)/owner/name/revision/(main|{COMMIT})", path):
            return self.send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        if re.fullmatch(rf"/api/(datasets|models)/owner/name/tree/{COMMIT}", path):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                for name, body in FILES.items()
            ]
            return self.send(json.dumps(tree).encode())
        match = re.fullmatch(rf"(?:/datasets)?/owner/name/resolve/{COMMIT}/(.+)", self.path)
        if match is None:
            return self.send(b"{}", status=404)
        return self.send(FILES[match[1]])

    def send(self, body, status=200):
        start = 0
        if (ranges := self.headers.get("Range")) and status == 200:
            start, status = int(re.search(r"bytes=(\d+)-", ranges)[1]), 206
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        body = body[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            if StandIn.cut_short and len(body) == 24_000_000:
                self.wfile.write(body[:22_000_000])
                self.wfile.flush()
                self.connection.close()
            else:
                self.wfile.write(body)
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path):
    StandIn.requests.clear()
    StandIn.cut_short = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def download(hub, home, source):
    """The output of `fetch` in a process that uses the local server as the Hub."""
    code = (
        "import sys\nfrom efface.data.benchmarks.roots import fetch\nfrom efface.errors import DataError\n"
        "try:\n    root = fetch(sys.argv[1], ('*.parquet',))\n"
        "except DataError as error:\n    print('error:', error)\n"
        "else:\n    print(root.path, root.commit, root.pinned)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, source],
        env={
            **os.environ,
            "HF_ENDPOINT": hub,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "3",
            "no_proxy": "127.0.0.1",
            "TQDM_DISABLE": "",  # a command that ran in this process before may have set it
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return process.stdout.strip(), process.stderr


@pytest.mark.parametrize(
    ("source", "pinned", "kind"),
    [
        (f"hf://datasets/owner/name@{COMMIT}", True, "datasets"),
        ("hf://owner/name@main", False, "models"),
    ],
)
def test_a_repository_is_downloaded_at_its_revision_with_progress(hub, tmp_path, source, pinned, kind):
    said, progress = download(hub, tmp_path, source)
    folder, commit, is_pinned = said.rsplit(maxsplit=2)
    assert (commit, is_pinned) == (COMMIT, str(pinned))
    assert sorted(p.name for p in (tmp_path / folder).rglob("*") if p.is_file()) == ["train.parquet"]
    paths = [path for _, path, _ in StandIn.requests]
    assert any(path.startswith(f"/api/{kind}/owner/name/tree/{COMMIT}") for path in paths)
    assert not [path for path in paths if "README" in path]
    assert "100%" in progress


def test_an_interrupted_download_resumes(hub, tmp_path):
    StandIn.cut_short = True
    said, _ = download(hub, tmp_path, f"hf://datasets/owner/name@{COMMIT}")
    assert said.endswith("True")
    ranges = [part for method, path, part in StandIn.requests if method == "GET" and "resolve" in path]
    assert ranges[0] is None
    (again,) = ranges[1:]
    assert int(re.fullmatch(r"bytes=(\d+)-", again)[1]) >= 10_000_000
    (file,) = tmp_path.rglob("train.parquet")
    assert file.read_bytes() == FILES["forget_5/train.parquet"]


def test_a_second_run_downloads_nothing(hub, tmp_path):
    source = f"hf://datasets/owner/name@{COMMIT}"
    download(hub, tmp_path, source)
    StandIn.requests.clear()
    download(hub, tmp_path, source)
    assert not [path for method, path, _ in StandIn.requests if method == "GET" and "resolve" in path]


@pytest.mark.slow  # the client tries for twenty seconds
def test_without_the_hub_the_way_out_is_told(tmp_path):
    said, _ = download("http://127.0.0.1:9", tmp_path, f"hf://datasets/owner/name@{COMMIT}")
    assert said.startswith("error: hf://datasets/owner/name@")
    assert f"`hf download owner/name --repo-type dataset --revision {COMMIT} --local-dir FOLDER`" in said


@pytest.mark.parametrize(
    "source", ["hf://datasets/owner/name", "hf://owner", "hf://datasets/owner/name@", "hf://spaces/a/b@main"]
)
def test_an_address_names_a_revision(source):
    with refusal(source, "hf://datasets/OWNER/NAME@REVISION"):
        fetch(source, ("*",))
