"""What stays of a job's results in the store, and what went before it was read."""

from __future__ import annotations

from nbparallel.client.kept import Kept
from nbparallel.ordering import Ranges


def test_the_oldest_entries_go() -> None:
    """Whatever is above the budget goes, oldest first; the newest entry stays however large it is."""
    kept = Kept(100)
    assert kept.take([("1-0", bytes(40)), ("2-0", bytes(40))]) == ""
    assert kept.take([("3-0", bytes(40))]) == "1-0"
    assert kept.take([("4-0", bytes(70)), ("4-1", bytes(500))]) == "4-0"
    assert kept.take([("5-0", b"")]) == "4-1"


def test_gone_is_what_was_reported_and_cannot_be_read_any_more() -> None:
    """Of what the store knew as reported, that is missing once its last entry of then was read; not before."""
    kept = Kept(100)
    assert not kept.gone(Ranges())
    kept.looked("10-2", Ranges([(0, 20)]))
    kept.take([("9-5", b"x")])
    assert not kept.gone(Ranges([(5, 10)]))
    kept.take([("10-2", b"x")])
    assert kept.gone(Ranges([(5, 12)])).runs == [(0, 5), (12, 20)]
    assert not kept.gone(Ranges()), "each look counts once"


def test_an_empty_stream_has_nothing_to_wait_for() -> None:
    """Where no entry is left all that was reported is gone at once."""
    kept = Kept(100)
    kept.looked("0-0", Ranges([(0, 3)]))
    assert kept.gone(Ranges()).runs == [(0, 3)]
