"""``pmap`` wherever Python runs: scripts, ``-c``, the REPL, pytest; and modules that lie beside the script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Program

SQUARES = "[0, 1, 4, 9, 16]\n"


def test_dash_c(program: Program) -> None:
    """Under ``python -c`` functions work, and nothing else is written."""
    answer = program("-c", "from nbparallel import pmap\nprint(list(pmap(lambda x: x * x, range(5))))")
    assert (answer.stdout, answer.stderr, answer.returncode) == (SQUARES, "", 0)


def test_script(program: Program, tmp_path: Path) -> None:
    """In a script no ``if __name__ == "__main__"`` is needed, and classes of the script may be items and results."""
    (tmp_path / "script.py").write_text(
        """
import dataclasses
from nbparallel import pmap

print("once")

@dataclasses.dataclass
class Point:
    x: int
    y: int = 0

def move(point):
    return Point(point.x + 1, STEP)

STEP = 5
print(list(pmap(move, [Point(1), Point(2)])), Point(2, 5) in pmap(move, [Point(1)]))
"""
    )
    answer = program("script.py")
    assert (answer.stdout, answer.stderr) == ("once\n[Point(x=2, y=5), Point(x=3, y=5)] True\n", "")


def test_repl(program: Program) -> None:
    """In the REPL functions that were typed in work, also when they are typed anew, and errors name the item."""
    typed = """
from nbparallel import pmap
def f(x):
    return x * x

print(list(pmap(f, range(5))))
def f(x):
    return -x

print(list(pmap(f, range(3))))
try:
    list(pmap(lambda x: 1 / x, [1, 0]))
except ZeroDivisionError as error:
    print("item 1 (0)" in str(error.__cause__))

"""
    answer = program("-q", "-i", stdin=typed)
    assert answer.stdout == SQUARES + "[0, -1, -2]\nTrue\n"
    assert "Traceback" not in answer.stderr


def test_inside_pytest(program: Program, tmp_path: Path) -> None:
    """In a test run by pytest, a function of the test module and its asserts work, and nothing is left."""
    (tmp_path / "test_it.py").write_text(
        """
import pytest
from nbparallel import pmap

def check(x):
    assert x < 3, f"{x} is too large"
    return x

def test_good():
    assert list(pmap(check, range(3))) == [0, 1, 2]

def test_bad():
    with pytest.raises(AssertionError, match="3 is too large"):
        list(pmap(check, range(5)))
"""
    )
    answer = program(
        "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider", "-p", "no:asyncio", "test_it.py"
    )
    assert "2 passed" in answer.stdout, answer.stdout + answer.stderr


def test_module_beside_the_script(program: Program, tmp_path: Path) -> None:
    """A helper module travels by value: after an edit there is a warning, after a reload workers run the new code."""
    (tmp_path / "helper.py").write_text("from deeper import base\ndef f(x):\n    return base() + x\n")
    (tmp_path / "deeper.py").write_text("def base():\n    return 10\n")
    (tmp_path / "script.py").write_text(
        """
import importlib, pathlib, warnings
import deeper, helper
from nbparallel import pmap

print(list(pmap(helper.f, range(3))))
pathlib.Path("deeper.py").write_text("def base():\\n    return 2000\\n")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(list(pmap(helper.f, range(3))))
print(["deeper" in str(warning.message) for warning in caught])
importlib.reload(deeper), importlib.reload(helper)
print(list(pmap(helper.f, range(3))))
print(list(pmap(lambda x: helper.f(x) - deeper.base(), range(3))))
"""
    )
    answer = program("script.py")
    assert answer.stdout == "[10, 11, 12]\n[10, 11, 12]\n[True]\n[2000, 2001, 2002]\n[0, 1, 2]\n"
    assert answer.stderr == ""


def test_package_beside_the_script(program: Program, tmp_path: Path) -> None:
    """A package with relative imports, classes, and a helper of its own travels by value; workers cannot import it."""
    package = tmp_path / "code" / "tools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .shapes import Square\n")
    (package / "shapes.py").write_text(
        "from . import numbers\n"
        "class TooBig(Exception):\n    pass\n"
        "class Square:\n"
        "    def __init__(self, side):\n        self.side = side\n"
        "    def area(self):\n"
        "        if self.side > numbers.LIMIT:\n            raise TooBig(self.side)\n"
        "        return self.side ** 2\n"
    )
    (package / "numbers.py").write_text("LIMIT = 3\n")
    (tmp_path / "code" / "script.py").write_text(
        """
from tools import Square, shapes
from nbparallel import pmap

print(list(pmap(Square.area, [Square(2), Square(3)])))
print([type(s) is Square for s in pmap(Square, [1, 2])])
try:
    list(pmap(Square.area, [Square(9)]))
except shapes.TooBig as error:
    print("too big:", error)
"""
    )
    answer = program("code/script.py")
    assert (answer.stdout, answer.stderr) == ("[4, 9]\n[True, True]\ntoo big: 9\n", "")


def test_exit_with_jobs_running(program: Program) -> None:
    """The interpreter ends though jobs run, sized and endless, read and unread."""
    code = """
import itertools, time
from nbparallel import pmap
jobs = [pmap(time.sleep, [60]), pmap(abs, itertools.count()), pmap(abs, range(10**9))]
print(next(iter(jobs[1])))
"""
    answer = program("-c", code)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("0\n", "", 0)


def test_exit_before_the_cluster_is_up(program: Program) -> None:
    """The interpreter ends at once after ``pmap`` returned, without a word."""
    answer = program("-c", "from nbparallel import pmap\njob = pmap(abs, [1])")
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 0)


def test_error_that_ends_a_script(program: Program) -> None:
    """An item's exception that nobody catches ends a script with a traceback that shows the worker's line."""
    answer = program("-c", "from nbparallel import pmap\nlist(pmap(lambda x: [][x], [3]))")
    assert answer.returncode == 1
    assert answer.stderr.rstrip().splitlines()[-1].startswith(("IndexError: list index", "raised for item 0"))
    assert "item 0 (3)" in answer.stderr


def test_progress_on_request(program: Program) -> None:
    """Without a terminal ``progress=True`` writes a summary to stderr, and nothing otherwise."""
    code = "from nbparallel import pmap\nlist(pmap(abs, range(100), name='count', progress=True))"
    answer = program("-c", code)
    assert answer.stdout == ""
    assert "count" in answer.stderr
    assert "100" in answer.stderr


def test_workers_are_set_by_the_environment(program: Program) -> None:
    """``NBPARALLEL_WORKERS`` sets the number of processes of the cluster that starts by itself."""
    code = """
import os
from nbparallel import pmap
from nbparallel.cluster.handle import default_cluster
pmap(abs, [1]).result()
print(default_cluster().workers)
"""
    assert program("-c", code).stdout == "2\n"


def test_function_that_reads_stdin(program: Program) -> None:
    """A function that reads standard input gets the end of it, and cannot steal what was meant for the script."""
    code = """
import sys
from nbparallel import pmap
print(pmap(lambda x: sys.stdin.read() if sys.stdin else "", [1]).result(), sys.stdin.read())
"""
    assert program("-c", code, stdin="mine").stdout == "[''] mine\n"
