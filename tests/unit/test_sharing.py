"""Shared values on a session's cluster: put once, put again after a loss, freed when nobody needs them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually
from unit.clientbench import Backend, Bench, ended, failure
from unit.workbench import KEY

from nbparallel import envelope, pickling
from nbparallel.api import share
from nbparallel.shared import Shared
from nbparallel.store.depot import Depot


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A connected session."""
    bench = Bench(monkeypatch).start()
    yield bench
    bench.close()


def there(bench: Bench) -> int:
    """How many shared values the store has."""
    return len(bench.server._shared)


def puts(bench: Bench) -> int:
    """How often one was put."""
    return bench.server.calls.count("put_shared")


def stored(bench: Bench, handle: Shared[list[int]]) -> object:
    """The value that the store has."""
    sealed = bench.server.get_shared(handle._core.id)
    assert sealed is not None
    where = envelope.place(bench.server.prefix, "shared", handle._core.id)
    return pickling.load(envelope.open_body(KEY, where, sealed, bench.session.depot))


def test_a_job_puts_what_it_refers_to_before_it_is_there(bench: Bench) -> None:
    """A value is put by the first job that uses it, sealed, as function or item refer to it; not by the next ones."""
    bench.work()
    one, two = share([1]), share([2])
    assert there(bench) == 0
    for _ in range(3):
        assert bench.job(lambda handle: handle.value, [one, two, one], chunks=2).result(20) == [[1], [2], [1]]
    assert (stored(bench, one), stored(bench, two)) == ([1], [2])
    assert puts(bench) == 2
    assert repr(one).endswith("on its cluster>")


def test_a_value_goes_when_its_handle_goes(bench: Bench) -> None:
    """With the last reference, and by ``close``."""
    one, two = share([1]), share([2])
    bench.session.shares.place([one._core, two._core])
    one.close()
    eventually(lambda: there(bench) == 1)
    del two
    gc.collect()
    eventually(lambda: there(bench) == 0)


def test_a_running_job_keeps_its_values(bench: Bench) -> None:
    """Closing or dropping the handle frees nothing before the job has ended; then it is freed."""
    for close in (True, False):
        handle = share([1])
        job = bench.job(lambda _: None, [handle])
        claim = bench.claim(job)
        if close:
            handle.close()
        del handle
        gc.collect()
        assert there(bench) == 1
        bench.report(job, claim)
        assert ended(job)
        del job
        gc.collect()
        eventually(lambda: there(bench) == 0)


def test_what_failed_can_run_again(bench: Bench) -> None:
    """A value that was freed after a job had failed is put again for its retry."""
    handle = share([1])
    job = bench.job(lambda _: None, [handle], on_error="return")
    claim = bench.claim(job)
    bench.report(job, claim, errors={0: failure()})
    assert ended(job)
    handle.close()
    eventually(lambda: there(bench) == 0)
    assert job.retry() == 1
    bench.report(job, bench.claim(job), attempt=2)
    assert ended(job)
    assert puts(bench) == 2
    eventually(lambda: there(bench) == 0)


def test_a_store_that_lost_it_gets_it_again(bench: Bench) -> None:
    """Both for the job that runs meanwhile and for the next one."""
    handle = share([1])
    job = bench.job(lambda _: None, [handle])
    bench.claim(job)
    bench.server.wipe()
    eventually(lambda: there(bench) == 1, 10)
    bench.work()
    assert ended(job)
    bench.server.wipe()
    bench.session.shares.place([handle._core])
    assert there(bench) == 1


def test_a_store_that_is_away_is_waited_for(bench: Bench) -> None:
    """The job says why it waits, goes on when the store is back, and can be cancelled meanwhile."""
    bench.server.away = True
    one, two = share([1]), share([2])
    job, other = bench.job(lambda _: None, iter([one])), bench.job(lambda _: None, iter([two]))
    eventually(lambda: "unreachable" in job.snapshot().reason)
    other.cancel()
    bench.server.away = False
    bench.work()
    assert ended(job)
    assert there(bench) == 1


def test_the_session_takes_its_values_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of a detached job that still runs; the handle is as new."""
    bench = Bench(monkeypatch, Backend(embedded=False)).start()
    monkeypatch.setattr("nbparallel.client.session.Beat", lambda *_: _NoBeat())
    handle, other = share([1]), share([2])
    bench.job(lambda _: None, [handle], detach=True)
    bench.session.shares.place([other._core])
    eventually(lambda: there(bench) == 2)
    bench.close()
    assert list(bench.server._shared) == [handle._core.id]
    assert repr(other).endswith("not sent yet>")


def test_values_inside_of_values_come_along(bench: Bench) -> None:
    """Whoever reads the outer one finds the inner one."""
    outer = share({"inner": share([1])})
    bench.session.shares.place([outer._core])
    assert there(bench) == 2


def test_on_one_machine_a_large_value_is_a_file(bench: Bench, tmp_path: Path) -> None:
    """It is written once, found there by the next job, written again when it is gone, and removed with the handle."""
    bench.session.depot = Depot(str(tmp_path), least=1000)
    handle = share(bytes(5000))
    for _ in range(2):
        bench.session.shares.place([handle._core])
    (name,) = os.listdir(tmp_path)
    os.unlink(tmp_path / name)
    bench.session.shares.place([handle._core])
    assert len(os.listdir(tmp_path)) == 1
    handle.close()
    assert os.listdir(tmp_path) == []


def test_time_does_not_take_what_is_in_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that runs for longer than results are kept extends the time of what it put."""
    handle = share([1])
    bench.session.shares.place([handle._core])
    bench.server.keep_shared(handle._core.id, 60_000)
    short = bench.server._shared[handle._core.id][0]
    bench.session.shares.tend()
    assert bench.server._shared[handle._core.id][0] == short
    bench.session.shares._tended -= bench.settings.result_ttl
    bench.session.shares.tend()
    assert bench.server._shared[handle._core.id][0] > short


class _NoBeat:
    def keep_up(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""
