"""Every store: chunks are claimed, reported, handed back, released, renewed and reaped, and tokens fence."""

from __future__ import annotations

from typing import Any

import pytest
from contract.bench import EXPIRED, LONG, SID, Bench

from nbparallel.model import Chunk
from nbparallel.store.protocol import Claim, Lost, Submission

# --- claim ----------------------------------------------------------------------------------------------------------


def test_a_claim_gives_the_chunk_and_its_payload(bench: Bench) -> None:
    """The lowest chunk that waits is leased, and comes with all that a child needs."""
    bench.open()
    tickets = bench.submit((5, 9), (0, 5), attempt=2).tickets
    assert bench.claim("k", tickets[0]) == Claim("chunk", "", "c0.2", 0, 5, 2, 0, "b0", b"payload0", -1, SID)
    assert bench.claim("k2", tickets[1]).lo == 5


def test_a_payload_is_not_sent_to_who_has_it(bench: Bench) -> None:
    """A child that has the blob, or a chunk whose blob was dropped, brings none."""
    bench.open()
    tickets = bench.submit((0, 1), (1, 2)).tickets
    assert bench.claim("k", tickets[0], have="b0").payload is None
    assert bench.claim("k", tickets[0], have="b1").payload == b"payload0"
    bench.store.drop_blobs(bench.job, ["b1", "unknown"])
    assert bench.claim("k2", tickets[1]).payload is None


def test_a_repeated_claim_gives_the_same_chunk(bench: Bench) -> None:
    """After a lost reply the same token gets the same answer and leases nothing more."""
    bench.open()
    tickets = bench.submit((0, 5), (5, 9)).tickets
    assert bench.claim("k", tickets[0]) == bench.claim("k", tickets[0])
    assert bench.store.peek(bench.job)[1:3] == (1, 1)


def test_a_repeated_claim_starts_where_the_report_ended(bench: Bench) -> None:
    """What was reported already is not given out again."""
    ticket = bench.start((0, 5))[0]
    bench.report("k0", 0, 2)
    assert bench.claim("k0", ticket)[2:5] == ("c0.1", 2, 5)


def test_a_ticket_doubled_by_the_broker_is_dropped(bench: Bench) -> None:
    """A message delivered twice starts one turn."""
    bench.open()
    ticket = bench.submit((0, 1), (1, 2), tickets=1).tickets[0]
    bench.claim("k", ticket)
    assert bench.claim("other", ticket) == Claim("drop", "ticket doubled")
    assert bench.store.peek(bench.job).tickets == 1
    assert bench.claim("k2", ticket, first=False).state == "chunk", "the turn that began goes on"


def test_an_invented_ticket_is_dropped(bench: Bench) -> None:
    """A ticket that the store did not mint gets nothing."""
    bench.open()
    bench.submit((0, 1))
    assert bench.claim("k", "invented") == Claim("drop", "ticket unknown")


def test_an_empty_claim_ends_the_ticket(bench: Bench) -> None:
    """With nothing pending the ticket dies, and says the same when asked again."""
    ticket = bench.start((0, 1))[0]
    assert bench.claim("k2", ticket, first=False) == Claim("empty", "nothing pending")
    assert bench.store.peek(bench.job).tickets == 0
    assert bench.claim("k2", ticket, first=False).state == "drop"


def test_no_more_leases_than_max_running(bench: Bench) -> None:
    """``max_running`` chunks are leased at once; when one ends, the next can be claimed."""
    bench.open(max_running=1)
    tickets = bench.submit((0, 1), (1, 2)).tickets
    bench.claim("k", tickets[0])
    assert bench.claim("k2", tickets[1]) == Claim("empty", "max_running")
    bench.report("k", 0, 1, finished=True)
    assert bench.claim("k2", tickets[0], first=False).lo == 1


def a_job_beside(bench: Bench, *ranges: tuple[int, int], **options: Any) -> str:
    """Another job of the session, with chunks that wait; its key."""
    job = bench.job[:-1] + "1"
    chunks = [Submission(lo + 1, Chunk(f"c{lo}", lo, hi, 1, "b"), b"payload") for lo, hi in ranges]
    bench.open(job, **options)
    assert bench.store.submit(job, 0, [], chunks).state == "ok"
    return job


