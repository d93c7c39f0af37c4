"""The layout of the package: who may import whom, what is never imported early, how long a module may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbparallel

PACKAGE = Path(nbparallel.__file__ or "").parent

#: Imports go from a later group to an earlier one (or stay in theirs), never back.
GROUPS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "tracebacks errors model settings policies",
        "planning wire pickling envelope culprit modules remote ordering simulation seeding points frames plots"
        " calls schema shared",
        "store",
        "celery",
        "worker",
        "client",
        "cluster",
        "progress",  # knows groups 1 and 2 alone, see below; the api opens a view
        "api sweeps forkjoin merging steps files",
        "magics executor pool joblib cli demo testing __main__",
    )
)
GROUP_OF = {name: number for number, names in enumerate(GROUPS) for name in names}

#: Library → the parts of the package that may import it; all others go through them.
OWNERS = {
    "redis": {"store"},
    "celery": {"celery", "worker"},
    "kombu": {"celery", "worker"},
    "billiard": {"celery", "worker"},
}

#: Not loaded by ``import nbparallel``: slow, optional, or not wanted by a script.
NOT_AT_IMPORT = [
    *("celery", "redis", "kombu", "billiard", "IPython", "ipywidgets", "anywidget", "tqdm", "joblib", "fsspec"),
    *("numpy", "pandas", "asyncio", "multiprocessing"),
]


def modules() -> list[Path]:
    """Every module of the package, as a path below it."""
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """The first part of a dotted name below the package: ``client.job`` → ``client``."""
    return module.partition(".")[0]


def dotted(path: Path) -> str:
    """``client/job.py`` → ``client.job``, ``client/__init__.py`` → ``client``, ``__init__.py`` → ````."""
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").rstrip(".")


KNOWN = {dotted(path) for path in modules()}


def imports(path: Path, annotations: bool = True) -> Iterator[tuple[str, int]]:
    """Full names (of modules, or of names in them) that a module imports anywhere in it, with line numbers.

    Without ``annotations``: not those that only type checkers see.
    """
    here = ["nbparallel", *path.parent.parts]
    tree = ast.parse((PACKAGE / path).read_bytes())
    if not annotations:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def own_imports(path: Path, annotations: bool = True) -> Iterator[tuple[str, int]]:
    """The package's own modules that a module imports: ``client.job``, not the names in them."""
    for name, line in imports(path, annotations):
        if name.startswith("nbparallel."):
            inner = name.removeprefix("nbparallel.")
            yield (inner if inner in KNOWN else inner.rpartition(".")[0]), line


def below(path: Path) -> bool:
    """Whether the module belongs to a group; ``nbparallel/__init__.py`` stands above all of them."""
    return path != Path("__init__.py")


@pytest.mark.parametrize("path", [p for p in modules() if below(p)], ids=str)
def test_imports_go_to_earlier_groups(path: Path) -> None:
    """A module imports from its own group or an earlier one, and every module has a group."""
    assert part(dotted(path)) in GROUP_OF, "give the module a group in GROUPS"
    mine = GROUP_OF[part(dotted(path))]
    back = [f"{path}:{line} imports {name}" for name, line in own_imports(path) if name and GROUP_OF[part(name)] > mine]
    assert not back


def test_views_know_snapshots_alone() -> None:
    """A progress view imports words and pure steps, never the store, the client or the cluster."""
    found = [
        f"{path}:{line} imports {name}"
        for path in modules()
        if part(dotted(path)) == "progress"
        for name, line in own_imports(path)
        if part(name) != "progress" and GROUP_OF[part(name)] > 1
    ]
    assert not found


@pytest.mark.parametrize("path", [p for p in modules() if below(p)], ids=str)
def test_nobody_imports_the_package_itself(path: Path) -> None:
    """No module asks the facade for a name: that would be a way round the groups (the command line may)."""
    if part(dotted(path)) in GROUPS[-1]:
        return
    assert [line for name, line in own_imports(path) if not name] == []


def test_no_import_cycle() -> None:
    """Modules can be put in an order in which each imports earlier ones only."""
    needs = {
        dotted(path): {name for name, _ in own_imports(path, annotations=False)} - {dotted(path), ""}
        for path in modules()
        if below(path)
    }
    while ready := {name for name, needed in needs.items() if not needed & needs.keys()}:
        needs = {name: needed for name, needed in needs.items() if name not in ready}
    assert not needs, f"these import each other in a circle: {sorted(needs)}"


@pytest.mark.parametrize(("one", "other"), [("client", "worker"), ("worker", "client")])
def test_client_and_worker_do_not_know_each_other(one: str, other: str) -> None:
    """What runs in the notebook and what runs in a worker meet in the store alone."""
    found = [
        f"{path}:{line}"
        for path in modules()
        if part(dotted(path)) == one
        for name, line in own_imports(path)
        if part(name) == other
    ]
    assert not found


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owner_alone(library: str) -> None:
    """Redis is spoken in store/ only, Celery in celery.py and worker/ only."""
    found = [
        f"{path}:{line}"
        for path in modules()
        if part(dotted(path)) not in OWNERS[library]
        for name, line in imports(path)
        if part(name) == library
    ]
    assert not found


@pytest.mark.parametrize("path", modules(), ids=str)
def test_modules_stay_short(path: Path) -> None:
    """No module is longer than 500 lines, no function longer than 80."""
    source = (PACKAGE / path).read_bytes()
    assert len(source.splitlines()) <= 500
    long = [
        f"{path}:{node.lineno} {node.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert not long


def test_import_is_cheap() -> None:
    """``import nbparallel`` in a fresh process loads none of the libraries that cost time or may be missing."""
    code = f"import nbparallel, sys, json; print(json.dumps([m for m in {NOT_AT_IMPORT!r} if m in sys.modules]))"
    # Coverage measures subprocesses and may itself load some of them.
    clean = {"PATH": "", "PYTHONPATH": str(PACKAGE.parent)}
    answer = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
