"""No library's own exception reaches the user: each is mapped to one of ours, and new ones are noticed."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import celery.exceptions
import kombu.exceptions
import pytest
import redis.exceptions

from nbparallel import celery as application
from nbparallel.client.session import Session
from nbparallel.cluster import handle
from nbparallel.errors import ClusterError, ConnectionFailed, NbparallelError, StoreFull
from nbparallel.settings import Settings
from nbparallel.store.real import RedisStore

URL = "redis://user:hunter2@host.invalid:7000/0"
#: How some of the classes want to be made; redis-py's cluster errors parse what the server says.
SAYS = "12 127.0.0.1:7000"
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Reject": (SAYS, True),
    "BackendGetMetaError": (SAYS,),
}
#: Errors that are no failure of a connection: what each stands for.
MEANINGS: dict[str, type[NbparallelError]] = {
    "OutOfMemoryError": StoreFull,
    "AuthenticationError": ConnectionFailed,
    "AuthorizationError": ConnectionFailed,
    "NoPermissionError": ConnectionFailed,
    "ConnectionError": ConnectionFailed,
    "TimeoutError": ConnectionFailed,
    "BusyLoadingError": ConnectionFailed,
    "MaxConnectionsError": ConnectionFailed,
    "InvalidResponse": ConnectionFailed,
    "ReadOnlyError": ClusterError,
    "NoScriptError": ClusterError,
}


def exceptions(*modules: ModuleType) -> list[type[BaseException]]:
    """Every exception class that these modules define or pass on, each once."""
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    return sorted((kind for kind in found if issubclass(kind, BaseException)), key=lambda kind: kind.__qualname__)


REDIS = exceptions(redis.exceptions)
#: Warnings and signals to a running worker are no errors of the client's.
PUBLISHING = [
    kind
    for kind in exceptions(kombu.exceptions, celery.exceptions)
    if issubclass(kind, Exception) and not issubclass(kind, Warning)
]


def make(kind: type[BaseException]) -> BaseException:
    """An instance."""
    try:
        return kind(*ARGUMENTS.get(kind.__name__, (SAYS,)))
    except TypeError:
        return kind()


def test_the_lists_are_not_empty() -> None:
    """The libraries still keep their exceptions where these tests look."""
    assert {"ConnectionError", "ResponseError", "RedisClusterException"} <= {kind.__name__ for kind in REDIS}
    assert {"OperationalError", "EncodeError", "CeleryError"} <= {kind.__name__ for kind in PUBLISHING}


@pytest.mark.parametrize("kind", REDIS, ids=lambda kind: kind.__qualname__)
def test_redis_errors_are_ours_in_the_store(kind: type[BaseException]) -> None:
    """Each exception of redis-py leaves the store as a ClusterError that names the server, not its password."""
    store = RedisStore(URL)

    def fail() -> None:
        raise make(kind)

    with pytest.raises(NbparallelError, match=r"redis://user:\*\*\*@host\.invalid:7000/0") as caught:
        store._guard(fail)
    assert isinstance(caught.value, MEANINGS.get(kind.__name__, ClusterError))
    assert isinstance(caught.value.__context__, kind)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [OSError, BrokenPipeError, ConnectionResetError, TimeoutError])
def test_system_errors_are_ours_in_the_store(kind: type[OSError]) -> None:
    """What the system raises below redis-py is a failed connection."""

    def fail() -> None:
        raise kind("gone")

    with pytest.raises(ConnectionFailed, match=r"host\.invalid.*gone"):
        RedisStore(URL)._guard(fail)


@pytest.mark.parametrize("word", ["NOAUTH Authentication required", "WRONGPASS invalid password"])
def test_a_refused_password_is_told_by_its_word(word: str) -> None:
    """Servers tell of a wrong password in an ordinary refusal, too; that is a matter of the URL all the same."""

    def fail() -> None:
        raise redis.exceptions.ResponseError(word)

    with pytest.raises(ConnectionFailed, match="refused the user or password"):
        RedisStore(URL)._guard(fail)


def test_errors_of_the_program_stay_what_they_are() -> None:
    """A bug is not dressed up as a broken connection."""

    def fail() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        RedisStore(URL)._guard(fail)


@pytest.mark.parametrize("kind", PUBLISHING, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_broker_errors_are_ours_in_connect(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exception of kombu and Celery leaves ``connect`` as ConnectionFailed that names the broker."""

    def fail(*_: Any) -> None:
        raise make(kind)

    monkeypatch.setattr(application, "make_app", lambda *_: SimpleNamespace(connection_for_write=fail))
    with pytest.raises(ConnectionFailed, match=r"the broker at amqp://user:\*\*\*@host\.invalid// cannot be"):
        handle._check_broker("amqp://user:hunter2@host.invalid//", Settings())


class Silent:
    """A backend that is never asked."""

    embedded = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AssertionError(f"{name} was asked for")


class Waiting:
    """As much of a job as publishing looks at."""

    id, epoch = "0" * 32, 0

    class spec:
        """What was asked for."""

        queue = name = ""


@pytest.mark.parametrize("kind", PUBLISHING, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_broker_errors_are_a_reason_to_wait_in_a_session(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that fails while jobs run ends no thread: progress says so, until messages go through again."""
    session = Session(Silent(), Settings())  # type: ignore[arg-type]

    def fail(*_: Any) -> None:
        raise make(kind)

    monkeypatch.setattr(application, "publish", fail)
    session.publish(Waiting(), ["ticket"])  # type: ignore[arg-type]
    assert session.reason("").startswith("the broker does not take messages, retrying: ")
    monkeypatch.setattr(application, "publish", lambda *_: None)
    session.publish(Waiting(), ["ticket"])  # type: ignore[arg-type]
    assert "broker" not in session.reason("")
