"""Fork-joins as far as they need no cluster: definition, schemas, binding, and the joining of neighbours."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbparallel import ForkJoin, ItemError
from nbparallel.errors import UsageError
from nbparallel.merging import GROUP, Neighbours

RULES = {"documents": {"type": "list", "required": True}, "delimiter": {"type": "string", "default": " "}}


class Model(pydantic.BaseModel):
    """The same as ``RULES``."""

    model_config = pydantic.ConfigDict(extra="forbid")
    documents: list[str]
    delimiter: str = " "


def word_count(schema: Any = RULES, **join: Any) -> Any:
    """The fork-join of the documentation."""

    class WordCount(ForkJoin):
        pass

    class Checked(WordCount):
        pass

    Checked.schema = schema
    Checked.__init_subclass__()

    @Checked.setup
    def split(documents: list[str]) -> list[dict[str, str]]:
        return [{"document": document} for document in documents]

    @Checked.process
    def count(document: str, delimiter: str = " ") -> Counter[str]:
        return Counter(document.split(delimiter))

    @Checked.join(**join) if join else Checked.join
    def total(counts: list[Counter[str]]) -> Counter[str]:
        return sum(counts, Counter())

    return Checked


def three(setup: Callable[..., Any], process: Callable[..., Any], join: Callable[..., Any], schema: Any = None) -> Any:
    """A fork-join of three functions."""
    cls: Any = type("Three", (ForkJoin,), {"schema": schema})
    cls.setup(setup), cls.process(process), cls.join(join)
    return cls


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [RULES, Model, None], ids=["cerberus", "pydantic", "none"])
def test_three_steps_give_the_result_with_its_type(schema: Any) -> None:
    """Setup, process and join run in turn, defaults of the schema apply, and a Counter stays a Counter."""
    result = word_count(schema).run_locally({"documents": ["a b", "b"]})
    assert result == Counter(a=1, b=2)
    assert type(result) is Counter


def test_input_reaches_process_and_join_by_name() -> None:
    """Process and join get any input that setup does not produce; what setup produces wins."""

    def setup(x: list[int]) -> list[dict[str, int]]:
        return [{"n": n, "y": 100} if n else {"n": n} for n in x]

    made = three(setup, lambda n, y, z: (n, y, z), lambda results, z, y: (results, z, y))
    assert made.run_locally({"x": [1, 0], "y": 7, "z": 5}) == ([(1, 100, 5), (0, 7, 5)], 5, 7)


def test_lazy_setup_is_read_to_its_end() -> None:
    """What setup yields is taken like a list, also when it yields nothing."""

    def setup(n: int) -> Iterator[dict[str, int]]:
        yield from ({"i": i} for i in range(n))

    made = three(setup, lambda i: i, list)
    assert made.run_locally({"n": 3}) == [0, 1, 2]
    assert made.run_locally({"n": 0}) == []


def test_a_subclass_inherits_and_replaces_steps() -> None:
    """A subclass has the steps of its base, but for those that it defines itself; the base keeps its own."""
    base = word_count()

    class Least(base):  # type: ignore[misc]
        schema = RULES

    @Least.join
    def least(counts: list[Counter[str]]) -> int:
        return min(map(len, counts))

    assert Least.run_locally({"documents": ["a b", "b"]}) == 1
    assert base.run_locally({"documents": ["a b", "b"]}) == Counter(a=1, b=2)


def test_decorated_functions_stay_plain_functions() -> None:
    """A step can be called and tested by itself."""

    class Plain(ForkJoin):
        pass

    @Plain.process
    def double(x: int) -> int:
        return 2 * x

    @Plain.join(reduce=True)
    def add(values: list[int]) -> int:
        return sum(values)

    assert (double(4), add([1, 2])) == (8, 3)


def test_an_associative_join_is_called_in_parts_here_as_well() -> None:
    """A join that is wrongly declared associative shows already in run_locally."""
    calls = []

    def join(parts: list[list[int]]) -> list[int]:
        calls.append(len(parts))
        return [value for part in parts for value in part]

    made: Any = type("Parts", (ForkJoin,), {})
    made.setup(lambda n: [{"i": i} for i in range(n)])
    made.process(lambda i: [i])
    made.join(reduce=True)(join)
    assert made.run_locally({"n": 100}) == list(range(100))
    assert max(calls) <= GROUP < 100


def test_failed_items_are_raised_returned_or_left_out() -> None:
    """``on_error`` means for process what it means for pmap."""

    def fail(i: int) -> int:
        return 10 // i

    made = three(lambda: [{"i": i} for i in (5, 0, 2)], fail, list)
    with pytest.raises(ZeroDivisionError):
        made.run_locally({})
    assert made({}, session="serial", on_error="skip").result() == [2, 5]
    first, error, last = made({}, session="serial", on_error="return").result()
    assert (first, last) == (2, 5)
    assert isinstance(error, ItemError)
    assert (error.index, type(error.exception)) == (1, ZeroDivisionError)


def test_a_handle_can_be_awaited_and_remembers_its_result() -> None:
    """``await`` gives what ``result`` gives, and join runs once."""
    calls = []

    def join(results: list[int]) -> int:
        calls.append(1)
        return sum(results)

    async def ask(handle: Any) -> int:
        value: int = await handle
        return value

    handle = three(lambda: [{"i": 1}, {"i": 2}], lambda i: i, join)({}, session="serial")
    assert (asyncio.run(ask(handle)), handle.result(), len(calls)) == (3, 3, 1)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "inputs", "words"),
    [
        (RULES, {"documents": 3}, ["documents", "must be of list type", "type 'list'"]),
        (RULES, {}, ["documents", "required"]),
        (RULES, {"documents": [], "delim": ","}, ["delim", "unknown field"]),
        (RULES, {"documents": [], "delimiter": 1}, ["delimiter", "type 'string'"]),
        (
            {"documents": {"type": "list", "schema": {"type": "string"}}},
            {"documents": ["a", 7]},
            ["documents.1", "string"],
        ),
        (Model, {"documents": 3}, ["documents", "list_type"]),
        (Model, {}, ["documents", "missing"]),
        (Model, {"documents": ["a", 7]}, ["documents.1", "string_type"]),
        (Model, {"documents": [], "delim": ","}, ["delim", "extra_forbidden"]),
        (None, {"documents": [], "delim": ","}, ["delim", "no step takes"]),
        (None, {"delimiter": ","}, ["split", "documents", "nobody provides"]),
        (None, [1], ["must be a dict", "[1]"]),
        (None, {1: 2}, ["must be a dict"]),
    ],
)
def test_wrong_input_is_refused_with_field_and_rule(schema: Any, inputs: Any, words: list[str]) -> None:
    """An input that breaks the schema names the field and the rule, and no step runs."""
    with pytest.raises(UsageError) as caught:
        word_count(schema)(inputs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"documents": {"type": "lizt"}}, "not a valid Cerberus schema.*lizt"),
        ({"documents": {"tipe": "list"}}, "not a valid Cerberus schema.*tipe"),
        ([1], "must be a dict of Cerberus rules or a pydantic model"),
    ],
)
def test_a_wrong_schema_is_refused_at_definition(schema: Any, words: str) -> None:
    """A schema that is none is an error where the class is defined."""
    with pytest.raises(UsageError, match=words):
        type("Wrong", (ForkJoin,), {"schema": schema})


@pytest.mark.parametrize("missing", ["setup", "process", "join"])
def test_a_missing_step_is_named(missing: str) -> None:
    """Running without one of the steps says which, and how to define it."""
    made: Any = type("Part", (ForkJoin,), {})
    for name in {"setup", "process", "join"} - {missing}:
        getattr(made, name)(lambda x=1: [])
    with pytest.raises(UsageError, match=f"Part has no {missing} step.*@Part.{missing}"):
        made({})


def test_a_second_step_is_refused_at_definition() -> None:
    """Two setups are an error that names both."""

    class Twice(ForkJoin):
        pass

    @Twice.setup
    def one() -> list[dict[str, int]]:
        return []

    with pytest.raises(UsageError, match="Twice has a setup step already: one; two would be a second one"):

        @Twice.setup
        def two() -> list[dict[str, int]]:
            return []


def test_a_cell_that_runs_again_replaces_its_step() -> None:
    """The same function from another version of its cell takes the place of the first; a different one does not."""

    class Cell(ForkJoin):
        pass

    def define(text: str, cell: str) -> None:
        exec(compile(text, cell, "exec"), {"Cell": Cell, "__name__": "__main__"})

    text = "@Cell.process\ndef f(i):\n    return i"
    define(text, "<cell 1>")
    define(text, "<cell 1>")
    define(text + " + 1", "<cell 2>")
    with pytest.raises(UsageError, match="already"):
        define(text.replace("f(", "g("), "<cell 3>")
    with pytest.raises(UsageError, match="already"):
        define("\n\n" + text, "<cell 2>")


@pytest.mark.parametrize("step", ["setup", "join"])
def test_an_argument_that_the_schema_lacks_is_refused_at_definition(step: str) -> None:
    """Setup and join can take fields of the schema alone; the message lists them."""
    made: Any = type("Fields", (ForkJoin,), {"schema": RULES})
    with pytest.raises(UsageError, match=r"takes 'words', which nobody provides.*delimiter, documents"):
        getattr(made, step)(lambda documents, words: [])


@pytest.mark.parametrize(
    ("process", "items", "words"),
    [
        (lambda i, k: i, [{"i": 1}], "takes 'k', which nobody provides: neither item 0 of setup .i. nor the input"),
        (lambda i: i, [{"i": 1}, {"i": 1, "j": 2}], "does not take 'j', which item 1 of setup has; it takes i"),
        (lambda i: i, [{"i": 1}, 5], "item 1 must be a dict, not 5"),
        (lambda i: i, {"i": 1}, "must return or yield dicts, not a single dict"),
        (lambda i: i, None, "must return or yield dicts, not a single NoneType"),
    ],
)
def test_items_that_do_not_fit_process_are_refused(process: Any, items: Any, words: str) -> None:
    """What setup makes is checked against the parameters of process before anything is sent."""
    with pytest.raises(UsageError, match=words):
        three(lambda: items, process, list)({}, session="serial")
    if isinstance(items, list):
        with pytest.raises(UsageError, match=words):
            three(lambda: iter(items), process, list).run_locally({})


@pytest.mark.parametrize(
    ("step", "function", "words"),
    [
        ("process", lambda *a: 1, r"'\*a' cannot be"),
        ("setup", lambda **a: 1, r"'\*\*a' cannot be"),
        ("process", 7, "must decorate a function, not 7"),
        ("join", lambda: 1, "its first parameter receives the list of results"),
        ("join", lambda *, a: 1, "its first parameter receives the list of results"),
    ],
)
def test_functions_that_cannot_be_bound_are_refused(step: str, function: Any, words: str) -> None:
    """A step whose arguments cannot be given by name is an error at definition."""
    made: Any = type("Odd", (ForkJoin,), {})
    with pytest.raises(UsageError, match=words):
        getattr(made, step)(function)


def test_the_base_class_and_unknown_options_are_refused() -> None:
    """ForkJoin itself cannot be defined, and options that make no sense for it are named."""
    with pytest.raises(UsageError, match="make a subclass"):
        ForkJoin.process(abs)
    with pytest.raises(UsageError, match="no option 'ordered'; known are chunks"):
        word_count()({"documents": []}, ordered=False)
    with pytest.raises(UsageError, match="no option 'session'"):
        word_count().signature({"documents": []}, session="serial")


def test_a_signature_checks_before_it_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A signature refuses wrong input and a missing key; a partial one only what is there."""
    made = word_count()
    with pytest.raises(UsageError, match="NBPARALLEL_KEY_FILE"):
        made.signature({"documents": []})
    (tmp_path / "key").write_text("k" * 32)
    monkeypatch.setenv("NBPARALLEL_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(UsageError, match="documents"):
        made.signature({"documents": 3})
    with pytest.raises(UsageError, match="documents"):
        made.signature({})
    with pytest.raises(UsageError, match="delimiter"):
        made.signature({"delimiter": 3}, partial=True)
    assert made.signature({"documents": []}).immutable
    assert not made.signature({"delimiter": ","}, partial=True).immutable
    assert made.signature().task == "nbparallel.forkjoin"


# -- neighbours --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 40), st.randoms())
def test_neighbours_join_in_order_whatever_comes_first(count: int, widest: int, rng: random.Random) -> None:
    """Pieces in any order, and groups whose results come back at any time, end in all values in index order."""
    neighbours = Neighbours()
    pieces: list[tuple[int, int, list[Any]]] = []
    while (lo := pieces[-1][1] if pieces else 0) < count:
        hi = min(count, lo + rng.randint(1, widest))
        pieces.append((lo, hi, [str(i) for i in range(lo, hi) if i % 7]))  # some places are empty
    while pieces:
        lo, hi, values = pieces.pop(rng.randrange(len(pieces)))
        group = neighbours.add(lo, hi, values)
        if group is not None:
            assert len(group[2]) >= GROUP
            pieces.append((group[0], group[1], [" ".join(group[2])]))
    assert " ".join(neighbours.values()) == " ".join(str(i) for i in range(count) if i % 7)
    assert len(neighbours.values()) < GROUP
