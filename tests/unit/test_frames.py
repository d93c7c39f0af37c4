"""Jobs as tables and pictures, run in this process."""

from __future__ import annotations

import dataclasses
import sys
from collections import namedtuple
from typing import Any

import numpy
import pandas
import pytest

from nbparallel import UsageError, grid, pmap, pstarmap, sample, sweep

Pair = namedtuple("Pair", "low high")


@dataclasses.dataclass
class Fit:
    """A result of two fields."""

    slope: float
    label: str


META = ["duration", "worker", "attempts", "error"]


def table(job: Any) -> pandas.DataFrame:
    """The frame of a job that has run."""
    job.wait()
    frame: pandas.DataFrame = job.to_frame()
    assert list(frame.columns)[-4:] == META or frame.columns[-1] == "error_"
    return frame


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        (lambda x: x * 2, {"result": [2, 4]}),
        (lambda x: {"twice": 2 * x, "text": str(x)}, {"twice": [2, 4], "text": ["1", "2"]}),
        (lambda x: Fit(x / 2, "f"), {"slope": [0.5, 1.0], "label": ["f", "f"]}),
        (lambda x: Pair(x, x + 1), {"low": [1, 2], "high": [2, 3]}),
        (lambda x: (x, x), {"result": [(1, 1), (2, 2)]}),
    ],
)
def test_fields_of_results_become_columns(result: Any, fields: dict[str, list[Any]]) -> None:
    """A scalar gives one column; dicts, dataclasses and namedtuples one for each field."""
    frame = table(pmap(result, [1, 2], session="serial"))
    assert list(frame.columns) == ["x", *fields, *META]
    assert frame["x"].tolist() == [1, 2]
    assert {name: frame[name].tolist() for name in fields} == fields


def test_parameters_become_columns() -> None:
    """Of a sweep, of several iterables and of tuples; by the names that the function gives them."""
    frame = table(sweep(lambda a, b: a + b, grid(a=[1, 2], b=[3]), session="serial"))
    assert frame[["a", "b", "result"]].values.tolist() == [[1, 3, 4], [2, 3, 5]]
    assert list(table(pmap(lambda u, v: 0, [1], [2], session="serial")).columns[:2]) == ["u", "v"]
    assert list(table(pstarmap(lambda u, *v: 0, [(1, 2)], session="serial")).columns[:2]) == ["u", "item_1"]
    assert list(table(pmap(abs, [1], session="serial")).columns[:2]) == ["item", "result"]


def test_types_are_kept() -> None:
    """Whole numbers stay whole numbers; arrays stay what they are, one in each row."""
    frame = table(pmap(lambda x: {"n": x, "a": numpy.zeros(3)}, [1, 2], session="serial"))
    assert frame["n"].dtype == "int64"
    assert frame["a"][1].shape == (3,)


def test_arrays_are_no_parameters() -> None:
    """Items that are arrays make no column, and the job does not keep them alive."""
    frame = table(pmap(lambda row, k: row.sum() * k, numpy.ones((2, 3)), [1, 2], session="serial"))
    assert list(frame.columns) == ["k", "result", *META]


def test_names_that_are_taken_get_an_underscore() -> None:
    """A result's field with a parameter's name, or one that is called like our columns, hides nothing."""
    frame = table(pmap(lambda x: {"x": 5, "error": 6}, [1], session="serial"))
    assert list(frame.columns) == ["x", "x_", "error", "duration", "worker", "attempts", "error_"]


def test_failed_items_are_rows_too() -> None:
    """A failed item has its parameters and its error, and no result."""
    frame = table(pmap(lambda x: 1 / x, [0, 2], on_error="return", session="serial"))
    assert frame["error"].notna().tolist() == [True, False]
    assert "ZeroDivisionError" in frame["error"][0]
    assert numpy.isnan(frame["result"][0])
    assert frame["result"][1] == 0.5


def test_a_job_that_has_not_begun_is_an_empty_table() -> None:
    """The frame can be had at any time."""
    frame = pmap(abs, [1, 2], session="serial").to_frame()
    assert (len(frame), list(frame.columns)) == (0, ["item", "result", *META])


def picture(job: Any, **options: Any) -> Any:
    """The figure of a job that has run; drawn once, so that whatever is wrong with it shows."""
    job.wait()
    figure = job.plot(**options)
    assert figure._repr_png_().startswith(b"\x89PNG")
    return figure


def test_a_plain_job_is_drawn_as_work() -> None:
    """Lanes of worker processes and a histogram of durations."""
    figure = picture(pmap(lambda x: 1 / x, [0, 1, 2], on_error="skip", session="serial"))
    assert [axes.get_xlabel() for axes in figure.axes] == ["seconds", "seconds an item"]
    picture(pmap(abs, [], session="serial"))


def test_a_sweep_of_one_parameter_is_a_line() -> None:
    """The result over the parameter, in its order, with means over repeated values."""
    axes = picture(sweep(lambda a, rep: a * 2 + rep, grid(a=[3, 1], rep=[0, 2]), session="serial"), x="a", y="rep").axes
    assert [line.get_xdata().tolist() for line in axes[0].lines] == [[1, 3], [1, 3]]
    (line,) = picture(sweep(lambda a: a * 2, grid(a=[3, 1, 1]), session="serial")).axes[0].lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 3], [2, 6])


def test_a_sweep_of_two_parameters_is_a_heat_map() -> None:
    """With many values of both a heat map, with few of one a line for each; sampled points are dots."""
    many = picture(sweep(lambda a, b: {"s": a + b}, grid(a=range(9), b=range(9)), session="serial"))
    assert [axes.get_ylabel() for axes in many.axes] == ["b", "s"]
    assert many.axes[0].collections[0].get_array().reshape(9, 9)[2, 5] == 7
    few = picture(sweep(lambda a, b: a, grid(a=range(9), b=["u", "v"]), session="serial"))
    assert [text.get_text() for text in few.axes[0].get_legend().get_texts()] == ["b = u", "b = v"]
    dots = picture(sweep(lambda a, b: a, sample(20, a=(0, 1), b=(0, 1), seed=1), session="serial"))
    assert len(dots.axes[0].collections[0].get_offsets()) == 20
    words = picture(sweep(lambda a, b: a, grid(a=[1, 2], b=["u", "v"]), session="serial"), kind="heatmap")
    assert [text.get_text() for text in words.axes[0].get_yticklabels()] == ["u", "v"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "pie"}, "kind must be"), ({"x": "z"}, "no parameter 'z'"), ({"kind": "heatmap"}, "two parameters")],
)
def test_what_cannot_be_drawn_is_told(options: dict[str, str], message: str) -> None:
    """A wrong kind or parameter is named, with those that there are."""
    job = sweep(lambda a: a, grid(a=[1, 2]), session="serial")
    job.wait()
    with pytest.raises(UsageError, match=message):
        job.plot(**options)


def test_results_that_are_no_numbers_cannot_be_drawn() -> None:
    """Text has no height; the error says what can be drawn."""
    job = sweep(lambda a: "text", grid(a=[1, 2]), session="serial")
    job.wait()
    with pytest.raises(UsageError, match="kind='work'"):
        job.plot()


@pytest.mark.parametrize(
    ("module", "extra", "call"), [("pandas", "pandas", "to_frame"), ("matplotlib.figure", "plot", "plot")]
)
def test_a_missing_library_names_the_extra(module: str, extra: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the error says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"nbparallel\[{extra}\]"):
        getattr(pmap(abs, [1], session="serial"), call)()
