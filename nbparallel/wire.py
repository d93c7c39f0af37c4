"""Wraps what the client and the workers write to the store, and checks what they read from it before anyone unpickles.

Receives bodies from ``pickling`` and blocks from the worker; hands sealed bytes to the store, and back. Nothing here
pickles or unpickles: a block's header is plain JSON, its values stay the bytes they are.
"""

from __future__ import annotations

import hmac
import json
import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

from .errors import UsageError, WireError
from .model import OLDEST_PROTOCOL, PROTOCOL_VERSION, Block, ErrorRecord

__all__ = ["Buffer", "Place", "decode_block", "encode_block", "seal", "unseal"]

#: What can be read as bytes.
Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Where a blob belongs, such as (namespace, job, epoch, "out"); part of what is authenticated.
Place: TypeAlias = "tuple[str | int, ...]"

#: First bytes of every sealed blob. Magic and version fill 16 bytes, so that a body starts aligned for numbers.
MAGIC = b"nbparallel\0\0\0\0"
VERSION_BYTES = 2
MAC_BYTES = 16
#: Values start at a multiple of this many bytes.
ALIGNMENT = 64
PREFIX_BYTES = len(MAGIC) + VERSION_BYTES + MAC_BYTES


def seal(key: bytes, place: Place, body: Buffer | Sequence[Buffer]) -> bytes:
    """The body (one buffer or several, joined) with magic, version and a keyed MAC over version, place and body.

    The version is the oldest that can read it.

    Raises:
        UsageError: the key is not 16 to 64 bytes long.
    """
    parts = (body,) if isinstance(body, (bytes, bytearray, memoryview)) else tuple(body)
    version = OLDEST_PROTOCOL.to_bytes(VERSION_BYTES, "little")
    return b"".join((MAGIC, version, _mac(key, OLDEST_PROTOCOL, place, parts), *parts))


def unseal(key: bytes, place: Place, blob: Buffer, *, any_version: bool = False) -> memoryview:
    """The body of a sealed blob, without copying it.

    Args:
        key: the cluster's secret.
        place: where the blob was found.
        blob: what was found there.
        any_version: for what tells each side which versions the other runs, and so only ever gains fields.

    Raises:
        WireError: it was not sealed with this key for this place; the message says which check failed.
    """
    view = memoryview(blob).cast("B")
    if len(view) < PREFIX_BYTES:
        raise WireError(f"refused a blob for {_name(place)}: {len(view)} bytes are too few for a sealed one")
    if view[: len(MAGIC)] != MAGIC:
        raise WireError(f"refused a blob for {_name(place)}: nbparallel did not write it (wrong magic)")
    version = int.from_bytes(view[len(MAGIC) : len(MAGIC) + VERSION_BYTES], "little")
    if not any_version and not OLDEST_PROTOCOL <= version <= PROTOCOL_VERSION:
        raise WireError(
            f"refused a blob for {_name(place)}: it is for protocol version {version}, this nbparallel reads "
            f"{OLDEST_PROTOCOL} to {PROTOCOL_VERSION}; upgrade the older of client and workers"
        )
    body = view[PREFIX_BYTES:]
    if not hmac.compare_digest(
        bytes(view[PREFIX_BYTES - MAC_BYTES : PREFIX_BYTES]), _mac(key, version, place, (body,))
    ):
        raise WireError(
            f"refused a blob for {_name(place)}: wrong MAC (made with another key, for another place, or altered)"
        )
    return body


def _mac(key: bytes, version: int, place: Place, parts: Sequence[Buffer]) -> bytes:
    if not 16 <= len(key) <= 64:  # an empty key would make blake2b an unkeyed hash
        raise UsageError(f"a key must have 16 to 64 bytes, not {len(key)}")
    for part in place:
        if type(part) is not str and type(part) is not int:
            raise TypeError(f"a place is made of str and int, not {part!r}")
    # ascii() of plain str and int is unambiguous and the same on every Python; the length ends it.
    where = ascii((version, *place)).encode()
    state = blake2b(len(where).to_bytes(8, "little") + where, key=key, digest_size=MAC_BYTES, person=b"nbparallel")
    for buffer in parts:
        state.update(buffer)
    return state.digest()


