"""Sealed blobs and encoded blocks."""

from __future__ import annotations

import json
import math
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbparallel import wire
from nbparallel.errors import UsageError, WireError
from nbparallel.model import OLDEST_PROTOCOL, PROTOCOL_VERSION, Block, ErrorRecord
from nbparallel.wire import decode_block, encode_block, seal, unseal

KEY = bytes(range(32))
PLACE = ("default", "ab" * 16, 1, "out")

places = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=4).map(tuple)


@given(place=places, body=st.binary(max_size=300))
def test_sealed_body_comes_back(place: tuple[str | int, ...], body: bytes) -> None:
    """What was sealed is what is unsealed, at the same place and with the same key."""
    assert unseal(KEY, place, seal(KEY, place, body)) == body


def test_several_buffers_are_joined() -> None:
    """A body in parts is sealed as the joined one."""
    parts = [b"one", bytearray(b"two"), memoryview(b"three")]
    assert seal(KEY, PLACE, parts) == seal(KEY, PLACE, b"onetwothree")


def test_unsealing_copies_nothing() -> None:
    """The body is a slice of the blob, writable when the blob is."""
    blob = bytearray(seal(KEY, PLACE, b"body"))
    body = unseal(KEY, PLACE, blob)
    blob[-1:] = b"Y"
    assert body == b"bodY"
    assert not body.readonly
    assert unseal(KEY, PLACE, seal(KEY, PLACE, b"body")).readonly


@given(data=st.data(), body=st.binary(max_size=100))
def test_altered_blob_is_refused(data: st.DataObject, body: bytes) -> None:
    """One flipped bit anywhere is noticed."""
    blob = bytearray(seal(KEY, PLACE, body))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError):
        unseal(KEY, PLACE, blob)


