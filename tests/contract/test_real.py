"""The real store alone: its keys, a full server, a server that forgets, and what becomes of foreign errors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from contract.bench import EXPIRED, LONG, SID, Bench, lingerer, memory_bench, server_bench
from support import Server, free_port, running_server

from nbparallel.errors import ClusterError, ConnectionFailed, NbparallelError, StoreFull
from nbparallel.ordering import Ranges
from nbparallel.store import keys
from nbparallel.store.fake import MemoryStore
from nbparallel.store.fake_idle import MemoryIdle
from nbparallel.store.protocol import Opening
from nbparallel.store.real import RedisStore, _scripts

# --- keys -----------------------------------------------------------------------------------------------------------


def names(bench: Bench) -> set[str]:
    """The keys of the bench's namespace, as ``keys.py`` writes them."""
    assert bench.raw is not None
    found = {key.decode() for key in bench.raw.keys(f"{bench.store.prefix}*")}
    return {name.replace(bench.job, "J").replace(bench.store.prefix, "P ") for name in found}


def populate(bench: Bench) -> None:
    """Bring every kind of key into being."""
    assert bench.raw is not None
    bench.start((0, 4), (4, 8))
    bench.raw.zadd(f"{bench.store.prefix}idle:{SID}", {"child": 1e15, "other": 1e15})
    bench.submit((8, 12))
    bench.raw.set(f"{bench.store.prefix}await:child", f"token 1 - {SID}")
    bench.report("k0", 0, 1)
    bench.store.beat("w", b"says", LONG)
    bench.store.put_shared("one", b"sealed", LONG)


def test_every_key_is_listed(real: Bench) -> None:
    """The table in ``keys.py`` names every key that the scripts make, and no other."""
    populate(real)
    table = re.findall(r"^((?:J:|P )[a-z]+(?::<[a-z]+>)?)", keys.__doc__ or "", flags=re.MULTILINE)
    listed = {name.replace("<sid>", SID).replace("<cid>", "child").replace("<id>", "one") for name in table}
    assert names(real) == listed - {"P ctl", "P part:<n>"}  # a channel, and what no script makes


def test_types_of_keys_are_as_listed(real: Bench) -> None:
    """Each key has the type that the table gives it."""
    assert real.raw is not None
    populate(real)
    words = {"zset": "sorted set"}
    for line in (keys.__doc__ or "").splitlines():
        row = re.match(r"(J:|P )([a-z]+)(:<[a-z]+>)? +(hash|string|sorted set|stream|list) ", line)
        if row:
            suffix = {":<sid>": f":{SID}", ":<cid>": ":child", ":<id>": ":one"}.get(row[3], "")
            key = (f"{real.job}:" if row[1] == "J:" else real.store.prefix) + row[2] + suffix
            kind = real.raw.type(key).decode()
            assert words.get(kind, kind) == row[4], key


def test_close_leaves_a_tombstone(real: Bench) -> None:
    """Of a closed job only ``meta`` is left, with a time to live; of its session and leases nothing."""
    assert real.raw is not None
    populate(real)
    real.store.close(real.job, "done", False, LONG)
    real.store.end_session(SID)
    real.store.unbeat("w")
    real.store.drop_shared(["one"])
    assert names(real) == {"J:meta", "P await:child", "P bell:child"}
    assert 0 < real.raw.pttl(f"{real.job}:meta") <= LONG
    assert 0 < real.raw.pttl(f"{real.store.prefix}bell:child") <= 60_000


def test_close_can_leave_the_results(real: Bench) -> None:
    """With ``keep`` the stream is left as well, for as long, and the job is listed."""
    assert real.raw is not None
    real.start((0, 4))
    real.report("k0", 0, 1)
    real.store.close(real.job, "done", True, LONG)
    real.store.end_session(SID)
    assert names(real) == {"J:meta", "J:out", "P jobs"}
    assert 0 < real.raw.pttl(f"{real.job}:out") <= LONG


