"""Objects, items and functions as bytes."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import linecache
import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbparallel import pickling
from nbparallel.errors import SerializationError, WireError
from nbparallel.model import OLDEST_PROTOCOL, PROTOCOL_VERSION
from nbparallel.pickling import decode_columns, dump, dump_function, encode_columns, load, load_function

numbers = itertools.count()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(value=values)
def test_plain_values_come_back(value: Any) -> None:
    """What is dumped is what is loaded."""
    assert load(dump(value)) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10.0),
        np.arange(100_000.0),
        np.arange(100_000).reshape(100, 1000).T,
        np.arange(100_000)[::3],
        np.arange(100_000).reshape(100, 1000)[:, ::2],
        np.array(["a", "bb"] * 5000),
        np.array([{}, None] * 50, dtype=object),
        np.zeros((0, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("container", [bytes, bytearray])
def test_arrays_come_back_writable(array: np.ndarray[Any, Any], container: Callable[[bytes], Any]) -> None:
    """Arrays of all kinds survive, and can be changed, whatever memory the frame lies in."""
    again = load(container(dump({"x": array})))["x"]
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
    again[...] = again
    assert again.flags.writeable


def test_read_only_array_stays_read_only() -> None:
    """An array that the user protected stays protected."""
    array = np.zeros(10_000)
    array.flags.writeable = False
    assert not load(dump(array)).flags.writeable


def test_frames_come_back() -> None:
    """A data frame survives."""
    frame = pd.DataFrame({"a": np.arange(5000), "b": np.arange(5000) / 3, "c": ["x"] * 5000})
    pd.testing.assert_frame_equal(load(dump(frame)), frame)


def test_large_buffers_are_aligned_slices_of_writable_memory() -> None:
    """From writable memory nothing is copied, and every array starts at a multiple of 64 in the frame."""
    frame = bytearray(dump([np.zeros(1000), np.zeros(777), np.zeros(1001)]))
    arrays = load(frame)
    base = np.frombuffer(frame, np.uint8).ctypes.data
    for array in arrays:
        assert (array.ctypes.data - base) % pickling.ALIGNMENT == 0
        array[:] = 1
    assert [int(array.sum()) for array in load(frame)] == [1000, 777, 1001]


def test_copies_of_read_only_memory_are_separate() -> None:
    """Two loads of the same read-only bytes share nothing."""
    frame = dump(np.zeros(10_000))
    load(frame)[:] = 1
    assert load(frame).sum() == 0


def test_parts_look_into_the_objects_memory() -> None:
    """The parts join to the frame, without a copy of large buffers before."""
    array = np.zeros(10_000)
    parts = pickling.dump_parts(array)
    assert b"".join(parts) == dump(array)
    array[0] = 5
    assert load(b"".join(parts))[0] == 5


def test_small_buffers_stay_inside() -> None:
    """Thousands of short rows make no padding each."""
    rows = list(np.zeros((10_000, 2)))
    assert len(dump(rows)) < 1.1 * len(pickle.dumps(rows, 5))


@given(data=st.data())
def test_cut_frames_are_refused(data: st.DataObject) -> None:
    """A frame that ends early or late is refused before anything is unpickled."""
    frame = dump([np.zeros(1000), "text"])
    with pytest.raises(WireError):
        load(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(WireError):
        load(frame + data.draw(st.binary(min_size=1, max_size=99)))


@pytest.mark.parametrize("word", range(3))
def test_lying_heads_are_refused(word: int) -> None:
    """Lengths that promise more than there is are refused, however large."""
    for value in (1 << 20, 1 << 63, (1 << 64) - 1):
        frame = bytearray(dump([np.zeros(1000)]))
        frame[(0, 16, 24)[word] : (8, 24, 32)[word]] = value.to_bytes(8, "little")
        with pytest.raises(WireError):
            load(frame)


def test_nothing_is_kept_alive() -> None:
    """After a dump nothing holds on to the object, without help from the garbage collector."""

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    gc.disable()
    try:
        dump(thing)
        del thing
        assert gone() is None
    finally:
        gc.enable()


def test_columns_come_back() -> None:
    """Sequences become lists, one a column; ranges and arrays stay what they are, and give the same items."""
    numpy = pytest.importorskip("numpy")
    rows = numpy.arange(2000.0).reshape(2, 1000)
    columns = decode_columns(b"".join(encode_columns([(1, 2), "ab", range(2), rows, rows[:, 0]])))
    assert columns[:3] == ([1, 2], ["a", "b"], range(2))
    for column, before in zip(columns[3:], (rows, rows[:, 0]), strict=True):
        assert [type(item) for item in column] == [type(item) for item in before]
        assert all(numpy.array_equal(item, other) for item, other in zip(column, before, strict=True))
    columns[3][0][0] = 7.0  # an item is writable, as one that travelled alone was


@pytest.mark.parametrize("data", [[1], (), ((1,),), ([1], [1, 2]), None])
def test_odd_payloads_are_refused(data: Any) -> None:
    """A payload that is not a tuple of equally long lists is refused."""
    with pytest.raises(WireError):
        decode_columns(dump(data))


def test_unpicklable_item_is_named() -> None:
    """The message gives the index in the whole input, and the argument when there are several."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"^cannot pickle item 12, argument 2: it is a _thread\.lock"):
        encode_columns([[1, 2, 3], [1, 2, lock]], first=10)
    with pytest.raises(SerializationError, match=r"^cannot pickle item 11: its element 0 is a _thread\.lock"):
        encode_columns([[1, [lock]]], first=10)


