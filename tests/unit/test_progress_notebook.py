"""The view in a notebook with a front end: widget, summary, collected lines, wishes of the browser."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter

from nbparallel.client.meter import Meter
from nbparallel.model import Block, Details, ErrorRecord, Lane, Snapshot
from nbparallel.progress import place, summary
from nbparallel.progress.notebook import NotebookView
from nbparallel.progress.widget import _RETIRED, CONTROL_MESSAGE, KEPT_WIDGETS, JobWidget, _control

WIDGET = "application/vnd.jupyter.widget-view+json"
TRACEBACK = (
    'Traceback (most recent call last):\n  File "cell.py", line 7, in half\n    raise ValueError\nValueError: odd'
)
LANES = (Lane("h:1", 3, 1.0, 4, bytes([255, 255, 0, 128])), Lane("h:2", None, 1.0, 1, b""))
EARLY = Snapshot("j", "f", "starting", 10, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0, details=Details())
RUNNING = Snapshot(
    "j", "f", "running", 10, 4, 0, 2, 4, 0, 4.0, 1.5, 1.0, 2.0, 3, details=Details(cells=b"\x0f", lanes=LANES)
)
DONE = replace(RUNNING, state="done", done=10, running=0, waiting=0, eta=None, elapsed=5.0)
SHORT = replace(DONE, elapsed=0.1)


class Events:
    """IPython's events, as far as views use them."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[..., None]] = []

    def register(self, event: str, callback: Callable[..., None]) -> None:
        assert event == "post_run_cell"
        if callback not in self.callbacks:
            self.callbacks.append(callback)

    def fire(self) -> None:
        for callback in self.callbacks:
            callback("result")


class Kernel:
    """What a view sees of a kernel, and what the page shows: a list of outputs, each with its pictures."""

    def __init__(self) -> None:
        self.control_handlers: dict[str, Callable[..., None]] = {}
        self.outputs: list[list[dict[str, Any]]] = []
        self.cell = "cell-1"
        self.allow_stdin = True
        self.events = Events()
        self.shell = types.SimpleNamespace(events=self.events)

    def get_parent(self, channel: str) -> dict[str, Any]:
        assert channel == "shell"
        return {"header": {"msg_id": self.cell}, "content": {"allow_stdin": self.allow_stdin}}

    def display(self, data: dict[str, Any], raw: bool, display_id: bool = False) -> Any:
        assert raw
        pictures = [data]
        self.outputs.append(pictures)
        return types.SimpleNamespace(update=lambda data, raw: pictures.append(data))

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [pictures[-1] for pictures in self.outputs]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel in which nothing was displayed yet."""
    kernel = Kernel()
    monkeypatch.setattr("IPython.display.display", kernel.display)
    monkeypatch.setattr(place.Place, "_last", None)
    yield kernel
    gc.collect()
    while _RETIRED:
        _RETIRED.popleft().close()


def widget_of(view: NotebookView) -> JobWidget:
    """The widget of a view that has one."""
    assert view._widget is not None
    return view._widget


def test_widget_while_it_runs_and_summary_at_the_end(kernel: Kernel) -> None:
    """The one output is text at first, then the widget, and in the end a summary that needs no kernel."""
    view = NotebookView(EARLY, kernel)
    view.update(replace(RUNNING, elapsed=0.1))
    view.update(RUNNING)
    view.update(RUNNING)
    view.close(DONE)
    (pictures,) = kernel.outputs
    assert [WIDGET in picture for picture in pictures] == [False, True, False]
    assert pictures[-1] == {"text/plain": summary.text(DONE), "text/html": summary.html(DONE)}
    assert pictures[1]["text/plain"] == summary.text(RUNNING)


def test_without_a_front_end_there_is_no_widget(kernel: Kernel) -> None:
    """Where nobody looks (nbclient, papermill) the output is text and HTML, replaced about once a second."""
    kernel.allow_stdin = False
    view = NotebookView(EARLY, kernel)
    for tenth in range(30):
        view.update(replace(RUNNING, elapsed=tenth / 10))
    view.close(DONE)
    (pictures,) = kernel.outputs
    assert len(pictures) == 5
    assert not any(WIDGET in picture for picture in pictures)


@pytest.mark.parametrize("road", ["control", "comm"])
@pytest.mark.parametrize("what", ["cancel", "retry"])
def test_wishes_of_the_browser_arrive(kernel: Kernel, road: str, what: str) -> None:
    """A click reaches the job over the control channel and over the comm."""
    asked: list[str] = []
    view = NotebookView(EARLY, kernel, lambda: asked.append("cancel"), lambda: asked.append("retry"))
    view.update(RUNNING)
    widget = widget_of(view)
    content = {"view": widget.view, "ask": what}
    if road == "control":
        kernel.control_handlers[CONTROL_MESSAGE](None, [], {"content": content})
    else:
        widget._handle_custom_msg(content, [])
    assert asked == [what]


@pytest.mark.parametrize("content", [{}, None, {"view": "unknown", "ask": "cancel"}, {"ask": "cancel"}])
def test_strange_control_messages_do_nothing(kernel: Kernel, content: Any) -> None:
    """Whatever arrives on the control channel cannot raise in the kernel's thread."""
    NotebookView(EARLY, kernel, lambda: pytest.fail("cancelled")).update(RUNNING)
    _control(None, [], {"content": content})


