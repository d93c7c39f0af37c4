"""Runs a job in the reader's own process and thread, item by item, as it is read: for debugging, and inside workers."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ..errors import ItemError, JobCancelled, ResultDropped
from ..frames import Record
from ..model import JobState, Snapshot
from ..remote import capture, rebuild, short_repr, to_raise
from ..seeding import Seeded, preserved
from ..store.keys import new_id
from ..tracebacks import attach
from .job import Job
from .reading import Input
from .spec import JobSpec

R = TypeVar("R")

__all__ = ["SerialJob"]


class SerialJob(Job[R]):
    """A job that runs when it is read. What the function raises is raised as it is, so that ``%debug`` sees its frames.

    Retries and timeouts are not applied: here one looks at what happens.
    """

    def __init__(self, function: Callable[..., R], spec: JobSpec, source: Input) -> None:
        self._function, self._settings, self._source = function, spec, source
        self._seeded = None if spec.seed is None else Seeded(function, spec.seed, spec.rng)
        self._times: list[tuple[float, float]] = []  # with keep: (start, duration) of each item
        self._outcomes: list[R | ItemError] = []  # with keep; else only counted
        self._count = 0
        self._failures: dict[int, ItemError] = {}
        self._failure: BaseException | None = None
        self._state: JobState = "starting"
        self._job_id = new_id()
        self._next: Iterator[R | ItemError] = self._run()

    def _run(self) -> Iterator[R | ItemError]:
        """Run item after item, yielding outcomes in order."""
        __tracebackhide__ = True  # %debug steps over it
        self._state = "running"
        try:
            while self._state == "running":
                columns = self._source.take(1)
                if not len(columns[0]):
                    self._state = "done"
                    return
                outcome = self._call(columns)
                self._count += 1
                if self._spec.keep:
                    self._outcomes.append(outcome)
                yield outcome
        except BaseException as error:
            self._state, self._failure = "failed", error
            raise

    def _call(self, columns: list[Sequence[Any]]) -> R | ItemError:
        __tracebackhide__ = True
        arguments = columns[0][0] if self._spec.star else tuple(column[0] for column in columns)
        started, clock = time.time(), time.perf_counter()
        try:
            if self._seeded is None:
                return self._function(*arguments)
            with preserved():
                value: R = self._seeded(self._count, *arguments)
                return value
        except Exception as error:
            item = columns[0][0] if len(columns) == 1 else arguments
            record = capture(error, "raised", short_repr(item))
            failure = self._failures[self._count] = rebuild(record, self._count)
            if self._spec.on_error == "raise":
                attach(error)
                raise
            return failure
        finally:
            if self._spec.keep:
                self._times.append((started, time.perf_counter() - clock))

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        if self._state == "cancelled":
            raise JobCancelled(f"job {self.name!r} was cancelled after {self._count:,} items")
        if self._failure is not None:
            raise self._failure

    def _outcome(self, index: int) -> R | ItemError:
        while len(self._outcomes) <= index:
            if next(self._next, self) is self:
                self._raise_failure()
                raise IndexError(f"item {index} of a job with {self._count} items")
        return self._outcomes[index]

    @property
    def _spec(self) -> JobSpec:
        return self._settings

    def _records(self) -> Iterator[Record]:
        for index, (outcome, (start, seconds)) in enumerate(zip(self._outcomes, self._times, strict=False)):
            error = self._failures.get(index)
            yield Record(index, None if error else outcome, error, start, seconds, "", 1)

    @property
    def output(self) -> list[tuple[int, str, str]]:
        """Nothing: here, what the function prints goes where it always goes."""
        return []

    @property
    def id(self) -> str:
        return self._job_id

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def status(self) -> JobState:
        return self._state

    @property
    def errors(self) -> list[ItemError]:
        return [self._failures[index] for index in sorted(self._failures)]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            id=self._job_id,
            name=self.name,
            state=self._state,
            total=self._source.total,
            done=self._count,
            failed=len(self._failures),
            running=0,
            waiting=0,
            retried=0,
            rate=None,
            eta=None,
            elapsed=0.0,
            busy=0.0,
            chunks=0,
        )

    @property
    def _total(self) -> int | None:
        return self._count if self._state == "done" else self._source.total

    def __iter__(self) -> Iterator[R]:
        __tracebackhide__ = True
        try:
            for _, value in self.as_completed():
                yield value
        finally:
            if not self._spec.keep:
                self.cancel()

    def as_completed(self) -> Iterator[tuple[int, R]]:
        __tracebackhide__ = True
        index = 0 if self._spec.keep else self._count
        while True:
            if self._spec.keep and index < self._count:
                outcome: Any = self._outcomes[index]
            elif (outcome := next(self._next, self)) is self:
                self._raise_failure()
                return
            if index not in self._failures or self._spec.on_error == "return":
                yield index, outcome
            index += 1

    def result(self, timeout: float | None = None) -> list[R]:
        __tracebackhide__ = True
        if self._count and not self._spec.keep:
            raise ResultDropped(f"results of job {self.name!r} were handed out before; pass keep=True to keep them")
        return list(self)

    def results_so_far(self) -> dict[int, R]:
        found = {index: outcome for index, outcome in enumerate(self._outcomes) if index not in self._failures}
        return found  # type: ignore[return-value]

    def __getitem__(self, index: Any) -> Any:
        if not self._spec.keep:
            raise ResultDropped("this job keeps no results; pass keep=True to read them by index")
        if isinstance(index, slice):
            return self._slice(index)
        index = operator.index(index)
        if index < 0:
            index += len(self)
        if index < 0:
            raise IndexError(f"item {index} of a job with {len(self)} items")
        outcome = self._outcome(index)
        if index in self._failures and self._spec.on_error != "return":
            raise to_raise(self._failures[index])
        return outcome

    def wait(self, timeout: float | None = None) -> bool:
        with contextlib.suppress(Exception):  # the results tell
            for _ in self._next:
                pass
        return True

    async def _result_async(self) -> list[R]:
        return self.result()

    async def __aiter__(self) -> AsyncIterator[R]:
        for value in self:
            yield value

    def cancel(self) -> bool:
        ended = self._state in ("done", "failed", "cancelled")
        if not ended:
            self._state = "cancelled"
        return not ended

    def __repr__(self) -> str:
        return f"<SerialJob {self.name!r} {self._state}: {self._count:,} done>"