def test_a_more_urgent_job_takes_the_child(bench: Bench) -> None:
    """Whoever asks for a chunk while a job of a higher priority has one is sent there, with a ticket."""
    bench.open()
    first, second = bench.submit((0, 1), (1, 2)).tickets
    urgent = a_job_beside(bench, (0, 5), priority=1)
    for _ in range(2):  # the reply may be lost
        assert bench.claim("k", first, first=False) == Claim("yield", job=urgent, ticket="k")
    for _ in range(2):
        assert bench.store.leave(bench.job, first, "successor")
    assert bench.store.peek(urgent).tickets == 1
    assert bench.store.claim(urgent, "k2", "k", lease=LONG, first=True).hi == 5
    assert bench.claim("k3", second).lo == 0
    assert bench.report("k3", 0, 1, finished=True).state == "ok"
    assert bench.claim("k4", second, first=False).lo == 1
    assert bench.store.release(urgent, "k2", "return").state == "ok"
    assert bench.claim("k5", "successor").state == "yield"


def test_a_job_that_is_not_more_urgent_takes_nobody(bench: Bench) -> None:
    """One of the same or a lower priority waits for its turn; the higher one does not yield to it either."""
    bench.open(priority=-3)
    tickets = bench.submit((0, 1), (1, 2)).tickets
    assert bench.store.peek(a_job_beside(bench, (0, 1), priority=-3)).pending == 1
    assert bench.claim("k", tickets[0]).lo == 0
    bench.store.close(bench.job[:-1] + "1", "done", False, LONG)
    assert bench.claim("k2", tickets[1]).lo == 1


@pytest.mark.parametrize("why", ["queue", "cancelled", "session", "busy", "closed", "finished"])
def test_nobody_yields_to_a_job_that_cannot_use_a_child(bench: Bench, why: str) -> None:
    """A job on another queue, one that was stopped, whose client is gone, or which may not run more, is passed over."""
    bench.open()
    (ticket,) = bench.submit((0, 1)).tickets
    options: dict[str, Any] = {"priority": 9}
    if why == "session":
        bench.store.session_beat("other", b"beat", None)
        options["sid"] = "other"
    if why == "queue":
        options["queue"] = "other"
    if why == "busy":
        options["max_running"] = 1
    urgent = a_job_beside(bench, (0, 1), (1, 2), **options)
    if why == "cancelled":
        bench.store.stop(urgent, 0)
    if why == "session":
        bench.store.end_session("other")
    if why in ("busy", "finished"):
        for number in range(1 if why == "busy" else 2):
            (minted,) = bench.store.remint(urgent, LONG, 9, bench.offer(1))
            assert bench.store.claim(urgent, f"u{number}", minted, lease=LONG, first=True).state == "chunk"
    if why == "closed":
        bench.store.close(urgent, "done", True, LONG)
    assert bench.claim("k", ticket).state == "chunk"


@pytest.mark.parametrize("end", ["says goodbye", "is silent", "never was"])
def test_nothing_is_given_out_for_a_session_that_is_gone(bench: Bench, end: str) -> None:
    """Without its client's beat a job's tickets are dropped; when the client is back, it goes on."""
    bench.open()
    tickets = bench.submit((0, 1), (1, 2)).tickets
    if end == "is silent":
        bench.store.session_beat(SID, b"beat", LONG)
        assert bench.claim("k", tickets[0]).state == "chunk"
        bench.store.session_beat(SID, b"beat", 20)
        bench.pass_time(25)
    else:
        bench.store.end_session(SID)
    assert bench.claim("k1", tickets[1]) == Claim("drop", "session")
    bench.store.session_beat(SID, b"beat", LONG)
    assert bench.take("k2").state == "chunk"


def test_a_detached_job_needs_no_session(bench: Bench) -> None:
    """Chunks of a detached job are given out after its client has gone."""
    bench.open(detached=True)
    ticket = bench.submit((0, 1)).tickets[0]
    bench.store.end_session(SID)
    assert bench.claim("k", ticket).state == "chunk"


# --- report ---------------------------------------------------------------------------------------------------------


