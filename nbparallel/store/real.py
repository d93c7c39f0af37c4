"""The store on a real Redis or Valkey; called by client and workers, calls the scripts of ``scripts.lua``."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import ClusterError, ConnectionFailed, StoreFull
from ..ordering import Ranges
from . import keys
from .beating import open_client
from .connections import Connections
from .protocol import (
    Backlog,
    Claim,
    Handed,
    Lingerer,
    Lost,
    Opening,
    Peek,
    Released,
    Reported,
    Submission,
    Submitted,
)
from .urls import check_store_url, hide_password, sentinels, store_url

__all__ = ["RedisStore"]

T = TypeVar("T")

#: Seconds that a socket waits for an answer, and the most milliseconds that a command may block within that.
_ANSWER_SECONDS, _LONGEST_BLOCK = 5.0, 4000

#: Milliseconds for which a child is rung that had meant to leave: it looks once more before it does.
_LATE = 1000

#: What redis-py raises (some have no base in common with the others), and the system below it.
_FOREIGN: tuple[type[Exception], ...] = (
    *(kind for kind in vars(redis.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    OSError,
)


@cache
def _scripts() -> dict[str, tuple[str, str]]:
    """Name → (source, SHA-1) of every script, each with the prelude in front."""
    text = files(__package__).joinpath("scripts.lua").read_text(encoding="utf-8")
    prelude, *rest = re.split(r"^-- @script (.+)$", text.split("-- @prelude", 1)[1], flags=re.MULTILINE)
    scripts = {}
    for head, body in zip(rest[::2], rest[1::2], strict=True):
        name, *flags = head.split()
        source = f"#!lua{' flags=' + ','.join(flags) if flags else ''}\n{prelude}{body}"
        scripts[name] = source, hashlib.sha1(source.encode()).hexdigest()
    return scripts


class RedisStore:
    """A store on a server; usable from several threads at once (each call takes a connection from a pool).

    Args:
        url: ``redis://``, ``rediss://``, ``unix://`` or ``sentinel://``.
        namespace: separates the users of one server.
        connect_seconds: time in which the server must answer a connection.
    """

    def __init__(self, url: str, namespace: str = "default", connect_seconds: float = 3.0) -> None:
        self.url = store_url(url)
        self.prefix = keys.prefix(namespace)
        self._connect_seconds = connect_seconds
        self._options: dict[str, Any] = {
            "socket_timeout": max(connect_seconds, _ANSWER_SECONDS),
            "socket_connect_timeout": connect_seconds,
            # One repeat at once covers a connection that the server closed while idle; outages are waited for by
            # those who know what to tell the user meanwhile.
            "retry": Retry(NoBackoff(), 1),
            "protocol": 2,
            "client_name": "nbparallel",
        }
        if self.url.startswith("unix:"):
            del self._options["socket_connect_timeout"]
        check_store_url(self.url)
        watched = sentinels(self.url)
        #: Where the server is, as plain data that ``beating.open_client`` understands in another process, too.
        self.place: dict[str, Any] = {"url": self.url} if watched is None else watched._asdict()
        try:
            self._redis = open_client(self.place, **self._options)
        except ValueError as error:
            raise ConnectionFailed(f"{hide_password(self.url)!r} is not a URL of Redis or Valkey: {error}") from None
        self._lines = Connections(self._redis)
        self.round_trip = 0.0

    # -- scripts -------------------------------------------------------------------------------------------------------

    def _run(self, *calls: tuple[str, str, Sequence[Any]]) -> list[Any]:
        """Answers of scripts given as (name, job, arguments), all in one round trip."""
        # Without a job the first key means nothing, and access rules refuse an empty one.
        commands = [
            ("EVALSHA", _scripts()[name][1], 2, job or self.prefix, self.prefix, *args) for name, job, args in calls
        ]

        def attempt() -> list[Any]:
            try:
                return self._timed(commands)
            except redis.exceptions.NoScriptError:
                self._lines.exchange(*(("SCRIPT", "LOAD", source) for source, _ in _scripts().values()))
                return self._lines.exchange(*commands)  # idempotent, should the first of two have run already

        return self._guard(attempt)

    def _timed(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        started = time.perf_counter()
        answers = self._lines.exchange(*commands)
        took, known = time.perf_counter() - started, self.round_trip
        # Large calls, new connections and busy machines take longer: it falls at once, and rises slowly.
        self.round_trip = took if took < known or not known else known + (took - known) / 16
        return answers

    def _command(self, *command: Any) -> Any:
        return self._guard(lambda: self._lines.exchange(command))[0]

    def _call(self, name: str, job: str, *args: Any) -> Any:
        return self._run((name, job, args))[0]

    def _guard(self, call: Callable[[], T]) -> T:
        """Run ``call``, with redis-py's errors translated into ours."""
        try:
            return call()
        except _FOREIGN as error:
            ours = self._translated(error)
            # Of a server that is away redis-py's forty frames tell nothing that the message does not.
            raise ours from None if isinstance(ours, ConnectionFailed) else error

    def _translated(self, error: Exception) -> ClusterError:
        where = f"the server at {hide_password(self.url)}"
        text = str(error).rstrip(".")
        exceptions = redis.exceptions
        if isinstance(error, exceptions.NoPermissionError):
            return ConnectionFailed(f"{where} does not allow this user what nbparallel needs (see the README): {text}")
        if isinstance(error, exceptions.AuthenticationError) or "NOAUTH" in text or "WRONGPASS" in text:
            return ConnectionFailed(f"{where} refused the user or password: {text}")
        if isinstance(error, exceptions.OutOfMemoryError) or text.startswith("OOM"):
            return StoreFull(f"{where} is full (maxmemory reached): {text}")
        if isinstance(error, exceptions.ResponseError):
            return ClusterError(f"{where} refused a command: {text}")
        if isinstance(error, exceptions.InvalidResponse):
            return ConnectionFailed(f"{where} answers, but not as Redis or Valkey does: {text}. Is the URL right?")
        if isinstance(error, exceptions.TimeoutError):
            return ConnectionFailed(f"{where} does not answer: {text}. Is the server well, and is the URL right?")
        return ConnectionFailed(f"{where} cannot be reached: {text}. Is the server running, and is the URL right?")

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(
        self,
        job: str,
        cap: int,
        tickets: Sequence[str],
        chunks: Sequence[Submission],
        opening: Opening | None = None,
        wake: bool = True,
    ) -> Submitted:
        new = () if opening is None else (*opening[:4], int(opening.detached), *opening[5:])
        args: list[Any] = [cap, len(tickets), int(wake), len(new), *tickets, *new]
        for serial, chunk, payload in chunks:
            args += (serial, *chunk, payload)
        state, pending, held, *publish = self._call("submit", job, *args)
        return Submitted(state.decode(), pending, held, [ticket.decode() for ticket in publish])

    def claim(
        self, job: str, token: str, ticket: str, *, lease: int, first: bool, have: str = "", fresh: bool = False
    ) -> Claim:
        return _claim(self._call("claim", job, token, ticket, lease, int(first), have, int(fresh)))

    def report(
        self, job: str, token: str, lo: int, count: int, entry: bytes, *, new_hi: int = -1, finished: bool = False
    ) -> Reported:
        return _reported(self._call("report", job, token, lo, count, entry, new_hi, int(finished)))

    def report_and_claim(
        self,
        job: str,
        token: str,
        lo: int,
        count: int,
        entry: bytes,
        *,
        next_token: str,
        ticket: str,
        lease: int,
        have: str,
        linger: Lingerer | None = None,
    ) -> tuple[Reported, Claim]:
        rest = _lingering(linger) if linger else ()
        reported, claimed = self._run(
            ("report", job, (token, lo, count, entry, -1, 1)),
            ("claim", job, (next_token, ticket, lease, 0, have, 0, *rest)),
        )
        return _reported(reported), _claim(claimed)

    def leave(self, job: str, ticket: str, successor: str) -> bool:
        return bool(self._call("leave", job, ticket, successor))

    def waiting(self, group: str) -> bool:
        return bool(self._call("waiting", "", group))

    def linger(self, who: Lingerer, expected: bool = False) -> Handed | None:
        if not expected and (waits := self._call("linger", "", *_lingering(who))):
            return _handed([waits])
        seconds = max(1, min(who.ms, _LONGEST_BLOCK)) / 1000  # 0 would wait for ever
        rung = self._command("BLMPOP", seconds, 1, f"{self.prefix}bell:{who.child}", "LEFT", "COUNT", 100)
        return (_handed(rung[1]) or Handed("", "")) if rung else self.unlinger(who)

    def unlinger(self, who: Lingerer) -> Handed | None:
        return _handed(self._call("unlinger", "", who.child, who.token))

    def rouse(self, child: str) -> None:
        self._call("rouse", "", child)

    def bury(self, child: str) -> list[tuple[str, str]]:
        found = [name.decode() for name in self._call("bury", "", child)]
        return list(zip(found[::2], found[1::2], strict=True))

    def release(
        self,
        job: str,
        token: str,
        why: Literal["crash", "return"],
        *,
        culprit: int = -1,
        culprit_end: int = -1,
        crash_limit: int = 1,
        heir: str = "-",
        lease: int = 0,
        ticket: str = "",
    ) -> Released:
        answer = self._call("release", job, token, why, culprit, culprit_end, crash_limit, heir, lease, ticket)
        return Released(answer[0].decode(), answer[1], bool(answer[2]), answer[3])

    def verdict(self, job: str, entry: bytes) -> bool:
        return bool(self._call("verdict", job, entry))

    def renew(self, lease: int, leases: Sequence[tuple[str, str]]) -> list[int]:
        if not leases:
            return []
        answer: list[int] = self._call("renew", "", lease, *(f"{job} {token}" for job, token in leases))
        return answer

    def reap(self, lost_limit: int, heir: str, lease: int) -> list[Lost]:
        answer = self._call("reap", "", lost_limit, heir, lease)
        return [Lost(job.decode(), token.decode(), lo, hi, attempt) for job, token, lo, hi, attempt in answer]

    def stop(self, job: str, at: int) -> int:
        return int(self._call("stop", job, at))

    def close(self, job: str, state: str, keep: bool, ttl: int) -> None:
        self._call("close", job, state, int(keep), ttl)

    def jobs(self) -> dict[str, bytes]:
        found = self._command("HGETALL", f"{self.prefix}jobs")
        return {_name(job): label for job, label in zip(found[::2], found[1::2], strict=True)}

    def meta(self, job: str) -> tuple[bytes, str]:
        """A job's sealed rules, and the session that it says to be of; both empty when it is gone."""
        meta, sid = self._command("HMGET", f"{job}:meta", "m", "sid")
        return meta or b"", (sid or b"").decode()

    def sweep(self) -> int:
        return int(self._call("sweep", ""))

    def peek(self, job: str, ranges: bool = False) -> Peek:
        state, pending, held, tickets, taken, oldest, *rest = self._call("peek", job, int(ranges))
        unreported = list(zip(rest[::2], rest[1::2], strict=True))
        return Peek(state.decode() if state else None, pending, held, tickets, taken, oldest, unreported)

    def account(self, job: str) -> tuple[str, Ranges]:
        """The id of the last entry of a job's stream, and the items that were reported until then."""
        last, upto, stop, *rest = self._call("account", job)
        reported = Ranges([(0, upto if stop < 0 else min(upto, stop))])
        for lo, hi in zip(rest[::2], rest[1::2], strict=True):
            reported.discard(lo, hi)
        return last.decode(), reported

    def backlog(self) -> list[Backlog]:
        return [Backlog(*row) for row in self._call("backlog", "")]

    def remint(self, job: str, age: int, cap: int, tickets: Sequence[str]) -> list[str]:
        return [ticket.decode() for ticket in self._call("remint", job, age, cap, len(tickets), *tickets)]

    def drop_blobs(self, job: str, blobs: Sequence[str]) -> None:
        self._command("HDEL", f"{job}:blobs", *blobs)

    def put_part(self, name: str, data: memoryview, ms: int) -> None:
        """Write a part of a large body, for so long."""
        self._command("SET", f"{self.prefix}part:{name}", data, "PX", ms)

    def get_part(self, name: str) -> bytes | None:
        """A part of a large body."""
        part: bytes | None = self._command("GET", f"{self.prefix}part:{name}")
        return part

    def drop_parts(self, names: Sequence[str]) -> None:
        """Remove parts of large bodies."""
        self._command("DEL", *(f"{self.prefix}part:{name}" for name in names))

    def keep_parts(self, names: Sequence[str], ms: int) -> bool:
        """Have parts stay for so long from now on; whether all are there."""
        commands = [("PEXPIRE", f"{self.prefix}part:{name}", ms) for name in names]
        return all(self._guard(lambda: self._lines.exchange(*commands)))

    def has_parts(self, names: Sequence[str]) -> list[bool]:
        """Whether each of these parts is there."""
        return self._exist([f"part:{name}" for name in names])

    def put_shared(self, id: str, sealed: bytes, ms: int) -> None:
        self._command("SET", f"{self.prefix}shared:{id}", sealed, "PX", ms)

    def get_shared(self, id: str) -> bytes | None:
        sealed: bytes | None = self._command("GET", f"{self.prefix}shared:{id}")
        return sealed

    def keep_shared(self, id: str, ms: int) -> bool:
        return bool(self._command("PEXPIRE", f"{self.prefix}shared:{id}", ms))

    def has_shared(self, ids: Sequence[str]) -> list[bool]:
        return self._exist([f"shared:{id}" for id in ids])

    def drop_shared(self, ids: Sequence[str]) -> None:
        self._command("DEL", *(f"{self.prefix}shared:{id}" for id in ids))

    def _exist(self, names: Sequence[str]) -> list[bool]:
        commands = [("EXISTS", f"{self.prefix}{name}") for name in names]
        return [bool(found) for found in self._guard(lambda: self._lines.exchange(*commands))]

    def trim(self, job: str, last: str) -> None:
        self._command(*_trim(job, last))

    def read(
        self, streams: Mapping[str, str], block: int, trims: Mapping[str, str] | None = None
    ) -> list[tuple[str, list[tuple[str, bytes]]]]:
        names = {self._stream(name): name for name in streams}
        wait = ("BLOCK", min(block, _LONGEST_BLOCK)) if block > 0 else ()  # 0 would wait for ever
        commands = [_trim(job, last) for job, last in trims.items()] if trims else []
        commands.append(("XREAD", "COUNT", 500, *wait, "STREAMS", *names, *streams.values()))
        answer = self._guard(lambda: self._lines.exchange(*commands))[-1] or []
        return [
            (names[stream.decode()], [(id.decode(), data) for id, (_, data) in entries]) for stream, entries in answer
        ]

    def _stream(self, name: str) -> str:
        return f"{self.prefix}{name}" if name.startswith("wake:") else f"{name}:out"

    def wake(self, sid: str) -> None:
        self._call("wake", "", sid)

    # -- workers and sessions ------------------------------------------------------------------------------------------

    def beat(self, worker: str, says: bytes, ms: int) -> None:
        self._call("beat", "", worker, says, ms)

    def unbeat(self, worker: str) -> None:
        self._call("unbeat", "", worker)

    def workers(self) -> dict[str, bytes]:
        answer = self._call("workers", "")
        return {_name(id): says for id, says in zip(answer[::2], answer[1::2], strict=True)}

    def session_beat(self, sid: str, says: bytes, ms: int | None) -> None:
        self._call("session_beat", "", sid, says, ms or 0)

    def session_lives(self, sid: str) -> bool:
        """Whether the store heard lately that a session lives."""
        return bool(self._command("EXISTS", f"{self.prefix}s:{sid}"))

    def beat_command(self, sid: str, says: bytes, ms: int) -> list[bytes]:
        """What ``session_beat`` sends, for a process that has nothing of ours."""
        parts = ("EVAL", _scripts()["session_beat"][0], 2, self.prefix, self.prefix, sid, says, ms)
        return [part if isinstance(part, bytes) else str(part).encode() for part in parts]

    def end_session(self, sid: str) -> None:
        names = [f"{self.prefix}{kind}:{sid}" for kind in ("s", "wake", "idle", "waits")]
        self._command("DEL", *names)

    def listen(self, heard: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        def loop() -> None:
            with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                channel.subscribe(f"{self.prefix}ctl")
                while not stopped():
                    message = channel.get_message(timeout=1.0)
                    if message:
                        heard(message["data"].decode("utf-8", "replace"))

        self._guard(loop)

    # -- the server ----------------------------------------------------------------------------------------------------

    def run_id(self) -> str:
        return str(self._guard(lambda: self._redis.info("server"))["run_id"])

    def health(self) -> tuple[str, float]:
        """The server's ``run_id``, and which share of its ``maxmemory`` is used (0.0: it has none)."""
        says = self._guard(lambda: self._redis.info("server", "memory"))
        most = int(says.get("maxmemory", 0))
        return str(says["run_id"]), int(says["used_memory"]) / most if most else 0.0

    def check_server(self) -> None:
        """Make sure that the server answers in time, is new enough, is no cluster and does not evict.

        Raises:
            ConnectionFailed: naming the URL (password hidden) and what to do.
        """
        try:
            info = self._guard(self._ask)
        except ConnectionFailed:
            raise
        except ClusterError as error:  # such as a database that it does not have
            raise ConnectionFailed(f"{error}. Is the URL right?") from error
        where = f"the server at {hide_password(self.url)}"
        version = str(info.get("valkey_version") or info.get("redis_version", "0"))
        if "valkey_version" not in info and int(version.split(".")[0]) < 7:
            raise ConnectionFailed(f"{where} is Redis {version}; Redis 7 or newer, or Valkey, is needed")
        if info.get("cluster_enabled"):
            raise ConnectionFailed(
                f"{where} runs as a Redis Cluster, which Celery cannot use as a broker; use a single server"
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ConnectionFailed(
                f"{where} evicts keys (maxmemory-policy {policy}), which loses work; set it to noeviction"
            )

    def _ask(self) -> dict[str, Any]:
        """What the server says of itself; waits no longer than a user who mistyped a URL should have to."""
        options = {**self._options, "socket_timeout": self._connect_seconds, "retry": Retry(NoBackoff(), 0)}
        with open_client(self.place, **options) as client:
            return dict(client.info())

    def close_connections(self) -> None:
        self._lines.close()
        self._redis.connection_pool.disconnect()


def _name(raw: bytes) -> str:
    """A name that anybody may have written, so that it may be no text."""
    return raw.decode(errors="replace")


def _claim(answer: list[Any]) -> Claim:
    if answer[0] == b"yield":
        return Claim("yield", job=answer[1].decode(), ticket=answer[2].decode())
    if answer[0] != b"chunk":
        why = answer[1].decode() if len(answer) > 1 and answer[1] else ""
        lingers = len(answer) > 2
        return Claim(answer[0].decode(), why, lingers=lingers, handed=_handed(answer[2:3]))
    return _chunk(answer[1:])


def _chunk(answer: list[Any]) -> Claim:
    id, lo, hi, attempt, crashes, blob, payload, stop, sid, meta, function = answer
    numbers = int(lo), int(hi), int(attempt), int(crashes)
    return Claim(
        "chunk", "", id.decode(), *numbers, blob.decode(), payload or None, int(stop), sid.decode(), meta, function
    )


def _trim(job: str, last: str) -> tuple[Any, ...]:
    ms, serial = last.split("-")
    return "XTRIM", f"{job}:out", "MINID", f"{ms}-{int(serial) + 1}"


def _lingering(who: Lingerer) -> tuple[Any, ...]:
    return who.child, who.group, who.ms + _LATE, *who[3:]


def _handed(bell: list[Any]) -> Handed | None:
    """What a child is handed: "job ticket", and perhaps a chunk; None for the empty string that only rouses it."""
    if not any(bell):
        return None
    job, ticket = bell[0].decode().split(" ")
    return Handed(job, ticket, _chunk(bell[1:]) if len(bell) > 1 else None)


def _reported(answer: list[Any]) -> Reported:
    return Reported(answer[0].decode(), answer[1], answer[2])
