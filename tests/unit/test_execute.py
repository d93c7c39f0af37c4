"""One chunk in a worker process: precise and in batches, with errors, interrupts, and a second thread at work."""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from support import eventually, imported
from unit.workbench import kinds, new_slot, outcomes_of

from nbparallel import pickling
from nbparallel.model import Block, ErrorRecord
from nbparallel.seeding import Seeded
from nbparallel.worker import slot as slots
from nbparallel.worker.execute import ChunkRun, arguments_of
from nbparallel.worker.slot import Slot
from nbparallel.worker.turn import Child


def claimed() -> Slot:
    """A slot of a child that has claimed a chunk."""
    slot = new_slot()
    slot.child_starts(1, "stamp")
    slot.child_claims(7, "job", "ticket")
    return slot


def chunk(
    function: Callable[..., Any], *columns: Sequence[Any], kind: type[ChunkRun] = ChunkRun, **options: Any
) -> ChunkRun:
    """A chunk of all items in the columns, run one by one unless told otherwise."""
    given = {"base": 0, "lo": 0, "hi": len(columns[0]), "attempt": 1, "star": False, "each": False, "precise": True}
    given |= {"budget": None, "slot": options.pop("slot", None) or claimed(), "worker": "host:1", **options}
    return kind(function, columns, **given)


def never() -> None:
    """What is done for a first flush that nobody wants."""


def result(run: ChunkRun) -> dict[int, Any]:
    """Run a chunk and take all of its outcomes."""
    run.run(never)
    block = run.take()
    return {} if block is None else outcomes_of(block)


@pytest.fixture(params=[True, False], ids=["precise", "batch"])
def precise(request: pytest.FixtureRequest) -> bool:
    """Both speeds."""
    return bool(request.param)


def records(slot: Slot) -> tuple[int, int, int]:
    """Which item runs, how many, and whether it may be interrupted."""
    return slot.words[slots.INDEX], slot.words[slots.COUNT], slot.words[slots.ARMED]


# --- items and arguments --------------------------------------------------------------------------------------------


def test_every_item_has_its_value(precise: bool) -> None:
    """The outcomes are those of the function, in order."""
    assert result(chunk(lambda x: x * x, range(5000), precise=precise)) == {i: i * i for i in range(5000)}


def test_very_short_items_run_in_batches() -> None:
    """Items far shorter than the bookkeeping do not pay for it."""
    slot = claimed()
    counts = []

    def note(x: int) -> None:
        counts.append(slot.words[slots.COUNT])

    chunk(note, range(3000), precise=False, slot=slot).run(never)
    assert counts[0] == 1
    assert max(counts) > 10
    assert len(counts) == 3000


def test_items_that_may_kill_run_one_by_one() -> None:
    """A precise chunk names every running item, however short."""
    slot = claimed()
    seen = []
    chunk(lambda x: seen.append(records(slot)), range(10, 300), base=10, lo=10, hi=300, slot=slot).run(never)
    assert seen == [(index, 1, 1) for index in range(10, 300)]
    assert records(slot) == (-1, 1, 0)


def test_long_items_run_one_by_one() -> None:
    """Items that take time are named exactly, without being asked for."""
    slot = claimed()
    seen = []

    def work(x: int) -> None:
        seen.append(records(slot))
        end = time.perf_counter() + 0.0002
        while time.perf_counter() < end:
            pass

    chunk(work, range(50), precise=False, slot=slot).run(never)
    assert [index for index, count, _ in seen if count == 1] == list(range(50))


def test_a_chunk_begins_in_the_midst_of_its_payload(precise: bool) -> None:
    """What is left of a chunk that was handed back or has crashed starts at its own first item."""
    run = chunk(lambda x: -x, list(range(100, 200)), base=100, lo=150, hi=170, precise=precise)
    assert result(run) == {i: -i for i in range(150, 170)}


def test_several_columns_are_several_arguments(precise: bool) -> None:
    """The function gets one argument of each column."""
    assert result(chunk(lambda x, y: (x, y), [1, 2, 3], "abc", precise=precise)) == {
        0: (1, "a"),
        1: (2, "b"),
        2: (3, "c"),
    }


def test_star_items_are_tuples_of_arguments(precise: bool) -> None:
    """With ``star`` an item is all arguments of a call."""
    run = chunk(pow, [(2, 3), (3, 2), (5, 1)], star=True, precise=precise, lo=1)
    assert result(run) == {1: 9, 2: 5}