def test_reports_count_items(bench: Bench) -> None:
    """Each report adds its entry; the last one ends the lease."""
    bench.start((0, 5))
    assert bench.report("k0", 0, 2, b"one") == ("ok", -1, 5)
    assert bench.unreported == [(2, 5)]
    assert bench.report("k0", 2, 3, b"two") == ("ok", -1, 5)
    assert bench.unreported == []
    assert bench.entries == [b"one", b"two"]
    assert bench.store.peek(bench.job)[1:4] == (0, 0, 1)


def test_a_repeated_report_adds_nothing(bench: Bench) -> None:
    """After a lost reply the entry stands in the stream once, whether the lease goes on or not."""
    bench.start((0, 5))
    assert bench.report("k0", 0, 2) == bench.report("k0", 0, 2) == ("ok", -1, 5)
    bench.report("k0", 2, 3)
    assert bench.report("k0", 2, 3).state == "fenced"
    assert len(bench.entries) == 2


def test_a_report_that_skips_items_is_refused(bench: Bench) -> None:
    """A gap is answered with the item that is due, and nothing is added."""
    bench.start((0, 5))
    assert bench.report("k0", 1, 2) == ("gap", -1, 0)
    assert bench.entries == []


def test_a_report_without_outcomes_only_asks(bench: Bench) -> None:
    """A report of no items brings news of a stop and adds nothing."""
    bench.start((0, 5))
    bench.store.stop(bench.job, 3)
    assert bench.report("k0", 0, 0, b"") == ("ok", 3, 3)
    assert bench.entries == []


def test_a_child_gives_the_tail_back_while_it_runs(bench: Bench) -> None:
    """What is handed back waits as a chunk of its own on the same payload; the running item is not fenced."""
    bench.start((0, 10))
    assert bench.report("k0", 0, 2, new_hi=4) == ("ok", -1, 4)
    assert bench.report("k0", 0, 2, new_hi=4) == ("ok", -1, 4), "a repeated hand-back does it once"
    assert bench.unreported == [(2, 4), (4, 10)]
    tail = bench.take()
    assert (tail.lo, tail.hi, tail.attempt, tail.blob, tail.payload) == (4, 10, 1, "b0", b"payload0")
    assert bench.report("k0", 2, 2) == ("ok", -1, 4)
    assert bench.unreported == [(4, 10)]


def test_handing_back_all_ends_the_lease(bench: Bench) -> None:
    """A child that has run nothing can hand back everything."""
    bench.start((0, 10))
    assert bench.report("k0", 0, 0, b"", new_hi=0) == ("ok", -1, 0)
    assert bench.store.peek(bench.job)[1:3] == (1, 0)
    assert bench.unreported == [(0, 10)]


@pytest.mark.parametrize("new_hi", [1, 10, 11])
def test_a_hand_back_of_what_is_not_there_is_ignored(bench: Bench, new_hi: int) -> None:
    """What was reported, or never was in the chunk, cannot be handed back."""
    bench.start((0, 10))
    assert bench.report("k0", 0, 2, new_hi=new_hi) == ("ok", -1, 10)
    assert bench.unreported == [(2, 10)]


def test_an_early_end_returns_the_rest(bench: Bench) -> None:
    """``finished`` ends the lease whatever is left, which waits again."""
    bench.start((0, 10))
    assert bench.report("k0", 0, 3, finished=True).state == "ok"
    assert bench.store.peek(bench.job)[1:3] == (1, 0)
    assert bench.take().lo == 3


def test_report_and_claim_do_both(bench: Bench) -> None:
    """The last report and the next claim are one call, and the turn goes on under its ticket."""
    ticket = bench.start((0, 2))[0]
    bench.submit((2, 4), (4, 6))
    go_on = {"ticket": ticket, "lease": LONG, "have": ""}
    reported, claimed = bench.store.report_and_claim(bench.job, "k0", 0, 2, b"one", next_token="n1", **go_on)
    assert (reported.state, claimed.lo, claimed.payload) == ("ok", 2, b"payload2")
    again = bench.store.report_and_claim(bench.job, "k0", 0, 2, b"one", next_token="n1", **go_on)
    assert (again[0].state, again[1]) == ("fenced", claimed), "repeated, it gives the same chunk"
    assert bench.entries == [b"one"]
    bench.store.report_and_claim(bench.job, "n1", 2, 2, b"two", next_token="n2", **go_on)
    _, claimed = bench.store.report_and_claim(bench.job, "n2", 4, 2, b"three", next_token="n3", **go_on)
    assert claimed == Claim("empty", "nothing pending")
    assert bench.store.peek(bench.job)[1:4] == (0, 0, 2)


