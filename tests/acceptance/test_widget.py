"""The widget in real notebooks, a real browser and over real workers: what is seen, and what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from acceptance.browser import Page, Server, artefact, browser, notebook_file, server

pytestmark = pytest.mark.browser

WIDGET = "application/vnd.jupyter.widget-view+json"

SETUP = """
import time
import ipywidgets
from nbparallel import Cluster, pmap

def work(x):
    time.sleep(0.05)
    return x

def faulty(x):
    time.sleep(0.05)
    if x % 20 == 7 and not healed:
        print("about to fail")
        raise ValueError(f"<b>{x}</b> is odd")
    return x

healed = 0
cluster = Cluster(workers=2)
warm = pmap(work, range(2), progress=False, session=cluster).result()
"""


class Notebook:
    """One notebook in the browser, whose cells are added as they are needed."""

    def __init__(self, chromium: Any, jupyter: Server) -> None:
        self.path = notebook_file(jupyter.root / "widget.ipynb", SETUP)
        self.tab = chromium.new_page(viewport={"width": 1180, "height": 900})
        self.front_end = jupyter.front_end
        self.page = Page(self.tab, jupyter, self.path.name)
        self.page.idle()
        self.page.run(0)
        self.page.wait(0)
        assert self.page.outputs()[0] == []

    def live(self, code: str) -> tuple[int, Any]:
        """Start a new cell and wait until its widget shows finished items; its index, and the widget."""
        cell = self.page.start(code)
        widget = self.page.output(cell).locator(".nbp").first
        widget.wait_for(timeout=15_000)
        widget.locator(".nbp-facts").filter(has_text=re.compile("[1-9][0-9]* ?done")).wait_for(timeout=15_000)
        return cell, widget

    def summary(self, cell: int) -> str:
        """What the cell shows once it has ended and no widget is left."""
        self.page.wait(cell)
        self.static(cell)
        return str(self.page.output(cell).inner_text())

    def static(self, cell: int) -> None:
        """Wait until a cell has no widget any more."""
        self.tab.wait_for_function(
            "cell => !document.querySelectorAll('.jp-Cell')[cell].querySelector('.nbp')", arg=cell, timeout=30_000
        )

    def saved(self, cell: int) -> list[dict[str, Any]]:
        """The outputs of a cell in the saved file."""
        self.page.save()
        outputs = json.loads(self.path.read_text())["cells"][cell]["outputs"]
        return [output.get("data", output) for output in outputs]

    def picture(self, name: str) -> None:
        """Keep a screenshot for whoever wants to look at it."""
        file = artefact(f"{self.front_end}-{name}.png")
        if file is not None:
            file.write_bytes(self.tab.screenshot())  # given a path, Playwright leaves threads behind


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with browser() as running:
        yield running


@pytest.fixture(scope="module", params=["lab", "notebook"])
def notebook(request: pytest.FixtureRequest, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One notebook for all tests of a front end."""
    with server(tmp_path_factory.mktemp("jupyter"), request.param) as jupyter:
        notebook = Notebook(chromium, jupyter)
        yield notebook
        strangers = notebook.page.strangers()
        notebook.tab.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        notebook.tab.close()
        assert strangers == []


def test_live_then_static(notebook: Notebook) -> None:
    """While it runs the widget shows counts, map, lanes, failures and output; what is saved in the end is static."""
    cell, widget = notebook.live("job = pmap(faulty, range(120), on_error='return', session=cluster); job.result();")
    widget.locator(".nbp-group summary").first.click(timeout=10_000)
    trace = widget.locator(".nbp-group pre")
    assert "<b>7</b> is odd" in trace.inner_text()
    assert "raise ValueError" in trace.inner_text()
    assert widget.locator(".nbp-failures b").first.inner_text().endswith("ValueError")
    assert widget.locator(".nbp-lanes canvas").count() >= 1
    assert widget.locator(".nbp-map canvas").is_visible()
    assert widget.get_by_role("progressbar").get_attribute("aria-valuenow") is not None
    assert widget.get_by_role("button", name="Cancel").is_enabled()
    notebook.picture("failures")
    notebook.summary(cell)
    notebook.picture("summary")
    (output,) = notebook.saved(cell)
    assert set(output) == {"text/html", "text/plain"}
    assert "6 failed" in "".join(output["text/plain"])
    page = "".join(output["text/html"])
    assert "<svg" in page
    assert "<script" not in page
    assert "&lt;b&gt;7&lt;/b&gt; is odd" in page


