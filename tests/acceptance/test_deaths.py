"""Worker processes that die, by whatever way: nobody but the item that killed them each time is the worse."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nbparallel import Cluster, ItemError, ItemTimeout, WorkerCrashed, pmap

#: Ways to die, and what the error says of the last time.
WAYS: dict[str, tuple[Callable[[], object], str]] = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal SIGKILL"),
    "left": (lambda: os._exit(3), "exit code 3"),
    "segfault": (lambda: ctypes.string_at(0), "signal SIGSEGV"),
    "aborted": (lambda: os.abort(), "signal SIGABRT"),
}
#: The item that kills its process each time, and those that do so once.
CULPRIT, ONCE = 500, (0, 333, 999)


def risky(die: Callable[[], object], directory: str, index: int) -> int:
    """Some items kill the process that runs them."""
    if index == CULPRIT:
        die()
    if index in ONCE:
        mark = Path(directory) / str(index)
        if not mark.exists():
            mark.touch()
            die()
    return index * index


@pytest.mark.parametrize("way", WAYS)
def test_processes_that_die(cluster: Cluster, tmp_path: Path, way: str) -> None:
    """The item that kills each process that runs it becomes one error that says how; all the others have results."""
    die, says = WAYS[way]
    function = functools.partial(risky, die, str(tmp_path))
    results = pmap(function, range(1000), on_error="return", session=cluster).result(60)
    error = results[CULPRIT]
    assert isinstance(error, WorkerCrashed)
    assert (error.index, "3 times" in str(error)) == (CULPRIT, True)
    # Whoever waits for children may be faster than whoever asks how they ended.
    assert says in str(error) or "exit status unknown" in str(error)
    assert [index for index, value in enumerate(results) if isinstance(value, ItemError)] == [CULPRIT]
    assert [value for value in results if value is not error] == [i * i for i in range(1000) if i != CULPRIT]


def cleans_up(directory: str, index: int) -> int:
    """Item 3 takes too long, and has something to put away."""
    try:
        while index == 3:
            pass
    finally:
        (Path(directory) / str(index)).touch()
    return index


def test_an_item_that_takes_too_long_cleans_up(cluster: Cluster, tmp_path: Path) -> None:
    """Its ``finally`` blocks run, and its neighbours in the chunk, which are no part of it, go on."""
    function = functools.partial(cleans_up, str(tmp_path))
    results = pmap(function, range(8), chunks=8, timeout=0.3, on_error="return", session=cluster).result(20)
    assert isinstance(results[3], ItemTimeout)
    assert [value for value in results if not isinstance(value, ItemError)] == [0, 1, 2, 4, 5, 6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(index) for index in range(8)]
