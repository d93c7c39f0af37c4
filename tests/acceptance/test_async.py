"""Jobs in an event loop, with real worker processes."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from support import Gate, eventually

from nbparallel import Cluster, JobCancelled, ResultDropped, pmap

PATIENCE = 20.0


def square(x: int) -> int:
    """The function of most of these jobs."""
    return x * x


def test_await(cluster: Cluster) -> None:
    """``await job`` gives all results, as often as one likes; of several jobs too."""

    async def main() -> None:
        job = pmap(square, range(50), session=cluster)
        assert await job == await job == [x * x for x in range(50)]
        jobs = [pmap(lambda x: x + n, range(20), session=cluster) for n in range(5)]  # noqa: B023
        await asyncio.gather(*(job._result_async() for job in jobs))
        assert await pmap(square, iter(range(20)), session=cluster) == [x * x for x in range(20)]

    asyncio.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_async_for(cluster: Cluster, ordered: bool) -> None:
    """``async for`` gives results as they come, twice when they are kept, once when they are not."""

    async def main() -> None:
        job = pmap(square, range(50), ordered=ordered, session=cluster)
        for _ in range(2):
            assert sorted([x async for x in job]) == [x * x for x in range(50)]
        dropping = pmap(square, iter(range(50)), ordered=ordered, session=cluster)
        assert sorted([x async for x in dropping]) == [x * x for x in range(50)]
        with pytest.raises(ResultDropped):
            await dropping

    asyncio.run(main())


def test_errors(cluster: Cluster) -> None:
    """The user's exception is raised in its place, by ``await`` and in the loop."""

    async def main() -> None:
        job = pmap(lambda x: 1 // (x - 3), range(10), session=cluster)
        got = []

        async def read() -> None:
            async for x in job:
                got.append(x)  # noqa: PERF401  (what came before the error is to be seen)

        with pytest.raises(ZeroDivisionError):
            await read()
        assert got == [-1, -1, -1]
        with pytest.raises(ZeroDivisionError):
            await job
        returned = await pmap(lambda x: 1 // (x - 3), range(5), on_error="return", session=cluster)
        assert [type(x).__name__ for x in returned] == ["int", "int", "int", "RemoteError", "int"]

    asyncio.run(main())


def test_loop_is_not_blocked(cluster: Cluster, gate: Gate) -> None:
    """While one coroutine waits for a job, others run: the item here ends only because another one goes on."""

    async def main() -> None:
        job = pmap(lambda x: gate.wait() or x, range(2), session=cluster)

        async def other() -> None:
            await asyncio.sleep(0)
            gate.open()

        waiting = asyncio.ensure_future(other())
        assert [x async for x in job] == [0, 1]
        await waiting

    asyncio.run(main())


def test_leaving_the_loop_stops_the_job(cluster: Cluster) -> None:
    """``break`` out of an endless job ends it."""

    async def main() -> None:
        job = pmap(square, itertools.count(), session=cluster)
        async for x in job:
            if x >= 100:
                break
        # The event loop closes the left generator.
        await asyncio.to_thread(eventually, lambda: job.status == "cancelled", PATIENCE)

    asyncio.run(main())


def test_cancelled_task_cancels_the_job(cluster: Cluster, gate: Gate) -> None:
    """A task that is cancelled while it awaits a job takes the job with it, as does a timeout."""

    async def main() -> None:
        job = pmap(lambda x: gate.wait(), range(2), session=cluster)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job._result_async(), 0.05)
        assert job.status == "cancelled"
        with pytest.raises(JobCancelled):
            await job

    asyncio.run(main())


def test_cancel_wakes_the_waiting(cluster: Cluster, gate: Gate) -> None:
    """A job that is cancelled from elsewhere ends the wait with ``JobCancelled``."""

    async def main() -> None:
        job = pmap(lambda x: gate.wait(), range(2), session=cluster)
        waiting = asyncio.ensure_future(job._result_async())
        await asyncio.sleep(0)
        assert await asyncio.to_thread(job.cancel)
        with pytest.raises(JobCancelled):
            await waiting

    asyncio.run(main())
    assert eventually(lambda: pmap(square, [3], session=cluster).result(), PATIENCE) == [9]


def test_serial() -> None:
    """A serial job can be awaited and looped over like any other."""

    async def main() -> None:
        job = pmap(square, range(5), session="serial")
        assert await job == [0, 1, 4, 9, 16]
        assert [x async for x in job] == [0, 1, 4, 9, 16]

    asyncio.run(main())
