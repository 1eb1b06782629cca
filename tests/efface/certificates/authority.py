"""A time stamp authority on this machine: `openssl ts`, which takes no part in what it tests."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

_CONFIG = """
[tsa]
default_tsa = here
[here]
serial = serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4
digests = {digests}
ess_cert_id_alg = sha256
[stamping]
extendedKeyUsage = critical,timeStamping
"""


class Authority:
    """A root and the certificate that it gave to a signer of time stamps.

    Args:
        folder: an empty folder for its keys.
        digests: hashes that it stamps.
    """

    def __init__(self, folder: Path, *, digests: str = "sha256") -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "config").write_text(_CONFIG.format(digests=digests))
        (folder / "serial").write_text("01")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        self._openssl(*new, "-x509", "-days", "9", "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem")
        self._openssl(*new, "-subj", "/CN=signer", "-keyout", "signer.key", "-out", "signer.csr")
        self._openssl(
            *("x509", "-req", "-in", "signer.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9"),
            *("-set_serial", "7", "-extfile", "config", "-extensions", "stamping", "-out", "signer.pem"),
        )
        self.root = (folder / "ca.pem").read_bytes()

    def answer(self, query: bytes) -> bytes:
        """The response to a request, both in DER."""
        (self.folder / "query").write_bytes(query)
        signer = ("-signer", "signer.pem", "-inkey", "signer.key")
        self._openssl("ts", "-reply", "-config", "config", "-queryfile", "query", *signer, "-out", "response")
        return (self.folder / "response").read_bytes()

    def accepts(self, response: bytes, digest: str) -> bool:
        """Whether openssl too finds the stamp right."""
        (self.folder / "stamp").write_bytes(response)
        command = ["openssl", "ts", "-verify", "-digest", digest, "-in", "stamp", "-CAfile", "ca.pem"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=True)


@contextmanager
def serving(authority: Authority) -> Iterator[str]:
    """The address at which the authority answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/timestamp-query"
            body = authority.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stamp"
    finally:
        server.shutdown()
        server.server_close()
