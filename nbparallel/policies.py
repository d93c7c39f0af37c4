"""Retry decisions: the collector gives an item's exception and attempt, and gets a delay or None. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .errors import ItemTimeout, RemoteError, UsageError

__all__ = ["DEFAULT_RETRY_ON", "RETRIED_KINDS", "RetryPolicy"]

#: Exceptions that are retried unless the user says otherwise: those that may well be gone a moment later.
DEFAULT_RETRY_ON: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError)

#: Kinds of error records that a policy is asked about at all. Of the others, ``item`` and ``result`` (pickling)
#: would fail again, ``crashed`` and ``lost`` were tried again already (``crash_limit``, ``lost_limit``), and
#: ``interrupted`` is the user's own wish.
RETRIED_KINDS = frozenset({"raised", "timeout"})

#: Bounds ``factor ** (attempt - 1)``, which would overflow after many attempts.
_MAX_EXPONENT = 64


@dataclass(frozen=True)
class RetryPolicy:
    """When, and after which delay, a failed item runs again.

    An exception is retried if it is an instance of ``retry_on`` *and* ``retry_if``, where given, says so. Errors
    that would only come again (ValueError, KeyError, ...) are thus not retried by default. ``TimeoutError`` in
    ``retry_on`` means one that the function raised: an item that exceeded its own ``timeout`` would most likely
    do so again, so it is retried only when ``retry_on`` names ``ItemTimeout`` or a base such as ``Exception``.

    Args:
        retries: how many times an item is tried again, from 0.
        retry_on: exception type or types; default ``(ConnectionError, TimeoutError)``, or, when ``retry_if`` is
            given, every ``Exception``.
        retry_if: called with the exception; true means retry. Runs in the client.
        backoff: seconds before the first retry.
        factor: by which the delay grows from retry to retry, 1 to 100.
        max_backoff: longest delay in seconds.
        jitter: fraction of the delay, 0 to 1, that is random, so that retries don't come all at once.

    Raises:
        UsageError: an argument is of the wrong type or out of range.

    >>> policy = RetryPolicy(retries=2, backoff=1.0, jitter=0.0)
    >>> [policy.decide(ConnectionError(), attempt) for attempt in (1, 2, 3)]
    [1.0, 2.0, None]
    >>> policy.decide(ValueError(), 1) is None
    True
    """

    retries: int = 0
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    retry_if: Callable[[BaseException], bool] | None = None
    backoff: float = 0.5
    factor: float = 2.0
    max_backoff: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        _check_number("retries", self.retries, 0, math.inf, int)
        if self.retry_if is not None and not callable(self.retry_if):
            raise UsageError(f"retry_if must be a function of the exception, not {self.retry_if!r}")
        if self.retry_on is None:
            types = DEFAULT_RETRY_ON if self.retry_if is None else (Exception,)
        else:
            types = _exception_types(self.retry_on)
        object.__setattr__(self, "retry_on", types)
        for name, low, high in (
            ("backoff", 0.0, math.inf),
            ("factor", 1.0, 100.0),
            ("max_backoff", 0.0, math.inf),
            ("jitter", 0.0, 1.0),
        ):
            _check_number(name, getattr(self, name), low, high)

    def decide(self, exception: BaseException, attempt: int, random: float = 0.5) -> float | None:
        """Seconds to wait before the item runs again, or None when its failure is final.

        Args:
            exception: what the item raised, as rebuilt in the client.
            attempt: which attempt failed, from 1.
            random: a random number in [0, 1), for the jitter.

        Raises:
            UsageError: ``retry_if`` itself raised.
        """
        if attempt > self.retries or not self._matches(exception):
            return None
        delay = min(self.backoff * self.factor ** min(attempt - 1, _MAX_EXPONENT), self.max_backoff)
        return delay * (1.0 - self.jitter * random)

    def _matches(self, exception: BaseException) -> bool:
        types = self.retry_on
        assert isinstance(types, tuple)  # since __post_init__
        if isinstance(exception, ItemTimeout):  # is a TimeoutError, and so an OSError, but ours: see the class
            types = tuple(kind for kind in types if kind not in (TimeoutError, OSError))
        matches = isinstance(exception, types)
        if not matches and isinstance(exception, RemoteError):  # could not be rebuilt: its name is all there is
            matches = any(exception.type_name in _names(kind) for kind in types)
        if not matches or self.retry_if is None:
            return matches
        try:
            return bool(self.retry_if(exception))
        except Exception as error:
            raise UsageError(f"retry_if raised {error!r} when it was asked about {exception!r}") from error


def _exception_types(given: Any) -> tuple[type[BaseException], ...]:
    kinds = tuple(given) if isinstance(given, Iterable) else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise UsageError(f"retry_on must be an exception type or a tuple of them, not {kind!r}")
    return kinds


def _names(kind: type[BaseException]) -> tuple[str, str]:
    return kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}"


def _check_number(name: str, value: Any, low: float, high: float, kind: type = float) -> None:
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or value == math.inf:
        allowed = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise UsageError(f"{name} must be {'an int' if kind is int else 'a number'} {allowed}, not {value!r}")
