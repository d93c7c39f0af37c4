"""Every way to cancel, in real notebooks and a real browser, while the kernel is busy: what the workers then do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance.browser import Page, Server, artefact, browser, notebook_file, older_kernel, server
from support import Gate

pytestmark = pytest.mark.browser

#: A press must be heard at the job, and the workers be idle, within these, in seconds; measured are far less.
HEARD_SECONDS, IDLE_SECONDS = 1.0, 1.5
#: Without a mark for so long, in seconds, the workers are idle: they leave one every hundredth.
QUIET_SECONDS = 0.3

SETUP = """
import asyncio, fcntl, os, subprocess, time
from nbparallel import Cluster, pmap
from nbparallel.client.cell import live_jobs
from nbparallel.client.running import RunningJob

def work(x, mark="work"):
    for _ in range(5):
        with open(f"{mark}.mark", "a") as file:
            file.write(".")
        time.sleep(0.01)
    return x

def held(x):  # until the test has seen its widget
    if x == 59:
        with open("gate") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
    return x

def cancel(self, cancel=RunningJob.cancel):  # when it was asked for
    heard.append(time.time())
    return cancel(self)

heard = []
RunningJob.cancel = cancel
cluster = Cluster(workers=2)
warm = pmap(work, range(2), progress=False, session=cluster).result()
"""
START = "job = pmap(work, range(20_000), session=cluster{})\n"
#: Notes when a button was pressed; those of the toolbar act when the mouse goes down.
_CLOCK = """() => ["click", "mousedown"].forEach(kind => addEventListener(kind, ({ target }) => {
    if (target.closest(kind === "click" ? ".nbp button" : ".jp-Toolbar")) window.pressed ||= Date.now() / 1000;
}, true))"""
#: A cluster whose workers need a while to start.
LATE = """
before = os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), before or ""])
late = Cluster(workers=1)
"""
#: What blocks the cell; a body that sleeps or computes does so until the job ends, however late the press comes.
BLOCKED = {
    "for": "for value in job: pass",
    "for, sleeping": "for value in job:\n    while job.status == 'running': time.sleep(1.5)\n    break",
    "for, computing": "for value in job:\n    while job.status == 'running': sum(i for i in range(10**7))\n    break",
    "result()": "job.result()",
    "await": "await job",
    "async for": "async for value in job: pass",
    "async for, sleeping": (
        "async for value in job:\n    while job.status == 'running': await asyncio.sleep(1.5)\n    break"
    ),
}
#: The table of what was measured: front end, kernel, road, heard and idle after so many milliseconds.
MEASURED: list[tuple[str, str, str, str, str]] = []


class Notebook:
    """One notebook, whose cells are added as they are needed; workers leave marks beside it."""

    def __init__(self, chromium: Any, jupyter: Server, kernel: str) -> None:
        notebook_file(jupyter.root / "roads.ipynb", SETUP)
        self.tab = chromium.new_page(viewport={"width": 1180, "height": 900})
        self.page = Page(self.tab, jupyter, "roads.ipynb")
        # By the clock of the browser, which is that of the workers: what Playwright does before counts for nothing.
        self.tab.evaluate(_CLOCK)
        self.folder, self.front_end, self.kernel = jupyter.root, jupyter.front_end, kernel
        self.page.idle()
        self.page.run(0)
        self.page.wait(0)
        assert self.page.outputs()[0] == []

    def live(self, code: str) -> int:
        """Start a new cell and wait until its widget shows finished items; its index."""
        self.tab.evaluate("() => { window.pressed = 0; }")
        cell = self.page.start(code)
        self.page.output(cell).locator(".nbp").first.wait_for(timeout=15_000)
        self.tab.wait_for_function(
            """cell => /[1-9]\\d* ?done/.test(document.querySelectorAll(".jp-Cell")[cell]
                              .querySelector(".nbp-facts")?.textContent)""",
            arg=cell,
        )
        return cell

    def click(self, cell: int, job: str = "work") -> None:
        """Press Cancel."""
        self.page.output(cell).locator(f".nbp[aria-label='Job {job}'] button:has-text('Cancel')").click()

    def worked_at(self, mark: str = "work") -> float:
        """When the workers left the last mark."""
        file = self.folder / f"{mark}.mark"
        return file.stat().st_mtime if file.exists() else 0.0

    def idle_at(self, mark: str = "work") -> float:
        """When the workers stopped to work, once they have."""
        deadline = time.time() + 10
        while time.time() - (last := self.worked_at(mark)) < QUIET_SECONDS:
            if time.time() > deadline:
                pytest.fail("the workers work on")
            self.tab.wait_for_timeout(20)
        return last

    def pressed_at(self) -> float:
        """When the first button since the last ``live`` was pressed."""
        return float(self.tab.evaluate("() => window.pressed"))

    def summary(self, cell: int) -> str:
        """What the cell shows once it has ended and no widget is left."""
        self.page.wait(cell)
        self.tab.wait_for_function(
            "cell => !document.querySelectorAll('.jp-Cell')[cell].querySelector('.nbp')", arg=cell
        )
        return str(self.page.output(cell).inner_text())

    def check_cancelled(self, cell: int, road: str) -> None:
        """The workers are idle, finished results are kept and told of, and the kernel takes the next cell."""
        idle, pressed = self.idle_at(), self.pressed_at()
        text = self.summary(cell)
        assert "cancelled" in text
        assert "done, kept" in text
        assert self.tab.evaluate("() => !!document.activeElement.closest('.jp-Notebook')"), "the focus got lost"
        status, kept, heard_at = self.page.value(
            "job.status, {index == value for index, value in job.results_so_far().items()}, "
            f"min(moment for moment in heard if moment > {pressed - 0.01})"
        )
        assert (status, kept) == ("cancelled", {True})
        self.note(road, heard_at, idle)
        assert idle - pressed < IDLE_SECONDS

    def note(self, road: str, heard_at: float, idle_at: float | None = None) -> None:
        """Keep what was measured."""
        pressed = self.pressed_at()
        idle = "–" if idle_at is None else f"{max(0.0, 1000 * (idle_at - pressed)):.0f}"
        MEASURED.append((self.front_end, self.kernel, road, f"{1000 * (heard_at - pressed):.0f}", idle))
        assert heard_at - pressed < HEARD_SECONDS


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def kernel_6(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with ipykernel 6."""
    return older_kernel(tmp_path_factory.mktemp("kernel") / "packages")