# --- release --------------------------------------------------------------------------------------------------------


def test_a_release_returns_what_is_unreported(bench: Bench) -> None:
    """A worker that shuts down gives its chunk back, and nobody is blamed."""
    ticket = bench.start((0, 5))[0]
    bench.report("k0", 0, 2)
    answer = bench.store.release(bench.job, "k0", "return", culprit=2, culprit_end=3, crash_limit=1)
    assert answer == ("ok", -1, False, 0)
    assert bench.claim("k1", ticket) == Claim("drop", "ticket unknown")
    again = bench.take()
    assert (again.lo, again.hi, again.crashes, again.blob) == (2, 5, 0, "b0")


def test_a_crash_parts_the_culprit_from_its_neighbours(bench: Bench) -> None:
    """The item that killed its process waits alone, with its crashes counted; those beside it are not blamed."""
    bench.start((0, 10))
    bench.report("k0", 0, 2)
    answer = bench.store.release(bench.job, "k0", "crash", culprit=5, culprit_end=6, crash_limit=3, heir="heir")
    assert answer == ("ok", -1, False, 0)
    found = [bench.take(f"n{i}") for i in range(3)]
    assert [(c.lo, c.hi, c.crashes) for c in found] == [(2, 5, 0), (5, 6, 1), (6, 10, 0)]


@pytest.mark.parametrize(("culprit", "left"), [(0, [(1, 3)]), (2, [(0, 2)])])
def test_a_culprit_at_an_end_of_its_chunk(bench: Bench, culprit: int, left: list[tuple[int, int]]) -> None:
    """No empty chunk is made when the culprit is the first or the last item."""
    bench.start((0, 3))
    bench.store.release(bench.job, "k0", "crash", culprit=culprit, culprit_end=culprit + 1, crash_limit=9)
    assert bench.unreported == sorted([*left, (culprit, culprit + 1)])


def test_at_the_crash_limit_the_heir_gets_the_culprit(bench: Bench) -> None:
    """The parent is leased the item that crashed too often, and reports the error in its place."""
    bench.start((0, 3))
    crash = {"culprit": 1, "culprit_end": 2, "crash_limit": 2, "heir": "heir", "lease": LONG}
    assert bench.store.release(bench.job, "k0", "crash", **crash).culprit == -1  # type: ignore[arg-type]
    bench.take("n0")
    assert bench.take("n1").lo == 1
    assert bench.store.release(bench.job, "n1", "crash", **crash) == ("ok", 1, False, 0)  # type: ignore[arg-type]
    assert bench.store.renew(LONG, [(bench.job, "heir")]) == [-1]
    assert bench.report("heir", 1, 1, b"crashed") == ("ok", -1, 2)
    assert bench.unreported == [(0, 1), (2, 3)]


def test_a_repeated_crash_names_the_heir_and_the_ticket_again(bench: Bench) -> None:
    """After a lost reply the parent still learns what it inherited and which message to send; nothing counts twice."""
    bench.start((0, 3))
    crash = {"culprit": 1, "culprit_end": 2, "crash_limit": 1, "heir": "heir", "lease": LONG, "ticket": "new"}
    assert bench.store.release(bench.job, "k0", "crash", **crash) == ("ok", 1, True, 0)  # type: ignore[arg-type]
    assert bench.store.release(bench.job, "k0", "crash", **crash) == ("fenced", 1, True, 0)  # type: ignore[arg-type]
    assert bench.store.peek(bench.job)[1:4] == (2, 1, 1)
    assert bench.claim("k1", "new").lo == 0
    assert bench.store.release(bench.job, "k0", "crash", **crash) == ("fenced", 1, False, 0)  # type: ignore[arg-type]


def test_an_heir_that_dies_loses_nothing(bench: Bench) -> None:
    """When the heir's lease expires, the item waits again, and is inherited at its next crash."""
    bench.start((0, 1))
    crash = {"culprit": 0, "culprit_end": 1, "crash_limit": 1}
    assert bench.store.release(bench.job, "k0", "crash", heir="h0", lease=EXPIRED, **crash).culprit == 0
    assert bench.store.reap(10, "lost", LONG) == []
    again = bench.take()
    assert (again.lo, again.hi, again.crashes) == (0, 1, 1)
    assert bench.store.release(bench.job, "next", "crash", heir="h1", lease=LONG, **crash).culprit == 0