def test_unknown_wishes_do_nothing(kernel: Kernel) -> None:
    """Only cancel and retry can be asked for."""
    view = NotebookView(EARLY, kernel, lambda: pytest.fail("cancelled"))
    view.update(RUNNING)
    widget_of(view).asked({"ask": "close"})
    widget_of(view).asked({"ask": "retry"})


def test_retry_is_offered_after_failures_only(kernel: Kernel) -> None:
    """The summary has a place for the button, and the widget says so, when there is something to try again."""
    failed = replace(DONE, state="failed", failed=2, errors=((3, "ValueError", "odd"),))
    for end, retry, offered in ((failed, print, True), (failed, None, False), (DONE, print, False)):
        kernel.cell += "x"
        view = NotebookView(EARLY, kernel, None, retry)
        view.update(RUNNING)
        widget = widget_of(view)
        view.close(end)
        assert widget.head["retry"] is offered
        assert (f"nbp-again-{widget.view}" in kernel.shown[-1]["text/html"]) is offered


def test_view_lives_again_after_a_retry(kernel: Kernel) -> None:
    """When failed items are tried again, the widget comes back in the same output, and then the new summary."""
    view = NotebookView(EARLY, kernel)
    view.update(RUNNING)
    view.close(replace(DONE, state="failed", failed=1))
    view.update(replace(RUNNING, done=9))
    assert WIDGET in kernel.shown[-1]
    view.close(DONE)
    assert kernel.shown == [{"text/plain": summary.text(DONE), "text/html": summary.html(DONE)}]


def test_short_jobs_of_a_cell_share_one_line(kernel: Kernel) -> None:
    """A hundred short jobs in a loop leave one output, with a line that adds them up."""
    for turn in range(100):
        view = NotebookView(EARLY, kernel)
        view.close(replace(SHORT, name=f"f{turn % 6}"))
    kernel_line = place.Place._last
    assert kernel_line is not None
    if kernel_line._timer is not None:
        kernel_line._timer.join()
    (shown,) = kernel.shown
    assert "100 jobs done" in shown["text/plain"]
    assert "1,000 items in 10 s" in shown["text/plain"]
    assert len(kernel.outputs[0]) < 60
    assert shown["text/html"].count("f0: done") <= place.HEADLINES


def test_loop_is_quicker_than_the_views(kernel: Kernel) -> None:
    """Jobs that are over but whose views are closed later share the line too, and each is counted once."""
    views = [NotebookView(EARLY, kernel, now=lambda: SHORT) for _ in range(20)]
    last = NotebookView(EARLY, kernel, now=lambda: RUNNING)
    last.update(RUNNING)
    for view in views:
        view.update(RUNNING)
        view.close(SHORT)
    assert WIDGET in kernel.shown[0]
    last.close(DONE)
    (shown,) = kernel.shown
    assert shown["text/plain"].startswith("20 jobs done (f × 20), 200 items in 2.0 s\nf: done")


