"""``ForkJoin``: setup, process and join as plain functions, bound by argument names; ``process`` runs as a ``pmap``."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar, overload

from . import pickling
from .api import IN_WORKER, OnError, Where, pmap
from .calls import Bound, Joined
from .client.feed import Feed
from .client.job import HEARTBEAT, Job
from .client.spec import JobSpec
from .cluster.handle import default_cluster
from .errors import ItemError, ResultNotReady, UsageError
from .merging import GROUP, Merger
from .model import JobState, Snapshot
from .policies import RetryPolicy
from .schema import Schema
from .steps import Items, Step, first_of, is_same_again, listed, parameters_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ForkJoin"]

F = TypeVar("F", bound=Callable[..., Any])
StepName = Literal["setup", "process", "join"]


class Options(TypedDict, total=False):
    """The keyword arguments of a fork-join: those of ``pmap`` that make sense for its ``process``."""

    chunks: int | Literal["auto"]
    on_error: OnError
    retries: int | RetryPolicy
    timeout: float | None
    name: str | None
    progress: bool | str
    queue: str | None
    max_running: int
    session: Where


class ForkJoin:
    """A computation of three steps: ``setup`` makes items, ``process`` runs on each in parallel, ``join`` ends it.

    Make a subclass, and decorate plain functions with its ``setup``, ``process`` and ``join``. All are called with
    arguments by name:

    - ``setup`` gets the user's input, and returns or yields dicts: the arguments of one call of ``process`` each.
      It runs here; what it yields is read as the workers get on.
    - ``process`` gets the items of such a dict, and any user input that it names and ``setup`` does not produce.
      The latter travels to each worker process once, each dict once in all.
    - ``join`` gets the list of all results, in order, and any user input that it names. It runs here. With
      ``join(reduce=True)`` it must be associative (its result can stand for the results that went in): then neighbours
      are joined on the workers as results come, and memory stays small.

    An instance is the handle of one run, with ``result``, ``cancel``, ``errors``, ``status``, ``snapshot``, ``await``;
    ``job`` is the job of ``process``.

    Attributes:
        schema: what the input must look like: Cerberus rules or a pydantic model; None: any dict. Defaults and
            conversions are applied.

    Args:
        inputs: the user's input, by name.
        **options: ``chunks``, ``on_error``, ``retries``, ``timeout``, ``name``, ``progress``, ``queue``,
            ``max_running`` and ``session``, as for ``pmap``; they are about ``process``.

    Raises:
        UsageError: a step is missing, the input breaks the schema, or nobody provides an argument; nothing was sent.

    >>> from nbparallel import ForkJoin
    >>> class Total(ForkJoin):
    ...     pass
    >>> @Total.setup
    ... def split(text):
    ...     return [{"word": word} for word in text.split()]
    >>> @Total.process
    ... def measure(word, unit=1):
    ...     return len(word) * unit
    >>> @Total.join
    ... def total(lengths):
    ...     return sum(lengths)
    >>> Total.run_locally({"text": "three short words", "unit": 2})
    30
    """

    schema: ClassVar[Any] = None
    _schema: ClassVar[Schema]
    _steps: ClassVar[dict[str, Step]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._steps = {}
        cls._schema = Schema(cls.schema, cls.__name__)

    # -- definition ----------------------------------------------------------------------------------------------------

    @classmethod
    def setup(cls, function: F) -> F:
        """Decorator: the function that makes the items."""
        return cls._define("setup", function)

    @classmethod
    def process(cls, function: F) -> F:
        """Decorator: the function that runs for each item, on the workers."""
        return cls._define("process", function)

    @classmethod
    @overload
    def join(cls, function: F, /) -> F: ...

    @classmethod
    @overload
    def join(cls, /, *, reduce: bool = False) -> Callable[[F], F]: ...

    @classmethod
    def join(cls, function: Any = None, /, *, reduce: bool = False) -> Any:
        """Decorator: the function that ends it; its first parameter receives the list of results.

        Args:
            function: the function, when used without parentheses.
            reduce: it is associative, so results may be joined in parts, by neighbours.
        """
        if function is None:
            return lambda function: cls._define("join", function, reduce)
        return cls._define("join", function, reduce)

    @classmethod
    def _define(cls, name: StepName, function: F, reduce: bool = False) -> F:
        if cls is ForkJoin:
            raise UsageError(f"make a subclass of ForkJoin, and decorate {name} with that")
        parameters = parameters_of(f"{cls.__name__}.{name}", function, first=name == "join")
        step = Step(function, parameters, reduce)
        old = cls._steps.get(name)
        if old is not None and not is_same_again(old.function, function):
            raise UsageError(
                f"{cls.__name__} has a {name} step already: {old.shown}; {step.shown} would be a second one"
            )
        known = cls._schema.names
        if known is not None and name != "process" and (missing := step.missing(known)):
            raise UsageError(
                f"{cls.__name__}.{name}: {step.shown} takes {missing[0]!r}, which nobody provides; "
                f"the schema has {listed(known)}"
            )
        cls._steps[name] = step
        return function

    @classmethod
    def _step(cls, name: StepName) -> Step:
        for base in cls.__mro__:
            if name in vars(base).get("_steps", ()):
                step: Step = vars(base)["_steps"][name]
                return step
        raise UsageError(f"{cls.__name__} has no {name} step; decorate a function with @{cls.__name__}.{name}")

    # -- running -------------------------------------------------------------------------------------------------------

    def __init__(self, inputs: Mapping[str, Any], /, **options: Unpack[Options]) -> None:
        cls = type(self)
        unknown = sorted(set(options) - set(Options.__annotations__))
        if unknown:
            known = ", ".join(Options.__annotations__)
            raise UsageError(f"a fork-join has no option {unknown[0]!r}; known are {known}")
        values = cls._values(inputs)
        items, process = cls._fork(values)
        step = cls._step("join")
        self._joined = Joined(step.function, step.choose(values))
        self._reduce = step.reduce
        self._lock = threading.Lock()
        self._result: tuple[Any] | None = None
        self._merger: Merger | None = None
        all_options: dict[str, Any] = {**options, "name": options.get("name") or cls.__name__, "keep": True}
        if step.reduce and options.get("session") != "serial" and not os.environ.get(IN_WORKER):
            self.job, self._merger = self._start_merging(process, items, all_options)
        else:
            self.job = pmap(process, items, **all_options)

    def _start_merging(
        self, process: Bound, items: Iterable[dict[str, Any]], options: dict[str, Any]
    ) -> tuple[Job[Any], Merger]:
        """The job of process, and what joins its results as they come."""
        join = pickling.dump_function(self._joined)  # what is wrong with it shows before anything is sent
        options |= {"keep": False, "ordered": False}
        job: Job[Any] = pmap(process, items, **options)
        session = (options.get("session") or default_cluster()).session
        queue = options.get("queue") or ""
        spec = JobSpec(
            name=f"{job.name}: join",
            function=join,
            ordered=False,
            on_error="return",
            queue=queue,
            keep=False,
            sized=False,
        )
        return job, Merger(job, Feed(spec, session), lambda: session.slots(queue), options.get("on_error", "raise"))

    @classmethod
    def _values(cls, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The checked input; every step is there and gets what it needs, as far as that can be known without setup."""
        steps = {name: cls._step(name) for name in ("setup", "process", "join")}
        values = cls._schema.check(inputs)
        for name in ("setup", "join"):
            if missing := steps[name].missing(values):
                raise UsageError(
                    f"{cls.__name__}.{name}: {steps[name].shown} takes {missing[0]!r}, which nobody provides; "
                    f"the input has {listed(values)}"
                )
        taken = {name for step in steps.values() for name in step.parameters}
        if cls._schema.names is None and (unused := sorted(set(values) - taken)):
            raise UsageError(
                f"the input of {cls.__name__} has {unused[0]!r}, which no step takes; they take {listed(taken)}"
            )
        return values

    @classmethod
    def _fork(cls, values: Mapping[str, Any]) -> tuple[Iterable[dict[str, Any]], Bound]:
        """Run setup, up to its first item when it is lazy: the items, and the function that runs for each."""
        setup, process = cls._step("setup"), cls._step("process")
        made = setup.function(**setup.choose(values))
        if isinstance(made, (Mapping, str, bytes)) or not isinstance(made, Iterable):
            kind = type(made).__name__
            raise UsageError(f"{cls.__name__}.setup: {setup.shown} must return or yield dicts, not a single {kind}")
        sized = hasattr(type(made), "__len__")
        rest = iter(made)
        first = list(first_of(rest))
        items = Items(cls.__name__, process, values, first)
        checked = items.check(chain(first, rest))
        if sized:
            return list(checked), items.function
        # What the first needs is known before anything is sent.
        return chain(list(first_of(checked)), checked), items.function

    # -- the handle ----------------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """What ``join`` returned; waits for it.

        Args:
            timeout: seconds to wait at most.

        Raises:
            ResultNotReady: ``timeout`` passed.
            JobCancelled: it was cancelled.
            Exception: what a step raised.
        """
        if self._result is None:
            values = self._results(timeout)
            with self._lock:
                if self._result is None:
                    self._result = (self._joined(values),)
        return self._result[0]

    def _results(self, timeout: float | None) -> list[Any]:
        if self._merger is not None:
            self._wait(timeout)
            return self._merger.done.result()
        values = self.job.result(timeout)
        while self._reduce and len(values) > GROUP:  # in this process, in parts as on the workers
            values = [self._joined(values[at : at + GROUP]) for at in range(0, len(values), GROUP)]
        return values

    def _wait(self, timeout: float | None) -> None:
        assert self._merger is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._merger.done.done():
                if deadline is not None and time.monotonic() >= deadline:
                    raise ResultNotReady(f"{self!r} did not end within {timeout} s")
                rest = HEARTBEAT if deadline is None else min(HEARTBEAT, max(0.0, deadline - time.monotonic()))
                try:
                    self._merger.done.exception(rest)
                except FutureTimeout:
                    continue
        except KeyboardInterrupt:
            self.cancel()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the last item and partial join have ended, at most ``timeout`` seconds; whether they have."""
        if self._merger is None:
            return self.job.wait(timeout)
        try:
            self._wait(timeout)
        except ResultNotReady:
            return False
        return True

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result_async().__await__()

    async def _result_async(self) -> Any:
        try:
            while not self.wait(0):
                await asyncio.sleep(HEARTBEAT / 4)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return await asyncio.to_thread(self.result)

    def cancel(self) -> bool:
        """Stop everything; never blocks. False when it had ended already."""
        ended = self.status in ("done", "failed", "cancelled")
        self.job.cancel()
        if self._merger is not None:
            self._merger.cancel()
        return not ended

    @property
    def id(self) -> str:
        """The id of its job."""
        return self.job.id

    @property
    def name(self) -> str:
        """What progress views call it."""
        return self.job.name

    @property
    def status(self) -> JobState:
        """``starting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        state = self.job.status
        if self._merger is None or state != "done":
            return state
        if not self._merger.done.done():
            return "running"
        return "failed" if self._merger.done.exception() is not None else "done"

    @property
    def errors(self) -> list[ItemError]:
        """The items that failed so far, by index."""
        return self.job.errors

    def snapshot(self) -> Snapshot:
        """Counts, rates and state of ``process`` at this moment."""
        return self.job.snapshot()

    def __repr__(self) -> str:
        shot = self.snapshot()
        total = "?" if shot.total is None else f"{shot.total:,}"
        return f"<{type(self).__name__} {self.status}: {shot.done:,} of {total} done>"

    # -- elsewhere -----------------------------------------------------------------------------------------------------

    @classmethod
    def run_locally(cls, inputs: Mapping[str, Any], /) -> Any:
        """Run everything in this process, without Celery: for tests, and to step through with a debugger."""
        return cls(inputs, session="serial").result()

    @classmethod
    def signature(
        cls, inputs: Mapping[str, Any] | None = None, /, *, partial: bool = False, app: Any = None, **options: Any
    ) -> Any:
        """A Celery signature that runs this fork-join on a worker, for chains, chords, callbacks and beat.

        The application's workers must allow it: ``nbparallel.celery.add_forkjoin(app)``. There ``process`` runs on
        the cluster that ``NBPARALLEL_URL`` names, else on the cores of that machine. Both sides need the same key
        (``NBPARALLEL_KEY_FILE``). What ``join`` returns is the task's result, in the application's serializer.

        Args:
            inputs: the user's input; it travels in the message.
            partial: more of the input comes from the task before it in a chain, which returns a dict; also when
                ``inputs`` is left out. Without it the result of the task before is not looked at.
            app: the application; by default the current one.
            **options: as for running it here, without ``session`` and ``progress``.

        Raises:
            UsageError: as for running it here.
        """
        from . import celery

        known = set(Options.__annotations__) - {"session", "progress"}
        if unknown := sorted(set(options) - known):
            raise UsageError(f"a signature has no option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        partial = partial or inputs is None
        if partial:
            cls._step("setup"), cls._step("process"), cls._step("join")
            cls._schema.check(inputs or {}, partial=True)
        else:
            cls._values(inputs or {})
        call = pickling.dump_function(functools.partial(_run_task, cls, dict(inputs or {}), options))
        return celery.forkjoin_signature(call, partial, app)


def _run_task(cls: type[ForkJoin], inputs: dict[str, Any], options: dict[str, Any], *before: Any) -> Any:
    """What the Celery task does; ``before``: what the task before it returned."""
    for result in before:
        if not isinstance(result, Mapping):
            message = (
                f"the task before {cls.__name__} must return a dict with the rest of its input, not {result!r:.60}"
            )
            raise UsageError(message)
        inputs = {**inputs, **result}
    running = cls(inputs, progress=False, **options)
    try:
        return running.result()
    except BaseException:  # a time limit of Celery's, for one
        running.cancel()
        raise
