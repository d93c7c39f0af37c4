"""Fork-joins on real worker processes: results, reduction, failures, what travels, and as a Celery task."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance.elsewhere import Elsewhere, elsewhere
from support import eventually

from nbparallel import Cluster, ForkJoin, JobCancelled
from nbparallel.errors import ResultNotReady, SerializationError, UsageError
from nbparallel.merging import GROUP


def make(process: Any, join: Any, reduce: bool = False, setup: Any = None) -> Any:
    """A fork-join over ``range(n)``."""
    made: Any = type("Made", (ForkJoin,), {})
    made.setup(setup or (lambda n: [{"i": i} for i in range(n)]))
    made.process(process)
    made.join(reduce=reduce)(join)
    return made


def flatten(parts: list[list[Any]]) -> list[Any]:
    """An associative join that is not commutative."""
    return [value for part in parts for value in part]


class WordCount(ForkJoin):
    """The fork-join of the documentation."""

    schema = {"documents": {"type": "list"}, "delimiter": {"type": "string", "default": " "}}  # noqa: RUF012


@WordCount.setup
def split(documents: list[str]) -> list[dict[str, str]]:
    """A document an item."""
    return [{"document": document} for document in documents]


@WordCount.process
def count(document: str, delimiter: str = " ") -> Counter[str]:
    """Words of one document."""
    return Counter(document.split(delimiter))


@WordCount.join
def total(counts: list[Counter[str]]) -> dict[str, Counter[str]]:
    """Words of all."""
    return {"word_count": sum(counts, Counter())}


def test_the_documented_example(cluster: Cluster) -> None:
    """Words are counted on the workers, and the result has the types that join gave it."""
    running = WordCount({"documents": ["a b", "b c", "c"] * 100}, session=cluster)
    result = running.result()
    assert result == {"word_count": Counter(a=100, b=200, c=200)}
    assert type(result["word_count"]) is Counter
    assert (running.name, running.status, running.snapshot().done, running.errors) == ("WordCount", "done", 300, [])
    assert repr(running) == "<WordCount done: 300 of 300 done>"


@pytest.mark.parametrize("count", [0, 1, GROUP - 1, GROUP, 1000])
def test_partial_joins_run_on_the_workers_in_order(cluster: Cluster, count: int) -> None:
    """With an associative join neighbours are joined in other processes, and the end is as if joined at once."""

    def join(parts: list[Any]) -> list[Any]:
        values = [value for part in parts for value in part[0]]
        return [values, {os.getpid()}.union(*(part[1] for part in parts))]

    result = make(lambda i: ([i], set()), join, reduce=True)({"n": count}, session=cluster).result()
    assert result[0] == list(range(count))
    if count == 1000:
        assert result[1] - {os.getpid()}


def test_partial_joins_keep_memory_small(cluster: Cluster) -> None:
    """A lazy setup is read as the workers get on, and results are joined meanwhile: few are in memory at a time."""

    def setup() -> Iterator[dict[str, int]]:
        for i in range(3000):
            yield {"i": i}

    def process(i: int) -> bytes:
        return i.to_bytes(2, "big") * 100_000

    def join(parts: list[bytes]) -> bytes:
        return b"".join(part[:2] if len(part) == 200_000 else part for part in parts)

    tracemalloc.start()
    try:
        result = make(process, join, reduce=True, setup=setup)({}, session=cluster).result(60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result == b"".join(i.to_bytes(2, "big") for i in range(3000))
    assert peak < 200e6  # of 600 MB


def test_skewed_durations_do_not_change_the_order(cluster: Cluster) -> None:
    """Items that end in any order are joined as neighbours, by index."""

    def process(i: int) -> str:
        time.sleep(0.03 if i % 50 == 0 else 0)
        return f"{i} "

    made = make(process, "".join, reduce=True)
    assert made({"n": 300}, session=cluster).result().split() == [str(i) for i in range(300)]


@pytest.mark.parametrize("reduce", [False, True])
def test_on_error_and_retries(cluster: Cluster, tmp_path: Path, reduce: bool) -> None:
    """Failed items are raised, returned in their place, left out, or run again."""

    def process(i: int) -> list[int]:
        if i == 40:
            raise KeyError("forty")
        return [i]

    made = make(process, flatten, reduce)
    with pytest.raises(KeyError, match="forty"):
        made({"n": 60}, session=cluster).result()
    running = made({"n": 60}, session=cluster, on_error="skip")
    assert running.result() == [i for i in range(60) if i != 40]
    assert [error.index for error in running.errors] == [40]

    def flaky(i: int, path: str) -> list[int]:
        try:
            os.mkdir(f"{path}/{i}")
        except FileExistsError:
            return [i]
        raise ConnectionError

    retried = make(flaky, flatten, reduce)({"n": 20, "path": str(tmp_path)}, session=cluster, retries=1)
    assert retried.result() == list(range(20))


def test_an_error_of_join_is_raised(cluster: Cluster) -> None:
    """What join raises on a worker comes out of result, and the rest stops."""

    def join(parts: list[Any]) -> Any:
        raise LookupError(f"no way in {os.getpid()}")

    running = make(lambda i: i, join, reduce=True)({"n": 10_000}, session=cluster)
    with pytest.raises(LookupError, match="no way") as caught:
        running.result()
    assert str(os.getpid()) not in str(caught.value)
    assert running.wait(5)


def test_an_error_of_a_lazy_setup_is_raised(cluster: Cluster) -> None:
    """What setup raises, or yields wrongly, in the middle comes out of result."""

    def setup(wrong: bool) -> Iterator[Any]:
        yield from ({"i": i} for i in range(50))
        if wrong:
            yield {"j": 1}
        raise LookupError("setup")

    for reduce in (False, True):
        made = make(lambda i: [i], flatten, reduce, setup)
        with pytest.raises(LookupError, match="setup"):
            made({"wrong": False}, session=cluster).result()
        with pytest.raises(UsageError, match="does not take 'j', which item 50"):
            made({"wrong": True}, session=cluster).result()


@pytest.mark.parametrize("reduce", [False, True])
def test_cancel(cluster: Cluster, reduce: bool) -> None:
    """A cancelled fork-join ends at once, and says so."""
    running = make(lambda i: time.sleep(0.1) or [i], flatten, reduce)({"n": 1000}, session=cluster)
    with pytest.raises(ResultNotReady):
        running.result(timeout=0.2)
    assert running.cancel()
    with pytest.raises(JobCancelled):
        running.result(5)
    eventually(lambda: running.status == "cancelled")
    assert not running.cancel()


def test_await(cluster: Cluster) -> None:
    """A fork-join can be awaited while the event loop goes on."""

    async def both() -> list[Any]:
        made = make(lambda i: [i], flatten, reduce=True)
        return list(await asyncio.gather(*(_result(made({"n": n}, session=cluster)) for n in (5, 100))))

    assert asyncio.run(both()) == [list(range(5)), list(range(100))]


async def _result(running: Any) -> Any:
    return await running


def test_what_cannot_be_sent_is_refused_before(cluster: Cluster) -> None:
    """A join that cannot be pickled is an error where the fork-join is started, and names what is wrong."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        make(lambda i: i, lambda parts: lock and parts, reduce=True)({"n": 3}, session=cluster)


