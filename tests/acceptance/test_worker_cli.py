"""``nbparallel worker``, ``celery -A nbparallel worker`` and ``nbparallel status`` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.elsewhere import CELERY, NBPARALLEL, Elsewhere, elsewhere
from support import Gate, eventually, free_port

from nbparallel import pmap

STATUS = ("-m", "nbparallel", "status")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A server and a key; each test starts its own workers."""
    with elsewhere(tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.mark.parametrize("command", [NBPARALLEL, CELERY], ids=["nbparallel", "celery"])
def test_a_worker_works_and_stops(place: Elsewhere, command: tuple[str, ...]) -> None:
    """A worker runs jobs in its processes, is seen by ``status``, and SIGTERM ends it cleanly, with a quiet stderr."""
    worker = place.start(*command)
    with place.connect() as cluster:
        ran = pmap(lambda _: (os.getppid(), os.getpid()), range(40), session=cluster, chunks=1).result(timeout=30)
        assert {parent for parent, _ in ran} == {worker.process.pid}
        assert 1 <= len({child for _, child in ran}) <= 2
        report = json.loads(place.run(*STATUS, "--json").stdout)
        (shown,) = report["cluster"]["workers"]
        assert re.search(r"2 processes; queues nbparallel; Python 3\.\d+", shown)
        text = place.run(*STATUS)
        assert f"workers: {shown}\n" in text.stdout
        assert (text.stderr, text.returncode) == ("", 0)
    assert worker.end() == 0
    assert re.fullmatch(r"\s*(worker: Warm shutdown \(MainProcess\)\s*)?", worker.err), worker.err
    assert "Traceback" not in worker.out
    assert "workers: none\n" in place.run(*STATUS).stdout


def test_ctrl_c_ends_a_worker(place: Elsewhere) -> None:
    """SIGINT, as from a terminal, ends an idle worker without a traceback, and nobody lists it any more."""
    worker = place.start()
    place.wait_for(1)
    worker.end(signal.SIGINT)
    place.wait_for(0)
    assert "Traceback" not in worker.err


def test_a_stopping_worker_loses_nothing(place: Elsewhere, tmp_path: Path, gate: Gate) -> None:
    """On SIGTERM the items that run finish, what has not started goes to the next worker, and each item runs once."""
    log = tmp_path / "log"

    def item(index: int) -> int:
        with log.open("a") as file:
            file.write(f"{index}\n")
        gate.wait()
        return index

    first = place.start()
    with place.connect() as cluster:
        job = pmap(item, range(12), session=cluster, chunks=3)
        eventually(lambda: log.exists() and len(log.read_text().split()) == 2, 20, "two items run")
        first.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in first.err + first.out, 10)
        gate.open()
        assert first.process.wait(20) == 0
        assert job.status == "running"
        second = place.start()
        assert job.result(timeout=30) == list(range(12))
    assert sorted(map(int, log.read_text().split())) == list(range(12))
    assert second.end() == 0


def test_status_says_that_nobody_listens(place: Elsewhere) -> None:
    """Without a worker a job waits and says what to start, and so does ``status``; when one starts, the job runs."""
    with place.connect() as cluster:
        job = pmap(abs, [-7], session=cluster)
        eventually(lambda: "no worker is listening on queue 'nbparallel'" in job.snapshot().reason)
        assert "nbparallel worker" in job.snapshot().reason
        assert job.snapshot().reason in repr(job)
        done = place.run(*STATUS)
        assert "workers: none\n" in done.stdout
        assert done.stdout.endswith("no worker is listening; start one with: nbparallel worker\n")
        worker = place.start()
        assert job.result(timeout=30) == [7]
        assert job.snapshot().reason == ""
    assert worker.end() == 0


def test_status_shows_settings_without_the_password(place: Elsewhere) -> None:
    """Settings are shown with their source, the URL without its password."""
    done = place.run(*STATUS, NBPARALLEL_LEASE_SECONDS="7")
    assert re.search(r"^lease_seconds +7\.0 +environment", done.stdout, re.MULTILINE)
    assert re.search(
        rf"^url +redis://:\*\*\*@127\.0\.0\.1:{place.server.port}/0 +environment", done.stdout, re.MULTILINE
    )
    assert place.server.password not in done.stdout


def test_status_of_a_cluster_that_is_away(place: Elsewhere) -> None:
    """The problem is named within seconds, with exit status 1, in the text and in JSON."""
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    text = place.run(*STATUS, NBPARALLEL_URL=url)
    assert (text.returncode, text.stderr.count("\n")) == (1, 1)
    assert "cannot be reached" in text.stderr
    report = place.run(*STATUS, "--json", NBPARALLEL_URL=url)
    assert "cannot be reached" in json.loads(report.stdout)["problem"]
    assert "hunter2" not in text.stdout + text.stderr + report.stdout + report.stderr


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NBPARALLEL_URL": ""}, "a worker needs the URL of its cluster: pass --url redis://host:6379/0 or set"),
        ({"NBPARALLEL_KEY_FILE": ""}, "a worker needs its cluster's key: pass --key-file .*make one with: python -c"),
        ({"NBPARALLEL_KEY_FILE": "/no/such.key"}, "the key file /no/such.key cannot be read: No such file"),
        ({"NBPARALLEL_URL": "redis://:hunter2@127.0.0.1:{}/0"}, "cannot be reached.*refused"),
        ({"NBPARALLEL_LEASE_SECONDS": "-1"}, "NBPARALLEL_LEASE_SECONDS must be at least 0.1, not '-1'"),
    ],
    ids=["no url", "no key", "key file", "refused", "setting"],
)
def test_a_worker_that_cannot_start_says_why(place: Elsewhere, environ: dict[str, str], message: str) -> None:
    """What is missing or wrong is said at once, in one line, and the worker ends with an error instead of waiting."""
    done = place.run(*NBPARALLEL, **{name: value.format(free_port()) for name, value in environ.items()})
    assert done.returncode in (1, 2)
    assert re.fullmatch(f"nbparallel: .*{message}.*\n", done.stderr)
    assert "hunter2" not in done.stdout + done.stderr


def test_celery_without_a_cluster_says_why(place: Elsewhere) -> None:
    """``celery -A nbparallel`` names the variable that is missing."""
    done = place.run(*CELERY, NBPARALLEL_URL="")
    assert done.returncode != 0
    assert "a worker needs the URL of its cluster" in done.stderr