class Once:
    """Can be pickled the second time only."""

    tries = 0

    def __reduce__(self) -> Any:
        Once.tries += 1
        if Once.tries == 1:
            raise ValueError("not yet")
        return Once, ()


def test_unpicklable_items_together() -> None:
    """When each item alone can be pickled the message names the range."""
    with pytest.raises(SerializationError, match=r"items 5 to 6: .*ValueError: not yet"):
        encode_columns([[Once(), 1]], first=5)


def _compile(source: str, filename: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run source as a notebook does a cell."""
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    exec(compile(source, filename, "exec"), namespace)
    return namespace


CELL = """\
def outer(x):
    def inner(y):
        return 1 // y
    return helper(inner, x)

def helper(f, x):
    return f(x)
"""


def test_tracebacks_show_lines_of_a_cell() -> None:
    """A function of a cell brings the cell's text along, so that remote tracebacks show it."""
    filename = f"<cell-{next(numbers)}>"
    outer = _compile(CELL, filename, {"__name__": "__main__"})["outer"]
    data = dump_function(outer)
    del linecache.cache[filename]
    again = load_function(data)
    linecache.checkcache()
    with pytest.raises(ZeroDivisionError) as caught:
        again(0)
    text = "".join(traceback.format_exception(caught.value))
    for line in ("return helper(inner, x)", "return f(x)", "return 1 // y"):
        assert line in text
    del linecache.cache[filename]


def test_methods_of_classes_bring_their_source() -> None:
    """So does a class of a cell."""
    filename = f"<cell-{next(numbers)}>"
    source = "class Model:\n    def __call__(self, x):\n        return 1 // x\n"
    model = _compile(source, filename, {"__name__": "__main__"})["Model"]()
    data = dump_function(model)
    del linecache.cache[filename]
    load_function(data)
    assert linecache.getline(filename, 3) == "        return 1 // x\n"
    del linecache.cache[filename]


def test_the_text_of_a_cell_that_ran_again_is_the_new_one() -> None:
    """Sources are remembered; a function from an edited cell of the same name shows its own, and so does the old."""
    filename = f"<cell-{next(numbers)}>"
    texts = [f"def f(x):\n    return {number} // x\n" for number in (1, 2)]
    packed = [dump_function(_compile(text, filename, {"__name__": "__main__"})["f"]) for text in texts]
    for data, text in [*zip(packed, texts, strict=True)] * 2:
        assert load_function(data)(1) == int(text[21])
        assert "".join(linecache.getlines(filename)) == text
    del linecache.cache[filename]


def test_source_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the function travels without its text."""
    filename = f"<cell-{next(numbers)}>"
    outer = _compile(CELL, filename, {"__name__": "__main__"})["outer"]
    monkeypatch.setattr(pickling, "SOURCE_LIMIT", 10)
    data = dump_function(outer)
    del linecache.cache[filename]
    assert load_function(data)(1) == 1
    assert filename not in linecache.cache


def test_function_without_source_text() -> None:
    """A function whose text nothing keeps travels all the same."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(x): return x + 1", namespace)
    assert load_function(dump_function(namespace["f"]))(1) == 2


