"""What the broker is told by a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support import eventually

from nbparallel.worker import courier as module
from nbparallel.worker.courier import Courier


class Broker:
    """Takes tickets while its gate is open."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.gate = threading.Event()
        self.asked = 0

    def publish(self, job: str, ticket: str, queue: str, name: str) -> None:
        self.gate.wait(10)
        if ticket == "bad":
            raise OSError("refused")
        self.taken.append(ticket)

    def count(self) -> int:
        self.asked += 1
        return 3


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker that is away at first, and is there in the end."""
    broker = Broker()
    yield broker
    broker.gate.set()


def test_nobody_waits_for_a_broker_that_is_away(broker: Broker) -> None:
    """Tickets are taken at once and sent in their order when the broker is back; one that it refuses stops nothing."""
    courier = Courier(broker.publish, broker.count)
    courier.start()
    for ticket in ("a", "bad", "b"):
        courier.publish("job", ticket, "queue", "name")
    assert courier.waiting() == 0
    assert broker.taken == []
    broker.gate.set()
    courier.stop(10)
    assert broker.taken == ["a", "b"]
    assert not courier._thread.is_alive()


def test_messages_are_counted_behind_the_back(broker: Broker) -> None:
    """The answer to one look is given at the next, and once."""
    courier = Courier(broker.publish, broker.count)
    courier.start()
    assert courier.waiting() == 0
    eventually(lambda: courier._counted)
    assert courier.waiting() == 3
    eventually(lambda: broker.asked == 2)
    courier.stop(10)


def test_only_so_many_tickets_wait(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker is away for long, memory is bounded: lost tickets are replaced by others."""
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    courier = Courier(broker.publish, broker.count)
    for number in range(100):
        courier.publish("job", str(number), "queue", "name")
    broker.gate.set()
    courier.start()
    eventually(lambda: len(broker.taken) == 5)
    courier.stop(10)
    assert broker.taken == ["0", "1", "2", "3", "4"]
