"""The choice of a view, the words, the bar on a terminal and the output in a notebook."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
from support import imported

from nbparallel.errors import UsageError
from nbparallel.model import Snapshot
from nbparallel.progress import phrases, summary, terminal
from nbparallel.progress import view as view_module
from nbparallel.progress.view import open_view

RUNNING = Snapshot("j1", "simulate", "running", 4000, 812, 0, 2, 30, 0, 100.0, 31.9, 8.1, 16.0, 12)
DONE = replace(RUNNING, state="done", done=4000, running=0, waiting=0, elapsed=40.0, busy=80.0, eta=None)
FAILED = replace(
    DONE,
    state="failed",
    failed=3,
    errors=((7, "ValueError", "<b>odd</b>"), (3, "ValueError", "x\ny"), (9, "OSError", "")),
)
CANCELLED = replace(RUNNING, state="cancelled", eta=None)
EARLY = replace(RUNNING, state="starting", done=0, elapsed=0.01, rate=None, eta=None)


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What the views write to; pytest changes the real ``sys.stderr`` between a fixture and its test."""
    stream = Terminal()
    for module in (terminal, view_module):
        monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=stream, modules=sys.modules))
    return stream


class Handle:
    """Keeps what was displayed, as IPython's DisplayHandle would be told."""

    def __init__(self) -> None:
        self.pictures: list[dict[str, str]] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.pictures.append(data)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A module that looks as IPython does in a kernel."""
    handle = Handle()

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert display_id
        handle.update(data, raw)
        return handle

    parent = {"content": {"allow_stdin": False}}  # as nbclient says it: nobody looks
    shell = types.SimpleNamespace(kernel=types.SimpleNamespace(get_parent=lambda channel: parent))
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return handle


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "—"), (0, "< 1 ms"), (0.0123, "12.3 ms"), (0.0996, "0.1 s"), (2.44, "2.4 s"), (9.96, "10 s"),
        (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, words: str) -> None:
    """A time reads as a person would say it, at every size and border."""
    assert phrases.duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (None, "—"),
        (12345.6, "12,300/s"),
        (99.6, "99.6/s"),
        (3_904_453, "3,900,000/s"),
        (1.234, "1.23/s"),
        (0.5, "30/min"),
        (0.01, "36/h"),
        (0, "0/h"),
    ],
)
def test_speed(rate: float | None, words: str) -> None:
    """A rate is given in the unit that makes it a readable number."""
    assert phrases.speed(rate) == words


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (RUNNING, "simulate: 812 of 4,000 items, 8.1 s, 100/s, 32 s left"),
        (EARLY, "simulate: starting, 10 ms"),
        (replace(RUNNING, total=None, eta=None, retried=2), "simulate: 812 items, 8.1 s, 2 retried, 100/s"),
        (replace(RUNNING, reason="broker unreachable for 6 s, retrying", eta=None),
         "simulate: 812 of 4,000 items, 8.1 s, broker unreachable for 6 s, retrying, 100/s"),
        (DONE, "simulate: done, 4,000 items in 40 s, 100/s, 2.0 × one process"),
        (CANCELLED, "simulate: cancelled after 8.1 s, 812 of 4,000 items done, kept, 100/s, 2.0 × one process"),
    ],
)  # fmt: skip
def test_headline(snapshot: Snapshot, words: str) -> None:
    """One line says where the job is, what it waits for and what it cost."""
    assert phrases.headline(snapshot) == words


def test_text_lists_errors_by_type() -> None:
    """The summary groups failures by type, names the first item of each and keeps one line for each."""
    assert summary.text(FAILED).splitlines() == [
        "simulate: failed, 4,000 items in 40 s, 3 failed, 100/s, 2.0 × one process",
        "  ValueError × 2, first at item 3: x y",
        "  OSError × 1, first at item 9: ",
    ]


def test_html_has_no_script_and_escapes() -> None:
    """What a user's function raised cannot become markup in a saved notebook."""
    page = summary.html(replace(FAILED, name="<i>f</i>", errors=((7, "<u>", "<script>alert(1)</script>"),)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<i>" not in page
    assert "<u>" not in page


@pytest.mark.parametrize("progress", [False, "off"])
def test_off_is_silent(tty: Terminal, notebook: Handle, progress: bool | str) -> None:
    """With progress=False nothing is shown, wherever the program runs."""
    assert open_view(progress, RUNNING) is None
    assert tty.getvalue() == ""
    assert notebook.pictures == []


def test_wrong_value_is_refused() -> None:
    """A misspelt progress is an error that names the choices."""
    with pytest.raises(UsageError, match="auto"):
        open_view("yes", RUNNING)


def test_auto_is_quiet_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script whose stderr is a file shows nothing unless asked."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert open_view("auto", RUNNING) is None


def test_lines_in_a_log_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for progress in a log, a job writes a line each ten seconds and its summary."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    view = open_view(True, EARLY)
    assert view
    for tenth in range(250):
        view.update(replace(RUNNING, elapsed=tenth / 10))
    view.close(DONE)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == summary.text(DONE)


def test_bar_makes_way_for_one_line(tty: Terminal) -> None:
    """The bar shows counts, rate, ETA, failures and the reason of waiting, and ends in the summary's line."""
    view = open_view("auto", EARLY)
    assert view
    view.update(replace(RUNNING, failed=3))
    view.update(replace(RUNNING, reason="waiting for the reader of the results"))
    drawn = tty.getvalue()
    for words in ("simulate", "20%", "812/4,000", "3 failed", "100/s", "32 s left", "waiting for the reader"):
        assert words in drawn
    view.close(FAILED)
    assert tty.getvalue().endswith("\r" + summary.text(FAILED) + "\n")


def test_bar_of_unknown_length(tty: Terminal) -> None:
    """Without a total there is no bar and no ETA, but counts and rate."""
    view = open_view("on", replace(EARLY, total=None))
    assert view
    view.update(replace(RUNNING, total=None, eta=None, name="gen {x}"))
    assert "812, 8.1 s, 100/s" in tty.getvalue()
    assert "%" not in tty.getvalue()
    assert "left" not in tty.getvalue()
    view.close(DONE)


def test_short_job_does_not_flash(tty: Terminal) -> None:
    """A job that ends at once leaves nothing on the terminal, unless something failed or progress was asked for."""
    for progress, end, shown in (("auto", DONE, False), ("auto", FAILED, True), (True, DONE, True)):
        tty.truncate(0)
        tty.seek(0)
        view = open_view(progress, EARLY)
        assert view
        view.update(EARLY)
        view.close(replace(end, elapsed=0.02))
        assert bool(tty.getvalue()) is shown


def test_bars_share_the_lock_of_the_program(tty: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our bars make no lock for processes, which would start a process to track it."""
    tqdm = imported("tqdm").tqdm
    monkeypatch.delattr(tqdm, "_lock", raising=False)
    assert terminal._bar_type().get_lock() is terminal._LOCK


def test_notebook_output_is_replaced_in_place(notebook: Handle) -> None:
    """The output follows the job as HTML and text, and its last picture is the summary."""
    view = open_view("auto", EARLY)
    assert view
    view.update(RUNNING)
    view.update(RUNNING)
    view.close(DONE)
    assert [picture["text/plain"] for picture in notebook.pictures] == [summary.text(s) for s in (EARLY, RUNNING, DONE)]
    assert set(notebook.pictures[-1]) == {"text/plain", "text/html"}


def test_ipython_in_a_terminal_is_a_terminal(tty: Terminal, notebook: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IPython without a kernel gets the bar."""
    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace())
    view = open_view("on", RUNNING)
    assert view
    view.close(DONE)
    assert notebook.pictures == []
    assert "simulate" in tty.getvalue()


def test_view_that_fails_is_dropped_with_one_warning(notebook: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken front end costs one warning and never an exception in the job."""
    view = open_view("auto", EARLY)
    assert view
    monkeypatch.setattr(notebook, "update", lambda *a, **k: 1 / 0)
    with pytest.warns(RuntimeWarning, match="'simulate' failed and is dropped; the job goes on: ZeroDivisionError"):
        view.update(RUNNING)
    view.update(RUNNING)
    view.close(DONE)


def test_view_that_cannot_open_is_dropped(notebook: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for a view that fails when it is opened."""
    monkeypatch.setattr("IPython.display.display", None)
    with pytest.warns(RuntimeWarning, match="dropped"):
        view = open_view("auto", EARLY)
    assert view
    view.close(DONE)


def test_nothing_heavy_is_imported() -> None:
    """Choosing a view imports neither tqdm nor IPython."""
    code = (
        "import sys; from nbparallel.progress import view; view.open_view('off', None);"
        "print(*{'tqdm', 'IPython', 'ipywidgets', 'anywidget'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