def test_a_range_of_suspects_is_one_chunk_and_never_inherited(bench: Bench) -> None:
    """When the culprit is only known to be in a range, the range waits as one chunk that counts the crash."""
    bench.start((0, 10))
    answer = bench.store.release(bench.job, "k0", "crash", culprit=2, culprit_end=6, crash_limit=1, heir="heir")
    assert answer == ("ok", -1, False, 0)
    found = [bench.take(f"n{i}") for i in range(3)]
    assert [(c.lo, c.hi, c.crashes) for c in found] == [(0, 2, 0), (2, 6, 1), (6, 10, 0)]
    assert bench.store.renew(LONG, [(bench.job, "heir")]) == [-2]


def test_suspects_are_cut_to_what_is_unreported(bench: Bench) -> None:
    """Items of the range that were reported, or are not in the chunk, are no suspects; one that is left is exact."""
    bench.start((0, 4))
    bench.report("k0", 0, 3)
    answer = bench.store.release(
        bench.job, "k0", "crash", culprit=1, culprit_end=9, crash_limit=1, heir="heir", lease=LONG
    )
    assert answer.culprit == 3
    assert bench.report("heir", 3, 1).state == "ok"


@pytest.mark.parametrize(("culprit", "end"), [(-1, -1), (0, 1), (5, 6)])
def test_a_death_outside_an_item_counts_against_the_job(bench: Bench, culprit: int, end: int) -> None:
    """Without a culprit among the unreported items no item is blamed: the deaths of the job are counted."""
    bench.start((0, 5), (5, 8))
    bench.report("k0", 0, 1)
    assert bench.store.release(bench.job, "k0", "crash", culprit=culprit, culprit_end=end).deaths == 1
    assert bench.store.release(bench.job, "k1", "crash").deaths == 2
    found = [bench.take(f"n{i}") for i in range(2)]
    assert [(c.lo, c.hi, c.crashes) for c in found] == [(1, 5, 0), (5, 8, 0)]


def test_a_release_swaps_the_ticket_when_something_waits(bench: Bench) -> None:
    """The dead child's ticket is replaced by the parent's, so that their number stays."""
    tickets = bench.start((0, 5), (5, 8))
    assert bench.store.release(bench.job, "k0", "crash", ticket="new").publish
    assert bench.store.peek(bench.job).tickets == 2
    assert bench.claim("k", tickets[0]).why == "ticket unknown"
    assert bench.claim("k", "new").state == "chunk"
    assert not bench.store.release(bench.job, "k1", "return", ticket="").publish


def test_no_ticket_for_nothing(bench: Bench) -> None:
    """When nothing waits after a release, no ticket is minted."""
    bench.start((0, 1))
    bench.store.stop(bench.job, 0)
    assert not bench.store.release(bench.job, "k0", "return", ticket="new").publish
    assert bench.store.peek(bench.job).tickets == 0


def test_an_old_token_changes_nothing(bench: Bench) -> None:
    """Whoever lost a lease can neither report nor release, also when the chunk runs elsewhere."""
    bench.start((0, 5))
    bench.store.release(bench.job, "k0", "return")
    bench.take("n")
    for _ in range(2):
        assert bench.report("k0", 0, 1, b"late", new_hi=3) == ("fenced", -1, 0)
        assert bench.store.release(bench.job, "k0", "crash", culprit=0, culprit_end=1, heir="h").state == "fenced"
    assert bench.entries == []
    assert bench.unreported == [(0, 5)]
    assert bench.store.peek(bench.job)[1:3] == (0, 1)


# --- renew and reap -------------------------------------------------------------------------------------------------


def test_renewing_tells_what_became_of_a_lease(bench: Bench) -> None:
    """Each lease is answered with its job's stop, or as lost; unknown ones and none at all are answered too."""
    bench.start((0, 5), (5, 8))
    bench.store.release(bench.job, "k1", "return")
    asked = [(bench.job, "k0"), (bench.job, "k1"), ("nobody's", "k0")]
    assert bench.store.renew(LONG, asked) == [-1, -2, -2]
    bench.store.stop(bench.job, 3)
    assert bench.store.renew(LONG, asked[:1]) == [3]
    assert bench.store.renew(LONG, []) == []


