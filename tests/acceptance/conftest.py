"""Fixtures of the acceptance tests: a cluster of two worker processes, and programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nbparallel
from nbparallel import Cluster, pmap

#: Where the tested package lies, for programs that are run elsewhere.
ROOT = str(Path(nbparallel.__file__ or "").parents[1])

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes, shared by the tests of a module."""
    with Cluster(workers=2) as cluster:
        pmap(abs, [-1], session=cluster).result()  # all of its threads run before the first test looks around
        yield cluster


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Run Python with the given arguments in an empty directory, warnings being errors; gives what it wrote."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PYTHONPATH": ROOT, "NBPARALLEL_WORKERS": "2", "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "error", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60
        )

    return run