def test_end_of_the_cell_shows_the_end_of_its_jobs(kernel: Kernel) -> None:
    """What nbclient would not hear any more is shown before the cell ends: summaries, and the line of short jobs."""
    jobs = [NotebookView(EARLY, kernel, now=lambda: SHORT) for _ in range(3)]
    running, done = RUNNING, [NotebookView(EARLY, kernel, now=lambda: running)]
    assert kernel.shown[-1]["text/plain"] != summary.text(DONE)
    running = DONE
    kernel.events.fire()
    assert [picture["text/plain"].splitlines()[-1] for picture in kernel.shown] == [summary.text(DONE)]
    jobs += [NotebookView(EARLY, kernel, now=lambda: SHORT) for _ in range(3)]
    kernel.events.fire()
    assert kernel.shown[-1]["text/plain"].startswith("3 jobs done")
    assert len(kernel.events.callbacks) == 1
    assert len(kernel.shown) == 2
    assert jobs
    assert done


def test_long_and_failed_jobs_keep_their_own_output(kernel: Kernel) -> None:
    """Only short jobs that went well make way for the next one, in the same cell, and no line gets lost."""
    NotebookView(EARLY, kernel).close(SHORT)
    NotebookView(EARLY, kernel).close(replace(DONE, name="long"))
    NotebookView(EARLY, kernel).close(replace(SHORT, state="failed", failed=1))
    NotebookView(EARLY, kernel).close(SHORT)
    kernel.cell = "cell-2"
    NotebookView(EARLY, kernel).close(SHORT)
    texts = [picture["text/plain"] for picture in kernel.shown]
    assert len(texts) == 4
    assert texts[0].startswith("1 job done (f × 1), 10 items in 0.1 s\nlong: done")


def test_two_jobs_at_once_have_two_outputs(kernel: Kernel) -> None:
    """A place is shared one after the other, never by jobs that run at the same time."""
    first, second = (NotebookView(EARLY, kernel, now=lambda: RUNNING) for _ in range(2))
    first.close(SHORT)
    second.close(SHORT)
    assert len(kernel.outputs) == 2


