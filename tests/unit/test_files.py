"""What is declared about a function's files is checked at once; one item's files are fetched, stored and cleaned up."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import imported

import nbparallel
from nbparallel import pmap
from nbparallel.errors import UsageError
from nbparallel.files import TransferFailed, clear, declare

fsspec = imported("fsspec")

#: Where the tested package lies, for programs in processes of their own.
ROOT = str(Path(nbparallel.__file__ or "").parents[1])


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of memory:// URLs, empty; and a temporary directory of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def host(part: str) -> list[Path]:
    """What lies in the cache, or what items left, on this host."""
    return sorted((Path(tempfile.gettempdir()) / f"nbparallel-files-{os.getuid()}" / part).glob("*"))


def fetched() -> list[Path]:
    """The cached files; their locks aside."""
    return [path for path in host("fetched") if not path.suffix]


def run(fn: Callable[..., Any], *items: Any, **options: Any) -> list[Any]:
    """Map in this process."""
    return pmap(fn, items, session="serial", **options).result()


def counted(memory: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths in the order in which they are fetched from now on."""
    gets, get = [], type(memory).get_file

    def count(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        gets.append(path)
        return get(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "get_file", count)
    return gets


# -- declaring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "declare at least one file"),
        ({"needs": {"src": "memory://a/{y}"}}, "'src' of work: 'memory://a/{y}' asks for 'y', which is no argument"),
        ({"needs": {"src": "memory://a/{out}"}}, "asks for 'out', which is no argument"),
        ({"creates": {"nope": "memory://a"}}, r"work has no parameter 'nope' to take the path .* it is work\(x: "),
        ({"needs": {"src": "a"}, "creates": {"src": "b"}}, "'src' is both needed and created"),
        ({"needs": {"src": "memory://{"}}, "is not a URL with names in braces"),
        ({"needs": {"src": lambda z: z}}, "asks for 'z', which is no argument"),
        ({"needs": {"src": ["memory://a", "memory://{b.c}"]}}, "asks for 'b', which is no argument"),
        ({"creates": {"out": "memory://a"}, "existing": "keep"}, 'existing must be "replace" or "skip"'),
        ({"needs": {"src": "memory://a"}, "existing": "skip"}, 'existing="skip" needs something in creates'),
    ],
)
def test_a_wrong_declaration_is_told_at_once(how: dict[str, Any], message: str) -> None:
    """A mistake in a declaration is an error where it is made, with the name and the function."""

    def work(x: int, src: Any = None, out: Any = None) -> None: ...

    with pytest.raises(UsageError, match=message):
        declare(**({**how, "creates": {"out": "memory://o"}} if "memory://a/{out}" in str(how) else how))(work)


def test_starred_arguments_are_refused() -> None:
    """A function that takes its arguments by place alone cannot be given files among them."""

    def work(*args: Any, out: Any) -> None: ...

    with pytest.raises(UsageError, match=r"may have no \*args and no /"):
        declare(creates={"out": "memory://a"})(work)


def test_the_signature_is_what_is_left() -> None:
    """Whoever looks at the function sees the arguments that it must be called with, its name and its docstring."""

    @declare(needs={"src": "memory://a"}, creates={"out": "memory://b"})
    def work(x: int, src: Path, out: Path, rng: Any = None) -> int:
        """Works."""
        return x

    assert list(inspect.signature(work).parameters) == ["x", "rng"]
    assert (work.__name__, work.__doc__) == ("work", "Works.")


# -- whole directories -------------------------------------------------------------------------------------------------


