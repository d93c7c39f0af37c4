"""The memory that parent and child share."""

from __future__ import annotations

import random
import sys
import threading

import pytest
from unit.workbench import new_slot

from nbparallel.worker import slot as slots
from nbparallel.worker.slot import Slots, make_token


def test_a_new_slot_belongs_to_nobody() -> None:
    """Without a child there is no owner and nothing runs."""
    all_slots = Slots(3)
    assert all_slots.owned() == []
    assert all_slots[2].pid() == 0
    assert all_slots[2].running() is None
    assert all_slots[2].number == 2


def test_slots_do_not_overlap() -> None:
    """What one child writes, its neighbours do not see."""
    all_slots = Slots(3)
    for number, text in enumerate("abc"):
        all_slots[number].child_starts(100 + number, text * 16)
        all_slots[number].child_claims(number + 1, f"job{text}" * 20, text * 48)
    for number, text in enumerate("abc"):
        running = all_slots[number].running()
        assert running is not None
        assert (running.pid, running.serial, running.ticket) == (100 + number, number + 1, text * 48)
        assert running.token == make_token(text * 16, number + 1)
        assert running.job == f"job{text}" * 20
    assert [slot.pid() for slot in all_slots.owned()] == [100, 101, 102]


def test_the_parent_sees_what_the_child_writes() -> None:
    """Each word that the child stores is in the picture."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    assert slot.running() is None, "it has not claimed anything"
    slot.child_claims(5, "job", "ticket")
    slot.words[slots.COUNT] = 3
    slot.words[slots.INDEX] = 40
    slot.words[slots.RAISED] = 5
    slot.words[slots.ATTEMPT] = 2
    slot.times[slots.STARTED] = 1.5
    slot.times[slots.LIMIT] = 2.5
    assert slot.running() == slots.Running(7, 5, "ab0000000000000005", "job", "ticket", 40, 3, 1.5, True, 2.5, 2)


def test_a_claim_begins_outside_an_item() -> None:
    """Until the first item runs, no item is named, whatever ran before."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    slot.child_claims(1, "job", "ticket")
    slot.words[slots.INDEX] = 40
    slot.words[slots.RAISED] = 1
    slot.child_claims(2, "job", "ticket")
    running = slot.running()
    assert running is not None
    assert (running.index, running.raised) == (-1, False)


def test_a_shorter_text_leaves_nothing_of_a_longer_one() -> None:
    """Names are replaced whole."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    slot.child_claims(1, "j" * 160, "t" * 48)
    slot.child_claims(2, "short", "s")
    running = slot.running()
    assert running is not None
    assert (running.job, running.ticket) == ("short", "s")


def test_a_text_that_does_not_fit_is_refused() -> None:
    """A name is never cut, for then it would name something else."""
    slot = new_slot()
    with pytest.raises(ValueError, match="does not fit into 160 bytes"):
        slot.child_claims(1, "j" * 161, "t")
    assert slot.running() is None


def test_an_owner_can_be_forgotten() -> None:
    """A slot whose child died is free for the next one, which finds nothing of the old one."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    slot.child_claims(3, "job", "ticket")
    slot.ask(3, 5, slots.CANCELLED)
    slot.hand_back()
    slot.forget()
    assert (slot.pid(), slot.running()) == (0, None)
    slot.child_starts(8, "cd")
    assert slot.pid() == 8
    assert slot.running() is None
    assert not slot.asked_to_hand_back()
    assert slot.words[slots.ASK_SERIAL] == 0


def test_rest_ends_the_lease_but_not_the_ownership() -> None:
    """A child between two turns holds nothing."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    slot.child_claims(3, "job", "ticket")
    slot.child_rests()
    assert (slot.pid(), slot.running()) == (7, None)


def test_a_wish_stands_until_the_next_one() -> None:
    """The parent's words are what it asked last."""
    slot = new_slot()
    slot.ask(3, 5, slots.TIMED_OUT)
    slot.ask(4, slots.ANY_ITEM, slots.LOST)
    words = [slot.words[word] for word in (slots.ASK_SERIAL, slots.ASK_INDEX, slots.ASK_WHY)]
    assert words == [4, slots.ANY_ITEM, slots.LOST]
    slot.hand_back()
    assert slot.asked_to_hand_back()


def test_a_picture_is_never_of_two_claims() -> None:
    """While a child claims again and again, job, ticket, token and serial always belong together."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    stop = threading.Event()

    def claims() -> None:
        serial = 0
        while not stop.is_set():
            serial += 1
            slot.child_claims(serial, f"job{serial}", f"ticket{serial}")

    thread = threading.Thread(target=claims)
    before, seen = sys.getswitchinterval(), set()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        while len(seen) < 300:
            running = slot.running()
            if running is not None:
                seen.add(running.serial)
                assert running.job == f"job{running.serial}"
                assert running.ticket == f"ticket{running.serial}"
                assert running.token == make_token("ab", running.serial)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_child_that_claims_without_end_does_not_hold_the_parent_up() -> None:
    """When every look is disturbed, the parent gives up rather than wait."""
    slot = new_slot()
    slot.child_starts(7, "ab")
    slot.child_claims(1, "job", "ticket")
    read = slot._read

    def disturbed(offset: int, size: int) -> str:
        slot.words[slots.SERIAL] += random.randint(1, 9)
        return read(offset, size)

    slot._read = disturbed  # type: ignore[method-assign]
    assert slot.running() is None
