"""How the application speaks to its broker."""

from __future__ import annotations

import pytest

from nbparallel.celery import make_app
from nbparallel.settings import Settings


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://host/0", "redis+socket:///tmp/s.sock"])
@pytest.mark.parametrize("working", [True, False])
def test_nobody_waits_for_ever_for_a_broker(url: str, working: bool) -> None:
    """A link that died without a word blocks neither who publishes nor a worker's event loop for good."""
    app = make_app(url, Settings(connect_seconds=2.0), (lambda *_: "done") if working else None)
    options = app.conf.broker_transport_options
    assert options["socket_connect_timeout"] == 2.0
    assert 2.0 <= options["socket_timeout"] <= 10.0
