"""The README's systemd unit and container, as far as they run without a service manager."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.elsewhere import Elsewhere, elsewhere
from support import unavailable

from nbparallel import pmap

README = (Path(__file__).parents[2] / "README.md").read_text()
UNIT, CONTAINER = (README.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("ini", "dockerfile"))
PROGRAM = "/opt/nbparallel/bin/nbparallel"


def test_the_unit_file_is_understood(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the unit."""
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd")
    unit = tmp_path / "nbparallel-worker.service"
    unit.write_text(UNIT.replace(PROGRAM, sys.executable))  # it looks whether the program is there
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "nbparallel" in line]) == (0, [])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Elsewhere]:
    """A server and a key."""
    with elsewhere(tmp_path) as place:
        yield place


def test_the_units_command(place: Elsewhere) -> None:
    """What the unit starts works with the variables that it sets, and ends when its parent alone gets SIGTERM."""
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    program, *arguments = shlex.split(settings["ExecStart"])
    assert program == PROGRAM
    assert settings["Environment"] == "NBPARALLEL_KEY_FILE=%d/key"
    assert (settings["KillMode"], settings.get("KillSignal", "SIGTERM")) == ("mixed", "SIGTERM")
    worker = place.start("-m", "nbparallel", *arguments, "--concurrency", "1")
    with place.connect() as cluster:
        assert pmap(abs, [-1], session=cluster).result(30) == [1]
    assert worker.end(signal.SIGTERM, within=float(settings["TimeoutStopSec"])) == 0


def test_the_containers_entry() -> None:
    """The container's command is one of ours, and its Python one that we support."""
    steps = dict(re.findall(r"^([A-Z]+) (.*)$", CONTAINER, re.MULTILINE))
    assert steps["ENTRYPOINT"] == '["nbparallel", "worker"]'
    assert re.fullmatch(r"python:3\.1\d-slim", steps["FROM"])
    assert "pip install" in steps["RUN"]
