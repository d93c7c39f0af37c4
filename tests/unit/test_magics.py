"""The first line of %%pmap and its cell, without a kernel."""

from __future__ import annotations

import ast
import traceback
from typing import Any

import pytest

from nbparallel import magics


@pytest.mark.parametrize(
    ("line", "names", "star", "sources", "out", "options"),
    [
        ("x in xs -> out", ("x",), False, ["xs"], "out", {}),
        ("x in xs", ("x",), False, ["xs"], "", {}),
        ("x in f(a -  b)->out", ("x",), False, ["f(a - b)"], "out", {}),
        ("x, y in rows -> out", ("x", "y"), True, ["rows"], "out", {}),
        ("(x, y) in rows -> out", ("x", "y"), True, ["rows"], "out", {}),
        ("x, y in zip(a, b) -> out", ("x", "y"), False, ["a", "b"], "out", {}),
        ("x, y in zip(a, b, strict=True) -> out", ("x", "y"), True, ["zip(a, b, strict=True)"], "out", {}),
        ("x, y in zip(*a) -> out", ("x", "y"), True, ["zip(*a)"], "out", {}),
        ("x, y in a, b -> out", ("x", "y"), False, ["a", "b"], "out", {}),
        ("x, y in (1, 2), (3, 4), (5, 6) -> out", ("x", "y"), True, ["((1, 2), (3, 4), (5, 6))"], "out", {}),
        ("i, (a, b) in rows -> out", ("_item",), False, ["rows"], "out", {}),
        ("x in xs -> out --retries 2", ("x",), False, ["xs"], "out", {"retries": "2"}),
        (
            "x in xs --on-error=return --ordered False --name 'a b'",
            ("x",),
            False,
            ["xs"],
            "",
            {"on_error": "return", "ordered": "False", "name": "'a b'"},
        ),
    ],
)
def test_what_a_line_means(
    line: str, names: tuple[str, ...], star: bool, sources: list[str], out: str, options: dict[str, str]
) -> None:
    """Names, sources, the variable for the results, and options."""
    call = magics._parse(line)
    assert (call.names, call.star, call.out, call.options) == (names, star, out, options)
    assert [ast.unparse(source) for source in call.sources] == sources


@pytest.mark.parametrize(
    "line", ["", "x", "x in", "x on xs", "x in xs -> 2", "x in xs -> a.b", "x in xs: pass; 1 -> out", "x in xs --wat 1"]
)
def test_what_a_line_cannot_mean(line: str) -> None:
    """Anything else is refused, with the form that is wanted or the options that there are."""
    with pytest.raises(magics.MagicError, match=r"%%pmap"):
        magics._parse(line)


def function(line: str, cell: str, **space: Any) -> Any:
    """The function that a cell makes."""
    return magics._function(magics._parse(line), line, cell, space)


def test_a_cell_becomes_a_function() -> None:
    """Its last expression is the result; it reads the notebook's variables, and its own stay its own."""
    space: dict[str, Any] = {"k": 3}
    call = magics._function(magics._parse("x in xs -> out"), "x in xs -> out", "y = x * k\n\ny + 1\n", space)
    assert call(2) == 7
    assert "y" not in space
    assert "cell" not in space
    assert function("x in xs", "y = x")(1) is None
    assert function("i, (a, *b) in xs", "i, a, b")((1, (2, 3, 4))) == (1, 2, [3, 4])


def test_a_traceback_shows_the_cells_own_line() -> None:
    """Line numbers count from the magic's line, and the source is found."""
    with pytest.raises(ZeroDivisionError) as caught:
        function("x in xs", "a = 1\na / x  # here")(0)
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.lineno, frame.line) == (3, "a / x  # here")


def test_a_cell_with_an_error_is_told_by_its_line() -> None:
    """A syntax error has the line in the cell, and an empty cell is refused."""
    with pytest.raises(SyntaxError) as caught:
        function("x in xs", "a = 1\na =")
    assert caught.value.lineno == 3
    with pytest.raises(magics.MagicError, match="empty"):
        function("x in xs", "# nothing")