def test_a_renewed_lease_does_not_expire(bench: Bench) -> None:
    """Renewal counts from now, and shortens as well."""
    bench.start((0, 5), lease=20)
    bench.store.renew(LONG, [(bench.job, "k0")])
    bench.pass_time(25)
    assert bench.store.reap(10, "lost", LONG) == []
    assert bench.report("k0", 0, 1).state == "ok"
    bench.store.renew(EXPIRED, [(bench.job, "k0")])
    bench.store.reap(10, "lost", LONG)
    assert bench.report("k0", 1, 1).state == "fenced"


def test_an_expired_lease_is_reaped(bench: Bench) -> None:
    """The chunk of a worker that vanished waits again from its first unreported item; its ticket is gone."""
    tickets = bench.start((0, 5), lease=20)
    bench.report("k0", 0, 2)
    assert bench.store.reap(10, "lost", LONG) == []
    assert bench.unreported == [(2, 5)]
    bench.pass_time(25)
    assert bench.store.reap(10, "lost", LONG) == []
    assert bench.store.peek(bench.job)[1:4] == (1, 0, 0)
    assert bench.store.reap(10, "lost", LONG) == [], "again: nothing happens"
    assert bench.claim("k", tickets[0]).state == "drop"
    assert bench.store.renew(LONG, [(bench.job, "k0")]) == [-2]
    again = bench.take()
    assert (again.lo, again.hi, again.crashes) == (2, 5, 0)


def test_at_the_lost_limit_the_reaper_gets_the_chunk(bench: Bench) -> None:
    """Items whose workers vanished too often are leased to the reaper; a tail that was handed back counts as well."""
    bench.start((0, 5), lease=EXPIRED)
    assert bench.store.reap(2, "lost-", LONG) == []
    bench.take("n0", lease=EXPIRED)
    bench.report("n0", 0, 1, new_hi=3)
    (lost,) = bench.store.reap(2, "lost-", LONG)
    assert lost == Lost(bench.job, lost.token, 1, 3, 1)
    assert lost.token.startswith("lost-")
    assert bench.report(lost.token, 1, 2, b"lost") == ("ok", -1, 3)
    bench.take("n1", lease=EXPIRED)
    (tail,) = bench.store.reap(2, "lost-", LONG)
    assert (tail.lo, tail.hi) == (3, 5), "the tail that was handed back remembers its losses"
    assert tail.token != lost.token


def test_reaping_twice_under_one_name_gives_two_tokens(bench: Bench) -> None:
    """A repeated call that finds more must not lease a second chunk to a token that has one."""
    bench.start((0, 2), (2, 4))
    bench.store.renew(EXPIRED, [(bench.job, "k0")])
    (first,) = bench.store.reap(1, "lost-", LONG)
    bench.store.renew(EXPIRED, [(bench.job, "k1")])
    (second,) = bench.store.reap(1, "lost-", LONG)
    assert first.token != second.token
    assert bench.report(first.token, 0, 2).state == "ok"
    assert bench.report(second.token, 2, 2).state == "ok"
    assert bench.unreported == []


def test_a_reaper_that_dies_loses_nothing(bench: Bench) -> None:
    """What was leased to a reaper who vanished is given to the next one."""
    bench.start((0, 2), lease=EXPIRED)
    (first,) = bench.store.reap(1, "a-", EXPIRED)
    (second,) = bench.store.reap(1, "b-", LONG)
    assert second[2:] == first[2:] == (0, 2, 1)
    assert bench.report(first.token, 0, 2).state == "fenced"
    assert bench.report(second.token, 0, 2).state == "ok"


def test_a_release_counts_no_loss(bench: Bench) -> None:
    """A chunk that was returned orderly is not nearer to its lost limit."""
    bench.start((0, 2))
    for turn in range(3):
        bench.store.release(bench.job, f"n{turn - 1}" if turn else "k0", "return")
        bench.take(f"n{turn}")
    bench.store.renew(EXPIRED, [(bench.job, "n2")])
    assert bench.store.reap(2, "lost", LONG) == []
