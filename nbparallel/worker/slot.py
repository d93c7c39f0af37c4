"""A few bytes of memory that a pool process (child) and the worker's parent share.

The child says with plain stores what it runs; the parent reads it at any time, also after the child's death, so it
knows exactly which item killed a child, renews only the leases of chunks that really run, and interrupts exactly what
it means. No lock: each word has one writer, and the parent re-reads a token to see that nothing changed meanwhile.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

__all__ = ["ANY_ITEM", "CANCELLED", "LOST", "OUT_OF_MEMORY", "TIMED_OUT", "Running", "Slot", "Slots", "make_token"]

#: Bytes of a slot; a multiple of 8.
SIZE = 512

# Words (8 bytes each), written by the child ...
PID, SERIAL, INDEX, COUNT, STARTED, ARMED, RAISED, LIMIT, ATTEMPT = range(9)
# ... and by the parent.
ASK_SERIAL, ASK_INDEX, ASK_WHY, HAND_BACK = range(9, 13)

#: Also written by the child, behind the texts: bytes of memory that it may use (0: no limit).
MEMORY = 41

_STAMP, _STAMP_SIZE = 104, 16
_JOB, _JOB_SIZE = 120, 160
_TICKET, _TICKET_SIZE = 280, 48

#: ``ASK_INDEX`` that means whatever item the chunk runs.
ANY_ITEM = -1
#: Reasons of an interrupt.
CANCELLED, TIMED_OUT, LOST, OUT_OF_MEMORY = 1, 2, 3, 4


def make_token(stamp: str, serial: int) -> str:
    """The token of a process's ``serial``-th lease; ``stamp`` is random, one per process."""
    return f"{stamp}{serial:016x}"


@dataclass(frozen=True, slots=True)
class Running:
    """What a child runs now, as its parent sees it.

    ``count`` > 1: somewhere in [index, index + count); ``index`` -1: outside an item (loading, reporting).
    ``started`` is ``time.monotonic()`` of the item's start, ``limit`` its timeout in seconds (0: none), ``attempt``
    which attempt of the chunk's items this is.
    """

    pid: int
    serial: int
    token: str
    job: str
    ticket: str
    index: int
    count: int
    started: float
    raised: bool
    limit: float
    attempt: int


class Slot:
    """One child's slot; methods named after who calls them."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        view = memoryview(memory)[number * SIZE : (number + 1) * SIZE]
        self.number = number
        self.bytes = view
        #: Words as signed integers and as doubles; the child's inner loop stores into them directly.
        self.words = view.cast("q")
        self.times = view.cast("d")

    # -- the child -----------------------------------------------------------------------------------------------------

    def child_starts(self, pid: int, stamp: str) -> None:
        """A new process took this slot over."""
        self.words[SERIAL] = 0
        for word in (INDEX, COUNT, ARMED, RAISED, ASK_SERIAL, HAND_BACK, MEMORY):
            self.words[word] = 0
        self._write(_STAMP, _STAMP_SIZE, stamp)
        self.words[PID] = pid

    def child_claims(self, serial: int, job: str, ticket: str) -> None:
        """The child is about to claim under this serial; set before the claim, so that it is renewed at once."""
        words = self.words
        words[SERIAL] = 0
        words[INDEX] = -1
        self._write(_JOB, _JOB_SIZE, job)
        self._write(_TICKET, _TICKET_SIZE, ticket)
        words[SERIAL] = serial

    def child_rests(self) -> None:
        """The child holds no lease any more."""
        self.words[SERIAL] = 0

    def asked_to_hand_back(self) -> bool:
        """Whether the worker is shutting down."""
        return bool(self.words[HAND_BACK])

    def _write(self, offset: int, size: int, text: str) -> None:
        data = text.encode("ascii")
        if len(data) > size:
            raise ValueError(f"{text!r} does not fit into {size} bytes")
        self.bytes[offset : offset + size] = data.ljust(size, b"\0")

    # -- the parent ----------------------------------------------------------------------------------------------------

    def pid(self) -> int:
        """Process id of the child that owns the slot, or 0."""
        return self.words[PID]

    def stamp(self) -> str:
        """What the tokens of the child that owns the slot begin with."""
        return self._read(_STAMP, _STAMP_SIZE)

    def forget(self) -> None:
        """The child is dead and what it held was released."""
        self.words[SERIAL] = 0
        self.words[PID] = 0

    def running(self) -> Running | None:
        """A consistent picture of what the child runs, or None when it holds no lease."""
        words = self.words
        for _ in range(100):
            serial = words[SERIAL]
            if serial == 0:
                return None
            picture = Running(
                words[PID],
                serial,
                make_token(self.stamp(), serial),
                self._read(_JOB, _JOB_SIZE),
                self._read(_TICKET, _TICKET_SIZE),
                words[INDEX],
                words[COUNT],
                self.times[STARTED],
                words[RAISED] == serial,
                self.times[LIMIT],
                words[ATTEMPT],
            )
            if words[SERIAL] == serial:
                return picture
        return None

    def ask(self, serial: int, index: int, why: int) -> None:
        """Ask the child to interrupt an item of this lease; a signal makes it look."""
        self.words[ASK_SERIAL] = 0
        self.words[ASK_INDEX] = index
        self.words[ASK_WHY] = why
        self.words[ASK_SERIAL] = serial

    def hand_back(self) -> None:
        """Ask the child to give back what it has not started, and to take nothing more."""
        self.words[HAND_BACK] = 1

    def _read(self, offset: int, size: int) -> str:
        (data,) = struct.unpack_from(f"{size}s", self.bytes, offset)
        return str(data.rstrip(b"\0"), "ascii", "replace")


class Slots:
    """The slots of all children, made by the parent before it forks.

    Args:
        count: the most children that there may be at once.
    """

    def __init__(self, count: int) -> None:
        memory = mmap.mmap(-1, count * SIZE)
        self._slots = [Slot(memory, number) for number in range(count)]

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def owned(self) -> list[Slot]:
        """Slots that a child took over."""
        return [slot for slot in self._slots if slot.pid()]
