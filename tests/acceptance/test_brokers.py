"""Another broker beside the store: RabbitMQ carries the tickets, and goes away in the midst of a job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.hosts import KEY, QUICK, Rig
from acceptance.rabbit import Rabbit, over_rabbitmq
from support import eventually

from nbparallel import connect, pmap

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]


def logged(index: int, log: str) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(0.05)
    return index


@pytest.fixture
def rabbit() -> Iterator[tuple[Rabbit, Rig]]:
    """A broker, a store, and two hosts."""
    with over_rabbitmq(**QUICK) as both:
        yield both


def test_tickets_through_rabbitmq(rabbit: tuple[Rabbit, Rig], tmp_path: Path) -> None:
    """With RabbitMQ as the broker jobs run as ever; when it is killed and comes back, every item still runs once."""
    broker, rig = rabbit
    log = tmp_path / "log"
    with connect(rig.server.url, key=KEY, **rig.settings) as cluster:
        assert pmap(abs, range(-100, 0), session=cluster).result(30) == list(range(100, 0, -1))
        job = pmap(logged, range(200), [str(log)] * 200, chunks=2, progress=False, session=cluster)
        eventually(lambda: log.exists() and len(log.read_text().split()) > 30, 20, f"the job runs {rig.logs()}")
        broker.stop()
        broker.start()
        back = time.monotonic()
        assert job.result(60) == list(range(200))
        print(f"{time.monotonic() - back:.1f} s after the broker was back")
        assert Counter(log.read_text().split()) == Counter(map(str, range(200)))
        # The workers hear of new work from the new broker.
        assert pmap(abs, range(-100, 0), session=cluster).result(30) == list(range(100, 0, -1))
