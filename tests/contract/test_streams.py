"""Every store: streams are read and trimmed, sessions woken, lingering children handed work, beats kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from contract.bench import LONG, SID, Bench, lingerer
from support import eventually

from nbparallel.model import Chunk
from nbparallel.store.protocol import Claim, Handed, Submission

#: Longer than any test should block, in ms, and shorter than the time in which a silent server counts as away.
BLOCK = 4000


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that calls the store and waits there."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_stream_is_read_in_order_from_any_place(bench: Bench) -> None:
    """Entries come in the order of their reports, each after the id that was read last."""
    bench.start((0, 9))
    for lo in range(3):
        bench.report("k0", lo, 1, b"entry %d" % lo)
    ((name, entries),) = bench.store.read({bench.job: "0"}, 0)
    assert name == bench.job
    assert [entry for _, entry in entries] == [b"entry 0", b"entry 1", b"entry 2"]
    assert bench.store.read({bench.job: entries[0][0]}, 0) == [(name, entries[1:])]
    assert bench.store.read({bench.job: entries[-1][0]}, 0) == []


def test_only_streams_with_news_are_answered(bench: Bench) -> None:
    """Streams that are unknown or have nothing new are left out; those of jobs and sessions mix."""
    bench.start((0, 9))
    silent = bench.job[:-1] + "7"
    found = bench.store.read({silent: "0", f"wake:{SID}": "0", bench.job: "0"}, 0)
    assert [(name, [data for _, data in entries]) for name, entries in found] == [(f"wake:{SID}", [b""])]


def test_reading_goes_on_where_it_was_cut(bench: Bench) -> None:
    """A long stream comes in parts; none of it is left out."""
    bench.start((0, 1200))
    for lo in range(1200):
        bench.report("k0", lo, 1, b"%d" % lo)
    read, last = [], "0"
    while found := bench.store.read({bench.job: last}, 0):
        ((_, entries),) = found
        assert len(entries) <= 500
        read += [int(entry) for _, entry in entries]
        last = entries[-1][0]
    assert read == list(range(1200))


def test_trimming_deletes_what_was_consumed(bench: Bench) -> None:
    """Entries up to the id are gone, later ones stay, and trimming again does nothing."""
    bench.start((0, 9))
    for lo in range(3):
        bench.report("k0", lo, 1, b"entry %d" % lo)
    ((_, entries),) = bench.store.read({bench.job: "0"}, 0)
    for _ in range(2):
        bench.store.trim(bench.job, entries[1][0])
        assert bench.entries == [b"entry 2"]
    bench.store.trim(bench.job, entries[2][0])
    bench.report("k0", 3, 1, b"entry 3")
    ((_, later),) = bench.store.read({bench.job: entries[2][0]}, 0)
    assert [entry for _, entry in later] == [b"entry 3"], "ids rise although the stream was empty"


def test_above_the_budget_the_oldest_results_go(bench: Bench) -> None:
    """A job that was opened with a budget keeps its newest entries within it, and the last one whatever its size."""
    bench.start((0, 10), budget=100, detached=True)
    for at in range(5):
        bench.report("k0", at, 1, bytes([at]) * 40)
    assert [entry[0] for entry in bench.entries] == [3, 4]
    bench.report("k0", 5, 1, bytes([5]) * 400)
    assert [entry[0] for entry in bench.entries] == [5]
    bench.report("k0", 6, 1, bytes([6]) * 40)
    assert [entry[0] for entry in bench.entries] == [6]


@pytest.mark.parametrize("event", ["report", "wake", "submit", "verdict"])
def test_a_read_that_waits_returns_at_an_event(bench: Bench, thread: ThreadPoolExecutor, event: str) -> None:
    """Whoever waits for outcomes is told at once of a report, a wake-up, and work for a new stream."""
    bench.start((0, 9))
    ((_, woken),) = bench.store.read({f"wake:{SID}": "0"}, 0)
    waits = thread.submit(bench.store.read, {bench.job: "0", f"wake:{SID}": woken[-1][0]}, BLOCK)
    steps: dict[str, Callable[[], object]] = {
        "report": lambda: bench.report("k0", 0, 1),
        "wake": lambda: bench.store.wake(SID),
        "submit": lambda: bench.submit((9, 10)),
        "verdict": lambda: bench.store.verdict(bench.job, b"reason"),
    }
    steps[event]()
    ((name, entries),) = waits.result(BLOCK / 1000 - 1)
    assert name == (bench.job if event in ("report", "verdict") else f"wake:{SID}")
    assert len(entries) == 1


def test_a_child_without_work_lingers_at_once(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """The claim that finds nothing has the child rung for in the same round trip, or hands it what waits."""
    (ticket,) = bench.start((0, 2))

    def finish(token: str, lo: int, next_token: str, ticket: str) -> Claim:
        who = lingerer(ms=BLOCK, token=next_token)
        known = {"ticket": ticket, "lease": LONG, "have": "", "linger": who}
        claim = bench.store.report_and_claim(bench.job, token, lo, 2, b"e", next_token=next_token, **known)[1]  # type: ignore[arg-type]
        assert claim.state == "empty"
        return claim

    claim = finish("k0", 0, "n", ticket)
    assert claim.handed is None
    if claim.lingers:  # it is rung for already
        assert bench.submit((2, 4)).tickets == []
    waits = thread.submit(bench.store.linger, lingerer(ms=BLOCK, token="n"), claim.lingers)
    if not claim.lingers:
        eventually(lambda: bench.submit((2, 4)).tickets == [] or waits.done(), within=20, what="the child is rung for")
    handed = waits.result(20)
    assert handed is not None
    assert handed.claim is not None
    assert handed.claim.lo == 2
    bench.open(other := bench.job[:-1] + "7")
    chunks = [Submission(1, Chunk("c", 0, 2, 1, "b"), b"p")]
    assert bench.store.submit(other, 1, ["waits"], chunks).tickets == ["waits"]
    claim = finish("n", 2, "n2", handed.ticket)
    assert (claim.handed or bench.store.linger(lingerer(token="n2"), claim.lingers)) == Handed(other, "waits")


def test_no_time_means_no_waiting(bench: Bench) -> None:
    """A read or a linger of 0 ms answers at once with what there is."""
    bench.start((0, 9))
    assert bench.store.read({bench.job: "0"}, 0) == []
    bench.report("k0", 0, 1)
    assert len(bench.store.read({bench.job: "0"}, 0)) == 1
    assert bench.store.linger(lingerer(ms=0)) is None


def test_wake_ups_do_not_pile_up(bench: Bench) -> None:
    """A session that is woken often finds one entry."""
    for _ in range(5):
        bench.store.wake(SID)
    ((_, entries),) = bench.store.read({f"wake:{SID}": "0"}, 0)
    assert len(entries) == 1


def test_a_session_that_reads_already_is_not_woken(bench: Bench) -> None:
    """A submission that says so leaves the session's wake stream alone."""
    bench.open()
    before = bench.store.read({f"wake:{SID}": "0"}, 0)
    chunks = [Submission(1, Chunk("c", 0, 1, 1, "b"), b"p")]
    assert bench.store.submit(bench.job, 1, ["t"], chunks, None, False).tickets == ["t"]
    assert bench.store.read({f"wake:{SID}": "0"}, 0) == before