def test_all_leases_of_a_cancelled_job_go_in_the_end(real: Bench) -> None:
    """After a cancel, releases and a close no key is left behind, not even an empty one."""
    real.start((0, 4), (4, 8), (8, 12))
    real.store.stop(real.job, 0)
    real.store.release(real.job, "k0", "return")
    real.report("k1", 4, 1)
    real.store.renew(EXPIRED, [(real.job, "k2")])
    real.store.reap(9, "lost", LONG)
    real.store.close(real.job, "cancelled", False, LONG)
    real.store.end_session(SID)
    assert names(real) == {"J:meta"}


def test_namespaces_do_not_mix(real: Bench) -> None:
    """The same worker and session in another namespace are others."""
    assert isinstance(real.store, RedisStore)
    other = RedisStore(real.store.url, "other-namespace")
    real.store.beat("w", b"says", LONG)
    assert other.workers() == {}
    other.close_connections()


def test_a_dead_child_is_handed_nothing(real: Bench) -> None:
    """Children whose time to linger is over are passed over, and the next one is rung for."""
    assert real.raw is not None
    real.open()
    idle, bell = f"{real.store.prefix}idle:{SID}", f"{real.store.prefix}bell:"
    real.raw.zadd(idle, {"dead1": 1, "dead2": 2, "lives": 1e15})
    assert real.submit((0, 1)).tickets == []
    assert real.raw.lrange(bell + "lives", 0, -1) == [f"{real.job} t0".encode()]
    assert real.raw.zcard(idle) == 0


