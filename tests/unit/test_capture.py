"""What items write, caught in this process."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from nbparallel.client.output import Output
from nbparallel.worker.capture import LIMIT, Capture, merged
from nbparallel.worker.execute import ChunkRun
from nbparallel.worker.slot import Slots


class Rig:
    """A chunk of items that run in this process, with capture installed."""

    def __init__(self) -> None:
        self.slot = Slots(1)[0]
        self.slot.child_starts(1, "0" * 16)
        self.slot.child_claims(1, "job", "ticket")
        self.run: ChunkRun | None = None

    def chunk(self, function: Any, items: list[Any], precise: bool = True) -> ChunkRun:
        """A chunk that will be the running one."""
        self.run = ChunkRun(
            function,
            (items,),
            base=10,
            lo=10,
            hi=10 + len(items),
            attempt=1,
            star=False,
            each=False,
            precise=precise,
            budget=None,
            slot=self.slot,
            worker="w:1",
        )
        return self.run

    def output(self, function: Any, items: list[Any], precise: bool = True) -> list[tuple[int, str, str]]:
        """What the items wrote."""
        run = self.chunk(function, items, precise)
        run.run(lambda: None)
        block = run.take()
        assert block is not None
        return block.output


@contextlib.contextmanager
def capturing() -> Iterator[Rig]:
    """Capture in this process, undone at the end (no fixture: pytest exchanges the streams before each test)."""
    rig, root = Rig(), logging.getLogger()
    kept = sys.stdout, sys.stderr, warnings.showwarning, root.handlers[:]
    Capture(lambda: rig.run, rig.slot.words).install()
    try:
        yield rig
    finally:
        sys.stdout, sys.stderr, warnings.showwarning, root.handlers[:] = kept


def talk(x: int) -> int:
    """Write to every stream."""
    print("out", x)
    print("err", x, file=sys.stderr)
    logging.getLogger("mine").error("log %d", x)
    return x


def test_all_streams_are_caught_by_item() -> None:
    """Prints and logs arrive in order, with the index of their item."""
    with capturing() as rig:
        assert rig.output(talk, [1, 2]) == [
            (10, "stdout", "out 1\n"),
            (10, "stderr", "err 1\n"),
            (10, "log", "ERROR mine: log 1\n"),
            (11, "stdout", "out 2\n"),
            (11, "stderr", "err 2\n"),
            (11, "log", "ERROR mine: log 2\n"),
        ]


def test_warnings_are_caught() -> None:
    """A warning is one line, with its category; one that is recorded by the user stays with the user."""
    with capturing() as rig:

        def warn(x: int) -> int:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("careful", UserWarning, stacklevel=1)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.warn("quiet", stacklevel=1)
            return len(caught)

        assert rig.output(warn, [1]) == [(10, "warning", "UserWarning: careful\n")]


def test_items_of_a_batch_are_told_apart() -> None:
    """Very short items that run in one go still have their own output."""
    with capturing() as rig:
        items = list(range(5000))
        shown = rig.output(lambda x: print(x) if x % 1000 == 999 else None, items, precise=False)
        assert shown == [(10 + x, "stdout", f"{x}\n") for x in items if x % 1000 == 999]


def test_threads_of_an_item_are_caught() -> None:
    """What a thread of the function prints belongs to the item that runs."""
    with capturing() as rig:

        def threaded(x: int) -> None:
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()

        assert rig.output(threaded, [1]) == [(10, "stdout", "from a thread\n")]


def test_outside_of_items_nothing_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """What the worker itself prints goes where it always went."""
    with capturing() as rig:
        print("before")
        run = rig.chunk(talk, [1])
        print("between")
        assert run.take() is None
    assert capsys.readouterr().out == "before\nbetween\n"


def test_a_running_item_is_heard() -> None:
    """What an item wrote can be taken before it has an outcome, as a block of no items, and only once."""
    with capturing() as rig:
        blocks: list[Any] = []

        def work(x: int) -> int:
            print("half", x)
            assert rig.run is not None
            blocks.extend((rig.run.take(), rig.run.take()))
            print("whole")
            return x

        assert rig.output(work, [1]) == [(10, "stdout", "whole\n")]
        first, second = blocks
        assert (first.lo, first.count, first.output) == (10, 0, [(10, "stdout", "half 1\n")])
        assert second is None


def test_a_flood_is_cut_and_counted() -> None:
    """Of more than the limit the first part is kept, and the rest is counted; the next report has room again."""
    with capturing() as rig:
        output = rig.output(lambda x: [print("x" * 999) for _ in range(300)], [1])
        assert sum(len(text) for _, stream, text in output if stream != "cut") == LIMIT
        assert output[-1] == (10, "cut", str(300 * 1000 - LIMIT))
        assert rig.output(lambda x: print("more"), [1]) == [(10, "stdout", "more\n")]


def test_the_streams_behave_like_files() -> None:
    """Functions that ask streams for this and that, redirect them, or write what is no text, find what they expect."""
    with capturing() as rig:

        def probe(x: int) -> object:
            sys.stdout.flush()
            sys.stdout.writelines(["a", "b"])
            print("c", end="", flush=True)
            with contextlib.suppress(TypeError):
                sys.stdout.write(b"bytes")  # type: ignore[arg-type]
            sys.stdout.close()
            return sys.stdout.writable(), sys.stdout.encoding, sys.stdout.isatty()

        run = rig.chunk(probe, [1])
        run.run(lambda: None)
        assert run.values == [(True, sys.stdout.encoding, False)]
        assert not run.errors
        block = run.take()
        assert block is not None
        assert block.output == [(10, "stdout", "abc")]


def test_writes_are_joined() -> None:
    """Consecutive writes of one item to one stream are one entry."""
    entries = [(0, "stdout", "a"), (0, "stdout", "\n"), (0, "stderr", "e"), (0, "stdout", "b"), (1, "stdout", "c")]
    assert merged(entries, cut=5) == [
        (0, "stdout", "a\n"),
        (0, "stderr", "e"),
        (0, "stdout", "b"),
        (1, "stdout", "c"),
        (1, "cut", "5"),
    ]
    assert merged([]) == []


def test_the_clients_memory_is_bounded() -> None:
    """The client keeps the last so many characters, and counts all others, those cut by the worker too."""
    output = Output(limit=100)
    output.add([(0, "stdout", "a" * 60), (0, "cut", "7"), (1, "stdout", "b" * 60)])
    output.add([(2, "stdout", "c" * 150)])
    assert list(output.entries) == [(2, "stdout", "c" * 100)]
    assert output.cut == 60 + 7 + 60 + 50
