"""The IPython extension: ``%load_ext nbparallel`` has it put names into the namespace, and register two magics."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import linecache
import platform
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from IPython.core.error import UsageError as MagicError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

import nbparallel

from .api import Options, pmap, pstarmap
from .client.backend import read_workers
from .client.cell import live_jobs
from .client.running import RunningJob
from .cluster.handle import Cluster, RemoteCluster, connect, current_cluster, set_default, stop_default
from .errors import NbparallelError
from .sweeps import sweep
from .tracebacks import attach

__all__ = ["NbparallelMagics", "load_ipython_extension", "unload_ipython_extension"]

#: What the extension puts into the namespace, as far as it exists.
NAMES = ("pmap", "pstarmap", "sweep", "grid", "share")
COMMANDS = {
    "status": "the cluster, its workers and queues, running jobs, versions (also without any word)",
    "start": "start a cluster on this machine, for all that comes: start --workers 4",
    "connect": "connect to a cluster that runs elsewhere: connect redis://host:6379/0 --key-file cluster.key",
    "stop": "cancel what runs, and stop or leave the cluster",
    "jobs": "the jobs of this notebook that run",
    "cancel": "cancel all of them, or those with this name or beginning of an id: cancel simulate",
}
_counter = itertools.count(1)
_warned: set[str] = set()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong instead of ending the kernel."""

    def error(self, message: str) -> NoReturn:
        raise MagicError(f"%nbparallel: {message}; see %nbparallel?")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise MagicError(message or "see %nbparallel?")


@magics_class
class NbparallelMagics(Magics):
    """``%nbparallel`` and ``%%pmap``."""

    @line_magic
    def nbparallel(self, line: str) -> None:
        """What the notebook's parallel jobs run on.

        %nbparallel                            the cluster, its workers and queues, running jobs, versions
        %nbparallel start --workers 4          start a cluster on this machine; all that comes runs on it
        %nbparallel connect URL --key-file F   connect to a cluster that runs elsewhere
        %nbparallel stop                       cancel what runs, and stop or leave the cluster
        %nbparallel jobs                       the jobs of this notebook that run
        %nbparallel cancel [NAME or ID ...]    cancel all of them, or just those
        """
        parser = _Parser(prog="%nbparallel", add_help=False, allow_abbrev=False)
        parser.add_argument("command", nargs="?", default="status", choices=list(COMMANDS))
        parser.add_argument("words", nargs="*")
        parser.add_argument("--workers", type=int, default=0)
        parser.add_argument("--key-file")
        try:
            given = parser.parse_args(shlex.split(line))
        except ValueError as error:  # a quote that is not closed
            raise MagicError(f"%nbparallel: {error}") from None
        wants_words = {"connect": 1, "cancel": len(given.words)}.get(given.command, 0)
        if len(given.words) != wants_words:
            raise MagicError(f"%nbparallel {given.command}: {COMMANDS[given.command]}")
        try:
            getattr(self, f"_{given.command}")(given)
        except NbparallelError as error:
            raise MagicError(str(error)) from error

    def _status(self, given: argparse.Namespace) -> None:
        print(f"nbparallel {nbparallel.__version__}, Python {platform.python_version()}")
        cluster = current_cluster()
        if cluster is None:
            print("no cluster yet: the first pmap starts one, or: %nbparallel start --workers N")
            return
        print(f"cluster: {cluster!r}")
        session = cluster.session
        session.wait_ready()
        for worker in read_workers(session.store, session.key)[0]:
            queues = ", ".join(worker.queues)
            print(f"worker on {worker.host}: {worker.processes} processes, queues {queues}, Python {worker.python}")
        self._jobs(given)

    def _start(self, given: argparse.Namespace) -> None:
        cluster = Cluster(given.workers)
        self._replace(cluster)
        print(cluster)

    def _connect(self, given: argparse.Namespace) -> None:
        cluster = connect(given.words[0], key_file=given.key_file)
        self._replace(cluster)
        print(cluster)

    def _replace(self, cluster: Cluster | RemoteCluster) -> None:
        stop_default()
        set_default(cluster)
        cluster.session.wait_ready()

    def _stop(self, given: argparse.Namespace) -> None:
        was = current_cluster()
        stop_default()
        print("no cluster was there" if was is None else "stopped")

    def _jobs(self, given: argparse.Namespace) -> None:
        jobs = live_jobs()
        for job in jobs:
            shot = job.snapshot()
            total = "?" if shot.total is None else f"{shot.total:,}"
            reason = f", {shot.reason}" if shot.reason else ""
            counts = f"{shot.done:,} of {total} done, {shot.failed:,} failed"
            print(f"{job.id[:8]} {shot.name}: {shot.state}, {counts}{reason}")
        if not jobs:
            print("no job runs")

    def _cancel(self, given: argparse.Namespace) -> None:
        jobs = [job for job in live_jobs() if not given.words or any(_meant(job, word) for word in given.words)]
        if given.words and not jobs:
            raise MagicError(f"no running job is called {' or '.join(given.words)}; see %nbparallel jobs")
        for job in jobs:
            job.cancel()
        print(f"cancelled: {', '.join(job.spec.name for job in jobs)}" if jobs else "no job runs")

    @cell_magic
    def pmap(self, line: str, cell: str) -> Any:
        """Run the cell for every item, in parallel; the value of its last expression is the item's result.

        %%pmap x in xs -> out
        %%pmap x, y in zip(xs, ys) -> out
        %%pmap x in xs -> out --retries 2 --seed 42 --on-error return

        ``out`` becomes the list of results in input order; while the job runs, and when it was interrupted or failed,
        it is the job, so that ``out.results_so_far()`` has what is there. Without ``-> out`` the job is the cell's
        value, and the cell does not wait. Options are those of ``pmap``, with values as Python expressions.

        The cell is the body of a function: it reads the notebook's variables, and what it assigns is its own.
        """
        __tracebackhide__ = True
        call = _parse(line)
        space: dict[str, Any] = self.shell.user_ns  # type: ignore[union-attr]
        function = _function(call, line, cell, space)
        sources = _evaluated(call, line, space)
        options = {name: self._value(text, space) for name, text in call.options.items()}
        options.setdefault("name", f"{call.target} in {call.text}")
        if call.out:
            options.setdefault("keep", True)
        start = pstarmap if call.star else pmap
        job = start(function, *sources, **options)
        if not call.out:
            return job
        space[call.out] = job
        space[call.out] = job.result()
        return None

    @staticmethod
    def _value(text: str, space: dict[str, Any]) -> Any:
        if not text:
            return True
        try:
            return eval(text, space)
        except NameError:
            return text  # a plain word: --on-error return
        except SyntaxError:
            return text