@pytest.mark.parametrize("star", [True, False])
def test_items_that_are_pickled_each(star: bool) -> None:
    """Separately pickled items are unpickled where they run; those that cannot be are errors of their own."""
    items = [pickling.dump(((2, i),) if star else (2, i)) for i in range(4)]
    items[2] = b""
    found = result(chunk(pow, items, star=star, each=True))
    assert [found[i] for i in (0, 1, 3)] == [1, 2, 8]
    assert kinds(found) == {2: "item"}


def test_arguments_in_words() -> None:
    """An item is shown as it was written: bare when it is the only argument."""
    assert arguments_of([[1, 2]], 1) == "2"
    assert arguments_of([[1, 2], "ab"], 1) == "(2, 'b')"


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_exception_is_an_outcome(precise: bool) -> None:
    """An item that raises is noted under its index, wherever in a batch it is; all others run once."""
    calls = []

    def odd(x: int) -> int:
        calls.append(x)
        if x % 7 == 3:
            raise ValueError(f"{x} is odd")
        return x

    found = result(chunk(odd, range(4000), precise=precise))
    assert calls == list(range(4000))
    assert kinds(found) == dict.fromkeys(range(3, 4000, 7), "raised")
    assert found[3].type_name == "ValueError"
    assert found[3994 - 3994 % 7 + 3].message.endswith("is odd")
    assert found[10].item == "10"
    assert "raise ValueError" in found[10].traceback
    assert found[5] == 5


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit, KeyboardInterrupt, SystemExit, BaseException])
def test_whatever_is_raised_is_an_outcome(precise: bool, kind: type[BaseException]) -> None:
    """An exception that means something to loops and threads ends neither: the items after it run."""

    def fail(x: int) -> int:
        if x % 100 == 99:
            raise kind(x)
        return x

    found = result(chunk(fail, range(1000), precise=precise))
    assert sorted(found) == list(range(1000))
    assert kinds(found) == dict.fromkeys(range(99, 1000, 100), "raised")
    assert {outcome.type_name for outcome in found.values() if isinstance(outcome, ErrorRecord)} == {kind.__name__}


def test_a_wrong_number_of_arguments_is_an_outcome(precise: bool) -> None:
    """A function that cannot be called so fails for each item."""
    assert kinds(result(chunk(lambda: 1, range(3), precise=precise))) == dict.fromkeys(range(3), "raised")


def test_star_items_that_are_no_tuples(precise: bool) -> None:
    """An item that cannot be spread is an error, and the next item runs."""
    found = result(chunk(pow, [(2, 2), 5, (3, 3)], star=True, precise=precise))
    assert (found[0], found[2]) == (4, 27)
    assert kinds(found) == {1: "raised"}


