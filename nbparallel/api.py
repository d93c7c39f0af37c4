"""``pmap`` and ``pstarmap``: check the arguments, hand a job to a session, open its progress view."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, overload

from . import pickling, shared
from .client.attached import JobInfo, find_job, list_jobs
from .client.cell import started
from .client.job import Job
from .client.reading import Input
from .client.running import RunningJob
from .client.serial import SerialJob
from .client.spec import JobSpec
from .cluster.handle import Cluster, RemoteCluster, default_cluster
from .errors import JobError, UsageError
from .frames import Inputs
from .policies import RetryPolicy
from .progress.echo import open_echo
from .progress.view import View, open_view
from .seeding import check_seed, draws, fresh_seed, shared_generators
from .shared import Shared

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .client.session import Session

__all__ = ["attach", "jobs", "pmap", "pstarmap", "share"]

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
T = TypeVar("T")

OnError: TypeAlias = Literal["raise", "return", "skip"]
Where: TypeAlias = "Cluster | RemoteCluster | Literal['serial'] | None"
#: Set in the environment of worker processes (by the worker); a ``pmap`` there runs serially.
IN_WORKER = "NBPARALLEL_IN_WORKER"


class Options(TypedDict, total=False):
    """The keyword arguments of ``pmap`` and ``pstarmap``, for type checkers."""

    chunks: int | Literal["auto"]
    ordered: bool
    on_error: OnError
    retries: int | RetryPolicy
    timeout: float | None
    name: str | None
    progress: bool | str
    queue: str | None
    keep: bool | Literal["auto"]
    max_running: int
    seed: int | None
    interrupt: Literal["cancel", "keep"]
    detach: bool
    memory_limit: int | None
    priority: int
    session: Where


@overload
def pmap(fn: Callable[[A], R], iterable: Iterable[A], /, **options: Unpack[Options]) -> Job[R]: ...


@overload
def pmap(
    fn: Callable[[A, B], R], iterable: Iterable[A], second: Iterable[B], /, **options: Unpack[Options]
) -> Job[R]: ...


@overload
def pmap(fn: Callable[..., R], /, *iterables: Iterable[Any], **options: Unpack[Options]) -> Job[R]: ...


def pmap(
    fn: Callable[..., R],
    /,
    *iterables: Iterable[Any],
    chunks: int | Literal["auto"] = "auto",
    ordered: bool = True,
    on_error: OnError = "raise",
    retries: int | RetryPolicy = 0,
    timeout: float | None = None,
    name: str | None = None,
    progress: bool | str = "auto",
    queue: str | None = None,
    keep: bool | Literal["auto"] = "auto",
    max_running: int = 0,
    seed: int | None = None,
    interrupt: Literal["cancel", "keep"] = "cancel",
    detach: bool = False,
    memory_limit: int | None = None,
    priority: int = 0,
    session: Where = None,
) -> Job[R]:
    """Call a function for every item, in parallel; returns at once.

    Args:
        fn: any function, also one defined in this cell, a closure or a lambda.
        *iterables: the items; several are read together like ``map`` does, and the shortest ends it.
        chunks: ``"auto"`` (chunks of about 50 ms, measured as they run) or the number of items in each chunk.
        ordered: results in input order (True), or as they complete.
        on_error: ``"raise"`` the first failure in its place, ``"return"`` an ``ItemError`` there, or ``"skip"`` it.
        retries: how often a failed item is tried again, or a ``RetryPolicy``.
        timeout: seconds that one item may run.
        name: what progress views call the job; by default the function's name.
        progress: ``"auto"``, True or False.
        queue: Celery queue; by default the setting's.
        keep: whether results stay after they were handed out; ``"auto"``: if the input has a length.
        max_running: most items that run at once; 0: no limit.
        seed: every item draws from a random stream of its own, spawned from the seed by its index: the same whatever
            the chunks, workers, retries or order. A parameter ``rng`` of the function receives a numpy ``Generator``;
            else ``random`` and ``numpy.random`` are seeded before each item. None: streams differ from run to run.
        interrupt: what ■ does to the job that the interrupted cell reads or awaits: ``"cancel"`` or ``"keep"``.
        detach: hand the whole input over before this returns; the job then goes on without this process, and
            ``attach(job.id)`` reads and cancels it from any other. What fails without this process is not tried again
            by ``retries``; of the results the newest 256 MB stay (setting ``kept_bytes``), and ``attach`` says which
            are gone. For clusters that ``connect`` returned.
        memory_limit: bytes that a worker process may use while it runs an item of this job; one that uses more is
            stopped, and its item becomes a ``WorkerCrashed`` that says so.
        priority: -9 to 9. Of the jobs on a queue, those of all clients, the one with the highest priority gets every
            worker process that is done with a chunk; jobs of the same priority take turns.
        session: a ``Cluster``, what ``connect`` returned, ``"serial"`` (in this process, for debugging), or None: the
            cluster of this process, started on first use.

    Returns:
        A ``Job``: iterate it, index it, await it, cancel it.

    Raises:
        UsageError: an argument is wrong; nothing was sent.
        SerializationError: the function cannot be pickled; the message says what in it cannot.

    >>> from nbparallel import pmap
    >>> list(pmap(lambda x, y: x * y, [1, 2, 3], [4, 5, 6], session="serial"))
    [4, 10, 18]
    """
    options = Options(
        chunks=chunks, ordered=ordered, on_error=on_error, retries=retries, timeout=timeout, name=name,
        progress=progress, queue=queue, keep=keep, max_running=max_running, seed=seed, interrupt=interrupt,
        detach=detach, memory_limit=memory_limit, priority=priority, session=session,
    )  # fmt: skip
    return _start(fn, iterables, False, options)


def pstarmap(fn: Callable[..., R], tuples: Iterable[Iterable[Any]], /, **options: Unpack[Options]) -> Job[R]:
    """Like ``pmap``, for items that are tuples of arguments; see ``itertools.starmap``.

    >>> from nbparallel import pstarmap
    >>> list(pstarmap(pow, [(2, 3), (3, 2)], session="serial"))
    [8, 9]
    """
    return _start(fn, (tuples,), True, options)


def _start(fn: Callable[..., R], iterables: tuple[Iterable[Any], ...], star: bool, options: Options) -> Job[R]:
    if not callable(fn):
        raise UsageError(f"the first argument must be a function, not {fn!r:.60}; the items come second")
    _check_options(options)
    detach = options.get("detach", False)
    if detach and not all(hasattr(iterable, "__len__") for iterable in iterables):
        iterables = tuple(zip(*zip(*iterables, strict=False), strict=True)) or ((),)  # all of it is handed over
    source = Input(iterables)
    session, keep = options.get("session"), options.get("keep", "auto")
    retries = options.get("retries", 0)
    policy = retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries)
    seed = None if (asked := options.get("seed")) is None else check_seed(asked)
    draw = draws(fn, None if star else len(iterables))
    if draw == "must" and seed is None:  # the function cannot be called without a generator
        seed = check_seed(fresh_seed())
    serial = session == "serial" or bool(os.environ.get(IN_WORKER))
    if not serial and (names := shared_generators(fn)):
        warnings.warn(
            f"{names[0]!r} is a random generator of this process, and each worker process gets a copy in the same "
            "state: items would draw the same numbers. Give the function a parameter rng instead, and pmap a seed",
            RuntimeWarning,
            stacklevel=3,
        )
    spec = JobSpec(
        name=options.get("name") or _name_of(fn),
        function=b"" if serial else pickling.dump_function(fn),
        chunks=options.get("chunks", "auto"),
        ordered=options.get("ordered", True),
        on_error=options.get("on_error", "raise"),
        retry=policy if policy.retries else None,
        timeout=options.get("timeout"),
        queue=options.get("queue") or "",
        keep=source.total is not None if keep == "auto" else keep,
        sized=source.total is not None,
        max_running=options.get("max_running", 0),
        star=star,
        seed=seed,
        rng=draw != "no",
        interrupt=options.get("interrupt", "cancel"),
        detach=detach,
        memory_limit=options.get("memory_limit") or 0,
        priority=options.get("priority", 0),
        inputs=Inputs.of(fn, source.sliceable, star),
    )
    if serial:
        return SerialJob(fn, spec, source)
    cluster = default_cluster() if session is None or isinstance(session, str) else session
    if detach and isinstance(cluster, Cluster):
        raise UsageError("detach=True needs a cluster that outlives this process: see connect()")
    return _submit(spec, source, cluster.session, options.get("progress", "auto"))


def _submit(spec: JobSpec, source: Input, session: Session, progress: bool | str) -> Job[Any]:
    running = RunningJob(spec, source, session)
    started(running)
    job: Job[Any] = Job(running)
    running.echo = open_echo(progress, session.soon)

    def show() -> None:
        view = _open(running, progress)
        if view is not None:
            session.watch(running, view)

    running.reopened = show
    view = _open(running, progress)
    running.start()
    if view is not None:
        session.watch(running, view)
    if spec.detach:
        running.wait_sent()
    return job


def _open(running: RunningJob, progress: bool | str) -> View | None:
    """A view of the job, here; a click in it may run what failed once more."""

    def retry() -> None:
        # A click comes by several roads, so the job may run again already.
        with contextlib.suppress(JobError):
            running.retry()
            if view is not None:
                running.session.watch(running, view)

    view: View | None = None
    if progress in (False, "off"):
        return view
    again = retry if running.spec.keep else None
    view = open_view(progress, running.snapshot(), running.cancel, again, running.snapshot)
    return view


def attach(job_id: str, *, session: Cluster | RemoteCluster | None = None, progress: bool | str = "auto") -> Job[Any]:
    """A job that another process started, or this one before: its results so far, and those to come.

    Args:
        job_id: ``Job.id``; ``jobs()`` lists them.
        session: what ``connect`` returned; by default the cluster of this process.
        progress: ``"auto"``, True or False.

    Returns:
        A ``Job``, which can be read and cancelled. When its client is gone and it was not detached, reading it gives
        what is there and then raises JobError.

    Raises:
        JobError: there is no such job.
    """
    running = find_job((session or default_cluster()).session, job_id)
    started(running)
    job: Job[Any] = Job(running)
    view = open_view(progress, running.snapshot(), running.cancel)
    if running.state == "starting":  # else it is this session's own
        running.start()
    if view is not None:
        running.session.watch(running, view)
    return job


def jobs(*, session: Cluster | RemoteCluster | None = None) -> list[JobInfo]:
    """The jobs of all clients that the cluster knows, those that have ended included for as long as results stay."""
    return list_jobs((session or default_cluster()).session)


def share(value: T, *, session: Where = None) -> Shared[T]:
    """A handle of a large value that many items or many jobs use: sent once, and stored once a machine.

    Capture the handle in functions, pass it as an item or an argument, and read ``handle.value`` there; the same code
    runs everywhere, also with ``session="serial"``. A worker process loads the value once; large arrays are in the
    memory of its machine once for all processes. Do not change the value afterwards: workers may see either.

    Args:
        value: what to share; anything that can be pickled.
        session: a ``Cluster`` or what ``connect`` returned, to send the value to now. By default it is sent with the
            first job that uses it, on each cluster where that happens.

    Returns:
        A ``Shared``; close it, use it in a ``with`` block, or drop the last reference to free the copies. A job that
        uses it keeps them until it has ended.

    Raises:
        UsageError: ``session`` is something else.
        SerializationError: the value cannot be pickled; the message says what in it cannot.
        ClusterError: with ``session``: its cluster cannot be reached.

    >>> from nbparallel import pmap, share
    >>> prices = share({"tea": 2, "milk": 1})
    >>> list(pmap(lambda name: prices.value[name], ["milk", "tea"], session="serial"))
    [1, 2]
    """
    _check_options({"session": session})
    if isinstance(value, Shared):
        return value
    with shared.noting() as inner:
        frame = pickling.dump_parts(value, f"the shared value of type {type(value).__qualname__}")
    handle: Shared[T] = shared.make(os.urandom(12).hex(), value, frame, inner.values())
    if isinstance(session, (Cluster, RemoteCluster)) and not os.environ.get(IN_WORKER):
        session.session.wait_ready()
        session.session.shares.place([handle._core])
    return handle


def _check_options(options: Options) -> None:
    """One clear error for a value that makes no sense, before anything is sent."""
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}; known are {', '.join(Options.__annotations__)}")
    chunks, timeout = options.get("chunks", "auto"), options.get("timeout")
    max_running, session = options.get("max_running", 0), options.get("session")
    if chunks != "auto" and (type(chunks) is not int or chunks < 1):
        raise UsageError(f'chunks must be "auto" or the number of items in a chunk, at least 1, not {chunks!r}')
    if options.get("progress", "auto") not in ("auto", "on", "off", True, False):
        raise UsageError(f'progress must be "auto", True ("on") or False ("off"), not {options["progress"]!r}')
    if type(options.get("ordered", True)) is not bool:
        raise UsageError(f"ordered must be True or False, not {options['ordered']!r}")
    if options.get("on_error", "raise") not in ("raise", "return", "skip"):
        raise UsageError(f'on_error must be "raise", "return" or "skip", not {options["on_error"]!r}')
    for text in ("name", "queue"):
        if (value := options.get(text)) is not None and type(value) is not str:
            raise UsageError(f"{text} must be a string or None, not {value!r}")
    if timeout is not None and not (type(timeout) in (int, float) and timeout > 0):
        raise UsageError(f"timeout must be a positive number of seconds, or None, not {timeout!r}")
    if options.get("progress", "auto") not in ("auto", "on", "off", True, False):
        raise UsageError(f'progress must be "auto", True ("on") or False ("off"), not {options["progress"]!r}')
    if options.get("keep", "auto") not in ("auto", True, False):
        raise UsageError(f'keep must be True, False or "auto", not {options["keep"]!r}')
    if type(options.get("detach", False)) is not bool:
        raise UsageError(f"detach must be True or False, not {options['detach']!r}")
    if (memory := options.get("memory_limit")) is not None and not (type(memory) is int and memory > 0):
        raise UsageError(f"memory_limit must be a positive number of bytes, or None, not {memory!r}")
    if options.get("interrupt", "cancel") not in ("cancel", "keep"):
        raise UsageError(f'interrupt must be "cancel" or "keep", not {options["interrupt"]!r}')
    if type(max_running) is not int or max_running < 0:
        raise UsageError(f"max_running must be a whole number, 0 (no limit) or more, not {max_running!r}")
    if type(priority := options.get("priority", 0)) is not int or not -9 <= priority <= 9:
        raise UsageError(f"priority must be a whole number from -9 (last) to 9 (first), not {priority!r}")
    if session is not None and session != "serial" and not isinstance(session, (Cluster, RemoteCluster)):
        raise UsageError(f'session must be a Cluster, what connect() returned, or "serial", not {session!r}')


def _name_of(fn: Callable[..., Any]) -> str:
    inner = getattr(fn, "func", fn)  # functools.partial
    return str(getattr(inner, "__name__", None) or type(inner).__name__)
