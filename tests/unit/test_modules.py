"""Which modules lie beside the notebook, and which of them were edited since they were imported."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nbparallel import modules

HELPERS = """\
from dataclasses import dataclass
import functools

FACTOR = 2
NAMES = ["a", "b"]

def twice(x, by=FACTOR, *, plus=0, unit="s"):
    return x * 2 + plus

@functools.lru_cache
def cached(x):
    return [x + 1 for _ in range(1)]

@dataclass
class Point:
    x: int = 1
    def norm(self):
        return abs(self.x)
    @property
    def half(self):
        return self.x / 2
    @staticmethod
    def make(x, y=3):
        return Point(x)

def factory():
    def made(): return 1
    return made

made = factory()
"""

numbers = itertools.count()


class Project:
    """A directory with Python files, in the place of the notebook's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.imported: list[str] = []

    def write(self, name: str, text: str) -> None:
        """Write a file, with a time of its own: an edit within one tick of the clock must be seen too."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        later = time.time() + 10 + next(numbers)
        os.utime(path, (later, later))

    def load(self, name: str) -> ModuleType:
        """Import a module of the project."""
        importlib.invalidate_caches()
        self.imported.append(name)
        return importlib.import_module(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """An empty project that is the working directory; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    project = Project(tmp_path)
    yield project
    for name in list(sys.modules):
        if name.partition(".")[0] in {imported.partition(".")[0] for imported in project.imported}:
            del sys.modules[name]


def test_files_in_the_working_directory_are_local(project: Project) -> None:
    """A module, a package, its submodules and a package without __init__ are local when they lie beside the user."""
    project.write("one_local.py", "")
    project.write("pack_local/__init__.py", "")
    project.write("pack_local/part.py", "")
    project.write("space_local/part.py", "")
    for name in ("one_local", "pack_local.part", "space_local.part"):
        project.load(name)
        assert modules.is_local(name), name
        assert modules.is_local(name.partition(".")[0]), name


