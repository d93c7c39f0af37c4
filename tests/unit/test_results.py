"""The client's store of outcomes."""

from __future__ import annotations

import gc
import os
import pickle
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbparallel.client import results as module
from nbparallel.client.results import Piece, Results
from nbparallel.errors import ResultDropped, WireError
from nbparallel.model import Block, ErrorRecord

BROKEN = ErrorRecord("raised", "ValueError", "odd", "7", "")


class Decoder:
    """Decodes bodies as pickles, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, body: Any) -> list[Any]:
        self.calls += 1
        return pickle.loads(body)


@pytest.fixture
def decode() -> Decoder:
    """A counting decoder."""
    return Decoder()


@pytest.fixture
def results(decode: Decoder) -> Iterator[Results]:
    """Results that are kept, in memory."""
    made = Results(True, 1 << 30, decode)
    yield made
    made.close()


def block(lo: int, hi: int, failed: tuple[int, ...] = (), attempt: int = 1, scale: int = 10) -> Block:
    """A block whose item i has the value scale × i, or failed."""
    values = [None if index in failed else index * scale for index in range(lo, hi)]
    return Block(lo, hi - lo, pickle.dumps(values), dict.fromkeys(failed, BROKEN), attempt, "host:1")


def outcomes(piece: Piece) -> list[Any]:
    """Values of a piece, with the message of its error in a failed place."""
    pairs = zip(range(piece.lo, piece.hi), piece.values, strict=True)
    return [piece.errors[index].record.message if index in piece.errors else value for index, value in pairs]


def in_order(results: Results, end: int) -> list[Any]:
    """All outcomes by index."""
    read: list[Any] = []
    while len(read) < end:
        piece = results.ordered(len(read))
        assert piece is not None
        read += outcomes(piece)
    return read


def by_arrival(results: Results) -> list[int]:
    """Indexes in the order of arrival."""
    indexes: list[int] = []
    position = 0
    while (piece := results.arrived(position)) is not None:
        indexes += range(piece.lo, piece.hi)
        position = piece.position + len(piece)
    return indexes


def files_open() -> int:
    """How many descriptors of deleted files this process holds."""
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists() or entry.is_symlink()]
    return sum(link.endswith("(deleted)") for link in links)


def test_outcomes_come_back_by_index_and_by_arrival(results: Results) -> None:
    """Whatever arrived can be read in input order and in the order of arrival."""
    assert results.add(block(5, 8)) == [(5, 8)]
    assert results.ordered(0) is None
    assert results.add(block(0, 5, failed=(3,))) == [(0, 5)]
    assert in_order(results, 8) == [0, 10, 20, "odd", 40, 50, 60, 70]
    assert by_arrival(results) == [5, 6, 7, 0, 1, 2, 3, 4]
    assert results.arrived(8) is None
    assert results.errors == {3: (BROKEN, "host:1", 1)}
    assert results.received.runs == [(0, 8)]


def test_reading_starts_anywhere(results: Results) -> None:
    """A reader that stands within a block gets the rest of it."""
    results.add(block(0, 10, failed=(2, 7)))
    piece = results.ordered(6)
    assert piece is not None
    assert (piece.lo, piece.hi, list(piece.errors), piece.values) == (6, 10, [7], [60, None, 80, 90])
    piece = results.arrived(8)
    assert piece is not None
    assert (piece.lo, piece.hi, piece.position, piece.values) == (8, 10, 8, [80, 90])


def test_an_item_is_received_once(results: Results) -> None:
    """Of a block that overlaps earlier ones only the new parts count, with their own values and errors."""
    results.add(block(4, 6))
    again = block(2, 8, failed=(3, 5), scale=-1)
    assert results.add(again) == [(2, 4), (6, 8)]
    assert results.add(again) == []
    results.add(block(0, 2))
    assert in_order(results, 8) == [0, 10, -2, "odd", 40, 50, -6, -7]
    assert set(results.errors) == {3}
    assert by_arrival(results) == [4, 5, 2, 3, 6, 7, 0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_overlapping_blocks(seed: int) -> None:
    """Blocks in any order, overlapping, doubled, spilled or not: each index once, with what came first."""
    rng = random.Random(seed)
    results = Results(True, rng.choice([0, 300, 1 << 20]), pickle.loads)
    expected: dict[int, Any] = {}
    while len(expected) < 60:
        lo = rng.randrange(60)
        hi = min(60, lo + rng.randrange(1, 9))
        scale = rng.randrange(1000)
        added = results.add(block(lo, hi, scale=scale))
        new = [index for index in range(lo, hi) if index not in expected]
        assert [index for a, b in added for index in range(a, b)] == new
        expected |= {index: index * scale for index in new}
    assert in_order(results, 60) == [expected[index] for index in range(60)]
    assert by_arrival(results) == list(expected)
    assert [results.get(index).value(index) for index in range(60)] == [expected[index] for index in range(60)]
    results.close()


def test_random_access_decodes_a_body_once(results: Results, decode: Decoder) -> None:
    """Item after item of one block costs one decoding, and nothing is decoded before it is read."""
    results.add(block(0, 1000))
    assert decode.calls == 0
    assert [results.get(index).value(index) for index in range(1000)] == list(range(0, 10_000, 10))
    assert decode.calls == 1
    with pytest.raises(KeyError):
        results.get(1000)


def test_decoded_bodies_are_not_kept_for_ever(results: Results, decode: Decoder) -> None:
    """Only a few bodies stay decoded, and large ones do not at all."""
    for lo in range(100):
        results.add(block(lo, lo + 1))
    for _ in range(2):
        for index in range(100):
            results.get(index).value(index)
    assert decode.calls == 200
    results.add(Block(100, 1, pickle.dumps([bytes(module._CACHED_BYTES)])))
    results.get(100).value(100)
    results.get(100).value(100)
    assert decode.calls == 202


def test_a_body_of_the_wrong_length_is_refused(results: Results) -> None:
    """A block that holds fewer values than it says gives an error, not shifted results."""
    results.add(Block(0, 3, pickle.dumps([1, 2])))
    piece = results.ordered(0)
    assert piece is not None
    with pytest.raises(WireError, match="3 outcomes holds 2"):
        piece.values


def test_dropped_outcomes_are_gone() -> None:
    """When results are not kept, an outcome handed out is forgotten, and asking for it again says why."""
    results = Results(False, 1 << 20, pickle.loads)
    results.add(block(0, 4))
    results.add(block(4, 8))
    first = results.ordered(0)
    assert first is not None
    results.drop(first)
    assert first.values == [0, 10, 20, 30]  # who holds it may go on reading
    for ask in (results.ordered, results.arrived, results.get):
        with pytest.raises(ResultDropped, match="keep=True"):
            ask(2)
    assert results.add(block(0, 4)) == []  # a late duplicate
    rest = results.ordered(4)
    assert rest is not None
    results.drop(rest.part(4, 6))  # half of it was read
    with pytest.raises(ResultDropped):
        results.get(5)
    assert results.get(6).value(6) == 60
    assert results.received.runs == [(0, 8)]
    assert results.dropped.runs == [(0, 6)]


def test_kept_outcomes_are_not_dropped(results: Results) -> None:
    """With keep, dropping changes nothing."""
    results.add(block(0, 4))
    piece = results.ordered(0)
    assert piece is not None
    results.drop(piece)
    assert in_order(results, 4) == [0, 10, 20, 30]


def test_an_endless_input_takes_no_memory() -> None:
    """Outcomes that are dropped once read leave nothing behind, in completion order too, nor do their errors."""
    results = Results(False, 1 << 20, pickle.loads)

    def feed(rounds: range) -> None:
        for at in rounds:
            lo = at * 20
            results.add(block(lo + 10, lo + 20, failed=(lo + 11,)))
            results.add(block(lo, lo + 10))
            for position in (lo, lo + 10):
                piece = results.arrived(position)
                assert piece is not None
                results.drop(piece)

    tracemalloc.start()
    sizes = []
    for lo in (0, 1500, 3000):  # the first round fills what is bounded
        feed(range(lo, lo + 1500))
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[2] - sizes[1] < 5_000
    assert results.memory_bytes == 0
    assert len(results.errors) <= module._DROPPED_ERRORS_KEPT + 10


def test_successes_cost_no_objects(results: Results) -> None:
    """A hundred thousand outcomes cost their bytes and little more."""
    blocks = [Block(lo, 1000, bytes(1000)) for lo in range(0, 100_000, 1000)]
    tracemalloc.start()
    for one in blocks:
        results.add(one)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000  # bytes: one an item


def test_skipped_items_have_no_outcome(results: Results) -> None:
    """What a block says of items that will run again does not count, neither value nor error."""
    assert results.add(block(0, 6, failed=(1, 4)), skip=[4, 5]) == [(0, 4)]
    assert set(results.errors) == {1}
    assert results.ordered(4) is None
    assert results.add(block(3, 6, attempt=2)) == [(4, 6)]
    assert in_order(results, 6) == [0, "odd", 20, 30, 40, 50]


def test_retried_items_are_received_anew(results: Results) -> None:
    """After a reset the failed items have no outcome until a later attempt's comes; late duplicates are no news."""
    results.add(block(0, 6, failed=(1, 2, 4)))
    results.reset([2, 1, 99])
    assert results.received.runs == [(0, 1), (3, 6)]
    assert set(results.errors) == {4}
    assert results.ordered(1) is None
    assert results.add(block(0, 6, failed=(1, 2, 4))) == []
    assert by_arrival(results) == [0, 3, 4, 5]
    assert results.add(block(1, 3, attempt=2)) == [(1, 3)]
    assert in_order(results, 6) == [0, 10, 20, 30, "odd", 50]
    assert by_arrival(results) == [0, 3, 4, 5, 1, 2]
    assert results.add(block(1, 3, attempt=3, scale=7)) == []
    results.reset([4])
    results.add(block(4, 5, failed=(4,), attempt=2))
    assert results.errors[4].attempt == 2


