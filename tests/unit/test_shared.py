"""Handles of shared values, in the process that made them and in others."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from nbparallel import pickling, shared
from nbparallel.api import share
from nbparallel.errors import JobError, SerializationError, UsageError
from nbparallel.shared import Core, Pickled, Shared


@pytest.fixture
def worker() -> Iterator[list[Core]]:
    """This process is a worker until the test ends; the list has what was fetched."""
    fetched: list[Core] = []

    def fetch(core: Core) -> Any:
        fetched.append(core)
        return ["fetched", core.id]

    shared.fetch_with(fetch)
    yield fetched
    for id in shared.loaded():
        shared.let_go(id)
    shared.fetch_with(None)


def as_elsewhere() -> Shared[Any]:
    """A handle as another process gets it."""
    return shared._revive("e" * 24, "list", 39)


def test_the_client_has_the_object_itself() -> None:
    """Where it was shared, ``value`` is the very object, also through copies and pickles of the handle."""
    value = {"a": 1}
    handle = share(value)
    assert handle.value is value
    assert copy.deepcopy([handle])[0].value is value
    assert pickle.loads(cloudpickle.dumps(handle)).value is value
    assert share(handle) is handle


def test_a_handle_travels_as_a_reference() -> None:
    """However large the value, what is pickled has some hundred bytes."""
    handle = share(bytes(10_000_000))
    assert len(pickle.dumps(handle)) < 200
    assert len(pickling.dump(lambda: handle.value)) < 2_000


def test_the_repr_says_type_size_and_state() -> None:
    """A glance tells what it is and whether it was sent."""
    handle = share(bytes(20_000_000))
    assert repr(handle) == "<Shared bytes, 20 MB, not sent yet>"
    handle._core.releases["s1"] = lambda: None
    assert repr(handle) == "<Shared bytes, 20 MB, on its cluster>"
    handle._core.releases["s2"] = lambda: None
    assert repr(handle) == "<Shared bytes, 20 MB, on 2 clusters>"
    handle.close()
    assert repr(handle) == "<Shared bytes, 20 MB, closed>"
    assert [shared.shown(size) for size in (9_999, 10_000, 9_999_999, 2_500_000_000)] == [
        "9,999 bytes", "10 kB", "10,000 kB", "2,500 MB",
    ]  # fmt: skip


def test_what_cannot_be_pickled_is_refused_at_once() -> None:
    """The error names the part, before anything is sent."""
    with pytest.raises(SerializationError, match=r"the shared value of type dict: its value at 'x' is a _thread.lock"):
        share({"x": threading.Lock()})


def test_a_session_of_the_wrong_kind_is_refused() -> None:
    """As for ``pmap``."""
    with pytest.raises(UsageError, match="session must be a Cluster"):
        share(1, session="redis://")  # type: ignore[arg-type]
    assert share(1, session="serial").value == 1


def test_a_closed_handle_says_so() -> None:
    """Neither its value nor a new job can be had; closing again is harmless, and so is a ``with`` block."""
    with share([1, 2]) as handle:
        assert handle.value == [1, 2]
    handle.close()
    with pytest.raises(JobError, match=r"this shared value \(list, \d+ bytes\) was closed; share it again"):
        handle.value
    with pytest.raises(SerializationError, match=r"cannot pickle the function .* the shared value \(list, .*closed"):
        pickling.dump_function(lambda: handle)


def test_copies_are_freed_with_the_last_reference() -> None:
    """Without a word, when the handle goes, and once."""
    freed: list[str] = []
    handle = share([1])
    handle._core.releases["s"] = lambda: freed.append("s")
    other = copy.copy(handle)
    del handle
    gc.collect()
    assert freed == []
    del other
    gc.collect()
    assert freed == ["s"]


def test_close_waits_for_jobs() -> None:
    """What a job uses is freed when the last such job has ended."""
    freed: list[str] = []
    handle = share([1])
    core = handle._core
    core.releases["s"] = lambda: freed.append("s")
    core.begin_use()
    core.begin_use()
    handle.close()
    core.end_use()
    assert freed == []
    core.end_use()
    assert freed == ["s"]


def test_pickling_notes_what_it_meets() -> None:
    """Handles are noted by the thread that meets them, also those within others, and not after the end."""
    one, two = share([1]), share([2])
    with shared.noting() as outer:
        pickle.dumps(one)
        with shared.noting() as inner:
            pickle.dumps([two])
        assert set(inner) == {two._core.id}
    pickle.dumps(two)
    assert set(outer) == {one._core.id, two._core.id}


def test_a_pickled_function_keeps_its_handles() -> None:
    """The bytes of a function hold what it refers to, and so does whatever carries them; else they are just bytes."""
    handle = share([1])
    data = pickling.dump_function(lambda: handle.value)
    assert isinstance(data, Pickled)
    assert type(pickling.dump_function(lambda: 1)) is bytes
    with shared.noting() as met:
        again = pickle.loads(pickle.dumps({"blob": data}))["blob"]
    assert set(met) == {handle._core.id}
    assert (again, set(again.cores)) == (data, set(met))
    assert pickling.load_function(again)() == [1]


def test_values_may_refer_to_others() -> None:
    """What a shared value refers to lives as long as it does."""
    inner = share([1])
    outer = share({"inner": inner})
    assert outer._core.inner == (inner._core,)


def test_a_worker_fetches_a_value_once(worker: list[Core]) -> None:
    """However many references there are, and threads that ask, until it is told to let go."""
    first, second = as_elsewhere(), as_elsewhere()
    assert repr(first).endswith("not loaded yet>")
    threads = [threading.Thread(target=lambda: first.value) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.value is second.value
    assert len(worker) == 1
    assert repr(second).endswith(", loaded>")
    assert shared.loaded() == ["e" * 24]
    shared.let_go("e" * 24)
    shared.let_go("e" * 24)
    assert first.value == ["fetched", "e" * 24]
    assert len(worker) == 2


def test_what_a_worker_cannot_fetch_is_the_error_of_who_asks(worker: list[Core]) -> None:
    """Fetching ahead is silent."""
    handle = as_elsewhere()

    def fetch(core: Core) -> Any:
        raise JobError("gone")

    shared.fetch_with(fetch)
    shared.load([handle._core])
    with pytest.raises(JobError, match="gone"):
        handle.value


def test_a_handle_in_a_strange_process_says_what_it_is() -> None:
    """A reference that was carried to where no value can be is a clear error."""
    with pytest.raises(JobError, match=r"the value of this handle \(list, \d+ bytes\) is not in this process"):
        as_elsewhere().value


def test_what_a_worker_shares_stays_there(worker: list[Core]) -> None:
    """Its value can be read there, and nobody else could: the handle is no result."""
    handle = share([1])
    assert handle.value == [1]
    with pytest.raises(SerializationError, match=r"shared in a worker \(list, .*\) cannot leave it: return handle"):
        pickling.dump([handle], "the results")
