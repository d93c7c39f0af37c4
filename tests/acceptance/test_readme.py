"""What the README shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from acceptance.conftest import Program

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
#: Python and what is printed below it.
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n(?:It prints\n\n)?```text\n(.*?)```", README, flags=re.DOTALL)
CELLS = re.findall(r"```ipython\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_the_readme_says(number: int, program: Program, tmp_path: Path) -> None:
    """An example, run as a script, gives exactly the output printed below it, without a warning."""
    code, output = EXAMPLES[number]
    script = tmp_path / "example.py"
    script.write_text(code)
    answer = program(str(script))
    printed = "".join(f"{line.rstrip()}\n" for line in answer.stdout.splitlines())
    assert (printed, answer.stderr, answer.returncode) == (output, "", 0)


def test_every_example_is_run() -> None:
    """No Python block of the README lacks its output, and so its test."""
    assert len(EXAMPLES) == README.count("```python\n") > 1


def test_the_cells_run(program: Program) -> None:
    """The notebook cells of the README run one after the other, and give what it says."""
    driver = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in {json.dumps(CELLS)}:
    shell.run_cell(cell).raise_error()
shell.run_line_magic("nbparallel", "stop")
print(shell.user_ns["shouted"])
"""
    answer = program("-W", "default", "-c", driver)
    assert answer.stdout.splitlines()[-1] == "['TO!', 'MAP!', 'IS!', 'HUMAN!']", answer


def test_links_lead_somewhere() -> None:
    """Every file and heading that the README points to is there."""
    headings = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"(?m)^#+ (.*)$", README)}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif ":" not in link:
            assert (Path(__file__).parents[2] / link).exists(), link