def tree(root: Path) -> dict[str, str]:
    """The files below a directory with what is in them."""
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def grow(out: Path, **files: str) -> None:
    """Write files: ``a__b`` is ``a/b``."""
    for name, text in files.items():
        path = out / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_tree_is_fetched_once_and_stored_whole(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that ends in / is a directory: needed, it is there with all in it; created, it is stored with all in it."""
    memory.pipe({"/in/1/a": b"A", "/in/1/sub/b": b"B", "/in/1/_SUCCESS": b""})
    gets = counted(memory, monkeypatch)

    @declare(needs={"src": "memory://in/1/"}, creates={"out": "memory://out/{x}/"})
    def work(x: int, src: Path, out: Path) -> dict[str, str]:
        assert list(out.iterdir()) == []
        grow(out, a=f"{x}", deep__er__b="b")
        return tree(src)

    assert run(work, 1, 2) == [{"a": "A", "sub/b": "B"}] * 2
    assert sorted(gets) == ["/in/1/a", "/in/1/sub/b"]
    assert sorted(memory.find("/out")) == [
        f"/out/{x}/{name}" for x in (1, 2) for name in ("_SUCCESS", "a", "deep/er/b")
    ]
    assert host("items") == []


def test_objects_of_an_older_tree_go(memory: Any) -> None:
    """A tree that is stored over another has nothing of it, and is not complete before its last object is there."""
    seen: list[bool] = []

    @declare(creates={"out": "memory://out/"})
    def work(names: list[str], out: Path) -> None:
        grow(out, **dict.fromkeys(names, "x"))

    work(["a", "b"])
    put = type(memory).put_file

    def watch(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self.exists("/out/_SUCCESS"))
        put(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "put_file", watch)
        work(["b", "c"])
    assert seen == [False, False]
    assert sorted(memory.find("/out")) == ["/out/_SUCCESS", "/out/b", "/out/c"]


def test_a_local_tree_appears_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory takes another one's place in one step; when storing breaks off, the old one stays as it was."""
    target = tmp_path / "out" / "1"

    @declare(needs={"src": f"{tmp_path}/in/"}, creates={"out": f"{tmp_path}/out/{{x}}/"})
    def work(x: int, text: str, src: Path, out: Path) -> str:
        grow(out, **{"a": text, f"only_{text}__b": text})
        return str(src)

    grow(tmp_path / "in", a="1")
    assert work(1, "old") == str(tmp_path / "in"), "local directories are used where they lie"
    work(1, "new")
    assert tree(target) == {"a": "new", "only_new/b": "new"}
    local, count = type(fsspec.filesystem("file")), 0
    put = local.put_file

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(28, "No space left on device")
        put(self, *args, **kwargs)

    monkeypatch.setattr(local, "put_file", full)
    with pytest.raises(TransferFailed, match=r"cannot store .*/out/1/: OSError: .*No space left"):
        work(1, "newest")
    assert tree(target) == {"a": "new", "only_new/b": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("root", ["memory://trees", "{tmp_path}/trees"])
def test_existing_trees_are_skipped(memory: Any, tmp_path: Path, root: str) -> None:
    """A tree that is there is not made again; one that was not stored to its end is."""
    root = root.format(tmp_path=tmp_path)
    ran = []

    @declare(creates={"out": f"{root}/{{x}}/"}, existing="skip")
    def work(x: int, out: Path) -> int:
        ran.append(x)
        grow(out, a="a")
        return x

    assert run(work, 1, 2) == [1, 2]
    if root.startswith("memory"):
        memory.rm_file("/trees/2/_SUCCESS")
    else:
        shutil.rmtree(tmp_path / "trees" / "2")
    assert run(work, 1, 2, 3) == [None, 2, 3]
    assert ran == [1, 2, 2, 3]


def test_mistakes_with_directories(memory: Any) -> None:
    """A file that is asked for as a directory, and a directory in which nothing was written, are said so."""
    memory.pipe("/in/file", b"1")
    with pytest.raises(TransferFailed, match="cannot fetch memory://in/file/: NotADirectoryError: it is a file; leave"):
        declare(needs={"src": "memory://in/file/"})(lambda x, src: x)(1)
    with pytest.raises(TransferFailed, match="cannot fetch memory://in/none/: FileNotFoundError"):
        declare(needs={"src": "memory://in/none/"})(lambda x, src: x)(1)
    with pytest.raises(TransferFailed, match="without having written anything into the directory of its parameter 'ou"):
        declare(creates={"out": "memory://out/{x}/"})(lambda x, out: x)(1)
    assert not memory.exists("/out")


# -- one item ----------------------------------------------------------------------------------------------------------


def test_files_are_fetched_stored_and_cleaned_up(memory: Any) -> None:
    """The function gets paths with the files' names; what it creates is stored, and nothing of the item is left."""
    memory.pipe("/in/7.txt", b"seven")
    seen: list[Path] = []

    @declare(needs={"src": "memory://in/{x}.txt"}, creates={"out": "memory://out/{x}/{kind}.txt"})
    def work(x: int, src: Path, out: Path, kind: str = "plain") -> int:
        seen.extend([src, out, src.parent.parent])
        out.write_text(src.read_text() * 2)
        return x

    assert run(work, 7) == [7]
    assert memory.cat("/out/7/plain.txt") == b"sevenseven"
    assert [path.name for path in seen[:2]] == ["7.txt", "plain.txt"]
    assert not any(path.exists() for path in seen)
    assert host("items") == []
    assert work(7, kind="other") == 7
    assert memory.exists("/out/7/other.txt")


def test_several_files_for_one_parameter(memory: Any) -> None:
    """A list of places, or a function that gives one, makes a list of paths; arguments' attributes may be used."""
    memory.pipe({f"/in/{n}": str(n).encode() for n in range(4)})

    @declare(
        needs={"parts": lambda x: [f"memory://in/{n}" for n in range(int(x.real))]},
        creates={"out": ["memory://out/{x.real}.a", "memory://out/{x.real}.b"]},
    )
    def work(x: int, parts: list[Path], out: list[Path]) -> None:
        for path in out:
            path.write_text("".join(part.read_text() for part in parts))

    run(work, 3, 4)
    assert [memory.cat(f"/out/{name}") for name in ("3.a", "3.b", "4.b")] == [b"012", b"012", b"0123"]


def test_a_local_input_is_not_copied(tmp_path: Path) -> None:
    """A local file is read where it lies; a local output appears whole, in a directory that need not exist."""
    (tmp_path / "in.txt").write_text("x")
    target = tmp_path / "deep" / "er" / "1.txt"

    @declare(needs={"src": str(tmp_path / "in.txt")}, creates={"out": f"file://{tmp_path}/deep/er/{{x}}.txt"})
    def work(x: int, src: Path, out: Path) -> Path:
        out.write_text(src.read_text())
        assert not target.parent.exists()
        return src

    assert run(work, 1) == [tmp_path / "in.txt"]
    assert target.read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["1.txt"]
    assert fetched() == []


def test_a_failed_store_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When storing breaks off, the old file is still there, whole, and no temporary name is left beside it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1").write_text("old")
    local = type(fsspec.filesystem("file"))

    def half(self: Any, source: str, target: str, **_: Any) -> None:
        Path(target).write_text("ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "put_file", half)

    @declare(creates={"out": f"file://{tmp_path}/out/{{x}}"})
    def work(x: int, out: Path) -> None:
        out.write_text("new")

    with pytest.raises(TransferFailed, match=f"cannot store file://{tmp_path}/out/1: OSError: .*No space left"):
        work(1)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("1", "old")]


def test_existing_outputs_are_skipped(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``existing="skip"`` only items of which something is missing run, and the others fetch nothing."""
    memory.pipe({"/in/1": b"1", "/in/2": b"2", "/out/1.a": b"old", "/out/1.b": b"old", "/out/2.a": b"old"})
    gets = counted(memory, monkeypatch)

    @declare(
        needs={"src": "memory://in/{x}"}, creates={"out": ["memory://out/{x}.a", "memory://out/{x}.b"]}, existing="skip"
    )
    def work(x: int, src: Path, out: list[Path]) -> int:
        for path in out:
            path.write_text("new")
        return x

    assert run(work, 1, 2) == [None, 2]
    assert gets == ["/in/2"]
    assert [memory.cat(f"/out/{name}") for name in ("1.a", "1.b", "2.a", "2.b")] == [b"old", b"old", b"new", b"new"]


def test_a_function_that_raises_stores_nothing(memory: Any) -> None:
    """Its error is the item's error, what it wrote is not stored, and its directory goes."""

    @declare(creates={"out": "memory://out/{x}"})
    def work(x: int, out: Path) -> None:
        out.write_text("half")
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        work(1)
    assert not memory.exists("/out/1")
    assert host("items") == []


def test_a_missing_output_is_told(memory: Any) -> None:
    """A function that does not write what it declared fails with the parameter and the URL; nothing is stored."""

    @declare(creates={"out": "memory://out/{x}.a", "log": "memory://:secret@out/{x}.b"})
    def work(x: int, out: Path, log: Path) -> None:
        out.write_text("done")

    with pytest.raises(TransferFailed, match=r"work returned .* parameter 'log', .* memory://:\*\*\*@out/1.b"):
        work(1)
    assert not memory.exists("/out/1.a")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://in/none.txt", "cannot fetch memory://in/none.txt: FileNotFoundError"),
        ("memory://in", "cannot fetch memory://in: IsADirectoryError: it is a directory; put a / at its end to have"),
        ("nosuch://in/a", "cannot fetch nosuch://in/a: ValueError: Protocol not known: nosuch"),
    ],
)
def test_a_failed_fetch_is_the_items_error(memory: Any, url: str, message: str) -> None:
    """It names the URL, the other items go on, and the function of that item does not run."""
    memory.pipe("/in/1", b"1")
    ran: list[int] = []

    @declare(needs={"src": lambda x: url if x == 2 else "memory://in/1"})
    def work(x: int, src: Path) -> int:
        ran.append(x)
        return x

    good, bad, other = run(work, 1, 2, 3, on_error="return")
    assert (good, other, ran) == (1, 3, [1, 3])
    assert message in str(bad)
    assert isinstance(bad.__cause__, TransferFailed)


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_ten_items_fetch_a_file_once(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten threads that need one file at once fetch it once; none can write to the others' copy; new content is seen."""
    memory.pipe("/in/big", b"big")
    gets = counted(memory, monkeypatch)

    @declare(needs={"src": "memory://in/big"})
    def work(x: int, src: Path) -> bytes:
        assert src.stat().st_mode & 0o222 == 0
        return src.read_bytes()

    got: list[bytes] = []
    threads = [threading.Thread(target=lambda n=n: got.append(work(n))) for n in range(10)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got, gets) == ([b"big"] * 10, ["/in/big"])
    memory.pipe("/in/big", b"new")
    assert (work(1), len(gets)) == (b"new", 2)


def test_the_cache_stays_small(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest leaves the cache when it grows too large, but stays as long as an item uses it."""
    memory.pipe({f"/in/{n}": bytes(100) for n in range(4)})
    gets = counted(memory, monkeypatch)
    inside: list[int] = []

    @declare(needs={"src": [f"memory://in/{n}" for n in range(4)]}, keep_bytes=250)
    def work(x: int, src: list[Path]) -> None:
        inside.extend(len(path.read_bytes()) for path in src)

    work(1)
    assert inside == [100] * 4
    assert len(fetched()) == 2
    declare(needs={"src": "memory://in/3"}, keep_seconds=0)(lambda x, src: inside.append(x))(5)
    assert gets == [f"/in/{n}" for n in range(4)]
    assert fetched() == host("items") == []


def test_clear_empties_the_cache(memory: Any) -> None:
    """``clear`` removes what was fetched, and says how many files that were."""
    memory.pipe({"/in/1": b"1", "/in/2": b"2"})
    work = declare(needs={"src": "memory://in/{x}"})(lambda x, src: x)
    run(work, 1, 2, 1)
    assert len(fetched()) == 2
    assert clear() == 2
    assert host("fetched") == []
    assert clear() == 0


def test_what_a_killed_item_left_is_removed(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of an item whose process was killed goes with a later fetch; that of one that runs stays."""
    code = """
import os, signal
from nbparallel.files import declare
@declare(creates={"out": "memory://out"})
def work(out):
    out.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
work()
"""
    environ = {**os.environ, "TMPDIR": tempfile.gettempdir(), "PYTHONPATH": ROOT}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == -signal.SIGKILL
    left = host("items")
    assert len(left) == 2
    memory.pipe({"/in/1": b"1", "/in/2": b"2"})

    @declare(needs={"src": "memory://in/{x}"})
    def work(x: int, src: Path) -> bool:
        if x == 1:
            os.utime(src.parent.parent.with_suffix(".lock"), (0, 0))
            work(2)
        return src.exists()

    work(2)
    assert host("items") == left, "it is young: perhaps its process is only just taking the lock"
    os.utime(next(path for path in left if path.suffix), (0, 0))
    clear()
    assert work(1) is True
    assert host("items") == []


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The host's directory is not followed when it is a link that somebody laid out."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"nbparallel-files-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(UsageError, match="belongs to somebody else; set TMPDIR"):
        clear()
