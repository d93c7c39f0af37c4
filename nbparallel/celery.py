"""The Celery application with its one generic task; the only importer of celery on the client's path.

The client publishes tickets with ``publish``; in a worker the task hands them to ``worker/main.py``. What
``celery -A nbparallel worker`` finds is made there, too.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from celery import Celery, Signature, Task, signature

from .errors import UsageError
from .pickling import load_function
from .store.urls import sentinels
from .wire import seal, unseal

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["FORKJOIN_TASK", "TASK_NAME", "add_forkjoin", "forkjoin_signature", "make_app", "publish"]

#: Name of the generic task: fixed, since it travels in messages and files may move.
TASK_NAME = "nbparallel.turn"
#: Characters of a job's name that those who watch are shown.
MOST_SHOWN = 80
#: Name of the task that runs a whole fork-join; only in applications that were given it.
FORKJOIN_TASK = "nbparallel.forkjoin"
#: Pause between two questions whether SQS has messages, in seconds. While all processes are busy it is the interval at
#: which kombu looks whether they are, so that it may not be 0.
SQS_PAUSE_SECONDS = 0.1

#: What a worker does with a ticket: job id, epoch, ticket, queue → a word for those who watch.
TakeTurn = Callable[[str, int, str, str], str]


def make_app(broker_url: str, settings: Settings, take_turn: TakeTurn | None = None) -> Celery:
    """An application for one broker; several may live in a process, and none becomes the process's default.

    Args:
        broker_url: any broker that Celery knows.
        settings: the default queue and the time in which the broker must answer.
        take_turn: what the generic task does, in a worker; clients publish only.
    """
    watched = sentinels(broker_url)
    scheme = broker_url.partition(":")[0]
    broker_url = broker_url if watched is None else watched.broker_url
    app = Celery("nbparallel", broker=broker_url, set_as_current=False, fixups=[])
    app.conf.update(
        # JSON alone: a stranger's pickle is refused before anyone looks at it.
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_default_queue=settings.queue,
        # A worker holds no more tickets than it has processes; which work a ticket means is decided in the store.
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        broker_connection_timeout=settings.connect_seconds,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # After a lost connection it would take less for good; tickets that come twice do no harm.
        worker_enable_prefetch_count_reduction=False,
        broker_connection_max_retries=None,
        # A store that is full refuses what the consumer writes down; the worker would end for it.
        broker_channel_error_retry=True,
    )
    if scheme == "sqs":
        _check_sqs(working=take_turn is not None)
        # It carries tickets alone: remote control and events need what it lacks.
        app.conf.update(worker_enable_remote_control=False, worker_send_task_events=False)
    if take_turn is not None:
        request = "nbparallel.worker.request:TurnRequest"
        app.task(name=TASK_NAME, bind=True, ignore_result=True, acks_late=True, Request=request)(_task(take_turn))
    ours = _transport_options(scheme, settings.connect_seconds)
    if watched is not None:
        ours |= {"master_name": watched.master, "sentinel_kwargs": watched.sentinel_login}
    app.conf.broker_transport_options = {**ours, **json.loads(settings.broker_options)}
    return app


def _transport_options(scheme: str, patience: float) -> dict[str, Any]:
    """What we ask of a broker, in kombu's words, unless the user asks for something else."""
    if scheme == "sqs":
        # A worker's requests last as long as no message comes; the pause between two of them only adds to that.
        client = {"connect_timeout": patience, "read_timeout": max(patience, 5), "retries": {"total_max_attempts": 2}}
        return {"polling_interval": SQS_PAUSE_SECONDS, "client-config": client}
    if scheme.startswith(("redis", "sentinel")):
        # A server that accepts and never answers, or a link that died without a word, must not block whoever publishes,
        # nor a worker's event loop, which would be deaf for good: it tells now and then that the worker lives.
        return {"socket_connect_timeout": patience, "socket_timeout": max(patience, 5)}
    return {}


def _check_sqs(*, working: bool) -> None:
    """Make sure that what kombu needs for SQS is there: it says so late, and in its own words.

    Raises:
        UsageError: naming what is missing and what to install.
    """
    missing = [name for name in ("boto3", "urllib3", *(("pycurl",) if working else ())) if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an SQS broker needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}: "
            "pip install 'nbparallel[sqs]'"
        )


def _task(take_turn: TakeTurn) -> Callable[..., str]:
    def turn(self: Task[Any, Any], job: str, epoch: int, ticket: str, name: str = "") -> str:
        """The generic task: one turn of a pool process on a job. ``name`` is for people who watch the queue."""
        return take_turn(job, epoch, ticket, (self.request.delivery_info or {}).get("routing_key") or "")

    return turn


def publish(app: Celery, queue: str, job: str, epoch: int, tickets: list[str], name: str, **options: Any) -> None:
    """Send one message for each ticket. Raises what kombu raises when the broker is away."""
    # Flower and Celery's events show the job's name as that of the task; headers cannot carry lone surrogates.
    shown = name[:MOST_SHOWN].encode(errors="backslashreplace").decode()
    with app.producer_or_acquire() as producer:
        for ticket in tickets:
            app.send_task(
                TASK_NAME,
                kwargs={"job": job, "epoch": epoch, "ticket": ticket, "name": name},
                queue=queue,
                producer=producer,
                ignore_result=True,
                retry=False,
                shadow=f"{shown} ({TASK_NAME})" if shown else None,
                **options,
            )


def add_forkjoin(app: Celery) -> None:
    """Let the workers of an application run what ``ForkJoin.signature`` makes; call it where its tasks are defined.

    The task runs what a message carries, if that is sealed with the key in ``NBPARALLEL_KEY_FILE``, and nothing else.
    """
    app.task(name=FORKJOIN_TASK)(_run_forkjoin)


def forkjoin_signature(call: bytes, partial: bool, app: Celery | None) -> Signature[Any]:
    """A pickled call, sealed, as a signature; unless ``partial`` it takes nothing from the task before it."""
    sealed = seal(_forkjoin_key(), (FORKJOIN_TASK,), call)
    return signature(FORKJOIN_TASK, kwargs={"call": b64encode(sealed).decode()}, immutable=not partial, app=app)


def _run_forkjoin(*before: Any, call: str) -> Any:
    """The task of a fork-join, as a client of the cluster; ``before``: what the task before it returned."""
    body = unseal(_forkjoin_key(), (FORKJOIN_TASK,), b64decode(call))
    return load_function(body)(*before)


def _forkjoin_key() -> bytes:
    from .settings import Settings, read_key

    path = Settings.load().key_file
    if path is None:
        raise UsageError("a fork-join's signature is sealed: set NBPARALLEL_KEY_FILE here and on the workers")
    return read_key(path)
