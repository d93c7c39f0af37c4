"""Output of items in a terminal or a log."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from tqdm import tqdm

from nbparallel.progress import echo as module
from nbparallel.progress.echo import open_echo


def test_each_line_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines go to stderr with the item before them; what only says how much was cut does not."""
    show = open_echo("auto", lambda call: call())
    assert show is not None
    show([(3, "stdout", "a\nb\n"), (4, "log", "c"), (4, "cut", "17")])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "[item 3] a\n[item 3] b\n[item 4] c\n")


def test_nothing_is_shown_by_the_thread_that_asks(capsys: pytest.CaptureFixture[str]) -> None:
    """Writing is left to another thread: a terminal that is stopped must not hold up the results."""
    later = []
    show = open_echo("auto", later.append)
    assert show is not None
    show([(0, "stdout", "a")])
    assert capsys.readouterr().err == ""
    later[0]()
    assert capsys.readouterr().err == "[item 0] a\n"


@pytest.mark.parametrize("progress", [False, "off"])
def test_silence_is_kept(progress: bool | str) -> None:
    """Without progress nothing is shown."""
    assert open_echo(progress, lambda call: call()) is None


def test_a_flood_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After the limit one line says where the rest is, and nothing more comes."""
    monkeypatch.setattr(module, "LIMIT", 100)
    show = open_echo(True, lambda call: call())
    assert show is not None
    for _ in range(50):
        show([(0, "stdout", "x" * 30)])
    shown = capsys.readouterr().err
    assert shown.count("job.output") == 1
    assert len(shown) < 200


def test_bars_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open tqdm bar is cleared before a line is written, and drawn again below it."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)  # a bar leaves one behind
    show = open_echo(True, lambda call: call())
    assert show is not None
    with tqdm(total=3, file=stream, ascii=True) as bar:
        bar.refresh()
        show([(0, "stdout", "said")])
        before, _, after = stream.getvalue().rpartition("[item 0] said\n")
        assert before.rpartition("\r")[2].strip() == ""
        assert "0/3" in after