def _meant(job: RunningJob, word: str) -> bool:
    return job.spec.name == word or job.id.startswith(word)


# -- %%pmap ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What the first line of a cell says."""

    target: str
    names: tuple[str, ...]
    unpack: bool
    star: bool
    text: str
    sources: tuple[ast.expr, ...]
    out: str
    options: dict[str, str]


def _parse(line: str) -> _Call:
    head, *rest = re.split(r"\s--(?=[a-z])", f" {line}")
    options: dict[str, str] = {}
    for text in rest:
        name, _, value = re.sub(r"^([\w-]+)\s*=?\s*", r"\1 ", text.strip()).partition(" ")
        name = name.replace("-", "_")
        if name not in Options.__annotations__:
            raise MagicError(f"%%pmap has no option --{name}; there are {', '.join(sorted(Options.__annotations__))}")
        options[name] = value.strip()
    loop, arrow, out = head.rpartition("->")
    loop, out = (loop.strip(), out.strip()) if arrow else (head.strip(), "")
    usage = "%%pmap x in xs -> out; see %%pmap?"
    if arrow and not out.isidentifier():
        raise MagicError(f"{out!r} is no name for the results: {usage}")
    try:
        tree = ast.parse(f"for {loop}: pass")
    except SyntaxError:
        raise MagicError(f"{loop!r} does not say what to run for: {usage}") from None
    statement = tree.body[0]
    if len(tree.body) != 1 or not isinstance(statement, ast.For):
        raise MagicError(f"{loop!r} does not say what to run for: {usage}")
    return _call(statement, out, options)


def _call(loop: ast.For, out: str, options: dict[str, str]) -> _Call:
    target, source = loop.target, loop.iter
    text, shown = ast.unparse(source), ast.unparse(target)
    if isinstance(target, ast.Tuple):
        shown = shown.removeprefix("(").removesuffix(")")
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    names = tuple(part.id for part in parts if isinstance(part, ast.Name))
    if len(names) != len(parts):  # nested: the function unpacks it
        return _Call(shown, ("_item",), True, False, text, (source,), out, options)
    if not isinstance(target, ast.Tuple):
        return _Call(shown, names, False, False, text, (source,), out, options)
    columns: list[ast.expr] = []
    if isinstance(source, ast.Tuple):  # x, y in xs, ys
        columns = source.elts
    elif isinstance(source, ast.Call) and ast.unparse(source.func) == "zip" and not source.keywords:
        columns = source.args  # each has a length, which zip() hides
    if len(columns) == len(names) and not any(isinstance(column, ast.Starred) for column in columns):
        return _Call(shown, names, False, False, text, tuple(columns), out, options)
    return _Call(shown, names, False, True, text, (source,), out, options)


