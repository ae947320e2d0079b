"""The pool over TLS: its certificate counts if the authority that the environment names has signed it."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from claw_r1.errors import DependencyUnreachable, UserError, WrongUse
from trainer_adapter.pool import Pool


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(400)
        self.end_headers()
        self.wfile.write(b"it was heard")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server's https address, and the file of the authority that signed its certificate."""
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), Refusing) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"https://127.0.0.1:{http.server_port}", ca
        http.shutdown()
        thread.join()


def test_the_authority_is_the_one_that_the_environment_names(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ca = server
    monkeypatch.delenv("CLAW_CLICKHOUSE_CA", raising=False)
    with pytest.raises(DependencyUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
        next(Pool(url).ask("SELECT 1"))
    monkeypatch.setenv("CLAW_CLICKHOUSE_CA", str(ca))
    with pytest.raises(UserError, match="it was heard"):
        next(Pool(url).ask("SELECT 1"))
    monkeypatch.setenv("CLAW_CLICKHOUSE_CA", "/nowhere.pem")
    with pytest.raises(WrongUse, match="nowhere"):
        Pool(url)
