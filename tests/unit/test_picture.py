"""The details of a job: bounded, whatever its size, and adding up to what was received."""

from __future__ import annotations

import random

import pytest

from nbparallel.client import picture as module
from nbparallel.client.picture import FAILED, MOSTLY_FAILED, RUNNING, SUBMITTED, Picture
from nbparallel.model import Block, Details, ErrorRecord

TRACEBACK = (
    'Traceback (most recent call last):\n  File "/a/b/cell.py", line 7, in half\n    raise ValueError\nValueError: odd'
)


def block(lo: int, count: int, seconds: list[float] | None = None, worker: str = "h:1", **fields: object) -> Block:
    """The outcomes of [lo, lo + count)."""
    return Block(lo, count, b"", worker=worker, seconds=[0.01 * count] if seconds is None else seconds, **fields)  # type: ignore[arg-type]


def error(type_name: str = "ValueError", message: str = "odd", traceback: str = TRACEBACK) -> ErrorRecord:
    """Why an item failed."""
    return ErrorRecord("raised", type_name, message, "'item'", traceback)


def of(picture: Picture, running: int = 1, total: int | None = None) -> Details:
    """The details of a job that goes on."""
    return picture.details(running, total)


def test_a_cell_an_item_when_there_are_few() -> None:
    """Five items are five cells: done, failed, running, waiting and not submitted each have a look of their own."""
    picture = Picture(5)
    picture.submitted(0, 4)
    picture.received(block(0, 2, errors={1: error()}), (), 1.0)
    assert list(of(picture).cells) == [
        15 | SUBMITTED,
        15 | SUBMITTED | FAILED | MOSTLY_FAILED,
        SUBMITTED | RUNNING,
        SUBMITTED,
        0,
    ]
    assert list(of(picture, running=0).cells)[2] == SUBMITTED


