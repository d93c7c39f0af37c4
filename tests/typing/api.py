"""Code as users write it; type-checked by ``mypy --strict``, never run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

from nbparallel import Cluster, Job, Snapshot, connect, pmap, pstarmap
from nbparallel.errors import ItemError, NbparallelError


def simulate(x: float, y: int = 1) -> str:
    return f"{x}{y}"


def parameters() -> Iterator[float]:
    yield from (0.5, 1.5)


def one_iterable() -> None:
    job = pmap(simulate, [1.0, 2.0])
    assert_type(job, Job[str])
    for result in job:
        assert_type(result, str)
    assert_type(job.result(), list[str])
    assert_type(job.result(timeout=3.0), list[str])
    assert_type(job[3], str)
    assert_type(job[1:3], list[str])
    assert_type(len(job), int)
    assert_type(job.id, str)
    assert_type(job.snapshot(), Snapshot)
    job.cancel()
    for error in job.errors:
        assert_type(error, ItemError)


def several_iterables() -> None:
    assert_type(pmap(simulate, [1.0], range(3)), Job[str])
    assert_type(list(pmap(pow, [1], [2])), list[Any])
    assert_type(pstarmap(simulate, [(1.0, 2), (2.0, 3)]), Job[str])


def options() -> None:
    pmap(simulate, parameters(), chunks=10, ordered=False, on_error="skip", name="runs", progress=False)
    pmap(simulate, parameters(), chunks="auto", on_error="return", keep=True, max_running=2, session="serial")
    pmap(simulate, parameters(), on_error="ignore")  # type: ignore[call-overload]
    pmap(simulate, 3)  # type: ignore[call-overload]


def infinite_input() -> None:
    for text in itertools.islice(pmap(str, itertools.count()), 10):
        assert_type(text, str)


async def in_async_code() -> None:
    job = pmap(simulate, [1.0])
    assert_type(await job, list[str])
    async for result in job:
        assert_type(result, str)


def clusters() -> None:
    with Cluster(workers=2, init=lambda: None) as cluster:
        assert_type(pmap(simulate, [1.0], session=cluster).result(), list[str])
    with connect("redis://host:6379/0", key=b"k" * 32) as session:
        pmap(simulate, [1.0], session=session)


def errors() -> None:
    try:
        pmap(simulate, [1.0]).result()
    except ItemError as error:
        assert_type(error.index, int)
        assert_type(error.traceback, str)
    except NbparallelError:
        pass
