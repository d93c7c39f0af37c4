"""Every store: jobs are opened, fed, given tickets, stopped and closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contract.bench import LONG, SID, Bench, memory_bench

from nbparallel.model import Chunk
from nbparallel.store.protocol import Backlog, Claim, Opening, Peek, Submission, Submitted


def test_a_job_is_opened_once(bench: Bench) -> None:
    """The first submit opens it; an opening that is repeated changes nothing."""
    assert bench.open() == Submitted("ok", 0, 0, [])
    assert bench.open(sid="other", meta=b"other", function=b"other").state == "ok"
    ticket = bench.submit((0, 1)).tickets[0]
    assert bench.claim("k", ticket, fresh=True)[10:13] == (SID, b"meta", b"function")


def test_a_job_is_opened_and_fed_in_one_call(bench: Bench) -> None:
    """Opening, chunks and tickets go in one call, and once however often it is repeated."""
    bench.store.session_beat(SID, b"beat", None)
    chunks = [Submission(1, Chunk("a", 0, 2, 1, "b"), b"x")]
    opening = Opening(SID, b"meta", b"function", max_running=0, detached=False, ttl=LONG, label="label")
    for _ in range(2):
        assert bench.store.submit(bench.job, 9, ["t", "u"], chunks, opening) == ("ok", 1, 0, ["t"])
    assert bench.claim("k", "t").id == "a"
    assert bench.store.submit(bench.job, 9, ["t", "u"], chunks, opening) == ("ok", 0, 1, [])


def test_only_a_fresh_child_is_sent_the_function(bench: Bench) -> None:
    """A child that has the function is not sent it again; a repeated claim answers as the first did."""
    bench.open()
    tickets = bench.submit((0, 1), (1, 2)).tickets
    for _ in range(2):
        assert bench.claim("k", tickets[0], fresh=True)[10:13] == (SID, b"meta", b"function")
    assert bench.claim("k2", tickets[1])[10:13] == (SID, b"", b"")


def test_an_unknown_job_answers_as_gone(bench: Bench) -> None:
    """No call about a job that the store does not know does anything, or fails."""
    store, job = bench.store, bench.job
    assert bench.submit((0, 3)) == Submitted("gone", 0, 0, [])
    assert bench.claim("k", "t") == Claim("drop", "gone")
    assert bench.report("k", 0, 1).state == "fenced"
    assert store.release(job, "k", "crash", culprit=0, culprit_end=1, ticket="t", heir="h") == ("fenced", -1, False, 0)
    assert not store.leave(job, "t", "u")
    assert not store.verdict(job, b"entry")
    assert store.stop(job, 0) == -1
    assert store.remint(job, 0, 4, ["t"]) == []
    assert store.peek(job, True)[:4] == (None, 0, 0, 0)
    store.close(job, "done", False, LONG)
    store.trim(job, "5-0")
    store.drop_blobs(job, ["b"])
    assert store.peek(job).state is None


def test_a_job_is_forgotten_after_its_time(bench: Bench) -> None:
    """A job whose time to live has passed is gone."""
    bench.open(ttl=20)
    bench.pass_time(25)
    assert bench.store.peek(bench.job).state is None
    assert bench.submit((0, 1)).state == "gone"


@pytest.mark.parametrize("use", ["submit", "renew", "remint"])
def test_a_job_in_use_is_not_forgotten(use: str) -> None:
    """The time to live counts from the last use, so a job may run for longer."""
    bench = memory_bench()
    bench.start((0, 9))
    uses: dict[str, Callable[[], object]] = {
        "submit": lambda: bench.submit((9, 10)),
        "renew": lambda: bench.store.renew(LONG, [(bench.job, "k0")]),
        "remint": lambda: bench.store.remint(bench.job, LONG, 1, []),
    }
    for _ in range(3):
        bench.pass_time(LONG - 1)
        uses[use]()
    assert bench.store.peek(bench.job).state == "open"
    bench.pass_time(LONG)
    assert bench.store.peek(bench.job).state is None


@pytest.mark.parametrize("use", ["submit", "renew", "remint"])
def test_a_job_in_use_is_not_forgotten_by_a_server(real: Bench, use: str) -> None:
    """The same on a real server, read from the keys' time to live."""
    assert real.raw is not None
    real.start((0, 9))
    for key in ("meta", "f"):
        real.raw.pexpire(f"{real.job}:{key}", LONG // 2)
    if use == "submit":
        real.submit((9, 10))
    elif use == "renew":
        real.store.renew(LONG, [(real.job, "k0")])
    else:
        real.store.remint(real.job, LONG, 1, [])
    assert all(LONG // 2 < real.raw.pttl(f"{real.job}:{key}") <= LONG for key in ("meta", "f"))


def test_chunks_are_pending_after_submit(bench: Bench) -> None:
    """Submitting answers how much waits and runs, and which tickets to publish."""
    bench.open()
    answer = bench.submit((0, 5), (5, 8))
    assert answer[:3] == ("ok", 2, 0)
    assert len(answer.tickets) == 2
    assert bench.unreported == [(0, 5), (5, 8)]
    bench.claim("k", answer.tickets[0])
    assert bench.submit((8, 9))[:3] == ("ok", 2, 1)


def test_a_repeated_submit_adds_nothing(bench: Bench) -> None:
    """After a lost reply the same call makes no chunk pending again, and names the same tickets."""
    bench.open()
    chunks = [Submission(1, Chunk("a", 0, 2, 1, "b"), b"x"), Submission(2, Chunk("b", 2, 4, 1, "b"), b"")]
    first = bench.store.submit(bench.job, 9, ["t", "u", "v"], chunks)
    assert bench.store.submit(bench.job, 9, ["t", "u", "v"], chunks) == first == ("ok", 2, 0, ["t", "u"])
    assert bench.claim("k", "t").id == "a"
    bench.report("k", 0, 2)
    assert bench.store.submit(bench.job, 9, ["t", "u", "v"], chunks).pending == 1, "a reported chunk came back"
    assert bench.unreported == [(2, 4)]


def test_a_repeated_submit_offers_no_ticket_that_was_taken(bench: Bench) -> None:
    """A ticket whose turn has begun is not published again."""
    bench.open()
    chunks = [Submission(1, Chunk("a", 0, 2, 1, "b"), b"x"), Submission(2, Chunk("b", 2, 4, 1, "b"), b"")]
    assert bench.store.submit(bench.job, 9, ["t", "u"], chunks).tickets == ["t", "u"]
    bench.claim("k", "t")
    assert bench.store.submit(bench.job, 9, ["t", "u"], chunks).tickets == ["u"]


def test_no_more_tickets_than_the_job_can_use(bench: Bench) -> None:
    """Alive are at most ``cap`` tickets, and at most one for each chunk that waits or runs."""
    bench.open()
    assert len(bench.submit((0, 1), (1, 2), (2, 3), cap=2, tickets=3).tickets) == 2
    assert bench.submit((3, 4), cap=2).tickets == []
    assert len(bench.submit((4, 5), cap=9, tickets=9).tickets) == 3
    assert bench.store.peek(bench.job).tickets == 5


def test_tickets_without_chunks_are_minted_for_what_waits(bench: Bench) -> None:
    """A submit without chunks still mints tickets, as far as there is work."""
    bench.open()
    bench.submit((0, 1), (1, 2), cap=1)
    assert len(bench.store.submit(bench.job, 5, bench.offer(3), []).tickets) == 1


def test_a_peek_counts(bench: Bench) -> None:
    """A look at a job gives its counters, and how old its tickets are."""
    bench.open()
    tickets = bench.submit((0, 4), (4, 8), tickets=2).tickets
    bench.pass_time(30)
    bench.claim("k", tickets[0])
    bench.pass_time(10)
    bench.report("k", 0, 1)
    peek = bench.store.peek(bench.job, True)
    assert peek[:4] == ("open", 1, 1, 2)
    assert 10 <= peek.since_taken < peek.oldest_ticket
    assert 40 <= peek.oldest_ticket < 100_000
    assert sorted(peek.unreported) == [(1, 4), (4, 8)]
    assert bench.store.peek(bench.job).unreported == []


def test_a_ticket_taken_is_no_ticket_that_waits(bench: Bench) -> None:
    """With every ticket taken none is old."""
    bench.start((0, 4))
    assert bench.store.peek(bench.job).oldest_ticket == -1


def test_tickets_that_wait_too_long_are_replaced(bench: Bench) -> None:
    """A ticket that nobody took in time counts as lost: it is forgotten and another is minted."""
    bench.open()
    old = bench.submit((0, 1)).tickets
    assert bench.store.remint(bench.job, LONG, 4, ["young"]) == []
    bench.pass_time(20)
    assert bench.store.remint(bench.job, 10, 4, ["new", "more"]) == ["new"]
    assert bench.claim("k", old[0]) == Claim("drop", "ticket unknown")
    assert bench.claim("k", "new").state == "chunk"


def test_a_repeated_remint_names_the_same_tickets(bench: Bench) -> None:
    """After a lost reply the minted tickets are named again, so that their messages are sent."""
    bench.open()
    bench.submit((0, 1), cap=0)
    assert bench.store.remint(bench.job, LONG, 4, ["new"]) == ["new"]
    assert bench.store.remint(bench.job, LONG, 4, ["new"]) == ["new"]
    assert bench.store.peek(bench.job).tickets == 1


def test_a_ticket_that_runs_a_chunk_is_not_lost(bench: Bench) -> None:
    """However long a chunk runs, the ticket under which it was claimed stays."""
    ticket = bench.start((0, 2), (2, 4))[0]
    bench.pass_time(20)
    assert bench.store.remint(bench.job, 10, 4, bench.offer(4)) == []
    bench.report("k0", 0, 2, finished=True)
    bench.submit((4, 5), cap=0)
    assert bench.claim("k2", ticket, first=False).lo == 4


def test_the_ticket_of_a_child_that_died_between_two_chunks_is_replaced(bench: Bench) -> None:
    """A ticket whose turn began, but which holds no chunk and makes no claim, must not block the job for ever."""
    bench.start((0, 2))
    bench.report("k0", 0, 2, finished=True)
    assert bench.submit((2, 4), cap=1).tickets == []
    bench.pass_time(20)
    assert bench.store.remint(bench.job, 10, 1, ["new"]) == ["new"]
    assert bench.claim("k", "new").lo == 2


def test_no_tickets_for_a_job_that_has_ended(bench: Bench) -> None:
    """Nothing is minted for a cancelled job."""
    bench.start((0, 2))
    bench.store.stop(bench.job, 0)
    assert bench.store.remint(bench.job, 0, 4, ["new"]) == []


def test_a_turn_ends_with_a_successor_when_something_waits(bench: Bench) -> None:
    """The ticket is swapped for its successor, so that their number stays; a repeated call answers the same."""
    bench.open()
    (ticket,) = bench.submit((0, 1), (1, 2), tickets=1).tickets
    bench.claim("k", ticket)
    bench.report("k", 0, 1, finished=True)
    assert bench.store.leave(bench.job, ticket, "next")
    assert bench.store.leave(bench.job, ticket, "next")
    assert bench.store.peek(bench.job).tickets == 1
    assert bench.claim("k2", ticket) == Claim("drop", "ticket unknown")
    assert bench.claim("k2", "next").lo == 1


def test_a_turn_ends_without_a_successor_when_nothing_waits(bench: Bench) -> None:
    """No ticket outlives the work."""
    ticket = bench.start((0, 1))[0]
    bench.report("k0", 0, 1, finished=True)
    assert not bench.store.leave(bench.job, ticket, "next")
    assert not bench.store.leave(bench.job, ticket, "next")
    assert bench.store.peek(bench.job).tickets == 0


def test_a_turn_can_end_without_offering_a_successor(bench: Bench) -> None:
    """A worker that shuts down ends its turn and publishes nothing."""
    bench.open()
    (ticket,) = bench.submit((0, 1), (1, 2), tickets=1).tickets
    bench.claim("k", ticket)
    assert not bench.store.leave(bench.job, ticket, "")
    assert bench.store.peek(bench.job).tickets == 0


def test_cancel_deletes_what_waits(bench: Bench) -> None:
    """After a stop at 0 nothing can be claimed or submitted, and the leases held are counted, however often asked."""
    tickets = bench.start((0, 4))
    more = bench.submit((4, 8)).tickets
    assert bench.store.stop(bench.job, 0) == 1
    assert bench.store.stop(bench.job, 0) == 1
    assert bench.store.peek(bench.job)[:3] == ("cancelled", 0, 1)
    assert bench.claim("k", more[0]) == Claim("drop", "cancelled")
    assert bench.submit((8, 9)).state == "stopped"
    assert bench.claim("k0", tickets[0]).stop == 0, "a repeated claim is answered as before"
    assert bench.report("k0", 0, 1) == ("ok", 0, 0)


def test_a_stop_cuts_the_job(bench: Bench) -> None:
    """Items at or above the stop are never given out; those below it are."""
    bench.open()
    tickets = bench.submit((0, 4), (4, 8), (8, 12)).tickets
    bench.claim("k0", tickets[0])
    assert bench.store.stop(bench.job, 6) == 1
    answer = bench.claim("k1", tickets[1])
    assert (answer.lo, answer.hi, answer.stop) == (4, 6, 6)
    assert bench.claim("k2", tickets[2]) == Claim("empty", "nothing pending")
    assert bench.store.stop(bench.job, 9) == 2, "a later stop never takes a sooner one back"
    assert bench.report("k0", 0, 1).stop == 6
    assert bench.store.stop(bench.job, 2) == 2
    assert bench.report("k0", 1, 1) == ("ok", 2, 2)
    assert bench.store.peek(bench.job).state == "open"


def test_nothing_above_a_stop_is_submitted(bench: Bench) -> None:
    """Chunks that begin at or above the stop are left out, those below it are pending."""
    bench.open()
    bench.store.stop(bench.job, 5)
    assert bench.submit((5, 9), (0, 3)).pending == 1
    assert bench.unreported == [(0, 3)]


def test_a_chunk_that_waits_above_the_stop_is_deleted(bench: Bench) -> None:
    """A chunk of which nothing is left below the stop no longer waits; the one below it does."""
    bench.open()
    tickets = bench.submit((2, 6), (0, 1), cap=9).tickets
    bench.store.stop(bench.job, 2)
    assert bench.claim("k", tickets[0]).lo == 0
    assert bench.claim("k2", tickets[1]).state == "empty"


def test_what_returns_after_a_stop_is_cut_too(bench: Bench) -> None:
    """Neither a hand-back nor a crash nor a return puts items at or above the stop back."""
    bench.start((0, 4), (10, 14), (20, 24))
    bench.store.stop(bench.job, 2)
    assert bench.report("k0", 0, 1, new_hi=1) == ("ok", 2, 1)
    assert bench.unreported == [(1, 2), (10, 14), (20, 24)]
    bench.store.release(bench.job, "k1", "crash", culprit=11, culprit_end=12, crash_limit=9)
    bench.store.release(bench.job, "k2", "return")
    assert bench.unreported == [(1, 2)]
    assert bench.store.peek(bench.job)[1:3] == (1, 0)


def test_a_verdict_fails_the_whole_job(bench: Bench) -> None:
    """The reason is in the stream once, nothing runs any more, and who held a chunk is fenced."""
    tickets = bench.start((0, 4))
    bench.submit((4, 8))
    assert bench.store.verdict(bench.job, b"reason")
    assert not bench.store.verdict(bench.job, b"reason")
    assert bench.entries == [b"reason"]
    assert bench.store.peek(bench.job, True)[:2] == ("failed", 0)
    assert bench.unreported == []
    assert bench.claim("k", tickets[0]) == Claim("drop", "failed")
    assert bench.report("k0", 0, 1).state == "fenced"
    assert bench.store.renew(LONG, [(bench.job, "k0")]) == [0]
    assert bench.store.release(bench.job, "k0", "return").state == "fenced"


def test_the_lease_of_a_failed_job_is_reaped_quietly(bench: Bench) -> None:
    """A lease that expires after the verdict brings nothing back."""
    bench.start((0, 4), lease=5)
    bench.store.verdict(bench.job, b"reason")
    bench.pass_time(10)
    assert bench.store.reap(1, "heir", LONG) == []
    assert bench.store.renew(LONG, [(bench.job, "k0")]) == [-2]


def test_close_leaves_the_results_when_asked(bench: Bench) -> None:
    """A closed job answers with its state; its results can be read, and nothing of it can run."""
    tickets = bench.start((0, 4))
    bench.report("k0", 0, 1)
    bench.store.close(bench.job, "done", True, LONG)
    bench.store.close(bench.job, "done", True, LONG)
    assert bench.entries == [b"entry"]
    assert bench.store.peek(bench.job, True)[:4] == ("done", 0, 0, 0)
    assert bench.unreported == []
    assert bench.claim("k", tickets[0]) == Claim("drop", "done")
    assert bench.report("k0", 1, 1).state == "fenced"
    assert bench.submit((4, 5)).state == "stopped"
    assert bench.store.renew(LONG, [(bench.job, "k0")]) == [-2]
    assert bench.open().state == "stopped", "what has ended is not opened again"


def test_close_deletes_the_results_when_asked(bench: Bench) -> None:
    """Without ``keep`` the stream is gone, and the tombstone goes in its time."""
    bench.start((0, 4))
    bench.report("k0", 0, 1)
    bench.store.close(bench.job, "cancelled", False, LONG)
    assert bench.entries == []
    assert bench.store.peek(bench.job).state == "cancelled"
    bench.store.close(bench.job, "cancelled", False, 20)
    bench.pass_time(25)
    assert bench.store.peek(bench.job).state is None


def test_a_late_cancel_does_not_rewrite_how_a_job_ended(bench: Bench) -> None:
    """A job that is done stays done."""
    bench.start((0, 1))
    bench.store.close(bench.job, "done", True, LONG)
    assert bench.store.stop(bench.job, 0) == 0
    assert bench.store.peek(bench.job).state == "done"


def test_jobs_do_not_mix(bench: Bench) -> None:
    """What happens to one job leaves another alone."""
    bench.start((0, 4))
    other = bench.job[:-1] + "7"
    bench.open(other)
    bench.store.submit(other, 1, ["t9"], [Submission(1, Chunk("c0.1", 0, 2, 1, "b"), b"p")])
    assert bench.store.claim(other, "k0", "t9", lease=LONG, first=True).hi == 2
    bench.store.close(bench.job, "done", False, LONG)
    assert bench.store.renew(LONG, [(other, "k0"), (bench.job, "k0")]) == [-1, -2]
    peek: Peek = bench.store.peek(other, True)
    assert peek.unreported == [(0, 2)]


def test_an_entry_without_outcomes_moves_nothing(bench: Bench) -> None:
    """What a running item printed goes to the stream; the items of its chunk stay unreported."""
    bench.start((0, 3))
    assert bench.report("k0", 0, 0, b"said") == ("ok", -1, 3)
    assert bench.unreported == [(0, 3)]
    bench.report("k0", 0, 1, b"one")
    bench.report("k0", 0, 0, b"too late")
    bench.report("k0", 1, 0, b"")
    assert bench.entries == [b"said", b"one"]


def test_the_backlog_counts_items(bench: Bench) -> None:
    """Of open jobs, what is not reported and where the next submission starts; not below a stop, not what has ended."""
    bench.start((0, 4), (4, 10))
    assert bench.store.backlog() == [Backlog(b"label", 10, 10, -1)]
    bench.report("k0", 0, 3)
    bench.submit((10, 30))
    assert bench.store.backlog() == [Backlog(b"label", 27, 30, -1)]
    bench.submit((2, 3), attempt=2)  # an item that is tried again
    assert bench.store.backlog() == [Backlog(b"label", 28, 30, -1)]
    bench.store.stop(bench.job, 12)
    assert bench.store.backlog() == [Backlog(b"label", 10, 30, 12)]
    other = bench.job[:-1] + "7"
    bench.open(other, label="other", detached=True)
    bench.store.end_session(SID)
    assert bench.store.backlog() == [Backlog(b"other", 0, 0, -1)], "nobody waits for what has no client"
    bench.store.close(other, "done", True, LONG)
    assert bench.store.backlog() == []