def test_a_reset_item_that_failed_anew_keeps_its_last_error(results: Results) -> None:
    """The error of a later attempt stands, whatever duplicates of earlier ones come after it."""
    results.add(block(0, 1, failed=(0,)))
    results.reset([0])
    results.add(block(0, 1, failed=(0,), attempt=2))
    results.reset([0])
    assert results.add(block(0, 1, attempt=2)) == []
    assert results.add(block(0, 1, attempt=3)) == [(0, 1)]
    assert results.errors == {}


def test_large_results_go_to_disk() -> None:
    """Above the limit bodies go to a file without a name, come back the same, and the file ends with close."""
    before = files_open()
    results = Results(True, 10_000, pickle.loads)
    for index in range(10):
        results.add(Block(index, 1, memoryview(pickle.dumps([bytes([index]) * 4000]))))
    assert results.memory_bytes <= 10_000
    assert results.spilled_bytes > 30_000
    assert files_open() == before + 1
    assert in_order(results, 10) == [bytes([index]) * 4000 for index in range(10)]
    assert results.get(9).value(9) == bytes([9]) * 4000
    last = results.get(9)
    results.close()
    results.close()
    assert files_open() == before
    with pytest.raises(ResultDropped):
        last.values
    with pytest.raises(ResultDropped):
        results.get(9)
    assert results.add(block(10, 20)) == []
    assert files_open() == before