@pytest.mark.parametrize("name", ["json", "json.decoder", "pytest", "hypothesis", "math", "sys", "cloudpickle"])
def test_installed_modules_are_not_local(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own and installed modules are not local, even if one works in their directory."""
    importlib.import_module(name)
    assert not modules.is_local(name)
    for folder in ("/", sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), sys.prefix):
        monkeypatch.chdir(folder)
        assert not modules.is_local(name), folder


@pytest.mark.parametrize("name", ["nbparallel", "nbparallel.modules", "__main__", "no_such_module"])
def test_never_local(name: str) -> None:
    """We, the main module and unknown names are not local."""
    assert not modules.is_local(name)


def test_environment_inside_the_project_is_not_local(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment below the notebook's directory is no part of it, but a project may lie in the prefix."""
    project.write("venv/src/inner_local.py", "")
    project.write("venv/lib/site-packages/outer_local.py", "")
    monkeypatch.setattr(
        sys, "path", [*(str(project.folder / f"venv/{p}") for p in ("src", "lib/site-packages")), *sys.path]
    )
    monkeypatch.setattr(sys, "prefix", str(project.folder / "venv"))
    project.load("inner_local")
    project.load("outer_local")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert not modules.is_local("inner_local")
    assert not modules.is_local("outer_local")
    monkeypatch.chdir(project.folder / "venv/src")
    assert modules.is_local("inner_local")


def test_answer_follows_the_directory_and_the_module(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remembered answer is dropped when the working directory or the module changes."""
    project.write("moving_local.py", "")
    project.load("moving_local")
    assert modules.is_local("moving_local")
    monkeypatch.chdir(sysconfig.get_path("stdlib"))
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert not modules.is_local("moving_local")
    monkeypatch.chdir(project.folder)
    assert modules.is_local("moving_local")
    sys.modules["moving_local"] = ModuleType("moving_local")
    assert not modules.is_local("moving_local")


def test_answer_is_quick(project: Project) -> None:
    """A known answer takes microseconds, for every module there is."""
    names = list(sys.modules)
    for name in names:
        modules.is_local(name)
    best = min(_duration(lambda: [modules.is_local(name) for name in names]) for _ in range(5))
    assert best / len(names) < 50e-6


def _duration(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_removed_directory_does_no_harm(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory may be gone."""
    (project.folder / "gone").mkdir()
    monkeypatch.chdir(project.folder / "gone")
    (project.folder / "gone").rmdir()
    assert not modules.is_local("json")
    monkeypatch.chdir(project.folder)


@pytest.mark.parametrize("bytecode", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * 2", "x * 3"),
        ("x * 2 + plus", "x * 2 + plus + FACTOR"),
        ("FACTOR = 2", "FACTOR = 3"),
        ('NAMES = ["a"', 'NAMES = ["z"'),
        ("by=FACTOR", "by=4, and_=5"),
        ("x + 1 for", "x + 2 for"),
        ("abs(self.x)", "self.x"),
        ("self.x / 2", "self.x / 3"),
        ("y=3", "y=4"),
        ("plus=0", "plus=1"),
        ("def norm", "def norma"),
        ("def twice", "def thrice"),
        ("import functools", "import functools ("),
    ],
)
def test_edited_module_is_stale(
    project: Project, monkeypatch: pytest.MonkeyPatch, bytecode: bool, old: str, new: str
) -> None:
    """An edit of code, a default or a constant is noticed until the module is reloaded, without bytecode files too."""
    monkeypatch.setattr(sys, "dont_write_bytecode", not bytecode)
    name = f"helpers_{next(numbers)}"
    project.write(f"{name}.py", HELPERS)
    module = project.load(name)
    assert not modules.is_stale(name)
    project.write(f"{name}.py", HELPERS.replace(old, new))
    assert modules.is_stale(name)
    assert modules.is_stale(name)
    if not new.endswith("("):
        vars(module).pop("twice")  # reload keeps what is gone from the file
        vars(module).pop("Point")
        importlib.reload(module)
        assert not modules.is_stale(name)


def test_edit_before_the_first_look_is_noticed(project: Project) -> None:
    """The module need not have been looked at before the edit."""
    project.write("early_local.py", HELPERS)
    project.load("early_local")
    project.write("early_local.py", HELPERS.replace("x * 2", "x * 3"))
    assert modules.is_stale("early_local")


@pytest.mark.parametrize("text", [HELPERS, "# a remark\n\n" + HELPERS, HELPERS + "\ndef more(): ...\n"])
def test_edits_that_change_nothing_in_use_are_not_stale(project: Project, text: str) -> None:
    """A touched file, a comment, a new function: what was imported still is what the file says."""
    name = f"calm_{next(numbers)}"
    project.write(f"{name}.py", HELPERS)
    project.load(name)
    project.write(f"{name}.py", text)
    assert not modules.is_stale(name)


def test_removed_file_is_stale(project: Project) -> None:
    """A module whose file is gone runs what no file says."""
    project.write("gone_local.py", HELPERS)
    project.load("gone_local")
    (project.folder / "gone_local.py").unlink()
    assert modules.is_stale("gone_local")


def test_modules_without_source_are_never_stale() -> None:
    """Built-in, unknown and long unedited modules are not stale."""
    assert not modules.is_stale("sys")
    assert not modules.is_stale("no_such_module")
    assert not modules.is_stale("json")


def test_modules_of_other_loaders_are_not_judged(project: Project) -> None:
    """A loader that changes the code, as pytest's does, leaves nothing to compare the file with."""
    project.write("changed_local.py", HELPERS)
    module = project.load("changed_local")
    project.write("changed_local.py", HELPERS.replace("x * 2", "x * 3"))
    assert modules.is_stale("changed_local")
    module.__loader__ = object()  # type: ignore[assignment]
    assert not modules.is_stale("changed_local")


def test_constants_set_by_the_user_do_not_count(project: Project) -> None:
    """In a file older than this process nothing is compared: a constant that differs was set on purpose."""
    project.write("set_local.py", HELPERS)
    old = time.time() - 1e6
    os.utime(project.folder / "set_local.py", (old, old))
    module = project.load("set_local")
    module.FACTOR = 7  # type: ignore[attr-defined]
    assert not modules.is_stale("set_local")


def test_lists_that_fill_up_do_not_count(project: Project) -> None:
    """A module that keeps something in a list or dictionary of its own was not edited for that."""
    project.write("filling_local.py", f"{HELPERS}\nCACHE = {{}}\nSEEN = []\n")
    module = project.load("filling_local")
    module.CACHE[1] = module.SEEN.append(2)  # type: ignore[attr-defined]
    assert not modules.is_stale("filling_local")
    project.write("filling_local.py", f"{HELPERS.replace('x * 2', 'x * 3')}\nCACHE = {{}}\nSEEN = []\n")
    assert modules.is_stale("filling_local")


def test_process_start_is_about_right() -> None:
    """The start of a process is known to a fraction of a second."""
    code = (
        "import json, os, time; from nbparallel.modules import _process_start; "
        "print(json.dumps([_process_start(os.getpid()), time.time()]))"
    )
    before = time.time()
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout
    start, end = json.loads(output)
    assert before - 0.1 <= start <= end
