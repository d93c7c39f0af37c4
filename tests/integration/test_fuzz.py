"""Hostile bytes wherever a message or a blob is read: refused before anything is unpickled, and all goes on.

Somebody who can write to the store and has no key: random bytes, altered and cut ones, and good ones of another place.
``FUZZ_CASES`` multiplies the cases.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import Server, eventually
from unit.clientbench import Bench, ended
from unit.workbench import KEY, Work, new_slot
from unit.workbench import settings as worker_settings

from nbparallel import envelope, pickling, remote, wire
from nbparallel.client.attached import list_jobs
from nbparallel.client.backend import read_workers
from nbparallel.errors import WireError
from nbparallel.model import Block
from nbparallel.store import keys
from nbparallel.store.real import RedisStore
from nbparallel.worker.jobs import LoadedJob
from nbparallel.worker.turn import Child

TIMES = int(os.environ.get("FUZZ_CASES", "1"))
#: A pickle that would leave a file, were it loaded.
BOMB = b"cos\nsystem\n(S'touch /tmp/pwned'\ntR."


def cases(count: int) -> Callable[[Any], Any]:
    """So many examples."""
    return settings(max_examples=count * TIMES, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def nothing_is_unpickled() -> Iterator[None]:
    """Fail when anybody unpickles meanwhile, also when the error was caught."""
    loaded: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        loaded.append(given)
        raise AssertionError("unpickled")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickling, "pickle", SimpleNamespace(loads=refuse))
        patch.setattr(pickling, "_Unpickler", refuse)
        patch.setattr(remote, "_encode", lambda *_: b"")  # tries whether our own errors can be unpickled
        yield
    assert not loaded, "hostile bytes were unpickled"


@st.composite
def altered(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes like the good ones, and not the same."""
    at = draw(st.integers(0, len(good)))
    other = draw(st.binary(max_size=40))
    head = good[: wire.PREFIX_BYTES]
    made = draw(
        st.sampled_from(
            [
                other,
                good[:at],
                good[:at] + other + good[at:],
                good[:at] + other + good[at + len(other) :],
                good[:at] + good[at + 1 :],
                head + other,
                head + BOMB,
                BOMB,
                head[:16] + bytes(16) + good[wire.PREFIX_BYTES :],
                good + good,
                bytes(at) + good,
                good.swapcase(),
                good[::-1],
            ]
        )
    )
    assume(made != good)
    return made


# -- the worker --------------------------------------------------------------------------------------------------------


@functools.cache
def foreign() -> list[bytes]:
    """Good blobs of another job, made with the same key."""
    work = Work(abs)
    job = work.key
    payload, _ = envelope.seal_payload(KEY, job, "b0", 0, [[1, 2]])
    function = wire.seal(KEY, envelope.place(job, "function"), pickling.dump_function(abs))
    return [payload, function, envelope.seal_meta(KEY, job, {"sid": "5" * 32}), seal_outcomes(job)]


def seal_outcomes(job: str, lo: int = 0) -> bytes:
    """A block of two outcomes as a job's stream holds it."""
    return envelope.seal_block(KEY, job, Block(lo, 2, pickling.dump([0, 1]), worker="host:1", seconds=[0.1]))


def a_child(work: Work) -> Child:
    """A worker process, as far as it is no process."""
    child = Child(work.store, KEY, "default", worker_settings(), new_slot())
    child._ready = True  # no signal handler, no flusher
    return child


@cases(1500)
@given(data=st.data(), which=st.sampled_from(["meta", "function", "payload"]))
def test_a_worker_refuses_hostile_blobs(data: st.DataObject, which: str) -> None:
    """Whatever a job's blobs hold, nothing is unpickled, the job gets a verdict, and the process takes the next."""
    work = Work(abs)
    child, claim = a_child(work), work.store.claim
    (ticket,) = work.submit([-1, -2, -3], 3)

    def tampered(*args: Any, **options: Any) -> Any:
        answer = claim(*args, **options)
        if answer.state != "chunk":
            return answer
        own = [answer.meta, answer.function, answer.payload]
        others = [blob for blob in (*own, *foreign()) if blob != getattr(answer, which)]
        return answer._replace(
            **{which: data.draw(st.one_of(st.sampled_from(others), altered(getattr(answer, which))))}
        )

    work.store.claim = tampered
    if which == "payload":  # the function is good, and known
        child.jobs[work.key] = LoadedJob(
            work.key, "5" * 32, abs, {"timeout": None, "star": False, "budget": None, "queue": ""}
        )
    with nothing_is_unpickled():
        child.turn(work.id, 0, ticket)
    assert work.verdicts(), "nobody was told"
    assert "refused" in work.verdicts()[0] or "WireError" in work.verdicts()[0]
    assert not work.blocks()
    assert child._slot.running() is None
    good = Work(abs, work.store)
    work.store.claim = claim
    child.turn(good.id, 0, good.submit([-1, -2], 2)[0])
    assert good.outcomes() == {0: 1, 1: 2}


