"""What the embedded cluster tells its workers; no process is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nbparallel.cluster import embedded
from nbparallel.cluster.embedded import THREAD_VARIABLES, EmbeddedCluster
from nbparallel.errors import StartupFailed, UsageError
from nbparallel.settings import Settings


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing about threads."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("workers", [-1, True, 2.5, "2", None])
def test_bad_number_of_workers(workers: object) -> None:
    """A number of workers that makes no sense is refused with the value."""
    with pytest.raises(UsageError, match=f"workers .*{workers!r}"):
        EmbeddedCluster(workers, settings=Settings())  # type: ignore[arg-type]


@pytest.mark.parametrize(("argument", "setting", "result"), [(3, 5, 3), (0, 5, 5), (0, 0, 7)])
def test_number_of_workers(monkeypatch: pytest.MonkeyPatch, argument: int, setting: int, result: int) -> None:
    """The argument counts, then the setting, then the usable cores."""
    monkeypatch.setattr(embedded, "usable_cores", lambda: 7)

    assert EmbeddedCluster(argument, settings=Settings(workers=setting)).workers == result


def test_threads_of_numeric_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes get the setting's number of threads, save where the user said otherwise."""
    monkeypatch.setenv("MKL_NUM_THREADS", "4")

    environ = embedded._worker_environ({"OMP_NUM_THREADS": "3"}, Settings(threads_per_worker=2))

    assert [environ[name] for name in THREAD_VARIABLES] == ["3", "2", "4", "2", "2"]


def test_threads_left_alone() -> None:
    """With 0 threads a worker, no variable is set."""
    environ = embedded._worker_environ({}, Settings(threads_per_worker=0))

    assert not set(THREAD_VARIABLES) & set(environ)


@pytest.mark.parametrize(
    ("package", "before", "after"),
    [
        ("/clone/nbparallel", None, "/clone"),
        ("/clone/nbparallel", "/mine", f"/mine{os.pathsep}/clone"),
        ("/venv/lib/python3/site-packages/nbparallel", "/mine", "/mine"),
    ],
)
def test_package_in_a_clone(monkeypatch: pytest.MonkeyPatch, package: str, before: str | None, after: str) -> None:
    """A package that is not installed is found by the workers, after what the user put first."""
    monkeypatch.setattr(embedded, "__file__", f"{package}/cluster/embedded.py")
    monkeypatch.delenv("PYTHONPATH", raising=False)

    environ = embedded._worker_environ({"PYTHONPATH": before} if before else {}, Settings())

    assert environ["PYTHONPATH"] == after


def test_no_python_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a program that embeds Python, with no interpreter to run, the error says so."""
    monkeypatch.setattr(sys, "executable", "")

    with pytest.raises(StartupFailed, match=r"sys\.executable is empty"):
        EmbeddedCluster(1, settings=Settings()).start()


def test_before_start() -> None:
    """A cluster that was not started is not alive, failed at nothing, and can be stopped."""
    cluster = EmbeddedCluster(1, settings=Settings())

    assert not cluster.alive()
    assert cluster.failure() == ""
    cluster.stop()


def test_log_tail(tmp_path: Path) -> None:
    """The end of a log is shown only if there is a log with something in it."""
    (tmp_path / "full").write_text("early\n" * 1000 + "late\n")
    (tmp_path / "empty").touch()

    assert embedded._tail(tmp_path / "missing") == ""
    assert embedded._tail(tmp_path / "empty") == ""
    assert embedded._tail(tmp_path / "full").endswith("early\nlate")
    assert len(embedded._tail(tmp_path / "full")) < 4100