def test_an_item_that_cannot_be_shown_is_still_an_error() -> None:
    """When a column fails as it is read again, the item's repr is left out, and no error is lost."""

    class Once(Sequence[int]):
        def __init__(self) -> None:
            self.reads = 0

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[int]:
            return iter([5])

        def __getitem__(self, index: Any) -> Any:
            raise OSError("gone")

    (record,) = result(chunk(lambda x: 1 // 0, Once())).values()
    assert (record.type_name, record.item) == ("ZeroDivisionError", "?")


def test_results_that_cannot_be_pickled(precise: bool) -> None:
    """They become errors one by one; their neighbours keep their values."""
    found = result(chunk(lambda x: threading.Lock() if x % 3 else x, range(9), precise=precise))
    assert kinds(found) == dict.fromkeys([1, 2, 4, 5, 7, 8], "result")
    assert [found[i] for i in (0, 3, 6)] == [0, 3, 6]
    assert "the result of item 1" in found[1].message
    assert found[1].item == "1"


def test_an_error_and_an_unpicklable_result_in_one_chunk() -> None:
    """Both kinds of failure keep their own reason."""

    def function(x: int) -> Any:
        if x == 1:
            raise KeyError(x)
        return threading.Lock() if x == 2 else x

    assert kinds(result(chunk(function, range(4)))) == {1: "raised", 2: "result"}


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_a_block_tells_where_and_when() -> None:
    """Attempt, worker, start and running times are in the block."""
    before = time.time()
    run = chunk(lambda x: x, range(10, 13), base=10, lo=10, hi=13, attempt=4)
    run.run(never)
    block = run.take()
    assert block is not None
    assert (block.lo, block.hi, block.count, block.attempt, block.worker) == (10, 13, 3, 4, "host:1")
    assert before <= block.started <= time.time()
    assert len(block.seconds) == 3
    assert all(0 <= seconds < 1 for seconds in block.seconds)
    assert run.take() is None


def test_a_batch_has_one_time() -> None:
    """After a batch there is the sum of the running times alone."""
    run = chunk(lambda x: x, range(2000), precise=False)
    run.run(never)
    block = run.take()
    assert block is not None
    assert len(block.seconds) == 1
    assert 0 < block.seconds[0] < 1


def test_what_was_taken_is_not_taken_again() -> None:
    """Each look takes what came since the last one, and frees it."""
    taken: list[Block] = []

    def function(x: int) -> int:
        if x % 2 and (block := run.take()) is not None:
            taken.append(block)
        return x

    run = chunk(function, range(7))
    run.run(never)
    last = run.take()
    assert last is not None
    assert [(block.lo, block.hi) for block in (*taken, last)] == [(0, 1), (1, 3), (3, 5), (5, 7)]
    assert [outcomes_of(block) for block in taken] == [{0: 0}, {1: 1, 2: 2}, {3: 3, 4: 4}]
    assert run.values == [None] * 7


def test_errors_are_in_the_block_of_their_item() -> None:
    """A later block does not bring the errors of an earlier one again."""
    blocks: list[Block | None] = []

    def function(x: int) -> int:
        blocks.append(run.take())
        return 1 // (x % 2)

    run = chunk(function, range(4))
    run.run(never)
    blocks.append(run.take())
    assert [sorted(block.errors) for block in blocks if block is not None] == [[0], [], [2], []]


def test_the_first_outcome_goes_at_once_when_the_rest_takes_long() -> None:
    """Nobody waits for a whole chunk of slow items to see the first result; a quick chunk is not interrupted."""
    flushed: list[int] = []
    run = chunk(lambda x: time.sleep(0.003), range(3))
    run.run(lambda: flushed.append(len(run.values)))
    assert flushed == [1]
    quick = chunk(lambda x: x, range(3))
    quick.run(lambda: flushed.append(-1))
    assert flushed == [1]


# --- the end of a chunk ---------------------------------------------------------------------------------------------


def test_a_chunk_that_shrinks_ends_there(precise: bool) -> None:
    """Items at or above the new end never run."""
    calls = []

    def function(x: int) -> int:
        calls.append(x)
        if x == 2000:
            run.hi = x + 1
        return x

    run = chunk(function, range(5000), precise=precise)
    found = result(run)
    assert calls[-1] == len(calls) - 1 == max(found)
    assert 2000 <= calls[-1] < (2001 if precise else 5000)


def test_nothing_runs_of_an_empty_chunk() -> None:
    """A stop may leave nothing of a chunk."""
    assert result(chunk(lambda x: x, range(5), hi=0)) == {}


def test_a_fenced_chunk_ends_after_its_item(precise: bool) -> None:
    """When the lease is lost, what is left runs elsewhere."""

    def function(x: int) -> int:
        run.fenced = run.fenced or x == 2
        return x

    run = chunk(function, range(50_000), precise=precise)
    assert 3 <= len(result(run)) < 50_000


def test_a_worker_that_shuts_down_ends_its_chunks() -> None:
    """A hand-back that is asked for while an item runs takes effect after it."""
    slot = claimed()
    assert len(result(chunk(lambda x: slot.hand_back(), range(100), slot=slot))) == 1


def test_a_cancel_is_seen_between_items() -> None:
    """A wish for whatever runs ends the chunk, even when its signal came between two items."""
    slot = claimed()
    run = chunk(lambda x: slot.ask(7, slots.ANY_ITEM, slots.CANCELLED), range(100), slot=slot)
    assert len(result(run)) == 1
    assert run.interrupted


@pytest.mark.parametrize(("serial", "index"), [(6, slots.ANY_ITEM), (7, 5)])
def test_a_wish_for_something_else_ends_nothing(serial: int, index: int) -> None:
    """Neither a wish for an old lease nor one for a single item ends the chunk."""
    slot = claimed()
    slot.ask(serial, index, slots.CANCELLED)
    assert len(result(chunk(lambda x: x, range(100), slot=slot))) == 100


@pytest.mark.parametrize(
    ("hi", "position", "shrinks"),
    [(6, 5, True), (6, 4, True), (6, 6, False), (6, 8, False), (10, 5, False), (11, 5, False)],
)
def test_a_chunk_shrinks_only_above_what_runs(hi: int, position: int, shrinks: bool) -> None:
    """The tail can be given back as long as the main thread has not begun with it."""
    run = chunk(lambda x: x, range(10))
    run.position = position
    assert run.shrink(hi) is shrinks
    assert run.hi == (hi if shrinks else 10)


def test_a_batch_that_meets_a_lower_end_is_made_smaller() -> None:
    """When the end comes down between planning a batch and beginning it, the batch is planned anew."""

    class Shrinking(ChunkRun):
        """Ends at 700 as soon as a batch would go beyond it."""

        @property
        def position(self) -> int:
            return self._position

        @position.setter
        def position(self, position: int) -> None:
            self._position = position
            if position > 500 and self.hi > 700:
                self.hi = 700

    run = chunk(lambda x: x, range(2000), precise=False, kind=Shrinking)
    assert sorted(result(run)) == list(range(700))


# --- interrupts -----------------------------------------------------------------------------------------------------


class Handler:
    """What SIGUSR1 does in a worker process, for a slot of a test."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot

    def __call__(self, number: int, frame: FrameType | None) -> None:
        Child._on_signal(SimpleNamespace(_slot=self.slot), number, frame)  # type: ignore[arg-type]

    def ask(self, index: int, why: int) -> None:
        """What the parent does."""
        self.slot.ask(7, index, why)
        signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def handler() -> Iterator[Handler]:
    """The handler is in force during the test."""
    handler = Handler(claimed())
    before = signal.signal(signal.SIGUSR1, handler)
    yield handler
    signal.signal(signal.SIGUSR1, before)


def test_a_timeout_is_the_items_error(handler: Handler) -> None:
    """The item that ran too long fails; those after it run."""

    def function(x: int) -> int:
        if x == 3:
            handler.ask(3, slots.TIMED_OUT)
        return x

    found = result(chunk(function, range(6), slot=handler.slot))
    assert kinds(found) == {3: "timeout"}
    assert found[3].type_name == "nbparallel.errors.ItemTimeout"
    assert "longer than its timeout" in found[3].message
    assert found[3].item == "3"
    assert [found[i] for i in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


def test_a_cancelled_item_has_no_outcome(handler: Handler, precise: bool) -> None:
    """A cancel ends the chunk at the running item, which counts as not run."""

    def function(x: int) -> int:
        if x == 700:
            handler.ask(slots.ANY_ITEM, slots.CANCELLED)
        return x

    run = chunk(function, range(2000), slot=handler.slot, precise=precise)
    assert result(run) == {i: i for i in range(700)}
    assert run.interrupted


@pytest.mark.parametrize("end", ["return", "raise other", "swallow"])
def test_what_the_item_makes_of_an_interrupt_does_not_matter(handler: Handler, end: str) -> None:
    """An item that was told to stop is stopped, whether it returns a value or raises something else."""

    def function(x: int) -> int:
        try:
            handler.ask(0, slots.TIMED_OUT)
        except BaseException:
            if end == "raise other":
                raise ValueError from None
        finally:
            if end == "return":
                return 5  # noqa: B012
        return 6

    assert kinds(result(chunk(function, [0], slot=handler.slot))) == {0: "timeout"}


def test_finally_blocks_are_not_interrupted_again(handler: Handler) -> None:
    """An interrupt is raised once; the clean-up of the item runs in peace."""
    cleaned = []

    def function(x: int) -> None:
        try:
            handler.ask(x, slots.TIMED_OUT)
        finally:
            for _ in range(3):
                signal.raise_signal(signal.SIGUSR1)
            cleaned.append(x)

    found = result(chunk(function, range(3), slot=handler.slot))
    assert cleaned == [0, 1, 2]
    assert kinds(found) == dict.fromkeys(range(3), "timeout")


def test_an_interrupt_between_two_items_raises_nothing(handler: Handler) -> None:
    """A signal while outcomes are noted finds nothing armed; an exact wish is stale then."""
    run = chunk(lambda x: x, range(4), slot=handler.slot)
    note = run.values.append

    class Values(list[Any]):
        def append(self, value: Any) -> None:
            handler.ask(len(self), slots.TIMED_OUT)
            note(value)
            super().append(value)

    run.values = Values()
    assert result(run) == {0: 0, 1: 1, 2: 2, 3: 3}


class Tracer:
    """Raises the signal at one chosen line of ``_step``, of the call and of the functions below it."""

    def __init__(self, handler: Handler, at: int, why: int) -> None:
        self.handler, self.at, self.why, self.line = handler, at, why, 0

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_name not in ("_step", "user_function"):
            return None
        if event in ("line", "return"):
            if self.line == self.at:
                self.line += 1
                words = self.handler.slot.words
                index = slots.ANY_ITEM if self.why == slots.CANCELLED else max(words[slots.INDEX], 0)
                self.handler.ask(index, self.why)
            self.line += 1
        return self


@pytest.mark.parametrize("why", [slots.CANCELLED, slots.TIMED_OUT])
def test_an_interrupt_at_any_line_is_handled(handler: Handler, why: int) -> None:
    """Wherever in a step the signal arrives, no exception escapes, and each item has at most one outcome."""

    def user_function(x: int) -> int:
        y = x + 1
        return y - 1

    interrupted = 0
    for at in itertools.count():
        handler.slot.child_starts(1, "stamp")
        handler.slot.child_claims(7, "job", "ticket")
        run = chunk(user_function, range(3), slot=handler.slot)
        tracer = Tracer(handler, at, why)
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            run.run(never)
        finally:
            sys.settrace(before)
        if tracer.line <= at:
            break
        block = run.take()
        found = outcomes_of(block) if block is not None else {}
        assert sorted(found) == list(range(len(found)))
        interrupted += run.interrupted or "timeout" in kinds(found).values()
        if why == slots.TIMED_OUT:
            assert len(found) == 3
            assert len(kinds(found)) <= 1
        else:
            assert all(found[index] == index for index in found)
        assert handler.slot.words[slots.ARMED] == 0
    assert interrupted >= 9, "inside each of the items at the least"


# --- two threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.00002])
def test_outcomes_taken_while_items_run(seconds: float) -> None:
    """A thread that takes again and again gets each outcome once, with the right errors, and none is lost."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def function(x: int) -> Any:
        if x % 11 == 4:
            raise ValueError(x)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return threading.Lock() if x % 97 == 1 else x

    count = 20_000 if not seconds else 3000
    run = chunk(function, range(count), precise=bool(seconds))
    blocks: list[Block] = []
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            if (block := run.take()) is not None:
                blocks.append(block)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        run.run(never)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    if (block := run.take()) is not None:
        blocks.append(block)
    assert len(blocks) > 1
    assert [block.lo for block in blocks[1:]] == [block.hi for block in blocks[:-1]]
    found: dict[int, Any] = {}
    for block in blocks:
        found |= outcomes_of(block)
    assert sorted(found) == list(range(count))
    expected = {i: "raised" if i % 11 == 4 else "result" for i in range(count) if i % 11 == 4 or i % 97 == 1}
    assert kinds(found) == expected
    assert all(found[i] == i for i in range(count) if i not in expected)


def test_a_tail_is_run_here_or_given_back_but_not_both() -> None:
    """However the two threads meet, what was given back is not begun here, and all before it is run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(150):
            give_back_once()
    finally:
        sys.setswitchinterval(before)


def give_back_once() -> None:
    """Run a chunk of which a second thread gives back what it can."""
    calls: list[int] = []
    run = chunk(calls.append, range(400), precise=False)
    given: list[int] = []
    begun = threading.Event()

    def give_back() -> None:
        begun.set()
        for _ in range(20):
            new_hi = run.position + 1
            if run.shrink(new_hi):
                given.append(new_hi)
                return

    thread = threading.Thread(target=give_back)
    thread.start()
    eventually(begun.is_set)
    run.run(never)
    thread.join()
    if given:
        assert calls == list(range(len(calls)))
        assert len(calls) <= given[0], "an item that was given back was run here"
    else:
        # The main thread may have met a lower end that was then taken back; what it left, its last report returns.
        assert calls == list(range(len(calls)))


# --- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("star", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_a_seeded_item_draws_by_its_index(star: bool, each: bool) -> None:
    """Wherever its chunk begins, and however its items travel, an item draws from the stream of its index."""
    imported("numpy")
    seeded = Seeded(lambda x: (x, random.random()), 5, False)
    items = [((x,),) if star else (x,) for x in range(6)]
    column: list[Any] = [pickling.dump(item) for item in items] if each else [item[0] for item in items]
    whole = result(chunk(abs, column, star=star, each=each, seeded=seeded))
    part = result(chunk(abs, column[2:], base=2, lo=3, hi=5, star=star, each=each, seeded=seeded))
    assert [value for value, _ in whole.values()] == list(range(6))
    assert part == {3: whole[3], 4: whole[4]}
    assert len({number for _, number in whole.values()}) == 6


@pytest.mark.parametrize("precise", [True, False], ids=["precise", "batch"])
def test_large_outcomes_are_reported_before_many_gather(precise: bool) -> None:
    """Once it is known how large outcomes are, no more than ``flush_bytes`` of them wait for the end of a chunk."""
    blocks: list[Block | None] = []
    run = chunk(lambda x: x.to_bytes(4, "little") * 250, range(2000), precise=precise)
    run.value_bytes = 1000.0  # as of the chunk before
    run.run(None, 1e-9, flush=lambda: blocks.append(run.take()), flush_bytes=20_000)
    counts = [block.count for block in blocks if block is not None]
    assert max(counts) <= 40  # a batch of less than that, and the next one
    assert sum(counts) > 1900
