"""Chunks go to the store in order, and the very same call is repeated when its reply was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from nbparallel.client.outbox import SUBMIT_CHUNKS, Outbox
from nbparallel.errors import ConnectionFailed
from nbparallel.store.protocol import Submission, Submitted

OK = Submitted("ok", 0, 0, [])


class Store:
    """Takes batches; so many times as ``fails`` says it does not answer."""

    def __init__(self) -> None:
        self.guard = threading.Condition()
        self.outbox = Outbox(self.guard)
        self.calls: list[list[int]] = []
        self.prepared = 0
        self.sent: list[int] = []
        self.fails = 0

    def prepare(self, batch: Sequence[Submission]) -> Callable[[], Submitted]:
        """Called once a batch."""
        self.prepared += 1

        def call() -> Submitted:
            self.calls.append([submission.serial for submission in batch])
            if self.fails:
                self.fails -= 1
                raise ConnectionFailed("away")
            return OK

        return call

    def put(self, count: int) -> None:
        """So many chunks of one item."""
        with self.guard:
            for _ in range(count):
                self.outbox.put(0, 1, 1, "b", b"x")

    def send(self) -> None:
        """Send all."""
        self.outbox.send(self.prepare, lambda batch, _: self.sent.extend(submission.serial for submission in batch))


def test_all_is_sent_in_order_in_batches() -> None:
    """Serials rise by one, over calls of a bounded number of chunks."""
    store = Store()
    store.put(SUBMIT_CHUNKS + 3)
    store.send()
    assert [len(call) for call in store.calls] == [SUBMIT_CHUNKS, 3]
    assert store.sent == list(range(1, SUBMIT_CHUNKS + 4))
    store.send()
    assert len(store.calls) == 2


def test_a_call_without_reply_is_repeated_before_what_came_later() -> None:
    """The same batch with the same arguments goes first: a later serial before it would make the store ignore it."""
    store = Store()
    store.put(2)
    store.fails = 1
    with pytest.raises(ConnectionFailed):
        store.send()
    store.put(1)
    store.send()
    assert store.calls == [[1, 2], [1, 2], [3]]
    assert store.prepared == 2
    assert store.sent == [1, 2, 3]


def test_what_was_cleared_is_not_sent() -> None:
    """After ``clear`` neither the queue nor the call under way is left; serials go on."""
    store = Store()
    store.put(2)
    store.fails = 1
    with pytest.raises(ConnectionFailed):
        store.send()
    with store.guard:
        store.outbox.clear()
    store.put(1)
    store.send()
    assert store.calls == [[1, 2], [3]]
