"""The widget in real notebooks, a real browser and over real workers: what is seen, and what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from acceptance.browser import Page, Server, artefact, browser, notebook_file, server
from support import Gate

pytestmark = pytest.mark.browser

WIDGET = "application/vnd.jupyter.widget-view+json"

#: WCAG's contrast of each text in an element against what is behind it, least first.
CONTRAST = """root => {
  const parse = text => { const [...n] = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = node => !node ? [255, 255, 255, 1]
    : over(parse(getComputedStyle(node).backgroundColor), ground(node.parentElement));
  const bright = colour => colour.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const found = [];
  for (const node of root.querySelectorAll("*")) {
    const text = Array.from(node.childNodes, child => child.nodeType === 3 ? child.data.trim() : "").join("");
    if (!/[\\p{L}\\d]/u.test(text) || !node.checkVisibility() || node.disabled) continue;
    const below = ground(node), colour = parse(getComputedStyle(node).color);
    for (let up = node; up && up !== root.parentElement; up = up.parentElement)
      colour[3] *= getComputedStyle(up).opacity;
    const [low, high] = [bright(over(colour, below)), bright(below)].sort((a, b) => a - b);
    found.push([Math.round(100 * high / low) / 100, `${node.tagName} ${node.className}: ${text.slice(0, 40)}`]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
#: What a screen reader or the keyboard reaches and has no name: none.
NAMELESS = """root => Array.from(root.querySelectorAll(
    "button, canvas, summary, [role], [tabindex], th")).filter(node => node.checkVisibility()
    && !(node.getAttribute("aria-label") || node.textContent.trim()) && !node.closest("[aria-hidden=true]")
  ).map(node => node.outerHTML.slice(0, 80))"""

SETUP = """
import fcntl, logging, time
import ipywidgets
from nbparallel import Cluster, pmap

def work(x):
    time.sleep(0.02)
    if x == 59:  # the job ends when the test has seen what it wants to see
        with open("gate") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
    return x

def faulty(x):
    work(x)
    if x % 20 == 7 and not healed:
        print("about to fail")
        logging.getLogger("solver").warning("so it is")
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
        self.gate = Gate(jupyter.root / "gate")
        self.tab = chromium.new_page(viewport={"width": 1180, "height": 900})
        self.front_end = jupyter.front_end
        self.page = Page(self.tab, jupyter, self.path.name)
        self.page.idle()
        self.page.run(0)
        self.page.wait(0)
        assert self.page.outputs()[0] == []

    def live(self, code: str) -> tuple[int, Any]:
        """Start a new cell and wait until its widget shows finished items; its index, and the widget.

        A job with more than 59 items does not end before ``let_end``.
        """
        self.let_end()
        self.gate = Gate(self.gate.path)
        cell = self.page.start(code)
        widget = self.page.output(cell).locator(".nbp").first
        widget.wait_for(timeout=15_000)
        widget.locator(".nbp-facts").filter(has_text=re.compile("[1-9][0-9]* ?done")).wait_for(timeout=15_000)
        return cell, widget

    def let_end(self) -> None:
        """Let the jobs end."""
        self.gate.open()

    def summary(self, cell: int) -> str:
        """What the cell shows once it has ended and no widget is left."""
        self.let_end()
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

    def theme(self, name: str) -> None:
        """Change the theme of the front end, and wait until the page has it."""
        self.page.command("apputils:change-theme", theme=f"JupyterLab {name}")
        self.tab.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg="true" if name == "Light" else "false"
        )
        self.tab.wait_for_function(
            """dark => Array.from(document.querySelectorAll(".nbp")).every(node => node.dataset.dark === dark)""",
            arg="false" if name == "Light" else "true",
        )

    def tab_key(self) -> str:
        """Press Tab; what has the focus then."""
        self.tab.keyboard.press("Tab")
        return str(
            self.tab.evaluate(
                """() => [document.activeElement.tagName, document.activeElement.getAttribute("role") ?? ""]
                          .join(" ").trim()"""
            )
        )

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
        notebook.let_end()
        strangers = notebook.page.strangers()
        notebook.tab.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        notebook.tab.close()
        assert strangers == []


def test_live_then_static(notebook: Notebook) -> None:
    """While it runs the widget shows counts, map, lanes, failures and output; what is saved in the end is static."""
    cell, widget = notebook.live("job = pmap(faulty, range(60), on_error='return', session=cluster); job.result();")
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
    assert "3 failed" in "".join(output["text/plain"])
    page = "".join(output["text/html"])
    assert "<svg" in page
    assert "<script" not in page
    assert "&lt;b&gt;7&lt;/b&gt; is odd" in page


def test_readable_and_reachable(notebook: Notebook) -> None:
    """In both themes all text has the contrast that WCAG AA asks for; the keyboard gets everywhere; all has a name."""
    cell, widget = notebook.live("job = pmap(faulty, range(4000), on_error='return', session=cluster)\njob.wait();")
    widget.locator(".nbp-group summary").first.click(timeout=10_000)
    widget.locator(".nbp-output summary").click()
    widget.get_by_text("so it is").first.wait_for()
    output = notebook.page.output(cell)
    try:
        for theme in ("Dark", "Light"):
            notebook.theme(theme)
            contrasts = widget.evaluate(CONTRAST)
            assert len(contrasts) > 30
            assert contrasts[0][0] >= 4.5, contrasts[:10]
            notebook.picture(f"failures-{theme}")
        assert widget.evaluate(NAMELESS) == []
        widget.get_by_role("button", name="Cancel").focus()
        reached = [notebook.tab_key() for _ in range(5)]
        assert reached == ["SUMMARY", "DIV region", "SUMMARY", "PRE", "SUMMARY"]
        widget.get_by_role("button", name="Cancel").focus()
        notebook.tab.keyboard.press("Enter")
        assert "cancelled" in notebook.summary(cell)
        assert output.locator("details[open] pre").count() == 1  # what was read is still open
        for theme in ("Dark", "Light"):
            notebook.theme(theme)
            contrasts = output.evaluate(CONTRAST)
            assert contrasts[0][0] >= 4.1, contrasts[:10]  # one colour for both themes cannot have more
    finally:
        notebook.theme("Light")


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
    cell, _ = notebook.live("values = pmap(work, range(60), session=cluster).result()")
    notebook.page.save()
    notebook.tab.reload()
    notebook.tab.wait_for_function("() => window.jupyterapp?.shell?.currentWidget", timeout=90_000)
    notebook.let_end()
    try:
        notebook.tab.wait_for_function(  # a busy machine takes half a minute to load the front end
            """cell => !document.querySelector(".nbp")
                     && /work\\s+done/.test(document.querySelectorAll(".jp-Cell")[cell]?.textContent)""",
            arg=cell,
            timeout=90_000,
        )
    except Exception as error:
        shown = notebook.tab.evaluate("() => document.body.innerText")
        raise AssertionError(f"no summary; the page shows:\n{shown[-2000:]}") from error
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
    notebook.let_end()
    notebook.page.wait(cell)
    widget.locator(".nbp-facts").filter(has_text=re.compile("60 ?done of 60")).wait_for(timeout=5_000)
