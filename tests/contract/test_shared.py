"""Every store: shared values are there until they are dropped, or their time has passed."""

from __future__ import annotations

from contract.bench import LONG, Bench

ONE, OTHER = "1" * 24, "2" * 24


def test_a_shared_value_is_there_until_it_is_dropped(bench: Bench) -> None:
    """What was put is given as it was, under its id alone; dropping it, also again, removes just that."""
    bench.store.put_shared(ONE, b"one\x00", LONG)
    bench.store.put_shared(OTHER, b"other", LONG)
    assert (bench.store.get_shared(ONE), bench.store.get_shared("3" * 24)) == (b"one\x00", None)
    bench.store.drop_shared([ONE])
    bench.store.drop_shared([ONE])
    assert bench.store.has_shared([ONE, OTHER, ONE]) == [False, True, False]
    assert bench.store.get_shared(ONE) is None


def test_putting_it_again_replaces_it(bench: Bench) -> None:
    """A call that is repeated after its reply was lost does no harm, and a newer value stands for the older."""
    bench.store.put_shared(ONE, b"one", LONG)
    bench.store.put_shared(ONE, b"new", LONG)
    assert bench.store.get_shared(ONE) == b"new"


def test_a_shared_value_lives_for_its_time(bench: Bench) -> None:
    """It goes by itself, unless it was kept; what is gone cannot be kept."""
    bench.store.put_shared(ONE, b"one", 300)
    bench.store.put_shared(OTHER, b"other", 300)
    assert bench.store.keep_shared(OTHER, LONG)
    bench.pass_time(301)
    assert bench.store.has_shared([ONE, OTHER]) == [False, True]
    assert bench.store.get_shared(ONE) is None
    assert not bench.store.keep_shared(ONE, LONG)
