"""Which streams a session's collector reads."""

from __future__ import annotations

from nbparallel.client.streams import Streams
from nbparallel.store import keys


def test_the_next_job_is_heard_before_it_starts() -> None:
    """The stream of the next job is among those that are read, so that its start wakes nobody; only the first is."""
    streams = Streams("n", "sid")
    streams.to_read()
    first, second = (keys.job_key("n", streams.next_id(), 0) for _ in range(2))
    assert streams.hears(first)
    assert not streams.hears(second)
    streams.add(first)
    streams.add(second)
    assert set(streams.to_read()) >= {first, second, "wake:sid"}
    assert streams.hears(second)
    third = keys.job_key("n", streams.next_id(), 0)
    assert streams.hears(third)


def test_reading_goes_on_behind_what_was_read() -> None:
    """Positions are those of the entries read last; a stream that was forgotten stays forgotten."""
    streams = Streams("n", "sid")
    streams.add("job")
    assert streams.read_so_far() == {}
    streams.taken("job", "5-0")
    streams.taken("wake:sid", "3-0")
    assert streams.read_so_far() == {"job": "5-0"}
    assert streams.to_read().items() >= {"job": "5-0", "wake:sid": "3-0"}.items()
    streams.forget("job")
    streams.taken("job", "6-0")
    assert "job" not in streams.to_read()
