"""Cables that are cut between a client, a store and two workers: every result comes, and once."""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from acceptance.hosts import KEY, Rig
from acceptance.network import FarRig, Network, far_apart
from support import Server, eventually, free_port, server_binary, unavailable

from nbparallel import connect, pmap

CLIENT = """
import time
from nbparallel import pmap
def slow(index):
    with open({log!r}, "a") as file:
        file.write(f"{{index}}\\n")
    time.sleep({seconds})
    return index
if __name__ == "__main__":
    job = pmap(slow, range({count}), chunks={chunks}, progress=False)
    print("started", flush=True)
    values = list(job)
    assert values == list(range({count})), values
    print("all", len(values), flush=True)
"""
COUNT = 120
#: Times as a user has them by default, but for the lease of the worker that never comes back.
PATIENT = {"lease_seconds": 10.0, "renew_seconds": 2.0}
HASTY = {"lease_seconds": 2.0, "renew_seconds": 0.4}


def lines(path: Path) -> list[int]:
    """The items that were started."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def run(rig: FarRig, log: Path, fault: Callable[[], None]) -> tuple[Counter[int], float]:
    """A job with a fault in its midst; how often each item ran, and how long it took from the fault on."""
    code = CLIENT.format(log=str(log), count=COUNT, chunks=2, seconds=0.1)
    with rig.client_on("client", code) as client:
        try:
            eventually(lambda: len(lines(log)) > 20, 20, "the job runs")
            began = time.monotonic()
            fault()
            out, _ = client.communicate(timeout=80)
        finally:
            client.kill()
    assert re.fullmatch(rf"started\nall {COUNT}\n", out), f"{out} {rig.logs()}"
    again = Counter(lines(log))
    assert set(again) == set(range(COUNT))
    return again, time.monotonic() - began


def wait(seconds: float) -> None:
    """As long as a fault lasts."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, seconds + 5)


def for_a_while(seconds: float, cut: Callable[[], None], mend: Callable[[], None]) -> Callable[[], None]:
    """A fault that passes."""

    def fault() -> None:
        cut()
        wait(seconds)
        mend()

    return fault


def network_of(rig: FarRig) -> Network:
    """The rig's network."""
    assert rig.network is not None
    return rig.network


@pytest.mark.netns
@pytest.mark.parametrize("name", ["client", "host1"])
@pytest.mark.parametrize("way", ["both ways", "answers lost"])
@pytest.mark.parametrize("seconds", [5.0, pytest.param(20.0, marks=pytest.mark.soak)])
def test_a_link_that_is_cut_for_a_while(seconds: float, name: str, way: str, tmp_path: Path) -> None:
    """The client's link or a worker's is dead for a while, or the store's answers are lost: all items run once.

    But when it is a worker's, and for longer than its lease, what it held runs elsewhere.
    """
    with far_apart(**PATIENT) as rig:
        net = network_of(rig)
        cut, mend = (net.cut, net.mend) if way == "both ways" else (net.mute, net.unmute)
        fault = for_a_while(seconds, lambda: cut(name), lambda: mend(name))
        again, took = run(rig, tmp_path / "log", fault)
        print(f"{name}, {way}, {seconds:.0f} s: {took:.1f} s from the cut on; {sum(again.values()) - COUNT} ran twice")
        held = 2 if name == "host1" and seconds > PATIENT["lease_seconds"] else 0
        assert sum(again.values()) <= COUNT + held
        assert took < seconds + 0.1 * COUNT + 15


@pytest.mark.netns
def test_a_worker_that_is_cut_off_for_ever(tmp_path: Path) -> None:
    """A worker's link is dead for good: what it held runs elsewhere when its lease is over, and nothing else does."""
    with far_apart(**HASTY) as rig:
        net = network_of(rig)
        again, took = run(rig, tmp_path / "log", lambda: net.cut("host1"))
        print(f"for ever: {took:.1f} s from the cut on; {sum(again.values()) - COUNT} items ran twice")
        assert sum(again.values()) <= COUNT + 2  # the chunk that it held
        assert took < 0.1 * COUNT + 10


@pytest.mark.netns
def test_a_worker_that_comes_back_does_no_harm(tmp_path: Path) -> None:
    """A worker that comes back after its lease is over: what it reports late is refused, and it works again."""
    with far_apart(**HASTY) as rig:
        net = network_of(rig)
        fault = for_a_while(5.0, lambda: net.cut("host1"), lambda: net.mend("host1"))
        again, took = run(rig, tmp_path / "log", fault)
        print(f"longer than its lease: {took:.1f} s from the cut on; {sum(again.values()) - COUNT} items ran twice")
        assert sum(again.values()) <= COUNT + 2


class Distance:
    """A proxy on the loopback interface, behind which a server is far away.

    Both ways everything comes ``latency`` seconds later, and two of a hundred pieces wait for what TCP takes to notice
    that they were lost. Unlike netem it needs nothing of the kernel.
    """

    def __init__(self, target: int, latency: float) -> None:
        self.target, self.latency, self.port = target, latency, free_port()
        self._random = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="distance")

    def __enter__(self) -> Distance:
        self._thread.start()
        start = asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(5)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(due - self._loop.time())
                if not data:
                    return
                writer.write(data)

        delivery = asyncio.ensure_future(deliver())
        try:
            while True:
                data = b""
                with suppress(ConnectionError):
                    data = await reader.read(1400)
                lost = 2 * self.latency + 0.2 if self._random.random() < 0.02 else 0.0
                on_the_way.put_nowait((self._loop.time() + self.latency + lost, data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()
            writer.close()


@dataclass
class DistantServer(Server):
    """A server that clients and workers reach by a proxy."""

    seen_port: int = 0

    @property
    def url(self) -> str:
        """URL of the proxy."""
        return f"redis://:{self.password}@127.0.0.1:{self.seen_port}/0"


def test_a_slow_and_lossy_network(tmp_path: Path) -> None:
    """With 200 ms there and back, and 2 % of all packets lost, every item runs once."""
    log = tmp_path / "log"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d")))
        binary = server_binary()
        if binary is None:
            unavailable("a Redis or Valkey server")
        server = DistantServer(str(binary), directory, port=free_port())
        stack.callback(server.stop)
        server.start()
        server.seen_port = stack.enter_context(Distance(server.port, 0.1)).port
        (directory / "key").write_text(KEY)
        rig = Rig(server, directory, PATIENT)
        stack.callback(rig.stop)
        for _ in range(2):
            rig.add_host()
        rig.wait_hosts(2, 40)
        with connect(server.url, key=KEY, **PATIENT) as cluster:
            job = pmap(logged, range(30), [str(log)] * 30, chunks=5, progress=False, session=cluster)
            assert job.result(60) == list(range(30))
        assert sorted(lines(log)) == list(range(30))


def logged(index: int, log: str) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(0.1)
    return index