def _evaluated(call: _Call, line: str, space: dict[str, Any]) -> list[Any]:
    """The values of what the cell runs for; an error in one shows the first line of the cell."""
    file = f"<%%pmap line {next(_counter)}>"
    linecache.cache[file] = len(line), None, [f"for {line}\n"], file
    try:
        expressions = [ast.fix_missing_locations(ast.Expression(source)) for source in call.sources]
        return [eval(compile(expression, file, "eval"), space) for expression in expressions]
    except Exception as error:
        attach(error)
        raise


def _function(call: _Call, line: str, cell: str, space: dict[str, Any]) -> Callable[..., Any]:
    """The cell as a function of its items, over the notebook's variables."""
    file = f"<%%pmap cell {next(_counter)}>"
    source = f"%%pmap {line}\n{cell}"
    try:
        tree = ast.parse(cell, file)
    except SyntaxError as error:
        if error.lineno is not None:
            error.lineno += 1
        raise
    if not tree.body:
        raise MagicError("the cell is empty: its last expression is the result")
    ast.increment_lineno(tree, 1)  # the magic's own line is the first
    body = tree.body
    if isinstance(body[-1], ast.Expr):
        body[-1] = ast.copy_location(ast.Return(body[-1].value), body[-1])
    names = ", ".join(call.names)
    head = ast.parse(f"def cell({names}):\n    {f'{call.target} = _item' if call.unpack else 'pass'}", file)
    definition = head.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body += body
    made: dict[str, Any] = {}
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    exec(compile(ast.fix_missing_locations(head), file, "exec"), space, made)
    function: Callable[..., Any] = made["cell"]
    return function


# -- completion --------------------------------------------------------------------------------------------------------


def _complete_command(shell: Any, event: Any) -> list[str]:
    before = event.line.split()
    known = before[1:] if event.symbol == "" else before[1:-1]
    if not known:
        return list(COMMANDS)
    if known[0] == "start":
        return ["--workers"]
    if known[0] == "connect":
        return ["--key-file", "redis://", "rediss://", "unix://"]
    return [job.spec.name for job in live_jobs() if job.spec.name.isidentifier()] if known[0] == "cancel" else []


def _complete_pmap(shell: Any, event: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in Options.__annotations__]


_COMPLETERS = {"%nbparallel": _complete_command, "%%pmap": _complete_pmap}


def _show_options(function: Callable[..., Any]) -> None:
    """Have Tab and help show pmap's options, also for a function that takes them as ``**options``."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())
    options = [one for one in inspect.signature(pmap).parameters.values() if one.kind is one.KEYWORD_ONLY]
    if own[-1].name == "options":
        del own[-1]
    known = {one.name for one in own}
    place = len(own) - (own[-1].kind is own[-1].VAR_KEYWORD)
    own[place:place] = [one for one in options if one.name not in known]
    # Given outright, also where it changes nothing: completers then need not read our sources.
    function.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]


# -- the extension -----------------------------------------------------------------------------------------------------


def _ours() -> Iterator[tuple[str, Any]]:
    for name in NAMES:
        if name in nbparallel.__all__:
            yield name, getattr(nbparallel, name)


def load_ipython_extension(ipython: Any) -> None:
    """What ``%load_ext nbparallel`` does; again is harmless."""
    ipython.register_magics(NbparallelMagics)
    for function in (pmap, pstarmap, sweep):
        _show_options(function)
    for key, complete in _COMPLETERS.items():
        if key not in ipython.strdispatchers["complete_command"].strs:
            ipython.set_hook("complete_command", complete, str_key=key)
    taken = []
    for name, value in _ours():
        if ipython.user_ns.get(name, value) is not value:
            taken.append(name)
        else:
            ipython.push({name: value}, interactive=False)
    new = [name for name in taken if name not in _warned]
    if new:
        _warned.update(new)
        names, example = ", ".join(new), new[0]
        warnings.warn(
            f"{names}: the notebook has its own; it was left as it is. Use nbparallel.{example}, or "
            f"`del {example}` and %reload_ext nbparallel",
            stacklevel=2,
        )


def unload_ipython_extension(ipython: Any) -> None:
    """What ``%unload_ext nbparallel`` does: our names and magics go; the cluster and its jobs stay."""
    for kind, name in (("line", "nbparallel"), ("cell", "pmap")):
        ipython.magics_manager.magics[kind].pop(name, None)
    for key in _COMPLETERS:
        ipython.strdispatchers["complete_command"].strs.pop(key, None)
    for name, value in _ours():
        if ipython.user_ns.get(name) is value:
            del ipython.user_ns[name]
            ipython.user_ns_hidden.pop(name, None)