#: Anything that a message in JSON can hold.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@cases(1500)
@given(data=st.data())
def test_a_worker_refuses_hostile_tickets(data: st.DataObject) -> None:
    """Whatever a message says, nothing runs for it, and the process takes the next ticket."""
    work = Work(abs)
    child = a_child(work)
    (ticket,) = work.submit([-1, -2, -3], 3)
    good = [work.id, 0, ticket]
    said = [data.draw(st.one_of(st.just(value), anything)) for value in good]
    if said == good and [type(part) for part in said] == [str, int, str]:
        said[data.draw(st.integers(0, 2))] = "x"
    refused = suppress(WireError, ValueError, TypeError, AttributeError)  # Celery logs what a task raises
    with nothing_is_unpickled(), refused:
        assert child.turn(*said) is None
    assert not work.entries()
    assert child._slot.running() is None
    assert child.turn(work.id, 0, ticket) is None
    assert work.outcomes() == {0: 1, 1: 2, 2: 3}


# -- the client --------------------------------------------------------------------------------------------------------


def test_a_client_refuses_hostile_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a job's stream holds, nothing is unpickled or taken for an outcome, it is logged, the job goes on."""
    logged: list[str] = []
    for level in ("warning", "exception"):
        monkeypatch.setattr(f"nbparallel.client.session.log.{level}", lambda text, *_: logged.append(text))
    bench = Bench(monkeypatch).start()
    try:
        job = bench.job(abs, range(4), chunks=2)
        claim = bench.claim(job)
        key = job._running.key
        good = seal_outcomes(key)
        elsewhere = [
            *foreign(),
            seal_outcomes(key[:-1] + "1"),
            wire.seal(KEY, envelope.place(key, "meta"), b"B" + bytes(63)),
            wire.seal(b"another key, quite long", envelope.place(key, "out"), b"V" + bytes(63) + b"{}"),
        ]

        @cases(1500)
        @given(entry=st.one_of(st.sampled_from(elsewhere), altered(good)))
        def feed(entry: bytes) -> None:
            logged.clear()
            with nothing_is_unpickled():
                bench.session._take(key, [("0", entry)], {})
            assert [text[:7] for text in logged] == ["refused"]
            assert job.status == "running"

        feed()
        assert job.snapshot().done == 0
        # A good one that comes again and again counts once.
        bench.report(job, claim)
        for _ in range(100):
            bench.session._take(key, [("0", good)], {})
        eventually(lambda: job.snapshot().done == 2, 10)
        bench.work(1)
        assert ended(job)
        assert job.result(5) == [0, 1, 2, 3]
    finally:
        bench.close()


@cases(1000)
@given(data=st.data(), id=st.text(max_size=20))
def test_a_client_refuses_hostile_beats(data: st.DataObject, id: str) -> None:
    """What is not sealed as just this worker's beat is a stranger's, and hides no other worker."""
    says = {"host": "h", "processes": 2, "queues": ["q"], "versions": pickling.versions(), "running": {}}
    good = wire.seal(KEY, ("worker", "w1"), json.dumps(says).encode())
    assume(id != "w1")
    beat = data.draw(st.one_of(st.just(good), altered(good)))
    workers, strangers = read_workers(SimpleNamespace(workers=lambda: {id: beat, "w1": good}), KEY)  # type: ignore[arg-type]
    assert [worker.id for worker in workers] == ["w1"]
    assert strangers == [id]


#: What can stand in the index of jobs, which is not sealed.
LABELS = [
    b"[" * 100_000,
    b'{"name": 1, "session": 2, "total": 1e999, "detached": []}',
    b'{"name": "", "session": "", "total": "9' + b"9" * 5000 + b'", "detached": 1, "queue": {}}',
    b"\xff\xfe",
    b'{"detached": true}',
]


@pytest.fixture
def real(redis_server: Server) -> Iterator[tuple[RedisStore, redis.Redis]]:
    """A namespace of a real server, and a stranger's connection."""
    namespace = keys.new_id()
    store = RedisStore(redis_server.url, namespace)
    with redis_server.client() as stranger:
        yield store, stranger
        store.close_connections()
        for key in stranger.keys(f"nbp:{namespace}:*"):
            stranger.delete(key)


def test_hostile_names_in_the_store_hide_nothing(real: tuple[RedisStore, redis.Redis]) -> None:
    """Names and labels that are no text, numbers or JSON are passed over; the good ones beside them are still found."""
    store, stranger = real
    work = Work(abs, store)
    beat = wire.seal(KEY, ("worker", "w1"), b'{"host": "h", "processes": 2, "queues": ["q"], "running": {}, '
                     b'"versions": ["3.11", "3", 1]}')  # fmt: skip
    store.beat("w1", beat, 60_000)
    stranger.hset(f"{store.prefix}jobs", work.key, b'{"name": "mine", "session": "s", "total": 3, "detached": true}')
    session = SimpleNamespace(store=store, wait_ready=lambda: None, key=KEY)

    @cases(200)
    @given(name=st.binary(max_size=60), label=st.integers(0, len(LABELS) - 1) | st.binary(max_size=60))
    def look(name: bytes, label: bytes | int) -> None:
        label = LABELS[label] if isinstance(label, int) else label
        stranger.hset(f"{store.prefix}jobs", name, label)
        stranger.zadd(f"{store.prefix}workers", {name: 4e12})
        stranger.hset(f"{store.prefix}beats", name, label)
        try:
            workers, strangers = read_workers(store, KEY)
            assert [worker.id for worker in workers] == ["w1"]
            assert len(strangers) == 1
            assert "mine" in [info.name for info in list_jobs(session)]  # type: ignore[arg-type]
        finally:
            stranger.hdel(f"{store.prefix}jobs", name)
            stranger.zrem(f"{store.prefix}workers", name)
            stranger.hdel(f"{store.prefix}beats", name)

    look()