def test_a_read_trims_first(bench: Bench) -> None:
    """What a read is told to trim is gone when it answers."""
    bench.start((0, 9))
    for lo in range(2):
        bench.report("k0", lo, 1, b"entry %d" % lo)
    ((_, entries),) = bench.store.read({bench.job: "0"}, 0)
    ((_, left),) = bench.store.read({bench.job: "0"}, 0, {bench.job: entries[0][0]})
    assert left == entries[1:]


def hand(bench: Bench, thread: ThreadPoolExecutor, payload: bytes = b"payload", **known: str) -> Handed:
    """What a child is handed that lingers for the session in another thread, until the job gets work."""
    waits = thread.submit(bench.store.linger, lingerer(ms=BLOCK, **known))

    def handed() -> bool:
        at = next(bench.serials) - 1
        chunks = [Submission(at + 1, Chunk(f"c{at}", at, at + 1, 1, "b"), payload)]
        return not bench.store.submit(bench.job, 9999, [f"h{at}"], chunks).tickets

    eventually(handed, what="a ticket is handed to the child")
    found = waits.result(BLOCK / 1000 - 1)
    assert found is not None
    assert found.job == bench.job
    return found


def test_a_lingering_child_is_handed_the_next_chunk(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Work that comes while a child of the session lingers needs neither a message nor a claim: the child has it."""
    bench.open()
    handed = hand(bench, thread)
    claim = handed.claim
    assert claim is not None
    assert (claim.lo, claim.hi, claim.payload, claim.meta, claim.function) == (0, 1, b"payload", b"meta", b"function")
    assert (claim.attempt, claim.stop, claim.sid, claim.blob) == (1, -1, SID, "b")
    assert bench.claim("child-token", handed.ticket, fresh=True) == claim, "it is leased to the child's next token"
    assert bench.claim("another", handed.ticket).why == "ticket doubled"
    assert bench.store.peek(bench.job).held == 1
    assert bench.report("child-token", claim.lo, 1).state == "ok"


def test_a_child_is_not_told_what_it_knows(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Of the job whose function it has it gets the chunk alone."""
    bench.open()
    claim = hand(bench, thread, knows=bench.job).claim
    assert claim is not None
    assert (claim.payload, claim.meta, claim.function) == (b"payload", b"", b"")


def test_a_large_chunk_is_asked_for(real: Bench, thread: ThreadPoolExecutor) -> None:
    """The child is handed the ticket of a payload that should not be copied once more, and has its lease."""
    real.open()
    handed = hand(real, thread, payload=bytes(100_000))
    assert handed.claim is None
    assert real.claim("child-token", handed.ticket).payload == bytes(100_000)


@pytest.mark.parametrize("why", ["max_running", "urgent", "session"])
def test_a_child_is_handed_no_chunk_that_it_should_not_run(bench: Bench, thread: ThreadPoolExecutor, why: str) -> None:
    """It is handed a ticket then, and told when it claims."""
    bench.open(max_running=int(why == "max_running"))
    if why == "max_running":
        (ticket,) = bench.submit((5, 9)).tickets
        assert bench.claim("k", ticket).state == "chunk"
        bench.serials = iter(range(2, 1000))
    elif why == "urgent":
        bench.open(other := bench.job[:-1] + "7", priority=1)
        bench.store.submit(other, 0, [], [Submission(1, Chunk("c", 0, 2, 1, "b"), b"p")])
    waits = thread.submit(bench.store.linger, lingerer(ms=BLOCK))
    if why == "session":
        bench.store.end_session(SID)
    found: list[str] = []

    def handed() -> bool:
        at = 10 + len(found)
        found.append("")
        return not bench.submit((at, at + 1), cap=9999).tickets

    if why == "session":  # which forgot its children, too
        assert bench.submit((0, 1)).tickets
        eventually(lambda: bench.store.rouse("child") or waits.done(), what="the child hears it")
        return
    eventually(handed, what="a ticket is handed to the child")
    handed_over = waits.result(BLOCK / 1000 - 1)
    assert handed_over is not None
    assert handed_over.claim is None
    claim = bench.claim("child-token", handed_over.ticket)
    assert (claim.state, claim.why) == {"max_running": ("empty", "max_running"), "urgent": ("yield", "")}[why]


def test_a_child_that_is_roused_goes(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """It hears so at once, and work that comes later needs a message; whoever does not linger is left alone."""
    bench.store.rouse("child")
    assert bench.store.linger(lingerer()) is None
    waits = thread.submit(bench.store.linger, lingerer(ms=BLOCK))
    eventually(lambda: bench.store.rouse("child") or waits.done(), what="the child hears it")
    assert waits.result() == Handed("", "")
    bench.open()
    assert len(bench.submit((0, 1)).tickets) == 1


def test_what_a_dead_child_held_is_found(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Leases of its tokens are named, those of others are not; and it is handed nothing more."""
    bench.open()
    hand(bench, thread, token="child-2")
    assert bench.claim("other-1", bench.submit((500, 501), cap=9999).tickets[0]).state == "chunk"
    assert bench.store.bury("child-") == [(bench.job, "child-2")]
    assert bench.store.release(bench.job, "child-2", "return").state == "ok"
    assert bench.store.bury("child-") == []


def test_a_dead_child_is_rung_for_no_more(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Work that comes after its death is published, though its time to linger is not over."""
    waits = thread.submit(bench.store.linger, lingerer(ms=300))
    bench.open()
    published = [bench.store.bury("child") or bench.submit((lo, lo + 1), cap=9999).tickets for lo in range(50)]
    assert published[-1], "buried when it lingered already"
    waits.result(BLOCK / 1000)


def test_work_whose_bell_was_not_heard_is_found(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """A child whose connection broke asks what it was handed, and claims it with the same token."""
    bench.open()
    assert bench.store.unlinger(lingerer()) is None
    handed = hand(bench, thread)
    assert bench.store.unlinger(lingerer()) == Handed(bench.job, handed.ticket)
    assert bench.claim("child-token", handed.ticket, fresh=True) == handed.claim


def test_nothing_comes_when_nothing_is_minted(bench: Bench) -> None:
    """Lingering ends in its time without work, and work that comes later is published."""
    assert bench.store.linger(lingerer()) is None
    bench.open()
    assert len(bench.submit((0, 1)).tickets) == 1


def test_a_child_lingers_for_its_own_session(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Work of another session is not handed to it."""
    waits = thread.submit(bench.store.linger, lingerer(ms=200, group="another"))
    bench.open()
    assert len(bench.submit((0, 1)).tickets) == 1
    assert waits.result(BLOCK / 1000) is None


def test_no_ticket_is_lost_between_bell_and_message(bench: Bench, thread: ThreadPoolExecutor) -> None:
    """Tickets minted just as a child begins or stops to linger are published or handed over."""
    bench.open()
    stop, handed = threading.Event(), []

    def turns() -> None:
        while not stop.is_set():
            if found := bench.store.linger(lingerer(ms=1, token=f"child-{len(handed)}")):
                handed.append(found.ticket)

    waits = thread.submit(turns)
    try:
        published = [ticket for lo in range(300) for ticket in bench.submit((lo, lo + 1), cap=9999).tickets]
        # The last one may have been rung for and not yet taken.
        eventually(lambda: len(published) + len(handed) >= 300, what="every ticket is published or handed over")
    finally:
        stop.set()
        waits.result()
    assert bench.store.peek(bench.job).tickets == 300
    assert len({*published, *handed}) == 300


@pytest.mark.parametrize("event", ["stop", "verdict"])
def test_the_end_of_a_job_is_published(bench: Bench, thread: ThreadPoolExecutor, event: str) -> None:
    """Everyone who listens is told which job ends, and from which item on, until they have heard enough."""
    heard: list[str] = []
    listens = thread.submit(bench.store.listen, heard.append, lambda: bool(heard))
    number = 0
    while not listens.done():  # the subscription may take a moment, and a verdict is given once
        bench.job = f"{bench.job.rpartition('.')[0]}.{number}"
        bench.start((0, 4))
        bench.store.stop(bench.job, 3) if event == "stop" else bench.store.verdict(bench.job, b"reason")
        number += 1
    listens.result()
    word, job, stop = heard[0].split(" ")
    assert (word, job.rpartition(".")[0], stop) == (
        "stop",
        bench.job.rpartition(".")[0],
        "3" if event == "stop" else "0",
    )


def test_workers_live_as_long_as_their_beat(bench: Bench) -> None:
    """What a worker says last is known until its time is over or it says goodbye."""
    bench.store.beat("w1", b"old", LONG)
    bench.store.beat("w1", b"new", LONG)
    bench.store.beat("w2", b"w2", LONG)
    bench.store.beat("w3", b"w3", 20)
    bench.pass_time(25)
    assert bench.store.workers() == {"w1": b"new", "w2": b"w2"}
    for _ in range(2):
        bench.store.unbeat("w2")
        assert bench.store.workers() == {"w1": b"new"}


def test_one_start_of_a_server_has_one_name(bench: Bench) -> None:
    """The run id stays while the server runs, whatever becomes of connections."""
    name = bench.store.run_id()
    bench.store.close_connections()
    assert bench.store.run_id() == name != ""