# -- elsewhere ---------------------------------------------------------------------------------------------------------

SHOP = """
import os
from celery import Celery
from nbparallel.celery import add_forkjoin

url = os.environ["NBPARALLEL_URL"]
app = Celery("shop", broker=url, backend=url)
app.conf.task_default_queue = "shop"
app.conf.broker_connection_retry_on_startup = True
add_forkjoin(app)

@app.task
def documents(n):
    return {"documents": ["a b", "b"] * n}

@app.task
def most_common(result):
    return max(result["word_count"], key=result["word_count"].get)

@app.task
def note(*args):
    open("noted", "a").write("called\\n")
"""

CLIENT = """
from base64 import b64encode
from collections import Counter
from nbparallel import ForkJoin
from nbparallel.wire import seal
from shop import app, documents, most_common, note

class WordCount(ForkJoin):
    schema = {"documents": {"type": "list", "required": True}, "delimiter": {"type": "string", "default": " "}}

@WordCount.setup
def split(documents): return [{"document": d} for d in documents]
@WordCount.process
def count(document, delimiter):
    if document == "bad":
        raise ValueError("bad document")
    return Counter(document.split(delimiter))
@WordCount.join
def total(counts): return {"word_count": sum(counts, Counter())}

def show(*what): print(*what, flush=True)
call = WordCount.signature({"documents": ["a b", "b"]})
show("alone", sorted(call.delay().get(30)["word_count"].items()))
show("chain", (documents.s(3) | WordCount.signature() | most_common.s()).delay().get(30))
show("ignores", (documents.s(3) | call | most_common.s()).delay().get(30))
call.apply_async(link=note.s()).get(30)
try:
    WordCount.signature({"documents": ["bad"]}).apply_async(link_error=note.s()).get(30)
except ValueError as error:
    show("raised", error)
sealed = seal(b"a stranger's key".ljust(32), ("nbparallel.forkjoin",), b"x" * 100)
forged = app.signature("nbparallel.forkjoin", kwargs={"call": b64encode(sealed).decode()})
try:
    forged.delay().get(30)
except Exception as error:
    show("forged", type(error).__name__)
app.close()
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A cluster elsewhere with one worker of two processes."""
    with elsewhere(tmp_path_factory.mktemp("remote")) as place:
        place.start()
        place.wait_for(1)
        yield place


def test_a_signature_runs_on_a_worker_without_a_notebook(remote: Elsewhere) -> None:
    """In an application of its own a fork-join works alone, in chains, with callbacks; a forged one is refused."""
    (remote.directory / "shop.py").write_text(SHOP)
    (remote.directory / "client.py").write_text(CLIENT)
    arguments = ("-m", "celery", "-A", "shop", "worker", "--concurrency", "1", "--without-gossip", "--without-mingle")
    shop = remote.start(*arguments)
    try:
        client = remote.run("client.py")
        assert client.stdout.splitlines() == [
            "alone [('a', 1), ('b', 2)]",
            "chain b",
            "ignores b",
            "raised bad document",
            "forged WireError",
        ], (client.stderr, shop.err)
        eventually(lambda: (remote.directory / "noted").read_text() == "called\ncalled\n", what="both callbacks ran")
    finally:
        status = shop.end()
    assert status == 0


def test_each_item_travels_once(remote: Elsewhere) -> None:
    """The server receives each item and each input that process names once, not the whole input with every item."""
    documents = [os.urandom(10_000) for _ in range(200)]
    table = os.urandom(100_000)
    made: Any = type("Sizes", (ForkJoin,), {})
    made.setup(lambda documents: [{"document": document} for document in documents])
    made.process(lambda document, table: len(document) + len(table) - len(table))
    made.join(sum)
    with remote.connect() as session, remote.server.client() as server:
        before = server.info("stats")["total_net_input_bytes"]
        result = made({"documents": documents, "table": table}, session=session).result()
        received = server.info("stats")["total_net_input_bytes"] - before
    sent = sum(map(len, documents)) + len(table)
    assert result == sum(map(len, documents))
    assert sent < received < 1.15 * sent
