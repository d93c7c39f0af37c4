"""Hosts in network namespaces, joined by a bridge in one of its own; links are cut and mended without touching this
machine's network. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.hosts import KEY, Rig
from support import Server, eventually, server_binary, unavailable

PORT = 6379


def ip(*words: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """Have this thread, and all threads and processes that it starts meanwhile, be on a node."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{space}") as there:
        if libc.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(home.fileno(), 0)


class Network:
    """Nodes by name, each with an address; the first is the store's."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.stem = f"nbp{os.getpid()}"
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}

    def space(self, name: str) -> str:
        """The namespace of a node."""
        return f"{self.stem}-{name}"

    def command(self, name: str, *words: str) -> tuple[str, ...]:
        """A command that runs on a node."""
        return ("ip", "netns", "exec", self.space(name), *words)

    def up(self) -> None:
        """Make the namespaces, the bridge and the links."""
        switch = self.space("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(self.addresses.items()):
            space, port = self.space(name), f"port{number}"
            ip("netns", "add", space)
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def down(self) -> None:
        """Remove everything."""
        for name in ("switch", *self.addresses):
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True)

    def cut(self, name: str) -> None:
        """Nothing goes to a node, and nothing comes from it; nobody is told."""
        ip("-n", self.space("switch"), "link", "set", f"port{list(self.addresses).index(name)}", "down")

    def mend(self, name: str) -> None:
        """Undo ``cut``."""
        ip("-n", self.space("switch"), "link", "set", f"port{list(self.addresses).index(name)}", "up")

    def mute(self, name: str) -> None:
        """The store hears a node, and its answers are lost."""
        ip("-n", self.space("store"), "route", "add", "blackhole", f"{self.addresses[name]}/32")

    def unmute(self, name: str) -> None:
        """Undo ``mute``."""
        ip("-n", self.space("store"), "route", "del", "blackhole", f"{self.addresses[name]}/32")


@dataclass
class FarServer(Server):
    """A server on the store's node; the tests reach it by its unix socket, which knows no namespaces."""

    address: str = ""

    @property
    def url(self) -> str:
        """URL for the other nodes."""
        return f"redis://:{self.password}@{self.address}:{self.port}/0"


@dataclass
class FarRig(Rig):
    """A rig whose hosts and clients run on nodes."""

    network: Network | None = None

    def add_host_on(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker with one process on a node."""
        assert self.network is not None
        worker = (sys.executable, "-m", "nbparallel", "worker", "--concurrency", "1")
        return self.add_host(command=self.network.command(name, *worker))

    def client_on(self, name: str, code: str) -> subprocess.Popen[str]:
        """A client that runs the code on a node; its output is a pipe."""
        assert self.network is not None
        command = self.network.command(name, sys.executable, "-u", "-W", "error", "-c", code)
        return subprocess.Popen(
            command, env=self.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip


@contextmanager
def far_apart(**settings: Any) -> Iterator[FarRig]:
    """A store, two workers and room for a client, each on a node of its own."""
    binary = server_binary()
    if binary is None:
        unavailable("a Redis or Valkey server")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        unavailable("the right to make network namespaces (root), or iproute2,")
    network = Network(("store", "client", "host1", "host2"))
    with ExitStack() as stack:
        stack.callback(network.down)
        try:
            network.up()
        except subprocess.CalledProcessError as error:
            unavailable(f"what network namespaces need: {error.stderr.decode().strip()}; it")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="n")))
        (directory / "key").write_text(KEY)
        starter = directory / "server"
        starter.write_text("#!/bin/sh\nexec " + " ".join(network.command("store", str(binary))) + ' "$@"\n')
        starter.chmod(0o700)
        address = network.addresses["store"]
        server = FarServer(str(starter), directory, port=PORT, config=(f"bind {address}",), address=address)
        stack.callback(server.stop)
        server.start()
        rig = FarRig(server, directory, settings, network=network)
        stack.callback(rig.stop)
        for name in ("host1", "host2"):
            rig.add_host_on(name)
        with server.client() as store:
            eventually(lambda: store.zcard("nbp:default:workers") == 2, 20, f"both hosts live; {rig.logs()}")
        yield rig