def test_retry_failed(notebook: Notebook) -> None:
    """The summary of a job with failures offers to run those again; the result takes the summary's place."""
    code = "job = pmap(faulty, range(60), on_error='return', session=cluster); job.result();"
    cell, _ = notebook.live(code)
    assert "3 failed" in notebook.summary(cell)
    button = notebook.page.output(cell).get_by_role("button", name="Retry failed")
    button.click()
    notebook.tab.wait_for_function(
        "cell => /3 retried/.test(document.querySelectorAll('.jp-Cell')[cell].innerText)", arg=cell, timeout=10_000
    )
    notebook.static(cell)
    assert notebook.page.value("len(job.errors), len(job.history), len(job)") == (3, 3, 60)
    assert "Retry" not in str(notebook.saved(cell))
    assert len(notebook.saved(cell)) == 1


def test_a_view_for_each_job(notebook: Notebook) -> None:
    """However a job is used, it has one view: where it was started; elsewhere it shows how it stands."""
    short = "range(20), session=cluster"
    uses = {
        f"pmap(work, {short}, name='last')": 1,
        f"used = pmap(work, {short}, name='assigned')": 1,
        f"def function():\n    return pmap(work, {short}, name='inside').result()\nvalues = function()": 1,
        f"for value in pmap(work, {short}, name='read'): pass": 1,
        f"values = await pmap(work, {short}, name='awaited')": 1,
        f"one = pmap(work, {short}, name='one'); two = pmap(work, {short}, name='two'); one.wait(); two.wait();": 2,
    }
    cells = [notebook.page.start(code) for code in uses]
    notebook.page.wait(cells[-1])
    notebook.page.value("used.wait()")
    for cell, many in zip(cells, uses.values(), strict=True):
        notebook.static(cell)
        assert len(notebook.page.outputs()[cell]) == many
    later = notebook.page.start("used")
    notebook.page.wait(later)
    (output,) = notebook.page.outputs()[later]
    assert output["output_type"] == "execute_result"
    assert output["data"]["text/plain"].startswith("assigned: done, 20 items")
    assert "<svg" in output["data"]["text/html"]


def test_reload_in_mid_run(notebook: Notebook) -> None:
    """A page that was reloaded while the job ran ends with the summary too, and saves it."""
    cell, _ = notebook.live("values = pmap(work, range(160), session=cluster).result()")
    notebook.page.save()
    notebook.tab.reload()
    notebook.tab.wait_for_function(
        """cell => !document.querySelector(".nbp")
                 && /work\\s+done/.test(document.querySelectorAll(".jp-Cell")[cell]?.textContent)""",
        arg=cell,
        timeout=30_000,
    )
    assert all(WIDGET not in output for output in notebook.saved(cell))


def test_loop_of_short_jobs(notebook: Notebook) -> None:
    """Many short jobs in one cell end as one line."""
    cell = notebook.page.start("for turn in range(20): pmap(abs, range(10), session=cluster).result()")
    notebook.page.wait(cell)
    assert "20 jobs done" in notebook.summary(cell)
    (output,) = notebook.saved(cell)
    assert "20 jobs done (abs × 20), 200 items" in "".join(output["text/plain"])


def test_inside_an_output_widget(notebook: Notebook) -> None:
    """Under ``with output:`` the widget is drawn there, follows the job and shows its end."""
    cell, widget = notebook.live(
        "output = ipywidgets.Output()\ndisplay(output)\n"
        "with output: job = pmap(work, range(60), session=cluster)\n"
        "values = job.result()"
    )
    notebook.page.wait(cell)
    widget.locator(".nbp-facts").filter(has_text=re.compile("60 ?done of 60")).wait_for(timeout=5_000)