@given(data=st.data(), body=st.binary(max_size=100))
def test_cut_or_extended_blob_is_refused(data: st.DataObject, body: bytes) -> None:
    """A missing tail and trailing bytes are noticed."""
    blob = seal(KEY, PLACE, body)
    with pytest.raises(WireError):
        unseal(KEY, PLACE, blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(WireError):
        unseal(KEY, PLACE, blob + data.draw(st.binary(min_size=1, max_size=9)))


@given(blob=st.binary(max_size=200))
def test_foreign_bytes_are_refused(blob: bytes) -> None:
    """Bytes that nbparallel did not write are refused."""
    with pytest.raises(WireError):
        unseal(KEY, PLACE, blob)


@given(one=places, other=places)
def test_blob_of_another_place_is_refused(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    """A blob is good for one place only; no two places are written alike."""
    if one == other:
        return
    with pytest.raises(WireError, match="wrong MAC"):
        unseal(KEY, other, seal(KEY, one, b"body"))


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), (("a", "b"), ("a, b",)), (("a'", "b"), ("a", "'b")), ((), ("",)), ((1, 2), (12,))],
)
def test_places_that_look_alike_differ(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    """Type and borders of a place's parts count."""
    with pytest.raises(WireError):
        unseal(KEY, other, seal(KEY, one, b""))


def test_place_and_body_do_not_run_together() -> None:
    """Bytes cannot wander from the place into the body."""
    where = ascii((OLDEST_PROTOCOL, *PLACE)).encode()
    assert seal(KEY, PLACE, b"x")[16:32] != seal(KEY, (), where + b"x")[16:32]


def test_another_key_is_refused() -> None:
    """A blob sealed with another key is refused, and the message names the check and the place."""
    with pytest.raises(WireError, match=r"default/abab.*/1/out: wrong MAC \(made with another key"):
        unseal(b"x" * 32, PLACE, seal(KEY, PLACE, b"body"))


def test_other_versions_and_magics_are_told_apart() -> None:
    """The message says whether length, magic or version was wrong."""
    blob = bytearray(seal(KEY, PLACE, b"body"))
    blob[14] += 1
    with pytest.raises(WireError, match=f"it is for protocol version {OLDEST_PROTOCOL + 1}, this nbparallel reads"):
        unseal(KEY, PLACE, blob)
    with pytest.raises(WireError, match="magic"):
        unseal(KEY, PLACE, b"REDIS" + bytes(blob[5:]))
    with pytest.raises(WireError, match="3 bytes are too few"):
        unseal(KEY, PLACE, b"nbp")


def test_version_is_part_of_the_mac() -> None:
    """Rewriting the version in the head does not make an old blob a new one."""
    blob = bytearray(seal(KEY, PLACE, b"body"))
    blob[14] += 1
    with pytest.raises(WireError, match="wrong MAC"):
        unseal(KEY, PLACE, blob, any_version=True)


def test_versions_within_the_range_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer nbparallel reads what an older one sealed, and the other way round, while their ranges meet."""
    old = seal(KEY, PLACE, b"old")
    monkeypatch.setattr(wire, "PROTOCOL_VERSION", PROTOCOL_VERSION + 2)
    assert unseal(KEY, PLACE, old) == b"old"
    new = seal(KEY, PLACE, b"new")
    monkeypatch.setattr(wire, "OLDEST_PROTOCOL", OLDEST_PROTOCOL + 1)
    newest = seal(KEY, PLACE, b"newest")
    with pytest.raises(WireError, match="it is for protocol version"):
        unseal(KEY, PLACE, old)
    monkeypatch.undo()
    assert unseal(KEY, PLACE, new) == b"new"
    with pytest.raises(WireError, match="upgrade the older of client and workers"):
        unseal(KEY, PLACE, newest)
    assert unseal(KEY, PLACE, newest, any_version=True) == b"newest"


@pytest.mark.parametrize("key", [b"", b"x" * 15, b"x" * 65])
def test_weak_keys_are_refused(key: bytes) -> None:
    """A key that would not protect anything is refused on both sides."""
    with pytest.raises(UsageError, match="16 to 64 bytes"):
        seal(key, PLACE, b"body")
    with pytest.raises(UsageError):
        unseal(key, PLACE, seal(KEY, PLACE, b"body"))


@pytest.mark.parametrize("place", [(True,), (1.0,), (None,), (b"x",)])
def test_places_are_text_and_numbers(place: Any) -> None:
    """Other types, whose text may differ between machines, are refused."""
    with pytest.raises(TypeError, match="str and int"):
        seal(KEY, place, b"")


class Bomb:
    """Explodes when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled!",)


def test_nothing_is_unpickled() -> None:
    """Neither unsealing nor decoding a block runs a pickle, whatever the bytes say."""
    bomb = pickle.dumps(Bomb())
    with pytest.raises(WireError):
        unseal(KEY, PLACE, bomb)
    with pytest.raises(WireError):
        decode_block(bomb)
    record = ErrorRecord("raised", "T", "m", "i", "t", bomb)
    assert decode_block(b"".join(encode_block(Block(0, 1, bomb, {0: record})))).body == bomb


texts = st.text(st.characters(), max_size=10)  # lone surrogates included
records = st.builds(ErrorRecord, texts, texts, texts, texts, texts, st.binary(max_size=20))


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Well-formed blocks."""
    lo, count = draw(st.integers(0, 1 << 62)), draw(st.integers(0, 20))
    indexes = st.integers(lo, lo + count - 1) if count else st.nothing()
    return Block(
        lo=lo,
        count=count,
        body=draw(st.binary(max_size=50)),
        errors=draw(st.dictionaries(indexes, records, max_size=3)) if count else {},
        attempt=draw(st.integers(1, 9)),
        worker=draw(texts),
        started=draw(st.floats(allow_nan=False)),
        seconds=draw(st.lists(st.floats(allow_nan=False), max_size=max(1, count))),
        output=draw(st.lists(st.tuples(st.integers(-1, 99), texts, texts), max_size=3)),
    )


@given(block=blocks())
def test_block_comes_back(block: Block) -> None:
    """Every field of a block survives, order of the errors included."""
    again = decode_block(b"".join(encode_block(block)))
    assert again == block
    assert list(again.errors) == list(block.errors)


def test_block_body_is_a_slice() -> None:
    """The values are not copied when a block is decoded."""
    data = bytearray(b"".join(encode_block(Block(0, 1, b"values"))))
    body = decode_block(data).body
    data[-1:] = b"!"
    assert body == b"value!"


@given(data=st.data(), block=blocks())
def test_mutated_block_never_breaks_the_reader(data: st.DataObject, block: Block) -> None:
    """Altered or cut bytes give a block or a ``WireError``, and nothing else."""
    encoded = bytearray(b"".join(encode_block(block)))
    for at in data.draw(st.lists(st.integers(0, len(encoded) - 1), max_size=4)):
        encoded[at] = data.draw(st.integers(0, 255))
    del encoded[data.draw(st.integers(0, len(encoded))) :]
    try:
        again = decode_block(encoded)
    except WireError:
        return
    assert again.count >= 0
    assert all(again.lo <= index < again.hi for index in again.errors)


def _encoded(seconds: int = 0, **changes: Any) -> bytes:
    fields = {"lo": 5, "count": 2, "attempt": 1, "worker": "h:1", "started": 0.0, "errors": [], "output": []}
    header = json.dumps([*{**fields, **changes}.values()]).encode()
    return struct.pack("<II", len(header), seconds) + header + bytes(8 * seconds) + b"body"


@pytest.mark.parametrize(
    ("encoded", "match"),
    [
        (_encoded(lo=-1), "numbers are off"),
        (_encoded(count=-1), "numbers are off"),
        (_encoded(attempt=0), "numbers are off"),
        (_encoded(seconds=3), "numbers are off"),
        (_encoded(lo="5"), "wrong number or type"),
        (_encoded(started="now"), "wrong number or type"),
        (_encoded(more=1), "wrong number or type"),
        (_encoded(errors=[[5]]), "wrong number or type"),
        (_encoded(errors=[[7, "", "", "", "", "", 0]]), "error at index 7"),
        (_encoded(errors=[[4, "", "", "", "", "", 0]]), "error at index 4"),
        (_encoded(errors=[[5, "", "", "", "", "", -1]]), "-1 bytes"),
        (_encoded(errors=[[5, "", "", "", "", "", 0]] * 2), "error at index 5"),
        (_encoded(errors=[[5, "", "", "", "", "", 99]]), "ends early"),
        (_encoded(output=[[1, 2, 3]]), "wrong number or type"),
        (struct.pack("<II", 3, 0) + b"{]x", "not JSON"),
        (struct.pack("<II", 9**5, 0) + b"[" * 9**5, "not JSON"),
        (struct.pack("<II", 3, 0), "ends early"),
        (b"", "ends early"),
    ],
)
def test_malformed_blocks_are_named(encoded: bytes, match: str) -> None:
    """Each kind of malformed block is refused with words for what is wrong."""
    with pytest.raises(WireError, match=match):
        decode_block(encoded)


def test_well_formed_block_by_hand() -> None:
    """The format is what the cases above take it for."""
    block = decode_block(_encoded(seconds=2))
    assert (block.lo, block.hi) == (5, 7)
    assert block.seconds == [0.0, 0.0]
    assert block.body == b"body"


def test_odd_floats_survive() -> None:
    """Running times and start may be infinite or no number."""
    block = decode_block(b"".join(encode_block(Block(0, 1, b"", started=math.inf, seconds=[math.nan]))))
    assert math.isinf(block.started)
    assert math.isnan(block.seconds[0])