def test_a_ticket_that_comes_as_the_child_gives_up_is_taken(real: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket rung for after the wait has timed out, but before the child is off the list, is handed over."""
    assert isinstance(real.store, RedisStore)
    real.open()
    exchange = real.store._lines.exchange

    def too_late(*commands: Any) -> Any:
        if commands[0][0] != "BLMPOP":
            return exchange(*commands)
        assert real.submit((0, 1)).tickets == [], "the child was rung for"
        return [None]

    monkeypatch.setattr(real.store._lines, "exchange", too_late)
    handed = real.store.linger(lingerer())
    assert handed is not None
    assert (handed.job, handed.ticket) == (real.job, "t0")
    assert handed.claim is not None


def test_a_child_that_is_rung_for_between_a_call_and_its_repetition(real: Bench) -> None:
    """A lost reply does not make it run what it was handed under a dead ticket, and then once more."""
    (ticket,) = real.start((0, 2))
    who = lingerer(token="n")
    known: dict[str, Any] = {"next_token": "n", "ticket": ticket, "lease": LONG, "have": "", "linger": who}
    for _ in range(2):
        claim = real.store.report_and_claim(real.job, "k0", 0, 2, b"e", **known)[1]
        assert (claim.state, claim.lingers, claim.handed) == ("empty", True, None)
        real.submit((2, 4))
    handed = real.store.linger(who, claim.lingers)
    assert handed is not None
    assert handed.claim is not None
    assert (handed.claim.lo, handed.ticket) == (2, "t1")
    assert real.entries == [b"e"]


# --- what was reported ----------------------------------------------------------------------------------------------


def test_the_account_tells_what_was_reported_until_when(real: Bench) -> None:
    """The last entry of the stream, and the items below the stop that were submitted and wait for nobody."""
    assert isinstance(real.store, RedisStore)
    assert real.store.account(real.job) == ("0-0", Ranges())
    real.start((0, 4), (4, 8))
    real.report("k0", 0, 3)
    real.report("k1", 4, 4, finished=True)
    last, reported = real.store.account(real.job)
    assert last == real.store.read({real.job: "0"}, 0)[0][1][-1][0]
    assert reported.runs == [(0, 3), (4, 8)]
    real.store.stop(real.job, 2)
    assert real.store.account(real.job)[1].runs == [(0, 2)]
    real.store.stop(real.job, 0)
    assert not real.store.account(real.job)[1]


# --- a full server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bundled", "path"])
def small(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own, whose memory a test may limit."""
    with running_server(request.param) as server:
        yield server


@pytest.fixture
def full(small: Server) -> Iterator[Bench]:
    """A store with two chunks leased and one pending, on a server that is full then."""
    with server_bench(small) as bench:
        assert bench.raw is not None
        bench.start((0, 4), (4, 8))
        bench.submit((8, 12))
        bench.report("k0", 0, 1)
        bench.store.beat("w", b"says", LONG)
        bench.raw.config_set("maxmemory", 1)
        try:
            yield bench
        finally:
            bench.raw.config_set("maxmemory", 0)


#: What must work on a full server, since it frees memory, ends work, or keeps what runs alive.
WORKS: dict[str, Callable[[Bench], object]] = {
    "renew": lambda b: b.store.renew(LONG, [(b.job, "k0")]) == [-1],
    "release": lambda b: (
        b.store.release(b.job, "k0", "crash", culprit=2, culprit_end=3, ticket="n", crash_limit=9).publish
    ),
    "reap": lambda b: b.store.renew(EXPIRED, [(b.job, "k0")]) and len(b.store.reap(1, "h", LONG)) == 1,
    "leave": lambda b: b.store.leave(b.job, "t0", "n"),
    "stop": lambda b: b.store.stop(b.job, 0) == 2,
    "verdict": lambda b: b.store.verdict(b.job, b"reason"),
    "close": lambda b: b.store.close(b.job, "done", False, LONG) is None,
    "trim": lambda b: b.store.trim(b.job, b.store.read({b.job: "0"}, 0)[0][1][0][0]) is None and b.entries == [],
    "drop_blobs": lambda b: b.store.drop_blobs(b.job, ["b0"]) is None,
    "read": lambda b: b.entries == [b"entry"],
    "peek": lambda b: b.store.peek(b.job, True).held == 2,
    "workers": lambda b: b.store.workers() == {"w": b"says"},
    "beat": lambda b: b.store.beat("w2", b"says", LONG) is None and len(b.store.workers()) == 2,
    "unbeat": lambda b: b.store.unbeat("w") is None and b.store.workers() == {},
    "session_beat": lambda b: b.store.session_beat(SID, b"beat", LONG) is None,
    "wake": lambda b: b.store.wake(SID) is None,
    "waiting": lambda b: isinstance(b.store.waiting(SID), bool),
    "linger": lambda b: b.store.linger(lingerer()) in (None, (b.job, "t1", None), (b.job, "t2", None)),
    "unlinger": lambda b: b.store.unlinger(lingerer()) is None,
    "rouse": lambda b: b.store.rouse("child") is None,
    "bury": lambda b: b.store.bury("k") == [(b.job, "k0"), (b.job, "k1")],
    "end_session": lambda b: b.store.end_session(SID) is None,
    "run_id": lambda b: b.store.run_id(),
    "jobs": lambda b: b.store.jobs() == {b.job: b"label"},
    "sweep": lambda b: b.store.sweep() == 0,
    "backlog": lambda b: [row.items for row in b.store.backlog()] == [sum(hi - lo for lo, hi in b.unreported)] != [0],
}

#: What a full server refuses: it would bring in more.
REFUSED: dict[str, Callable[[Bench], object]] = {
    "submit": lambda b: b.submit((12, 16)),
    "claim": lambda b: b.claim("k9", "t2"),
    "report": lambda b: b.report("k0", 1, 1),
    "report_and_claim": lambda b: b.store.report_and_claim(
        b.job, "k0", 1, 3, b"e", next_token="n", ticket="t0", lease=LONG, have=""
    ),
    "remint": lambda b: b.store.remint(b.job, -1, 9, ["n"]),
}


@pytest.mark.parametrize("call", WORKS)
def test_a_full_server_still_ends_and_frees(full: Bench, call: str) -> None:
    """At ``maxmemory`` work can be renewed, released, stopped and consumed, and everyone is seen to live."""
    assert WORKS[call](full)


@pytest.mark.parametrize("call", REFUSED)
def test_a_full_server_takes_nothing_new(full: Bench, call: str) -> None:
    """At ``maxmemory`` new work is refused with ``StoreFull``, and nothing is half done."""
    assert full.raw is not None
    before = full.store.peek(full.job, True)
    with pytest.raises(StoreFull, match="full"):
        REFUSED[call](full)
    after = full.store.peek(full.job, True)
    assert after[:4] == before[:4]
    assert after.unreported == before.unreported
    assert full.entries == [b"entry"]
    full.raw.config_set("maxmemory", 0)
    REFUSED[call](full)


def test_every_call_is_tried_on_a_full_server() -> None:
    """The two lists above hold every method of a store."""
    methods = {name for name in (*vars(MemoryStore), *vars(MemoryIdle)) if not name.startswith("_")}
    assert {*WORKS, *REFUSED} == methods - {"wipe", "listen", "close_connections"}


# --- a server that forgets ------------------------------------------------------------------------------------------


def test_scripts_are_loaded_again_when_the_server_forgot_them(real: Bench) -> None:
    """An emptied script cache is not noticed, in single calls or in pipelined ones."""
    assert real.raw is not None
    steps: list[Callable[[], object]] = [
        real.open,  # two calls at once
        lambda: real.submit((0, 4), (4, 8)).tickets,
        lambda: real.claim("k0", "t0").state == "chunk",
        lambda: (
            real.store.report_and_claim(real.job, "k0", 0, 4, b"e", next_token="k1", ticket="t0", lease=LONG, have="")[
                1
            ].state
            == "chunk"
        ),
        lambda: real.report("k1", 4, 4).state == "ok",
    ]
    for step in steps:
        real.raw.script_flush()
        assert step()
    assert real.entries == [b"e", b"entry"]


def forgetful_benches() -> Iterator[tuple[Bench, Callable[[], None]]]:
    """Stores, each with a step that restarts its server without data."""
    memory = memory_bench()
    assert isinstance(memory.store, MemoryStore)
    yield memory, memory.store.wipe
    with running_server() as server, server_bench(server) as bench:

        def restart() -> None:
            server.stop()
            server.start()

        yield bench, restart


def test_a_restart_without_data_is_seen() -> None:
    """After it the run id is another, the job is gone, old tokens are fenced, and the store serves again."""
    for bench, restart in forgetful_benches():
        bench.start((0, 4))
        name = bench.store.run_id()
        restart()
        assert bench.store.run_id() != name
        assert bench.submit((4, 8)).state == "gone"
        assert bench.report("k0", 0, 1).state == "fenced"
        assert bench.store.renew(LONG, [(bench.job, "k0")]) == [-2]
        assert bench.store.reap(1, "h", LONG) == []
        bench.start((0, 4))


# --- errors ---------------------------------------------------------------------------------------------------------


def foreign_errors() -> list[type[Exception]]:
    """Every exception of redis-py, and what the operating system may raise below it."""
    found = [kind for kind in vars(redis.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [*found, OSError, BrokenPipeError, TimeoutError]


@pytest.mark.parametrize("kind", foreign_errors(), ids=lambda kind: kind.__name__)
def test_no_foreign_error_comes_through(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever redis-py raises, the caller gets one of ours, which names the store but not its password."""
    store = RedisStore("redis://user:secret@host.invalid:7000/0")

    def fail(*_: Any, **__: Any) -> None:
        raise kind("12 127.0.0.1:7000")  # some parse what the server says

    monkeypatch.setattr(store._lines, "exchange", fail)
    for method in ("info", "pubsub"):
        monkeypatch.setattr(redis.Redis, method, fail)
    calls: list[Callable[[], object]] = [
        lambda: store.peek("job"),
        lambda: store.read({"job": "0"}, 0),
        lambda: store.session_beat(SID, b"", None),
        lambda: store.end_session(SID),
        lambda: store.listen(print, lambda: True),
        lambda: store.linger(lingerer()),
        lambda: store.submit("job", 0, [], [], Opening(SID, b"", b"", 0, False, 1, "")),
        store.run_id,
        store.check_server,
    ]
    for call in calls:
        with pytest.raises(NbparallelError, match=r"host\.invalid") as caught:
            call()
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value, ClusterError)


def test_the_way_to_the_server_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the quickest calls of late: slow ones hardly count, and when all are slow it follows."""
    store = RedisStore("redis://host.invalid:7000/0")
    took, now = 1.2, 0.0

    def exchange(*commands: Any) -> list[Any]:
        nonlocal now
        now += took
        return [b"" for _ in commands]

    monkeypatch.setattr(store._lines, "exchange", exchange)
    monkeypatch.setattr("nbparallel.store.real.time.perf_counter", lambda: now)
    assert store.round_trip == 0.0
    store._call("wake", "", SID)  # the first call connects
    assert store.round_trip == pytest.approx(1.2)
    took = 0.4
    store._call("wake", "", SID)
    assert store.round_trip == pytest.approx(0.4)
    took = 1.0
    store._call("wake", "", SID)
    assert store.round_trip < 0.45
    took = 0.4
    store._call("wake", "", SID)
    assert store.round_trip == pytest.approx(0.4)
    took = 2.0
    for _ in range(60):
        store._call("wake", "", SID)
    assert store.round_trip > 1.9


@pytest.mark.parametrize("url", ["ftp://host/0", "host:6379", "redis://host:port/0"], ids=["scheme", "bare", "port"])
def test_a_wrong_url_is_named(url: str) -> None:
    """What is no URL of a store is refused when the store is made."""
    with pytest.raises(ConnectionFailed, match=re.escape(url)):
        RedisStore(url)


def test_a_server_that_does_not_listen() -> None:
    """Nobody at the address: an error that names it and says what to look at."""
    store = RedisStore(f"redis://:secret@127.0.0.1:{free_port()}/0", connect_seconds=1)
    with pytest.raises(ConnectionFailed, match=r"redis://:\*\*\*@127.*Is the server running"):
        store.check_server()


@pytest.mark.parametrize("url", ["unix://:wrong@{}", "unix://{}"], ids=["wrong", "none"])
def test_a_wrong_password_is_told_from_a_dead_server(real: Bench, server: Server, url: str) -> None:
    """A refused password is named as such."""
    store = RedisStore(url.format(server.socket))
    with pytest.raises(ConnectionFailed, match="refused the user or password"):
        store.check_server()
    store.close_connections()


def test_a_good_server_passes_the_check(real: Bench) -> None:
    """Both kinds of server are good enough as they are."""
    assert isinstance(real.store, RedisStore)
    real.store.check_server()


def test_a_server_that_evicts_is_refused(small: Server) -> None:
    """A server that may throw keys away is refused, with the setting to change."""
    store = RedisStore(small.url)
    with small.client() as raw:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ConnectionFailed, match=r"allkeys-lru.*noeviction"):
                store.check_server()
        finally:
            raw.config_set("maxmemory-policy", "noeviction")
    store.close_connections()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"redis_version": "6.2.7"}, "Redis 6.2.7; Redis 7 or newer, or Valkey"),
        ({"redis_version": "7.2.4", "cluster_enabled": 1}, "Redis Cluster"),
    ],
    ids=["old", "cluster"],
)
def test_an_unfit_server_is_refused(info: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old, or a cluster, is refused with the reason."""
    store = RedisStore("redis://host.invalid")
    monkeypatch.setattr(redis.Redis, "info", lambda _: info)
    with pytest.raises(ConnectionFailed, match=says):
        store.check_server()


def test_a_full_store_can_be_told_across_processes() -> None:
    """The error survives pickling, as all of ours do."""
    assert str(pickle.loads(pickle.dumps(StoreFull("full")))) == "full"


def test_scripts_touch_no_server_state_but_keys() -> None:
    """Each script declares only flags that a server knows, and none forgets the prelude."""
    for name, (source, _) in _scripts().items():
        head, _, body = source.partition("\n")
        assert re.fullmatch(r"#!lua( flags=(allow-oom|no-writes))?", head), name
        assert "local J, P = KEYS[1], KEYS[2]" in body
