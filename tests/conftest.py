"""Fixtures of every test: a private temporary directory, the search for leaks, a real server."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from support import RUN_MARK, Server, Watch, running_server

import nbparallel


def pytest_configure(config: pytest.Config) -> None:
    """Mark all processes of this run, and give it a temporary directory of its own (short: unix sockets)."""
    os.environ[RUN_MARK] = secrets.token_hex(8)
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="t", dir="/tmp")
    os.environ["XDG_RUNTIME_DIR"] = os.environ["TMPDIR"]
    # A machine under load is slow now and then; that says nothing about the code.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")
    for name in [name for name in os.environ if name.startswith("NBPARALLEL_")]:
        del os.environ[name]  # settings of the person who runs the tests must not change what they see
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So does a shell that starts them in the background, and what they start would not hear Ctrl-C either.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary directory."""
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
    tempfile.tempdir = None


def pytest_report_header(config: pytest.Config) -> str:
    """Which nbparallel is tested; ``tests/run`` must test the one that was built and installed."""
    where = Path(nbparallel.__file__ or "").parent
    if os.environ.get("TESTS_INSTALLED") == "1" and where.parent.name != "site-packages":
        raise pytest.UsageError(f"the installed package must be tested, not {where}")
    return f"nbparallel: {where}"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail any test that leaves a thread, a process or a file behind, and show it."""
    watch = Watch.begin()
    yield
    if found := watch.leaks():
        pytest.fail(f"the test left behind:\n{found}", pytrace=False)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A real server, shared by the tests; use keys of your own, and do not stop it."""
    with running_server() as server:
        yield server
