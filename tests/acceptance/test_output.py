"""What functions print, log and warn, with real workers: in job.output, on the terminal, and silent when told so."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from support import Gate, eventually

from nbparallel import Cluster, pmap

SCRIPT = """
import logging, sys, warnings
from nbparallel import pmap
logging.basicConfig(level=logging.INFO)
def talk(x):
    print("hello", x)
    logging.getLogger("mine").info("note %d", x)
    warnings.warn("careful")
    return x
if __name__ == "__main__":
    job = pmap(talk, range(2), chunks=1, **{options})
    print(sum(job), len(job.output))
"""


def test_output_is_on_the_job(cluster: Cluster) -> None:
    """Each item's prints are in job.output under its index, and in the snapshot that views draw."""

    def talk(x: int) -> None:
        print("item", x)

    job = pmap(talk, range(50), session=cluster, progress=False)
    job.result()
    assert sorted(job.output) == sorted((x, "stdout", f"item {x}\n") for x in range(50))
    details = job.snapshot().details
    assert details is not None
    assert sorted(details.output) == sorted(job.output)


def test_a_running_item_is_heard(cluster: Cluster, gate: Gate) -> None:
    """What an item prints arrives while it still runs."""

    def work(x: int) -> None:
        print("under way")
        gate.wait()

    job = pmap(work, [1], session=cluster, progress=False)
    eventually(lambda: job.output == [(0, "stdout", "under way\n")], within=20, what="the output of a running item")
    assert job.snapshot().done == 0
    gate.open()
    job.result()
    assert job.output == [(0, "stdout", "under way\n")]


def test_a_flood_is_bounded(cluster: Cluster) -> None:
    """An item that prints many megabytes neither fills the memory nor the store; what was cut is counted."""
    job = pmap(lambda x: [print("y" * 9999) for _ in range(1000)] and None, range(4), session=cluster, progress=False)
    job.result()
    assert sum(len(text) for _, _, text in job.output) <= 1_000_000
    details = job.snapshot().details
    assert details is not None
    assert details.output_cut + sum(len(text) for _, _, text in details.output) == 4 * 1000 * 10_000


def test_log_levels_of_the_client_hold(cluster: Cluster) -> None:
    """What the notebook's root logger lets through is what comes from workers."""
    root = logging.getLogger()
    before = root.level

    def note(x: int) -> None:
        logging.getLogger("mine").info("note")

    try:
        root.setLevel(logging.INFO)
        job = pmap(note, [1], session=cluster, progress=False)
        job.result()
        assert job.output == [(0, "log", "INFO mine: note\n")]
        root.setLevel(logging.WARNING)
        job = pmap(note, [1], session=cluster, progress=False)
        job.result()
        assert job.output == []
    finally:
        root.setLevel(before)


def test_a_cancelled_item_has_said_something(cluster: Cluster) -> None:
    """What an item had printed before it was cancelled stays."""

    def hang(x: int) -> None:
        print("before")
        threading.Event().wait()

    job = pmap(hang, [1], session=cluster, progress=False)
    eventually(lambda: job.output, within=20, what="some output")
    job.cancel()
    assert job.output == [(0, "stdout", "before\n")]


@pytest.mark.parametrize("options", ["{}", "{'progress': True}", "{'progress': False}"])
def test_a_script_shows_what_items_write(program: object, tmp_path: Path, options: str) -> None:
    """On stderr, each line with its item; nothing with progress=False; stdout is the program's own."""
    script = tmp_path / "talk.py"
    script.write_text(SCRIPT.replace("{options}", options))
    done = program("-W", "default", str(script))  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 ")
    expected = {"[item 0] hello 0", "[item 1] hello 1", "[item 0] INFO mine: note 0", "[item 1] INFO mine: note 1"}
    shown = {line for line in done.stderr.splitlines() if line.startswith("[item")}
    if "False" in options:
        assert shown == set()
    else:
        assert expected <= shown
        assert any("UserWarning: careful" in line for line in shown)
