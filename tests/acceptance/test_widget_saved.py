"""Notebooks that no browser looks at: what nbclient runs and saves, and what nbconvert makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from support import imported

nbclient = imported("nbclient")

CELLS = [
    "import time\nfrom nbparallel import pmap",
    "def half(x):\n    time.sleep(0.02)\n    if x % 2: raise ValueError(f'{x} is odd')\n    return x // 2",
    "job = pmap(half, range(40), on_error='return')\nvalues = job.result()",
    "pmap(abs, range(5), progress=False).result()",
    "for turn in range(5): pmap(abs, range(5)).result()",
]


@pytest.fixture(scope="module")
def executed() -> Any:
    """The notebook, as nbclient leaves it."""
    from nbformat import v4

    cells = [v4.new_code_cell(cell) for cell in CELLS]  # type: ignore[no-untyped-call]
    notebook = v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return notebook


def test_outputs_are_static(executed: Any) -> None:
    """The saved notebook holds the summary as text and HTML, and no widget that a reader would miss."""
    (output,) = executed.cells[2].outputs
    assert set(output.data) == {"text/plain", "text/html"}
    assert output.data["text/plain"].startswith("half: ")
    assert "20 failed" in output.data["text/plain"]
    assert "ValueError × 20" in output.data["text/plain"]
    assert "<svg" in output.data["text/html"]
    assert "widgets" not in executed.metadata


def test_progress_false_is_silent(executed: Any) -> None:
    """With progress=False the cell holds its value and nothing else."""
    (output,) = executed.cells[3].outputs
    assert output.output_type == "execute_result"


def test_short_jobs_are_one_output(executed: Any) -> None:
    """Short jobs in a loop are one line of the saved notebook."""
    (output,) = executed.cells[4].outputs
    assert output.data["text/plain"].startswith("5 jobs done (abs × 5), 25 items")


def test_page_shows_the_summary(executed: Any) -> None:
    """The page that nbconvert makes shows the summary, the failures and the lanes."""
    exporter = imported("nbconvert").HTMLExporter()
    page, _ = exporter.from_notebook_node(executed)
    assert "20 × ValueError" in page
    assert "in half" in page
    assert '<svg aria-label="process' in page or '<svg role="img" aria-label="process' in page