@pytest.fixture(scope="module", params=list(itertools.product(["lab", "notebook"], ["7", "6"])), ids="-".join)
def shared(request: pytest.FixtureRequest, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The notebook of a front end and a kernel, for all tests."""
    front_end, kernel = request.param
    environ = request.getfixturevalue("kernel_6") if kernel == "6" else None
    with server(tmp_path_factory.mktemp("jupyter"), front_end, environ) as jupyter:
        notebook = Notebook(chromium, jupyter, kernel)
        assert notebook.page.value("__import__('ipykernel').version_info[0]") == int(kernel)
        yield notebook
        _keep_table()
        strangers = notebook.page.strangers()
        notebook.tab.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        notebook.tab.close()
        assert strangers == []


@pytest.fixture
def notebook(shared: Notebook) -> Iterator[Notebook]:
    """The notebook; what a test does shows nothing in cells of others."""
    before = shared.page.outputs()
    yield shared
    if time.time() - max(map(shared.worked_at, ("work", "one", "two"))) < QUIET_SECONDS:  # a test failed: not the next
        shared.page.interrupt()
        shared.page.wait(shared.page.start("for job in live_jobs(): job.cancel()"))
    assert shared.page.outputs()[: len(before)] == before


@pytest.fixture
def gate(notebook: Notebook) -> Iterator[Gate]:
    """Where the last item of ``held`` waits."""
    with Gate(notebook.folder / "gate") as gate:
        yield gate


def _keep_table() -> None:
    file = artefact("cancel.md")
    if file is not None:
        lines = ["| front end | ipykernel | road | job heard of it, ms | workers idle, ms |", "|---|---|---|---|---|"]
        lines += ["| {} |".format(" | ".join(row)) for row in MEASURED]
        file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("blocked", BLOCKED)
def test_click_on_cancel(notebook: Notebook, blocked: str) -> None:
    """A click reaches the job whatever the kernel is busy with."""
    cell = notebook.live(START.format("") + BLOCKED[blocked])
    notebook.click(cell)
    notebook.check_cancelled(cell, f"Cancel in {blocked}")


@pytest.mark.parametrize("blocked", BLOCKED)
def test_interrupt(notebook: Notebook, blocked: str) -> None:
    """■ reaches the job that the cell reads, wherever in the cell it hits."""
    cell = notebook.live(START.format("") + BLOCKED[blocked])
    notebook.page.interrupt()
    notebook.check_cancelled(cell, f"■ in {blocked}")
    assert notebook.page.outputs()[cell][-1]["ename"] in ("KeyboardInterrupt", "CancelledError")


def test_click_after_the_cell(notebook: Notebook) -> None:
    """The widget of a cell that has ended cancels the job that runs on."""
    cell = notebook.live(START.format(""))
    notebook.click(cell)
    notebook.check_cancelled(cell, "Cancel, the cell has ended")


def test_from_another_cell(notebook: Notebook) -> None:
    """``job.cancel()`` in another cell; the output of the first becomes the summary."""
    cell = notebook.live(START.format(""))
    other = notebook.page.add("job.cancel()")
    notebook.tab.evaluate("() => { window.pressed = Date.now() / 1000; }")
    notebook.page.run(other)
    notebook.page.wait(other)
    assert notebook.page.outputs()[other][-1]["data"]["text/plain"] == "True"
    notebook.check_cancelled(cell, "job.cancel() in another cell")


@pytest.mark.parametrize("press", ["Cancel", "■"])
def test_pressed_twice(notebook: Notebook, press: str) -> None:
    """A second press, at once, does nothing: the kernel lives and is ready."""
    cell = notebook.live(START.format("") + BLOCKED["for"])
    button = "[data-jp-item-name='interrupt'] jp-button" if press == "■" else ".nbp button:has-text('Cancel')"
    where = notebook.tab if press == "■" else notebook.page.output(cell)
    where.locator(button).dblclick()
    notebook.check_cancelled(cell, f"{press} twice in for")


@pytest.mark.parametrize("press", ["Cancel", "■"])
def test_while_the_cluster_starts(notebook: Notebook, press: str) -> None:
    """A press before there are workers: no item ever runs, and the cluster is ready for the next job."""
    (notebook.folder / "sitecustomize.py").write_text("import time; time.sleep(1.5)")
    mark = f"unused-{press}"
    cell = notebook.page.start(LATE + f"job = pmap(work, range(9000), 9000 * [{mark!r}], session=late)\njob.result()")
    notebook.tab.evaluate("() => { window.pressed = 0; }")
    widget = notebook.page.output(cell).locator(".nbp")
    widget.get_by_text("the workers are starting").first.wait_for(timeout=10_000)
    if press == "■":
        notebook.page.interrupt()
    else:
        notebook.click(cell)
    assert "cancelled" in notebook.summary(cell)
    (notebook.folder / "sitecustomize.py").unlink()
    heard = notebook.page.value(f"min(moment for moment in heard if moment > {notebook.pressed_at() - 0.01})")
    notebook.note(f"{press} while the cluster starts", heard)
    assert notebook.page.value("job.status, list(pmap(abs, [-2], session=late)), late.stop()") == (
        "cancelled", [2], None,
    )  # fmt: skip
    assert notebook.worked_at(mark) == 0.0


def test_after_the_end(notebook: Notebook, gate: Gate) -> None:
    """A click that comes when the job is over changes nothing."""
    cell = notebook.live("job = pmap(held, range(60), session=cluster)\nvalues = job.result()")
    button = notebook.page.output(cell).locator(".nbp button:has-text('Cancel')").element_handle()
    gate.open()
    text = notebook.summary(cell)
    button.evaluate("button => { button.click(); }")
    assert notebook.page.value("job.status, len(values), job.cancel()") == ("done", 60, False)
    assert notebook.summary(cell) == text


def test_two_jobs(notebook: Notebook) -> None:
    """Of two jobs in a cell one is cancelled by a click, and the other goes on; ■ stops what the cell reads."""
    many = "[{!r}] * 20_000, session=cluster, name={!r})\n"
    code = "one = pmap(work, range(20_000), " + many.format("one", "one")
    code += "two = job = pmap(work, range(20_000), " + many.format("two", "two")
    cell = notebook.live(code + "for value in two: pass")
    notebook.tab.wait_for_function(
        "cell => document.querySelectorAll('.jp-Cell')[cell].querySelectorAll('.nbp').length === 2", arg=cell
    )
    notebook.click(cell, "one")
    assert notebook.idle_at("one") - notebook.pressed_at() < IDLE_SECONDS
    assert time.time() - notebook.worked_at("two") < QUIET_SECONDS
    notebook.page.interrupt()
    notebook.idle_at("two")
    text = notebook.summary(cell)
    assert "one cancelled" in text
    assert "two cancelled" in text


def test_jobs_of_earlier_cells_go_on(notebook: Notebook) -> None:
    """■ in a cell that does not read a job leaves that alone; so does ■ with interrupt="keep" in one that does."""
    notebook.live(START.format("") + "other = job")
    cell = notebook.live(START.format(", interrupt='keep', name='kept'") + BLOCKED["for, sleeping"])
    notebook.page.interrupt()
    notebook.page.wait(cell)
    idle = notebook.page.start("time.sleep(20)")
    notebook.tab.wait_for_timeout(100)
    notebook.page.interrupt()
    notebook.page.wait(idle)
    notebook.tab.wait_for_timeout(200)
    assert time.time() - notebook.worked_at() < QUIET_SECONDS
    assert notebook.page.value("other.status, job.status, other.cancel(), job.cancel()") == (
        "running", "running", True, True,
    )  # fmt: skip
    notebook.idle_at()


def test_body_that_raises(notebook: Notebook, gate: Gate) -> None:
    """A loop's body that raises leaves the job of a sized input alone, and %debug sees the body."""
    cell = notebook.live("job = pmap(held, range(60), session=cluster)\nfor seen in job:\n    time.sleep(0.6); 1 / 0")
    notebook.page.wait(cell)
    assert [output["ename"] for output in notebook.page.outputs()[cell] if "ename" in output] == ["ZeroDivisionError"]
    debug = notebook.page.start("%debug")
    notebook.page.output(debug).locator(".jp-Stdin-input").fill("p ('seen', seen) ;; q")
    notebook.page.output(debug).locator(".jp-Stdin-input").press("Enter")
    notebook.page.wait(debug)
    gate.open()
    assert notebook.page.value("job.result() == list(range(60))") is True


def test_programs_die(notebook: Notebook) -> None:
    """A program that the function had started dies with its cancelled item."""
    notebook.page.start(
        "def solve(x):\n    return subprocess.run(['sleep', '7654']).returncode\n"
        "job = pmap(solve, range(4), session=cluster)\njob.result()"
    )
    _eventually(notebook, lambda: len(_programs()) == 2)
    cell = len(notebook.page.outputs()) - 1
    notebook.click(cell, "solve")
    _eventually(notebook, lambda: not _programs())
    assert "cancelled" in notebook.summary(cell)


def _programs() -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\x007654\x00":
                found.append(path)
        except OSError:  # it has just ended
            pass
    return found


def _eventually(notebook: Notebook, reached: Callable[[], object]) -> None:
    deadline = time.time() + 15
    while not reached():
        assert time.time() < deadline
        notebook.tab.wait_for_timeout(20)