def _name(place: Place) -> str:
    return "/".join(str(part)[:80] for part in place) or "no place"


def encode_block(block: Block) -> list[Buffer]:
    """A block in parts: lengths, plain header, running times, pickled exceptions, and the values untouched.

    The header is JSON, escaped to ASCII, so that any text survives (lone surrogates too), and padded, so that the
    values start aligned.
    """
    errors = [(index, *record[:5], len(record.pickled)) for index, record in block.errors.items()]
    header = json.dumps(
        (block.lo, block.count, block.attempt, block.worker, block.started, errors, block.output),
        separators=(",", ":"),
    ).encode()
    seconds = array("d", block.seconds)
    if sys.byteorder == "big":  # pragma: no cover
        seconds.byteswap()
    pickled = [record.pickled for record in block.errors.values()]
    before = 8 + len(header) + 8 * len(seconds) + sum(map(len, pickled))
    header += b" " * (-before % ALIGNMENT)
    lengths = array("I", (len(header), len(seconds)))
    if sys.byteorder == "big":  # pragma: no cover
        lengths.byteswap()
    body = block.body if isinstance(block.body, list) else [block.body]
    return [lengths.tobytes(), header, seconds.tobytes(), *pickled, *body]


def decode_block(view: Buffer) -> Block:
    """The block in these bytes; its ``body`` is a slice of them.

    Raises:
        WireError: the bytes are not a well-formed block.
    """
    view = memoryview(view).cast("B")
    reader = _Reader(view)
    lengths = array("I", bytes(reader.take(8)))
    if sys.byteorder == "big":  # pragma: no cover
        lengths.byteswap()
    try:
        fields = json.loads(bytes(reader.take(lengths[0])))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a block's header is not JSON: {error}") from None
    seconds = array("d", bytes(reader.take(8 * lengths[1])))
    if sys.byteorder == "big":  # pragma: no cover
        seconds.byteswap()
    match fields:
        case [int(lo), int(count), int(attempt), str(worker), (int() | float()) as started, list(errors), list(output)]:
            pass
        case _:
            raise WireError("a block's header has fields of wrong number or type")
    if lo < 0 or count < 0 or attempt < 1 or len(seconds) > max(1, count):
        raise WireError(f"a block's numbers are off: lo {lo}, count {count}, attempt {attempt}, {len(seconds)} times")
    return Block(
        lo=lo,
        count=count,
        errors=_errors(errors, range(lo, lo + count), reader),
        attempt=attempt,
        worker=worker,
        started=float(started),
        seconds=seconds.tolist(),
        output=[_output(entry) for entry in output],
        body=reader.rest(),
    )


class _Reader:
    """Takes slices of a view, one after the other, and notices its end."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    def take(self, length: int) -> memoryview:
        if length > len(self.view) - self.at:
            raise WireError(f"a block ends early: {length} bytes expected, {len(self.view) - self.at} left")
        self.at += length
        return self.view[self.at - length : self.at]

    def rest(self) -> memoryview:
        return self.view[self.at :]


def _errors(entries: list[Any], indexes: range, reader: _Reader) -> dict[int, ErrorRecord]:
    records: dict[int, ErrorRecord] = {}
    for entry in entries:
        match entry:
            case [int(index), str(kind), str(type_name), str(message), str(item), str(text), int(length)]:
                pass
            case _:
                raise WireError("a block's error has fields of wrong number or type")
        if index not in indexes or index in records or length < 0:
            raise WireError(f"a block of {indexes} has an error at index {index}, {length} bytes long")
        records[index] = ErrorRecord(kind, type_name, message, item, text, bytes(reader.take(length)))
    return records


def _output(entry: Any) -> tuple[int, str, str]:
    # The index may lie after the block: of an item that printed and still runs.
    match entry:
        case [int(index), str(stream), str(text)]:
            return index, stream, text
    raise WireError("a block's output has fields of wrong number or type")
