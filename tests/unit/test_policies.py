"""Retry decisions, as tables of numbers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from nbparallel.errors import ItemTimeout, RemoteError, UsageError, WorkerCrashed
from nbparallel.policies import RetryPolicy


class Flaky(ConnectionError):
    """An exception type that a test retries."""


@pytest.mark.parametrize(
    ("settings", "attempts", "delays"),
    [
        ({"retries": 0}, [1], [None]),
        ({"retries": 2}, [1, 2, 3], [0.5, 1.0, None]),
        ({"retries": 9, "backoff": 2.0, "factor": 3.0, "max_backoff": 10.0}, [1, 2, 3, 9, 10], [2, 6, 10, 10, None]),
        ({"retries": 3, "backoff": 0.0}, [1, 3], [0.0, 0.0]),
        ({"retries": 10**6, "factor": 100.0}, [10**5], [30.0]),
    ],
)
def test_delays(settings: dict[str, Any], attempts: list[int], delays: list[float | None]) -> None:
    """The delay grows by the factor up to its maximum, and ends with the retries."""
    policy = RetryPolicy(jitter=0.0, **settings)
    assert [policy.decide(ConnectionError("gone"), attempt) for attempt in attempts] == delays


@pytest.mark.parametrize(("random", "delay"), [(0.0, 4.0), (0.5, 3.0), (0.999999, 2.0)])
def test_jitter_shortens_by_at_most_its_fraction(random: float, delay: float) -> None:
    """Jitter 0.5 spreads the delay over its upper half."""
    policy = RetryPolicy(retries=1, backoff=4.0, jitter=0.5)
    assert policy.decide(TimeoutError(), 1, random) == pytest.approx(delay, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "exception", "retried"),
    [
        ({}, ConnectionResetError(), True),
        ({}, TimeoutError(), True),
        ({}, Flaky(), True),
        ({}, ValueError(), False),
        ({}, OSError(), False),
        ({}, ItemTimeout("too long"), False),
        ({}, WorkerCrashed("died"), False),
        ({"retry_on": TimeoutError}, ItemTimeout("too long"), False),
        ({"retry_on": OSError}, ItemTimeout("too long"), False),
        ({"retry_on": OSError}, TimeoutError(), True),
        ({"retry_on": ItemTimeout}, ItemTimeout("too long"), True),
        ({"retry_on": Exception}, ItemTimeout("too long"), True),
        ({"retry_on": ValueError}, ValueError(), True),
        ({"retry_on": ValueError}, ConnectionError(), False),
        ({"retry_on": (KeyError, ValueError)}, KeyError(), True),
        ({"retry_on": [KeyError]}, KeyError(), True),
        ({"retry_on": ()}, ConnectionError(), False),
        ({"retry_if": lambda error: "again" in str(error)}, ValueError("try again"), True),
        ({"retry_if": lambda error: "again" in str(error)}, ConnectionError("no"), False),
        ({"retry_on": KeyError, "retry_if": lambda error: True}, ValueError(), False),
        ({}, RemoteError("could not be rebuilt", type_name="ConnectionError"), True),
        ({"retry_on": Flaky}, RemoteError("x", type_name=f"{Flaky.__module__}.Flaky"), True),
        ({"retry_on": Flaky}, RemoteError("x", type_name="other.Flaky"), False),
    ],
)
def test_which_exceptions_are_retried(settings: dict[str, Any], exception: BaseException, retried: bool) -> None:
    """Both the types and the function must agree; what would only fail again is not retried by default."""
    decision = RetryPolicy(retries=1, **settings).decide(exception, 1)
    assert (decision is not None) is retried


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retries": -1}, "retries must be an int of at least 0, not -1"),
        ({"retries": 1.5}, "retries must be an int"),
        ({"retries": True}, "retries must be an int"),
        ({"retries": "3"}, "retries must be an int"),
        ({"retry_on": "ValueError"}, "retry_on must be an exception type"),
        ({"retry_on": (ValueError, int)}, "retry_on must be an exception type or a tuple of them, not <class 'int'>"),
        ({"retry_on": ValueError("x")}, "retry_on must be"),
        ({"retry_if": True}, "retry_if must be a function"),
        ({"backoff": -0.1}, "backoff must be a number of at least 0, not -0.1"),
        ({"backoff": float("nan")}, "backoff must be"),
        ({"backoff": float("inf")}, "backoff must be"),
        ({"factor": 0.5}, "factor must be a number from 1 to 100, not 0.5"),
        ({"max_backoff": None}, "max_backoff must be"),
        ({"jitter": 1.1}, "jitter must be a number from 0 to 1, not 1.1"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], words: str) -> None:
    """A wrong argument is refused when the policy is made, by name and value."""
    with pytest.raises(UsageError) as caught:
        RetryPolicy(**settings)
    assert words in str(caught.value)


def test_a_raising_predicate_is_named() -> None:
    """An exception of retry_if itself is not taken for an answer."""
    policy = RetryPolicy(retries=1, retry_if=lambda error: 1 / 0 > 0)
    with pytest.raises(UsageError, match="retry_if raised ZeroDivisionError"):
        policy.decide(ValueError("odd"), 1)


def test_policies_are_values() -> None:
    """Equal settings make equal policies, which survive pickling and cannot be changed."""
    policy = RetryPolicy(retries=3, retry_on=ValueError)
    assert policy == RetryPolicy(retries=3, retry_on=(ValueError,)) == pickle.loads(pickle.dumps(policy))
    with pytest.raises(AttributeError):
        policy.retries = 4  # type: ignore[misc]
