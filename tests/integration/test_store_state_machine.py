"""Random histories of clients, children, parents and reapers, on the store in memory and on a real one at once.

Both stores are told the same and must answer the same. Messages are lost and doubled, replies are lost and calls
repeated, children and hosts die at any moment, old tokens come back, jobs are stopped; in the end every job ends.
Leases expire at once or never, so that no history depends on how fast the machine is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from contract.bench import LONG, SID, Bench, memory_bench, server_bench
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import Server

from nbparallel.model import Chunk
from nbparallel.store.fake import MemoryStore
from nbparallel.store.protocol import Claim, Lost, Peek, Reported, Submission

#: Most tickets alive.
CAP = 3

#: Limits of crashes and losses: low ones, so that they are reached.
LIMITS = st.integers(1, 2)

#: Leases that have expired when given, each later than the one before, so that all stores reap in one order.
_EXPIRED = itertools.count(-(10**11), 10**6)

RARELY = st.sampled_from([False, False, False, True])


class Outcome(NamedTuple):
    """What an entry of the stream says of each of its items."""

    lo: int
    count: int
    attempt: int


@dataclass
class Child:
    """A worker process in its turn, as it sees itself: it may have lost its lease long ago."""

    ticket: str
    token: str = ""
    lo: int = 0
    hi: int = 0
    at: int = 0
    attempt: int = 1
    dead: bool = False


@dataclass
class World:
    """What is outside the store."""

    total: int = 0
    stop: int = -1
    sent: list[list[Submission]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    heirs: list[tuple[str, int, int, int]] = field(default_factory=list)  # token, lo, hi, attempt
    old_tokens: list[str] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)  # index -> attempt that was submitted last
    reported: Counter[tuple[int, int]] = field(default_factory=Counter)  # by (index, attempt), as the stream tells


class StoreMachine(RuleBasedStateMachine):
    """The rules are what client, children, parents and reapers may do, and what may happen to them."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.world, self.names, self.serials = World(), itertools.count(), itertools.count(1)
        self.context = server_bench(self.server)
        self.benches: list[Bench] = [memory_bench(), self.context.__enter__()]
        for bench in self.benches:
            assert bench.open().state == "ok"
        self.last_read = ["0"] * len(self.benches)

    # -- how the stores are called ---------------------------------------------------------------------------------

    def call(self, name: str, *args: Any, again: bool = False, job: bool = True, **options: Any) -> Any:
        """The answer of all stores, which is the same; ``again``: the reply was lost, so the call is repeated."""
        answers = []
        for bench in self.benches:
            method = getattr(bench.store, name)
            mine = (bench.job, *args) if job else args
            if again:
                method(*mine, **options)
            answers.append(self.common(bench, method(*mine, **options)))
        assert all(answer == answers[0] for answer in answers), (name, args, options, answers)
        return answers[0]

    def common(self, bench: Bench, answer: Any) -> Any:
        """An answer without what differs by rights: times, order without meaning, the job's name."""
        if isinstance(answer, Peek):
            return answer._replace(since_taken=0, oldest_ticket=0, unreported=sorted(answer.unreported))
        if isinstance(answer, list) and answer and isinstance(answer[0], Lost):
            assert all(lost.job == bench.job for lost in answer)
            return [lost._replace(job="") for lost in answer]
        return answer

    def fresh(self, kind: str) -> str:
        return f"{kind}{next(self.names)}"

    def pick(self, data: st.DataObject, things: list[Any]) -> Any:
        return things[data.draw(st.integers(0, len(things) - 1))]

    # -- the client ------------------------------------------------------------------------------------------------

    @initialize(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5))
    def begin(self, sizes: list[int]) -> None:
        self.submit(sizes, 3, False)

    @rule(sizes=st.lists(st.integers(1, 5), max_size=2), offered=st.integers(0, 4), again=RARELY)
    def submit(self, sizes: list[int], offered: int, again: bool) -> None:
        """The client submits the next chunks of the input."""
        chunks = []
        for size in sizes:
            lo, self.world.total = self.world.total, self.world.total + size
            chunks.append(self.submission(lo, self.world.total, 1))
        self.send(chunks, offered, again)

    def submission(self, lo: int, hi: int, attempt: int) -> Submission:
        for index in range(lo, hi):
            self.world.attempts[index] = attempt
        return Submission(next(self.serials), Chunk(f"c{lo}.{attempt}", lo, hi, attempt, f"b{lo}"), b"%d" % lo)

    def send(self, chunks: list[Submission], offered: int, again: bool) -> None:
        tickets = [self.fresh("t") for _ in range(offered)]
        self.world.sent += [chunks] if chunks else []
        answer = self.call("submit", CAP, tickets, chunks, again=again)
        assert answer.state == ("stopped" if self.world.stop == 0 else "ok")
        self.world.messages += answer.tickets

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def submit_late(self, data: st.DataObject) -> None:
        """A call that was thought lost arrives after others."""
        self.call("submit", CAP, [], self.pick(data, self.world.sent))

    @rule(data=st.data(), again=RARELY)
    def retry(self, data: st.DataObject, again: bool) -> None:
        """The client tries an item again whose last attempt was reported."""
        ready = [index for index, attempt in self.world.attempts.items() if self.world.reported[index, attempt]]
        if ready:
            index = self.pick(data, sorted(ready))
            self.send([self.submission(index, index + 1, self.world.attempts[index] + 1)], 1, again)

    @rule(data=st.data(), seldom=st.integers(0, 7), again=RARELY)
    def stop(self, data: st.DataObject, seldom: int, again: bool) -> None:
        """The client stops the job some items before its end, or cancels it."""
        if seldom < 7:
            return
        at = max(0, self.world.total - data.draw(st.integers(0, 20)))
        self.call("stop", at, again=again)
        self.world.stop = at if self.world.stop < 0 else min(at, self.world.stop)

    @rule(all=RARELY, again=RARELY)
    def nudge(self, all: bool, again: bool) -> None:
        """The client replaces tickets that it takes for lost, rightly or not."""
        self.world.messages += self.call(
            "remint", -1000 if all else LONG, CAP, [self.fresh("t"), self.fresh("t")], again=again
        )

    # -- the broker ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.messages)
    @rule(data=st.data(), doubled=RARELY)
    def disturb_message(self, data: st.DataObject, doubled: bool) -> None:
        """A message is lost or doubled."""
        ticket = self.pick(data, self.world.messages)
        (self.world.messages.append if doubled else self.world.messages.remove)(ticket)

    # -- children --------------------------------------------------------------------------------------------------

    def lease(self, expires: bool) -> int:
        return next(_EXPIRED) if expires else LONG

    def running(self) -> list[Child]:
        return [child for child in self.world.children if child.token]

    @precondition(lambda self: self.world.messages)
    @rule(data=st.data(), again=RARELY, expires=RARELY, alone=st.integers(0, 9))
    def take(self, data: st.DataObject, again: bool, expires: bool, alone: int) -> None:
        """A child takes a message and begins its turn with a claim; at times the client is away."""
        ticket = self.pick(data, self.world.messages)
        self.world.messages.remove(ticket)
        token, lease = self.fresh("k"), self.lease(expires)
        if alone == 9:
            self.call("end_session", SID, job=False)
        answer = self.call("claim", token, ticket, lease=lease, first=True, fresh=alone % 2 == 0, again=again)
        assert alone < 9 or answer.state == "drop"
        self.call("session_beat", SID, b"beat", None, job=False)
        self.begin_chunk(Child(ticket), token, answer)

    @precondition(lambda self: len(self.running()) < CAP)
    @rule(data=st.data(), again=RARELY)
    def nudge_and_take(self, data: st.DataObject, again: bool) -> None:
        """A ticket that was minted late is taken at once."""
        self.nudge(True, again)
        if self.world.messages:
            self.take(data, again, False, 0)

    def begin_chunk(self, child: Child, token: str, answer: Claim) -> None:
        if child in self.world.children:
            self.world.children.remove(child)
        if answer.state == "chunk":
            assert not any(other.token == token for other in self.running())
            if self.world.stop >= 0:
                assert answer.lo < self.world.stop
                assert answer.hi <= self.world.stop
            child.token, child.lo, child.hi, child.at = token, answer.lo, answer.hi, answer.lo
            child.attempt = answer.attempt
            for index in range(answer.lo, answer.hi):
                assert not self.world.reported[index, answer.attempt], "a reported attempt was given out"
            self.world.children.append(child)

    def entry(self, lo: int, count: int, attempt: int) -> bytes:
        return f"{lo} {count} {attempt}".encode()

    @precondition(lambda self: self.running())
    @rule(data=st.data(), again=RARELY, hand_back=st.booleans())
    def report(self, data: st.DataObject, again: bool, hand_back: bool) -> None:
        """A child reports some items, and perhaps hands back the tail while it runs the next item."""
        child = self.pick(data, self.running())
        count = data.draw(st.integers(0, child.hi - child.at))
        new_hi = data.draw(st.integers(child.at + count, child.hi)) if hand_back else -1
        entry = self.entry(child.at, count, child.attempt)
        answer = self.call("report", child.token, child.at, count, entry, new_hi=new_hi, again=again)
        self.heard(child, child.at + count, answer, again)

    def heard(self, child: Child, at: int, answer: Reported, again: bool) -> None:
        """A child learns what became of its lease; one that is fenced, or has nothing left, ends its turn."""
        if answer.state == "ok":
            child.at, child.hi = at, min(child.hi, answer.hi)
        if answer.state != "ok" or child.at >= child.hi:
            self.call("leave", child.ticket, "")
            self.forget(child)

    def forget(self, child: Child) -> None:
        self.world.children.remove(child)
        self.world.old_tokens.append(child.token)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), again=RARELY, expires=RARELY)
    def finish_and_claim(self, data: st.DataObject, again: bool, expires: bool) -> None:
        """A child reports the rest of its chunk and claims the next one."""
        child, token = self.pick(data, self.running()), self.fresh("k")
        count, lease = child.hi - child.at, self.lease(expires)
        entry = self.entry(child.at, count, child.attempt)
        _, claimed = self.call(
            "report_and_claim", child.token, child.at, count, entry,
            next_token=token, ticket=child.ticket, lease=lease, have="", again=again,
        )  # fmt: skip
        self.world.old_tokens.append(child.token)
        self.begin_chunk(child, token, claimed)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), again=RARELY, early=RARELY, offers=st.booleans(), dies=RARELY)
    def finish_and_leave(self, data: st.DataObject, again: bool, early: bool, offers: bool, dies: bool) -> None:
        """A child ends its turn early or late; or dies between its last report and its goodbye."""
        child = self.pick(data, self.running())
        count = data.draw(st.integers(0, child.hi - child.at)) if early else child.hi - child.at
        entry = self.entry(child.at, count, child.attempt)
        self.call("report", child.token, child.at, count, entry, finished=True, again=again)
        self.forget(child)
        if not dies:
            successor = self.fresh("t") if offers else ""
            if self.call("leave", child.ticket, successor, again=again):
                self.world.messages.append(successor)

    # -- deaths ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.running())
    @rule(data=st.data(), where=st.sampled_from(["item", "suspects", "outside", "return"]), again=RARELY,
          expires=RARELY, offers=st.booleans())  # fmt: skip
    def die(self, data: st.DataObject, where: str, again: bool, expires: bool, offers: bool) -> None:
        """A child dies, or is told to stop; its parent sees it and releases the lease."""
        child = self.pick(data, self.running())
        culprit = end = -1
        if where in ("item", "suspects"):
            culprit = data.draw(st.integers(child.at, child.hi - 1))
            end = data.draw(st.integers(culprit + 1, child.hi)) if where == "suspects" else culprit + 1
        heir, ticket, lease = self.fresh("heir"), self.fresh("t") if offers else "", self.lease(expires)
        answer = self.call(
            "release", child.token, "return" if where == "return" else "crash", culprit=culprit, culprit_end=end,
            crash_limit=data.draw(LIMITS), heir=heir, lease=lease, ticket=ticket, again=again,
        )  # fmt: skip
        if answer.culprit >= 0:
            self.world.heirs.append((heir, answer.culprit, answer.culprit + 1, child.attempt))
        if answer.publish:
            self.world.messages.append(ticket)
        self.forget(child)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def host_vanishes(self, data: st.DataObject) -> None:
        """A child and its parent are gone; all that is left is a lease that expires."""
        child = self.pick(data, self.running())
        self.expire(child.token)
        self.forget(child)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def cut_off(self, data: st.DataObject) -> None:
        """A parent cannot renew a lease, but its child runs on and will report."""
        self.expire(self.pick(data, self.running()).token)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """A parent renews a lease in time."""
        self.renewed(self.pick(data, self.running()).token, LONG)

    def expire(self, token: str) -> None:
        self.renewed(token, next(_EXPIRED))

    def renewed(self, token: str, lease: int) -> None:
        answers = [bench.store.renew(lease, [(bench.job, token)]) for bench in self.benches]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0] in ([self.world.stop], [-2])

    @rule(limit=LIMITS, expires=RARELY, again=RARELY)
    def reap(self, limit: int, expires: bool, again: bool) -> None:
        """Anyone reaps what has expired, and inherits what vanished too often."""
        prefix = self.fresh("reaper") + "-"
        for lost in self.call("reap", limit, prefix, self.lease(expires), again=again, job=False):
            self.world.heirs.append((lost.token, lost.lo, lost.hi, lost.attempt))

    @precondition(lambda self: self.world.heirs)
    @rule(data=st.data(), again=RARELY, dies=RARELY)
    def inherit(self, data: st.DataObject, again: bool, dies: bool) -> None:
        """An heir reports errors for what it inherited, or dies first."""
        heir = self.pick(data, self.world.heirs)
        self.world.heirs.remove(heir)
        token, lo, hi, attempt = heir
        if dies:
            self.expire(token)
        else:
            self.call("report", token, lo, hi - lo, self.entry(lo, hi - lo, attempt), again=again)
        self.world.old_tokens.append(token)

    @precondition(lambda self: self.world.old_tokens)
    @rule(data=st.data(), what=st.sampled_from(["report", "release", "claim"]))
    def old_token(self, data: st.DataObject, what: str) -> None:
        """A process thought dead comes back with its token: it is fenced, unless its lease has not expired yet."""
        token = self.pick(data, self.world.old_tokens)
        if token in self.leases():
            return
        if what == "report":
            assert self.call("report", token, 0, 1, b"old", new_hi=1).state == "fenced"
        elif what == "release":
            assert self.call("release", token, "crash", culprit=0, culprit_end=1, heir="x").state == "fenced"
        else:
            assert self.call("claim", token, "no ticket", lease=LONG, first=False).state == "drop"

    # -- what must always hold -------------------------------------------------------------------------------------

    def memory(self) -> Any:
        bench = self.benches[0]
        assert isinstance(bench.store, MemoryStore)
        return bench.store._jobs[bench.job]

    def leases(self) -> list[str]:
        return list(self.memory().held)

    @invariant()
    def each_entry_stands_once(self) -> None:
        """Both streams are the same, and no attempt of an item is reported twice."""
        texts = []
        for number, bench in enumerate(self.benches):
            found = bench.store.read({bench.job: self.last_read[number]}, 0)
            entries = found[0][1] if found else []
            texts.append([entry for _, entry in entries])
            if entries:
                self.last_read[number] = entries[-1][0]
        assert texts[0] == texts[1]
        for entry in texts[0]:
            outcome = Outcome(*map(int, entry.split()))
            for index in range(outcome.lo, outcome.lo + outcome.count):
                self.world.reported[index, outcome.attempt] += 1
                assert self.world.reported[index, outcome.attempt] == 1, f"{index} was reported twice"

    @invariant()
    def every_index_is_in_one_place(self) -> None:
        """An index is pending, leased or reported, in one chunk only; above the stop it may be nowhere."""
        peek = self.call("peek", True)
        here = Counter(index for lo, hi in peek.unreported for index in range(lo, hi))
        assert all(count == 1 for count in here.values()), here
        for index, attempt in self.world.attempts.items():
            done = self.world.reported[index, attempt]
            assert not (done and here[index]), f"{index} is reported and waits"
            if self.world.stop < 0 or index < self.world.stop:
                assert done or here[index], f"{index} is lost"

    @invariant()
    def every_chunk_is_pending_or_leased(self) -> None:
        """What waits has no token, what is leased has one of its own, and every token has a lease that can expire."""
        job, peek = self.memory(), self.call("peek")
        held = [id for id, _ in job.held.values()]
        assert len(set(held)) == len(held), "two tokens for one chunk"
        assert sorted([*job.pending, *held]) == sorted(job.chunks)
        assert all(job.chunks[id].token == token for token, (id, _) in job.held.items())
        assert all(job.chunks[id].token == "-" for id in job.pending)
        raw, real = self.benches[1].raw, self.benches[1]
        assert raw is not None
        chunks = {id.decode(): text.split()[-1].decode() for id, text in raw.hgetall(f"{real.job}:chunks").items()}
        assert chunks == {id: chunk.token for id, chunk in job.chunks.items()}
        leases = {member.decode().split()[1] for member in raw.zrange(f"{real.store.prefix}leases", 0, -1)}
        assert leases == set(job.held)
        assert peek.tickets <= CAP, "more tickets than the job can use"

    # -- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever happened: with the client, one child and a reaper at work, the job ends."""
        try:
            for child in self.running():
                self.call("release", child.token, "return")
            for token in self.leases():
                self.expire(token)
            self.world.children.clear()
            for _ in range(5 * self.world.total + 50):
                if not self.call("peek").pending and not self.leases():
                    break
                self.reap(limit=2, expires=False, again=False)
                for token, lo, hi, attempt in self.world.heirs:
                    self.call("report", token, lo, hi - lo, self.entry(lo, hi - lo, attempt))
                self.world.heirs.clear()
                self.world.messages = self.call("remint", -1000, CAP, [self.fresh("t")])
                for ticket in self.world.messages:
                    self.finish_turn(ticket)
            else:
                pytest.fail("the job does not end")
            self.each_entry_stands_once()
            self.every_index_is_in_one_place()
            for index in range(self.world.total):
                if self.world.stop < 0 or index < self.world.stop:
                    assert self.world.reported[index, self.world.attempts[index]] == 1
            self.call("close", "done", False, LONG)
        finally:
            self.context.__exit__(None, None, None)

    def finish_turn(self, ticket: str) -> None:
        answer = self.call("claim", self.fresh("k"), ticket, lease=LONG, first=True)
        while answer.state == "chunk":
            count, token = answer.hi - answer.lo, f"k{next(self.names) - 1}"
            entry = self.entry(answer.lo, count, answer.attempt)
            _, answer = self.call(
                "report_and_claim", token, answer.lo, count, entry,
                next_token=self.fresh("k"), ticket=ticket, lease=LONG, have="",
            )  # fmt: skip


def test_no_history_breaks_the_invariants(redis_server: Server) -> None:
    """Whatever happens in whatever order, nothing is lost, doubled or stuck, and both stores agree."""

    class Machine(StoreMachine):
        server = redis_server

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=300,
            stateful_step_count=80,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
