"""A server that speaks TLS alone, with a certificate of a private authority: ``rediss://`` reaches and checks it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from acceptance.hosts import KEY, Rig
from support import Server, free_port, unavailable

from nbparallel import connect, pmap
from nbparallel.errors import ConnectionFailed


@dataclass
class SecureServer(Server):
    """A server without a plain TCP port."""

    tls_port: int = 0
    authority: str = ""

    @property
    def url(self) -> str:
        """URL with the authority that vouches for the server."""
        query = f"ssl_cert_reqs=required&ssl_ca_certs={quote(self.authority, safe='')}"
        return f"rediss://:{self.password}@localhost:{self.tls_port}/0?{query}"


def openssl(directory: Path, *words: str) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def certify(directory: Path) -> None:
    """An authority of our own, and a certificate for localhost."""
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(directory, *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our own authority")
    openssl(directory, *new, "-keyout", "other.key", "-out", "other.pem", "-subj", "/CN=another authority")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key")
    openssl(directory, *new, "-keyout", "server.key", "-out", "server.pem", *name, *by)


def with_tls() -> str:
    """A server binary that speaks TLS."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None or shutil.which("openssl") is None:
        unavailable("a redis-server with TLS, or openssl,")
    return str(binary)


@pytest.fixture
def secure() -> Iterator[Rig]:
    """A server with TLS, and one host."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls")))
        (directory / "key").write_text(KEY)
        certify(directory)
        port = free_port()
        config = (
            f"tls-port {port}", f"tls-cert-file {directory}/server.pem", f"tls-key-file {directory}/server.key",
            f"tls-ca-cert-file {directory}/ca.pem", "tls-auth-clients no",
        )  # fmt: skip
        server = SecureServer(with_tls(), directory, config=config, tls_port=port, authority=f"{directory}/ca.pem")
        stack.callback(server.stop)
        server.start()
        rig = Rig(server, directory, {})
        stack.callback(rig.stop)
        rig.add_host(2)
        rig.wait_hosts(1)
        yield rig


def test_a_job_over_tls(secure: Rig) -> None:
    """Client, workers and broker messages go through TLS, checked against a private authority."""
    with connect(secure.server.url, key=KEY) as cluster:
        assert pmap(abs, range(-100, 0), chunks=5, session=cluster).result(30) == list(range(100, 0, -1))


def test_a_server_that_nobody_we_know_vouches_for(secure: Rig) -> None:
    """With another authority, or plainly, the server is not talked to, and the error says why."""
    other = secure.server.url.replace("ca.pem", "other.pem")
    with pytest.raises(ConnectionFailed, match="certificate verify failed"):
        connect(other, key=KEY)
    with pytest.raises(ConnectionFailed):
        connect(secure.server.url.replace("rediss:", "redis:").partition("?")[0], key=KEY)
