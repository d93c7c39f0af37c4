"""What each sealed blob of a job holds: made on one side, read on the other, its MAC checked before all else.

meta and function (client to worker, once a job) · payload (client to worker, the items of a chunk) · entry (worker to
client: a block of outcomes, or the verdict that the whole job failed).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from . import pickling
from .errors import SerializationError, WireError
from .model import Block
from .wire import PREFIX_BYTES, Buffer, Place, decode_block, encode_block, seal, unseal

__all__ = [
    "Depot",
    "Payload",
    "Verdict",
    "filed",
    "open_body",
    "open_entry",
    "open_meta",
    "open_payload",
    "place",
    "seal_alone",
    "seal_block",
    "seal_body",
    "seal_meta",
    "seal_payload",
    "seal_verdict",
]

#: Payloads of so many bytes lie in the depot when that is on this machine.
FILED_PAYLOAD = 32 << 10

#: Head of a payload: its form, and the index of its first item. As long as what follows wants to be aligned.
_HEAD = struct.Struct("<c7xq48x")
_COLUMNS, _EACH = b"C", b"E"
#: Heads of a stream entry.
_BLOCK, _VERDICT = b"B" + bytes(63), b"V" + bytes(63)
#: In place of a large body: it lies in the depot; name and size follow.
_FILED = b"F" + bytes(63)


class Depot(Protocol):
    """Where large bodies lie: ``store/depot.py`` on one machine, ``store/parts.py`` on several."""

    least: int
    local: bool

    def put(self, parts: Sequence[Buffer]) -> str | None:
        """Write a blob; its name, or None when there is no room."""

    def get(self, name: str, size: int, *, keep: bool) -> memoryview:
        """Map or fetch a blob."""

    def drop(self, name: str) -> None:
        """Remove a blob."""


def place(job: str, kind: str, *rest: str | int) -> Place:
    """Where a blob of a job belongs: part of its MAC, so that nothing can be swapped."""
    return (job, kind, *rest)


def seal_body(
    key: bytes, where: Place, parts: Sequence[Buffer], depot: Depot | None = None, least: int | None = None
) -> bytes:
    """A body as a sealed blob; a large one (of ``least`` bytes) as a note of where it lies in the depot."""
    if depot is not None:
        size = sum(memoryview(part).nbytes for part in parts)
        if size >= (depot.least if least is None else least) and (name := depot.put(parts)) is not None:
            parts = (_FILED, json.dumps((name, size)).encode())
    return seal(key, where, parts)


def open_body(
    key: bytes,
    where: Place,
    sealed: Buffer,
    depot: Depot | None = None,
    *,
    keep: bool = True,
    any_version: bool = False,
) -> memoryview:
    """The body of a sealed blob, wherever it lies; without ``keep`` it is taken out of the depot.

    Raises:
        WireError: it was not sealed with this key for this place, or the depot does not have it.
    """
    body = unseal(key, where, sealed, any_version=any_version)
    if body[: len(_FILED)] != _FILED:
        return body
    if depot is None:
        raise WireError(f"{where[0]}: a body lies in a depot, and there is none")
    name, size = json.loads(bytes(body[len(_FILED) :]))
    return depot.get(name, size, keep=keep)


def filed(sealed: bytes) -> tuple[str, int] | None:
    """Name and size of the body that one of our own sealed blobs left in the depot, or None."""
    body = sealed[PREFIX_BYTES:]
    if not body.startswith(_FILED):
        return None
    name, size = json.loads(body[len(_FILED) :])
    return name, size


# -- meta --------------------------------------------------------------------------------------------------------------


def seal_meta(key: bytes, job: str, options: dict[str, Any]) -> bytes:
    """The rules under which a job runs, and the versions of its client."""
    return seal(key, place(job, "meta"), json.dumps({**options, "versions": pickling.versions()}).encode())


def open_meta(key: bytes, job: str, sealed: Buffer) -> dict[str, Any]:
    """The rules; raises WireError when they are not ours."""
    options: dict[str, Any] = json.loads(bytes(unseal(key, place(job, "meta"), sealed, any_version=True)))
    return options


# -- payload -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Payload:
    """The items of one blob.

    Attributes:
        blob: its id.
        base: index of the first item.
        columns: arguments by column; one column of separately pickled argument tuples when ``each``.
        each: whether items are unpickled one by one.
    """

    blob: str
    base: int
    columns: Sequence[Sequence[Any]]
    each: bool


def seal_payload(
    key: bytes, job: str, blob: str, base: int, columns: Sequence[Sequence[Any]], depot: Depot | None = None
) -> tuple[bytes, dict[int, SerializationError]]:
    """The items of a chunk, by column; those that cannot be pickled are left out, with the reason for each."""
    failed: dict[int, SerializationError] = {}
    try:
        parts, form = pickling.encode_columns(columns, base), _COLUMNS
    except SerializationError:
        items: list[bytes] = []
        for index, arguments in enumerate(zip(*columns, strict=True), base):
            try:
                items.append(_dump_item(arguments, index))
            except SerializationError as error:
                items.append(b"")
                failed[index] = error
        parts, form = pickling.encode_columns([items]), _EACH
    # A file of this machine costs less than the way through the server, also where it is not large.
    least = FILED_PAYLOAD if depot is not None and depot.local else None
    return seal_body(key, place(job, "items", blob), (_HEAD.pack(form, base), *parts), depot, least), failed


def _dump_item(arguments: tuple[Any, ...], index: int) -> bytes:
    """One item by itself; the error names the argument that is to blame."""
    try:
        return pickling.dump(arguments, f"item {index}")
    except SerializationError:
        for number, argument in enumerate(arguments, 1):
            pickling.dump(argument, f"item {index}" + (f", argument {number}" if len(arguments) > 1 else ""))
        raise


def seal_alone(key: bytes, job: str, payload: Payload, index: int, blob: str) -> bytes:
    """One item of a payload as a blob of its own, unpickled by itself."""
    arguments = tuple(column[index - payload.base] for column in payload.columns)
    item = arguments[0] if payload.each else pickling.dump(arguments, f"item {index}")
    body = (_HEAD.pack(_EACH, index), *pickling.encode_columns([[item]]))
    return seal(key, place(job, "items", blob), body)


def open_payload(key: bytes, job: str, blob: str, sealed: Buffer, depot: Depot | None = None) -> Payload:
    """The items of a blob. Unpickling runs code of the user's classes, so it may raise anything.

    Raises:
        WireError: it was not sealed with this key as this blob of this job.
    """
    body = open_body(key, place(job, "items", blob), sealed, depot)
    if len(body) < _HEAD.size:
        raise WireError(f"the payload {blob} of job {job} is too short")
    form, base = _HEAD.unpack_from(body)
    return Payload(blob, base, pickling.decode_columns(body[_HEAD.size :]), form == _EACH)


# -- entries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a whole job failed; ``kind`` says so when there is an error class for it."""

    reason: str
    worker: str
    kind: Literal["", "versions"] = ""


def seal_block(key: bytes, job: str, block: Block, depot: Depot | None = None) -> bytes:
    """A block of outcomes as a stream entry."""
    return seal_body(key, place(job, "out"), (_BLOCK, *encode_block(block)), depot)


def seal_verdict(key: bytes, job: str, verdict: Verdict) -> bytes:
    """A verdict as a stream entry."""
    body = json.dumps({"reason": verdict.reason, "worker": verdict.worker, "kind": verdict.kind}).encode()
    return seal(key, place(job, "out"), (_VERDICT, body))


def open_entry(key: bytes, job: str, sealed: Buffer, depot: Depot | None = None) -> Block | Verdict:
    """What a stream entry says; values stay encoded.

    Raises:
        WireError: it is not ours.
    """
    # A worker whose version does not go with ours writes nothing but a verdict that says so.
    body = open_body(key, place(job, "out"), sealed, depot, keep=False, any_version=True)
    if body[:1] == _VERDICT[:1]:
        says = json.loads(bytes(body[len(_VERDICT) :]))
        return Verdict(str(says["reason"]), str(says["worker"]), says["kind"])
    return decode_block(body[len(_BLOCK) :])
