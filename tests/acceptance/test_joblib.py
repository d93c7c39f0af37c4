"""joblib's ``Parallel`` on real worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config

import nbparallel.joblib
from nbparallel import Cluster


@pytest.fixture
def parallel(cluster: Cluster) -> Iterator[None]:
    """Runs the test's ``Parallel`` on the cluster."""
    nbparallel.joblib.register()
    with parallel_config(backend="nbparallel", n_jobs=2, session=cluster):
        yield


def where(x: int) -> tuple[int, int]:
    """Twice a number, and where."""
    return 2 * x, os.getpid()


@pytest.mark.usefixtures("parallel")
def test_results_come_in_order_from_the_workers() -> None:
    """Parallel gives its results in order, computed in worker processes, also for lambdas."""
    results = Parallel()(delayed(where)(i) for i in range(300))
    assert [value for value, _ in results] == [2 * i for i in range(300)]
    assert os.getpid() not in {pid for _, pid in results}
    assert Parallel()(delayed(lambda x, y: x + y)(i, y=1) for i in range(10)) == list(range(1, 11))
    assert Parallel()([]) == []


@pytest.mark.usefixtures("parallel")
def test_errors_are_raised_and_the_backend_goes_on() -> None:
    """What a call raises comes out of Parallel; the next Parallel works."""
    with pytest.raises(ZeroDivisionError):
        Parallel()(delayed(divmod)(1, i) for i in (2, 1, 0, 3))
    with Parallel() as again:
        assert again(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        assert again(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("parallel")
def test_generators_and_nesting() -> None:
    """Results can be taken as they come; a Parallel inside of a call runs there."""
    assert list(Parallel(return_as="generator")(delayed(abs)(-i) for i in range(20))) == list(range(20))

    def nested(n: int) -> list[int]:
        inner: list[int] = Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(n))
        return inner

    assert Parallel()(delayed(nested)(n) for n in (1, 3)) == [[0], [0, 1, 2]]


def test_the_number_of_jobs(cluster: Cluster) -> None:
    """-1 means all worker processes, 0 is refused."""
    backend = nbparallel.joblib.NbparallelBackend(session=cluster)
    assert [backend.effective_n_jobs(n) for n in (1, 7, -1, -2, -9, None)] == [1, 7, 2, 1, 1, 2]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        backend.effective_n_jobs(0)


def test_a_missing_joblib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without joblib the import says what to install."""
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "joblib", None)
    module: Any = sys.modules["nbparallel.joblib"]
    with pytest.raises(nbparallel.UsageError, match=r"pip install 'nbparallel\[joblib\]'"):
        importlib.reload(module)
    monkeypatch.undo()
    importlib.reload(module)
    assert joblib.parallel.BACKENDS