def test_spill_files_end_with_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless input whose results are spilled does not fill the disk: files are closed as their last body goes."""
    monkeypatch.setattr(module, "_SPILL_FILE_BYTES", 5_000)
    before = files_open()
    results = Results(False, 0, pickle.loads)
    most = 0
    for index in range(50):
        results.add(Block(index, 1, pickle.dumps([bytes(2000)])))
        if index >= 4:
            piece = results.ordered(index - 4)
            assert piece is not None
            assert piece.values == [bytes(2000)]
            results.drop(piece)
            del piece
        most = max(most, files_open() - before)
    assert 1 < most <= 4
    results.close()
    del results
    gc.collect()
    assert files_open() == before


def test_what_is_shared_stays_while_there_is_room() -> None:
    """Bodies that have room where they lie count for themselves; those beyond it are treated like all others."""
    results = Results(False, 0, pickle.loads, lambda body: 6000 if len(body) > 1000 else 0)
    for index, size in enumerate((2000, 2000, 10, 3000)):
        results.add(Block(index, 1, memoryview(pickle.dumps([bytes(size)]))))
    assert 4000 < results.mapped_bytes < 5000
    assert 3000 < results.spilled_bytes < 3200
    for index in range(4):
        results.drop(results.get(index))
    assert results.mapped_bytes == results.spilled_bytes == results.memory_bytes == 0
    results.close()


def test_memory_is_free_again_when_the_last_part_goes() -> None:
    """A body counts as long as a part of it is there."""
    results = Results(False, 1 << 20, pickle.loads)
    results.add(block(0, 10))
    size = results.memory_bytes
    piece = results.get(0)
    results.drop(piece.part(3, 5))
    results.drop(piece.part(0, 3))
    assert results.memory_bytes == size
    results.drop(piece.part(5, 10))
    assert results.memory_bytes == 0


def test_a_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written to disk stays in memory."""

    def refuse(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    results = Results(True, 0, pickle.loads)
    results.add(block(0, 3))
    assert in_order(results, 3) == [0, 10, 20]
    assert results.memory_bytes > 0 == results.spilled_bytes
    results.close()


def test_what_was_gone_before_it_came_says_why(results: Results) -> None:
    """Lost items count as received and raise the reason; what has its outcome is left, and a late one is ignored."""
    results.add(block(4, 6))
    results.lose(0, 8, "{} is gone for good")
    assert results.received.first_missing() == 8
    assert results.dropped.runs == [(0, 4), (6, 8)]
    assert outcomes(results.get(4)) == [40, 50]
    for ask in (results.ordered, results.get):
        with pytest.raises(ResultDropped, match="result of item 7 is gone for good"):
            ask(7)
    assert results.add(block(0, 4)) == []
    assert [(piece.lo, piece.hi) for piece in results.pieces()] == [(4, 6)]