def test_what_runs_is_guessed_from_the_order() -> None:
    """Of slots that did not report what they do, the map shows the oldest chunks without a report as running."""
    picture = Picture(8)
    for lo in range(0, 8, 2):
        picture.submitted(lo, lo + 2)
    assert [bool(cell & RUNNING) for cell in of(picture, running=2).cells] == [True, False] * 2 + [False] * 4
    picture.received(block(0, 2), (), 1.0)
    assert [bool(cell & RUNNING) for cell in of(picture, running=2).cells] == [False] * 2 + [True, False] * 2 + [
        False
    ] * 2


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("total", [1, 7, 1999, 2000, 2001, 123_457, 10_000_000])
def test_map_is_bounded_and_ends_full(total: int, known: bool) -> None:
    """From one item to ten million, the map has at most 2,000 cells and ends complete, whatever the order."""
    picture = Picture(total if known else None)
    step = max(1, total // 300)
    starts = list(range(0, total, step))
    for lo in starts:
        picture.submitted(lo, min(lo + step, total))
    random.Random(1).shuffle(starts)
    for lo in starts[:-1]:
        picture.received(block(lo, min(step, total - lo)), (), 1.0)
    before = of(picture)
    assert len(before.cells) * before.cell_items >= total
    assert any(cell & 15 != 15 for cell in before.cells)
    picture.received(block(starts[-1], min(step, total - starts[-1])), (), 1.0)
    cells = of(picture, running=0, total=total).cells
    assert 0 < len(cells) <= module.CELLS
    assert {cell & 15 for cell in cells} == {15}


def test_cell_tells_few_failures_from_many() -> None:
    """When a cell stands for many items, one failure among them does not paint it as failed."""
    picture = Picture(20_000)
    picture.received(block(0, 20, errors={0: error(), **{index: error() for index in range(10, 17)}}), (), 1.0)
    assert [cell & (FAILED | MOSTLY_FAILED) for cell in of(picture).cells[:3]] == [FAILED, FAILED | MOSTLY_FAILED, 0]


def test_item_that_is_tried_again_is_not_done() -> None:
    """Only a final failure marks the map and the list of failures."""
    picture = Picture(2)
    picture.received(block(0, 2, errors={0: error(), 1: error()}), {1}, 1.0)
    assert [cell & (FAILED | 15) for cell in of(picture).cells] == [FAILED | 15, 0]
    assert [group.many for group in of(picture).failures] == [1]


def test_reopened_items_are_open_again() -> None:
    """After a retry of the failures the map shows them open, and the list is empty."""
    picture = Picture(3)
    picture.received(block(0, 3, errors={1: error()}), (), 1.0)
    picture.reopened([1])
    assert [cell & (FAILED | 15) for cell in of(picture).cells] == [15, 0, 15]
    assert of(picture).failures == ()


def test_failures_are_grouped_by_type_and_place() -> None:
    """Ten thousand failures are a handful of groups, the largest first, each with a few examples and one traceback."""
    picture = Picture(20_000)
    other = TRACEBACK.replace("line 7", "line 9")
    for index in range(10_000):
        picture.received(block(index, 1, errors={index: error(traceback=other if index % 10 else TRACEBACK)}), (), 1.0)
    first, second = of(picture).failures
    assert (first.many, first.place, second.many, second.place) == (
        9000,
        "cell.py:9 in half",
        1000,
        "cell.py:7 in half",
    )
    assert len(first.examples) == module.FAILURE_EXAMPLES
    assert first.examples[0] == (1, "'item'", "odd")
    assert first.traceback == other
    assert of(picture).failures is of(picture).failures


def test_failures_of_many_kinds_are_bounded() -> None:
    """Failures that all differ, with huge tracebacks, keep the picture small and are counted."""
    picture = Picture(1000)
    for index in range(1000):
        picture.received(block(index, 1, errors={index: error(f"E{index}", traceback="x" * 1_000_000)}), (), 1.0)
    details = of(picture)
    assert len(details.failures) == module.FAILURE_GROUPS
    assert details.more_failures == 1000 - module.FAILURE_GROUPS
    assert max(len(group.traceback) for group in details.failures) < module.TRACEBACK_CHARACTERS + 10


def test_output_is_bounded_and_what_was_cut_is_counted() -> None:
    """The last lines stay, long ones cut, and every character is either there or counted as cut."""
    picture = Picture(1000)
    for index in range(1000):
        picture.received(block(index, 1, output=[(index, "stdout", "y" * 3000)]), (), 1.0)
    details = of(picture)
    assert details.output[-1] == (999, "stdout", "y" * module.OUTPUT_CHARACTERS)
    assert sum(len(text) for _, _, text in details.output) + details.output_cut == 3_000_000
    assert len(details.output) == module.OUTPUT_ENTRIES


def test_lane_shows_when_a_worker_was_busy() -> None:
    """Busy and idle times of a worker whose clock is an hour ahead stand where they were in the job."""
    picture = Picture(10)
    picture.received(block(0, 1, [1.0], started=3600.0), (), 1.0)
    picture.received(block(1, 1, [0.5], started=3602.0), (), 2.8)
    (lane,) = of(picture).lanes
    assert of(picture).lane_seconds == pytest.approx(0.1)
    assert sum(lane.busy) / 255 * 0.1 == pytest.approx(1.5, abs=0.05)
    assert max(lane.busy[11:20]) == 0
    assert (lane.worker, lane.item, lane.heard, lane.items) == ("h:1", 2, 2.8, 2)


def test_lanes_are_bounded_in_time_and_number() -> None:
    """Hours of work of a hundred processes fit, and the running time is neither lost nor invented."""
    picture = Picture(10_000)
    for index in range(10_000):
        picture.received(block(index, 1, [1.0], worker=f"h:{index % 100}", started=float(index)), (), index + 1.0)
    details = of(picture)
    assert (len(details.lanes), details.more_lanes) == (module.LANES, 100 - module.LANES)
    assert max(len(lane.busy) for lane in details.lanes) <= module.LANE_PIECES
    busy = sum(sum(lane.busy) for lane in details.lanes) / 255 * details.lane_seconds
    assert busy == pytest.approx(64 * 100, rel=0.2)


def test_what_a_worker_runs_is_unknown_after_its_chunk() -> None:
    """A worker that reported the middle of a chunk runs the next item of it; after the end nobody knows."""
    picture = Picture(10)
    picture.submitted(0, 4)
    picture.received(block(0, 2), (), 1.0)
    assert of(picture).lanes[0].item == 2
    picture.received(block(2, 2), (), 1.0)
    assert of(picture).lanes[0].item is None


def test_durations_count_every_item() -> None:
    """The histogram counts each item once, also of blocks that are only sampled, and the slowest are found."""
    picture = Picture(5000)
    picture.received(block(0, 1000, [0.001] * 999 + [2.0]), (), 1.0)
    picture.received(block(1000, 1000, [3.0]), (), 1.0)
    picture.received(block(2000, 2, [5.0, 4.0]), (), 1.0)
    details = of(picture)
    assert sum(details.durations) == 2002
    assert [(index, seconds) for index, seconds, _ in details.slowest][:3] == [(2000, 5.0), (2001, 4.0), (999, 2.0)]
    assert len(details.slowest) == module.SLOWEST_ITEMS


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6, 0.5, 1e6, 1e12])
def test_any_duration_has_a_bin(seconds: float) -> None:
    """No duration, however odd, is outside the histogram."""
    picture = Picture(1)
    picture.received(block(0, 1, [seconds]), (), 1.0)
    assert sum(of(picture).durations) == 1
