"""What is sealed on one side is read on the other, and nothing else is."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nbparallel import pickling
from nbparallel.envelope import (
    Verdict,
    open_entry,
    open_meta,
    open_payload,
    seal_alone,
    seal_block,
    seal_meta,
    seal_payload,
    seal_verdict,
)
from nbparallel.errors import WireError
from nbparallel.model import Block, ErrorRecord

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
JOB, OTHER_JOB = "nbp:default:job:1.0", "nbp:default:job:2.0"


def test_meta() -> None:
    """The rules come out as they went in, with the client's versions."""
    sealed = seal_meta(KEY, JOB, {"sid": "s", "timeout": 1.5})
    assert open_meta(KEY, JOB, sealed) == {
        "sid": "s",
        "timeout": 1.5,
        "versions": list(pickling.versions()),
    }


@pytest.mark.parametrize("columns", [[[1, 2, 3]], [range(3)], ["abc", [None, (), {}]], [[b"x" * 100_000] * 3]])
def test_payload(columns: list[Any]) -> None:
    """Items come out by column."""
    sealed, failed = seal_payload(KEY, JOB, "b5", 5, columns)
    payload = open_payload(KEY, JOB, "b5", sealed)
    assert (payload.blob, payload.base, payload.each, failed) == ("b5", 5, False, {})
    assert [list(column) for column in payload.columns] == [list(column) for column in columns]


def test_payload_with_an_item_that_cannot_be_pickled() -> None:
    """Such an item is named, and the others are sent, each pickled by itself."""
    sealed, failed = seal_payload(KEY, JOB, "b5", 5, [[1, threading.Lock(), 3], "abc"])
    payload = open_payload(KEY, JOB, "b5", sealed)
    assert list(failed) == [6]
    assert "item 6" in str(failed[6])
    assert payload.each
    items = list(payload.columns[0])
    assert (pickling.load(items[0]), items[1], pickling.load(items[2])) == ((1, "a"), b"", (3, "c"))


@pytest.mark.parametrize("second", [3, threading.Lock()], ids=["columns", "each"])
def test_alone(second: Any) -> None:
    """One item of a payload of either form can be sent by itself."""
    sealed, _ = seal_payload(KEY, JOB, "b5", 5, [[1, second, 9], "abc"])
    payload = open_payload(KEY, JOB, "b5", sealed)
    alone = open_payload(KEY, JOB, "e7", seal_alone(KEY, JOB, payload, 7, "e7"))
    assert (alone.base, alone.each) == (7, True)
    assert [pickling.load(item) for item in alone.columns[0]] == [(9, "c")]


def test_block() -> None:
    """A block of outcomes comes out as it went in, errors included."""
    record = ErrorRecord("raised", "ValueError", "no", "7", "traceback", b"pickled")
    block = Block(6, 2, pickling.dump([None, 8]), {6: record}, 2, "host:1", 12.5, [0.1, 0.2])
    opened = open_entry(KEY, JOB, seal_block(KEY, JOB, block))
    assert isinstance(opened, Block)
    assert pickling.load(opened.body) == [None, 8]
    assert (opened.lo, opened.count, opened.errors, opened.attempt) == (6, 2, {6: record}, 2)
    assert (opened.worker, opened.started, opened.seconds) == ("host:1", 12.5, [0.1, 0.2])


def test_verdict() -> None:
    """A verdict comes out as it went in."""
    verdict = Verdict("because\n\x00ü", "host:1")
    assert open_entry(KEY, JOB, seal_verdict(KEY, JOB, verdict)) == verdict


def test_nothing_can_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob with another key, of another job, kind or id, or with any byte changed, is refused before unpickling."""
    monkeypatch.setattr(pickling, "load", lambda view: pytest.fail("it was unpickled"))
    monkeypatch.setattr(pickling, "decode_columns", lambda view: pytest.fail("it was unpickled"))
    payload, _ = seal_payload(KEY, JOB, "b5", 5, [[1, 2, 3]])
    block = seal_block(KEY, JOB, Block(0, 1, b"body"))
    meta = seal_meta(KEY, JOB, {})
    changed = [payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :] for at in range(len(payload))]
    cases = [
        lambda: open_payload(OTHER_KEY, JOB, "b5", payload),
        lambda: open_payload(KEY, OTHER_JOB, "b5", payload),
        lambda: open_payload(KEY, JOB, "b6", payload),
        lambda: open_payload(KEY, JOB, "b5", block),
        lambda: open_payload(KEY, JOB, "b5", b""),
        lambda: open_payload(KEY, JOB, "b5", payload[:-1]),
        lambda: open_entry(OTHER_KEY, JOB, block),
        lambda: open_entry(KEY, OTHER_JOB, block),
        lambda: open_entry(KEY, JOB, meta),
        lambda: open_meta(KEY, JOB, block),
        lambda: open_meta(OTHER_KEY, JOB, meta),
        *((lambda bad=bad: open_payload(KEY, JOB, "b5", bad)) for bad in changed),
    ]
    for case in cases:
        with pytest.raises(WireError):
            case()