def test_inside_an_output_widget(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``with output:`` the widget is there from the start and stays, since what is there cannot be replaced."""
    module = sys.modules["ipywidgets.widgets.widget"]
    monkeypatch.setitem(module._instances, "captures", types.SimpleNamespace(msg_id="cell-1"))
    view = NotebookView(EARLY, kernel)
    view.update(RUNNING)
    view.close(DONE)
    ((picture,),) = kernel.outputs
    assert WIDGET in picture
    assert widget_of(view).head["finished"]
    assert widget_of(view).final == {}


def test_job_is_freed_and_old_widgets_are_closed(kernel: Kernel) -> None:
    """The registry of widgets keeps no job alive, and of the widgets of jobs that are gone only a few stay."""

    class Job:
        """Holds its view, as a job does, and is held by what cancels it."""

        def __init__(self) -> None:
            self.view = NotebookView(EARLY, kernel, self.cancel)
            self.view.update(RUNNING)
            self.view.close(DONE)

        def cancel(self) -> None:
            pytest.fail("cancelled")

    jobs = [Job() for _ in range(20)]
    gone = [weakref.ref(job) for job in jobs]
    widgets = [widget_of(job.view) for job in jobs]
    del jobs
    gc.collect()
    assert not any(job() for job in gone)
    assert sum(widget.comm is not None for widget in widgets) == len(_RETIRED) == KEPT_WIDGETS


def test_value_of_a_cell(kernel: Kernel) -> None:
    """A job as a cell's value shows its state in a later cell, and nothing beside its own view."""
    formatter = kernel.shell.display_formatter = DisplayFormatter()
    kernel.shell.kernel = kernel
    job_type = type("Job", (), {"__module__": "nbparallel.client.job", "snapshot": lambda job: RUNNING})
    job, other = job_type(), job_type()
    job.id, other.id = EARLY.id, "another"
    view = NotebookView(EARLY, kernel)
    assert formatter.format(job) == ({}, {})  # IPython then displays nothing
    assert formatter.format(other)[0] == place.bundle(RUNNING)
    kernel.cell = "cell-2"
    assert formatter.format(job)[0] == place.bundle(RUNNING)
    view.close(DONE)


def test_traits_hold_what_the_script_draws(kernel: Kernel) -> None:
    """Counts, map, lanes, durations, failures and output of real blocks reach the browser."""
    clock = iter(float(second) for second in range(100))
    meter = Meter(lambda: next(clock), total=20)
    meter.submitted(20, lo=0)
    error = ErrorRecord("raised", "ValueError", "odd", "7", TRACEBACK)
    block = Block(0, 8, b"", {7: error}, 1, "h:1", 0.0, [0.1] * 8, [(2, "stdout", "hello\n")])
    meter.received(8, 1, 0.8, block)
    view = NotebookView(EARLY, kernel)
    view.update(replace(meter.snapshot(id="j", name="f", state="running", total=20, slots=2), elapsed=1.0))
    widget = widget_of(view)
    assert widget.head["counts"] == {"done": 8, "failed": 1, "running": 2}
    assert ("done", "8", "done of 20") in widget.head["words"]["facts"]
    assert len(widget.cells) == 20
    assert [lane[:2] for lane in widget.lanes] == [["process 1", 8]]
    assert len(widget.busy) == widget.lanes[0][4]
    assert sum(widget.head["durations"]) == 8
    assert widget.head["durations_low"] < 0.1 < widget.head["durations_high"]
    assert [(group["type"], group["place"], group["many"]) for group in widget.failures] == [
        ("ValueError", "cell.py:7 in half", 1)
    ]
    assert widget.output == [[2, "stdout", "hello\n"]]


def test_unchanged_lists_are_not_sent_again(kernel: Kernel) -> None:
    """Failures and output travel only when there is something new."""
    view = NotebookView(EARLY, kernel)
    view.update(RUNNING)
    traits = widget_of(view)._traits_of(replace(RUNNING, done=5))
    assert "failures" not in traits
    assert "output" not in traits


def test_summary_draws_lanes_without_and_with_svg() -> None:
    """The lanes are inline SVG, with text inside for readers that cut SVG out, and failures open to tracebacks."""
    clock = iter([0.0, 1.0, 1.0])
    meter = Meter(lambda: next(clock), total=1)
    error = ErrorRecord("raised", "ValueError", "<odd>", "7", TRACEBACK)
    meter.received(1, 1, 1.0, Block(0, 1, b"", {0: error}, 1, "<h>:1", 0.0, [1.0]))
    page = summary.html(meter.snapshot(id="j", name="f", state="failed", total=1, slots=1))
    assert "<svg" in page
    assert "<desc>█" in page
    assert "<details><summary>" in page
    assert "&quot;cell.py&quot;, line 7, in half" in page
    assert "&lt;odd&gt;" in page
    assert "<script" not in page


def test_summary_bounds_its_lists() -> None:
    """Many workers and many kinds of failures leave a summary of bounded size, with the rest counted."""
    lanes = tuple(Lane(f"h:{index}", None, 0.0, 1, bytes([255, 0] * 60)) for index in range(64))
    meter = Meter(total=3000)
    for index in range(3000):
        record = ErrorRecord("raised", f"E{index}", "m" * 1000, "i" * 1000, "x" * 20_000)
        meter.received(1, 1, 0.1, Block(index, 1, b"", {index: record}, 1, "h:1", 0.0, [0.1]))
    shot = meter.snapshot(id="j", name="f", state="failed", total=3000, slots=1)
    assert shot.details is not None
    page = summary.html(replace(shot, details=replace(shot.details, lanes=lanes, more_lanes=10)))
    assert len(page) < 120_000
    assert page.count("<svg") == summary.LANES
    assert "and 58 more" in page
    assert "and 2,992 more failures" in page