@pytest.mark.parametrize("function", [len, str.upper, lambda x: x, print, int])
def test_any_callable_travels(function: Any) -> None:
    """Built-in functions, methods, classes and lambdas survive."""
    assert callable(load_function(dump_function(function)))


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\0\0\0\0x", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}"])
def test_odd_function_bytes_are_refused(data: bytes) -> None:
    """Bytes that are not a function's are refused."""
    with pytest.raises(WireError):
        load_function(data)


def test_large_captured_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that carries much brings a warning that names what it carries, at the user's line."""
    big, text, small = np.zeros(2_000_000), "x" * 5_000_000, 3

    def simulate(x: int) -> Any:
        return big[x], text, small

    expected = (
        r"the function 'simulate' carries 21 MB to every worker process: closure variable 'big' "
        r"\(numpy\.ndarray, 16 MB\), closure variable 'text' \(str, 5 MB\)\. "
        r"To send a value once and use it in many jobs, write big = nbparallel\.share\(value\) before"
    )
    with pytest.warns(UserWarning, match=expected) as caught:
        dump_function(simulate)
    assert caught[0].filename == __file__


def test_small_functions_do_not_warn() -> None:
    """Nine megabytes are let through without a word."""
    big = np.zeros(9_000_000 // 8)
    dump_function(lambda x: big[x])


class Project:
    """Modules beside the notebook."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def module(self, source: str, name: str = "", more: Mapping[str, str] = MappingProxyType({})) -> ModuleType:
        """Write a module (and more files) and import it."""
        name = name or f"beside_{next(numbers)}"
        for each, text in {f"{name}.py": source, **more}.items():
            path = self.folder / each
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
            self.names.append(each.removesuffix(".py").partition("/")[0])
        return importlib.import_module(name.removesuffix("/__init__"))

    def elsewhere(self, data: bytes, call: str, *arguments: Any) -> Any:
        """The result of ``call``, of the function ``f``, in a process that cannot import these modules."""
        code = (
            "import sys, pickle, base64; from nbparallel.pickling import *\n"
            "data, arguments = pickle.load(sys.stdin.buffer)\n"
            f"f = load_function(data); result = {call}\n"
            "sys.stdout.buffer.write(dump(result, local_by_value=False))"
        )
        root = str(Path(pickling.__file__).parents[1])
        run = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps((data, arguments)),
            capture_output=True,
            timeout=60,
            cwd="/",
            env={**os.environ, "PYTHONPATH": root},
        )
        assert run.returncode == 0, run.stderr.decode()
        return load(run.stdout)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """An empty directory as the working one; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    project = Project(tmp_path)
    yield project
    for name in list(sys.modules):
        if name.partition(".")[0] in project.names:
            del sys.modules[name]
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_module_beside_the_notebook_travels(project: Project) -> None:
    """A function of a local module runs where the module is not, and its lines show in tracebacks."""
    module = project.module("OFFSET = 5\ndef shift(x):\n    return helper(x)\ndef helper(x):\n    return x + OFFSET\n")
    data = dump_function(module.shift)
    assert project.elsewhere(data, "f(1)") == 6
    assert (
        project.elsewhere(data, "__import__('linecache').getline(f.__code__.co_filename, 5)")
        == "    return x + OFFSET\n"
    )


def test_module_used_as_a_global_travels(project: Project) -> None:
    """So does a module that a function of the notebook uses by name, with the modules it uses itself."""
    first = "BASE = 3\ndef f(x): return x + BASE\nimport second\n"
    second = "from first import BASE\nimport first\ndef g(x): return first.f(x) * BASE\n"
    project.module(second, "second", {"first.py": first})
    namespace = _compile("import second\ndef f(x): return second.g(x)\n", "<cell-second>", {"__name__": "__main__"})
    assert project.elsewhere(dump_function(namespace["f"]), "f(1)") == 12
    del linecache.cache["<cell-second>"]


def test_submodules_travel(project: Project) -> None:
    """So does a package with its submodules and relative imports."""
    part = "from typing import TypeVar\nT = TypeVar('T')\ndef f(x: T) -> T: return x * 2\n"
    source = "from .part import f\nfrom . import part\ndef g(x): return f(x) + part.f(x)\n"
    module = project.module(source, "pack/__init__", {"pack/part.py": part})
    assert project.elsewhere(dump_function(module.g), "f(1)") == 4
    assert project.elsewhere(dump_function(functools.partial(print, module.part.T)), "f.args[0].__name__") == "T"


def test_type_variable_travels_alone(project: Project) -> None:
    """A type variable does not bring its whole module along, which may hold what cannot be pickled."""
    module = project.module("import threading, typing\nlock = threading.Lock()\nT = typing.TypeVar('T')\n")
    assert load(dump(module.T)).__name__ == "T"


def test_items_of_local_classes_travel(project: Project) -> None:
    """Items may be instances of classes of a local module, and come back as instances of the same class."""
    module = project.module("class Point:\n    def __init__(self, x): self.x = x\n")
    data = dump_function(lambda point: type(point)(point.x + 1))
    items = b"".join(encode_columns([[module.Point(1)]]))
    result = project.elsewhere(data, "f(decode_columns(arguments[0])[0][0])", items)
    assert type(result) is module.Point
    assert result.x == 2


def test_classes_that_come_back_are_left_alone(project: Project) -> None:
    """A result does not overwrite the class of the notebook that it is an instance of."""
    source = (
        "SCALE = 2\nclass Point:\n    made = 0\n    def scaled(self): return SCALE\n"
        "def f(x):\n    Point.made += 1\n    return Point()\n"
    )
    namespace = _compile(source, "<cell-class>", {"__name__": "__main__"})
    cls, method = namespace["Point"], namespace["Point"].scaled
    result = project.elsewhere(dump_function(namespace["f"]), "f(1)")
    assert type(result) is cls
    assert cls.scaled is method
    assert cls.made == 0
    namespace["SCALE"] = 3
    assert result.scaled() == 3
    del linecache.cache["<cell-class>"]


def test_received_classes_are_renewed(project: Project) -> None:
    """In a worker a class follows the changes that the notebook makes to it, also after it was sent back."""
    namespace = _compile(
        "class Config:\n    rate = 1\ndef f(): return Config.rate, Config()\n", "<cell>", {"__name__": "__main__"}
    )
    first = dump_function(namespace["f"])
    namespace["Config"].rate = 2
    second = dump_function(namespace["f"])
    call = "[load_function(data)()[0], dump(load_function(data)()[1]) and load_function(arguments[0])()[0]]"
    assert project.elsewhere(first, call, second) == [1, 2]
    del linecache.cache["<cell>"]


def test_two_loads_share_no_globals() -> None:
    """Each load of a function has globals of its own."""
    namespace = _compile(
        "count = 0\ndef f():\n    global count\n    count += 1\n    return count\n", "<cell>", {"__name__": "__main__"}
    )
    data = dump_function(namespace["f"])
    one, two = load_function(data), load_function(data)
    assert [one(), one(), two()] == [1, 2, 1]
    del linecache.cache["<cell>"]


def test_modules_the_user_registered_stay_registered(project: Project) -> None:
    """What the user told cloudpickle himself is kept."""
    module = project.module("def f(x): return x")
    cloudpickle.register_pickle_by_value(module)
    try:
        dump_function(module.f)
        assert cloudpickle.list_registry_pickle_by_value() == {module.__name__}
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_registration_ends_with_the_dump(project: Project) -> None:
    """cloudpickle's registry is as before, after a failed dump and with several threads too."""
    module = project.module("import threading\nlock = threading.Lock()\ndef f(x): return lock\ndef g(x): return x")
    with pytest.raises(SerializationError, match="its global 'lock'"):
        dump_function(module.f)
    assert not cloudpickle.list_registry_pickle_by_value()
    threads = [threading.Thread(target=lambda: [dump(module.g) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = {b"def" in dump(module.g) or len(dump(module.g)) > 200 for _ in range(200)}
    for thread in threads:
        thread.join()
    assert found == {True}
    assert not cloudpickle.list_registry_pickle_by_value()


def test_by_reference_where_asked(project: Project) -> None:
    """A worker refers to modules that it imported, as the client can import them too."""
    module = project.module("def f(x): return x")
    assert load(dump(module.f, local_by_value=False)) is module.f
    assert load(dump(module, local_by_value=False)) is module
    assert load(dump(module.f)) is not module.f


def test_edited_module_brings_a_warning(project: Project) -> None:
    """A module whose file was edited since it was imported is named, when the function uses it."""
    module = project.module("def f(x): return x\n")
    path = Path(module.__file__ or "")
    path.write_text("def f(x): return x + 1\n")
    os.utime(path, (time.time() + 5,) * 2)
    with pytest.warns(
        UserWarning, match=rf"{module.__name__}.py was edited .* importlib\.reload\({module.__name__}\)"
    ) as caught:
        dump_function(module.f)
    assert caught[0].filename == __file__
    dump_function(_elsewhere)


def _elsewhere(x: int) -> int:
    return x


def test_versions_agree_with_themselves() -> None:
    """Equal versions bring no message."""
    ours = pickling.versions()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert ours == (python, cloudpickle.__version__, PROTOCOL_VERSION, OLDEST_PROTOCOL)
    assert pickling.check_versions(ours) is None


def test_versions_that_differ_are_both_named() -> None:
    """The message names the differing versions of both sides, and no other."""
    python, ours, *protocol = pickling.versions()
    message = pickling.check_versions(("2.7", ours, *protocol), "worker w1")
    assert message == (
        f"this process runs Python {python}, worker w1 Python 2.7; functions can only travel between equal versions"
    )
    assert "cloudpickle 0.1" in (pickling.check_versions((python, "0.1", *protocol)) or "")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ((5, 5), None),
        ((4, 3), None),
        ((9, 5), None),
        ((3, 3), None),
        ((2, 1), "this process speaks nbparallel protocol 3 to 5, worker w1 1 to 2; upgrade nbparallel for worker w1"),
        ((9, 6), "this process speaks nbparallel protocol 3 to 5, worker w1 6 to 9; upgrade nbparallel for this proc"),
    ],
)
def test_protocols_go_together_within_their_ranges(
    theirs: tuple[int, int], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side's version must be in the other's range; else the message names both ranges, and whom to upgrade."""
    monkeypatch.setattr(pickling, "PROTOCOL_VERSION", 5)
    monkeypatch.setattr(pickling, "OLDEST_PROTOCOL", 3)
    said = pickling.check_versions((*pickling.versions()[:2], *theirs), "worker w1")
    assert said == message if message is None else (said or "").startswith(message)


def test_arrays_share_the_memory_of_a_mapped_frame(tmp_path: Path) -> None:
    """Of mapped frames it is known whether what is loaded lies in them."""
    for value, shares in ((np.arange(1000.0), True), ([bytes(3000), np.arange(1000)[:10]], False)):
        path = tmp_path / f"{shares}"
        path.write_bytes(pickling.dump(value))
        with open(path, "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        assert pickling.shares_memory(mapped) is shares
        assert not pickling.shares_memory(mapped.toreadonly())
        assert not pickling.shares_memory(memoryview(bytearray(mapped)))
