"""Is given a function with the files that it needs and creates; hands ``pmap`` one that fetches and stores them.

Each item gets a directory of its own. What it needs is fetched once a host into a cache and linked there; what it
creates is stored when the function has returned, under its name all at once or not at all. Then the directory goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

from .errors import NbparallelError, UsageError
from .store.urls import hide_password

__all__ = ["TransferFailed", "clear", "declare"]

R = TypeVar("R")
T = TypeVar("T")

#: Where a file lies: a URL with the function's arguments in braces, a function of some of them, or several of these.
Where: TypeAlias = str | Callable[..., str | Sequence[str]] | Sequence[str]

#: A put shows the whole object or none, and a rename would copy it.
WHOLE_PUTS = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "r2", "s3", "s3a"})
#: Where no rename makes a tree appear at once: an object that is put last, and without which a tree is not there.
COMPLETE = "_SUCCESS"
#: Directories of dead processes are looked for among those that are older than this, in seconds.
YOUNG = 60.0


class TransferFailed(NbparallelError, OSError):
    """A file could not be fetched or stored; the message has its URL, ``__cause__`` what the file system said."""


def declare(
    *,
    needs: Mapping[str, Where] | None = None,
    creates: Mapping[str, Where] | None = None,
    existing: Literal["replace", "skip"] = "replace",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    keep_seconds: float = 3600.0,
    keep_bytes: int = 20 << 30,
) -> Callable[[Callable[..., R]], Callable[..., R | None]]:
    """Declare which files a function needs and creates; it gets their paths as arguments of these names.

    A path that is needed is only read. Local files are used where they lie, others are fetched to the host's cache in
    the temporary directory (``TMPDIR``): once for all items that need the same version of a file.

    A URL that ends in ``/`` is a directory with all that is in it: one that is needed is there as a whole, one that is
    created is given empty. On stores without directories a tree of objects counts as there when the object ``_SUCCESS``
    is in it, which is put last.

    Args:
        needs: parameter → where the file comes from.
        creates: parameter → where the file goes, once the function has returned.
        existing: ``"skip"``: when all that an item creates is there, the item is None and nothing runs.
        options: protocol → keyword arguments of its fsspec file system, such as ``{"s3": {"anon": True}}``. They
            travel with the function: give passwords to the workers' environment instead.
        keep_seconds: how long a fetched file stays in the cache after it was used last.
        keep_bytes: above this size, what was not used for longest leaves the cache.

    Raises:
        UsageError: a name is no parameter of the function, or a URL names none of its other parameters.

    >>> from nbparallel import pmap
    >>> from nbparallel.files import declare
    >>> @declare(creates={"out": "memory://squares/{x}.txt"})
    ... def square(x, out):
    ...     out.write_text(str(x * x))
    ...     return x
    >>> pmap(square, [2, 3], session="serial").result()
    [2, 3]
    """
    sources, targets = dict(needs or {}), dict(creates or {})
    if not sources and not targets:
        raise UsageError("declare at least one file: needs={...} or creates={...}, parameter to URL")
    if existing not in ("replace", "skip"):
        raise UsageError(f'existing must be "replace" or "skip", not {existing!r}')
    if existing == "skip" and not targets:
        raise UsageError('existing="skip" needs something in creates: there is nothing that could exist')
    by_protocol = {name: dict(given) for name, given in (options or {}).items()}

    def decorate(fn: Callable[..., R]) -> Callable[..., R | None]:
        rest = _rest_of(fn, sources, targets)

        @functools.wraps(fn)
        def with_files(*args: Any, **kwargs: Any) -> R | None:
            bound = rest.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            wanted = {name: _urls(where, given) for name, where in targets.items()}
            if existing == "skip" and all(_exists(url, by_protocol) for urls in wanted.values() for url in _flat(urls)):
                return None
            with _directory() as own:
                cache = _Cache(own, keep_seconds, keep_bytes)
                paths = {name: _each(_urls(where, given), cache.fetch, by_protocol) for name, where in sources.items()}
                made = {name: _each(urls, _room(own / name), by_protocol) for name, urls in wanted.items()}
                value = fn(**_spread(bound), **paths, **made)
                _store_all(fn, wanted, made, by_protocol)
            return value

        with_files.__signature__ = rest  # type: ignore[attr-defined]
        return with_files

    return decorate


def clear() -> int:
    """Empty this host's cache of what no item fetches just now; how many files went."""
    return _prune(_root() / "fetched", 0.0, 0)


# -- what was declared -------------------------------------------------------------------------------------------------


def _rest_of(fn: Callable[..., Any], sources: Mapping[str, Where], targets: Mapping[str, Where]) -> inspect.Signature:
    """The signature without the files; all that was declared is checked against it."""
    name = getattr(fn, "__name__", repr(fn))
    signature = inspect.signature(fn)
    if both := sorted(set(sources) & set(targets)):
        raise UsageError(f"{both[0]!r} is both needed and created; give the two files different names")
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
        raise UsageError(
            f"{name}{signature} has files, so its arguments are given by name: it may have no *args and no /"
        )
    starred = {one.name for one in signature.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD}
    for file in (*sources, *targets):
        if file not in signature.parameters or file in starred:
            raise UsageError(f"{name} has no parameter {file!r} to take the path of a file; it is {name}{signature}")
    files = {*sources, *targets}
    rest = [parameter for parameter in signature.parameters.values() if parameter.name not in files]
    for file, where in (*sources.items(), *targets.items()):
        for one in [where] if isinstance(where, str) or callable(where) else where:
            unknown = sorted(_fields(one) - {parameter.name for parameter in rest})
            if unknown:
                raise UsageError(f"{file!r} of {name}: {one!r} asks for {unknown[0]!r}, which is no argument of {name}")
    return signature.replace(parameters=rest, return_annotation=inspect.Signature.empty)


def _fields(where: str | Callable[..., Any]) -> set[str]:
    """Names of the arguments that a place is made from."""
    if callable(where):
        return set(inspect.signature(where).parameters)
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(where) if name is not None]
    except ValueError as error:
        raise UsageError(f"{where!r} is not a URL with names in braces: {error}") from None
    return {name.replace("[", ".").partition(".")[0] for name in names}


def _urls(where: Where, given: Mapping[str, Any]) -> str | list[str]:
    """The URL or URLs of one item."""
    if isinstance(where, str):
        return where.format(**given)
    if not callable(where):
        return [one.format(**given) for one in where]
    made = where(**{name: given[name] for name in _fields(where)})
    return os.fspath(made) if isinstance(made, (str, os.PathLike)) else list(made)


def _flat(one_or_more: T | list[T]) -> list[T]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def _each(
    urls: str | list[str], path_of: Callable[[str, dict[str, Any]], Path], options: dict[str, Any]
) -> Path | list[Path]:
    """The path for a URL, or a list of them for several."""
    return path_of(urls, options) if isinstance(urls, str) else [path_of(url, options) for url in urls]


def _spread(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments by name: the files may stand between them."""
    spread: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        starred = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        spread.update(value if starred else {name: value})
    return spread


# -- file systems ------------------------------------------------------------------------------------------------------


def _open(url: str, options: Mapping[str, Mapping[str, Any]]) -> tuple[Any, str, str]:
    """The file system of a URL, the path in it, and its protocol."""
    try:
        from fsspec.core import url_to_fs
        from fsspec.utils import get_protocol
    except ImportError:
        raise UsageError("files need the package fsspec: pip install 'nbparallel[files]'") from None
    protocol = get_protocol(url)
    system, path = url_to_fs(url, **options.get(protocol, {}))
    return system, path, protocol


def _fail(doing: str, url: str, error: Exception) -> NoReturn:
    raise TransferFailed(f"{doing} {hide_password(url)}: {type(error).__name__}: {error}") from error


def _exists(url: str, options: Mapping[str, Mapping[str, Any]]) -> bool:
    try:
        system, path, protocol = _open(url, options)
        system.invalidate_cache()
        marked = url.endswith("/") and protocol in WHOLE_PUTS
        return bool(system.exists(f"{path}/{COMPLETE}" if marked else path))
    except UsageError:
        raise
    except Exception as error:
        _fail("cannot look for", url, error)


def _store_all(
    fn: Callable[..., Any], wanted: Mapping[str, Any], made: Mapping[str, Any], options: dict[str, Any]
) -> None:
    pairs = [
        (name, path, url) for name in wanted for path, url in zip(_flat(made[name]), _flat(wanted[name]), strict=True)
    ]
    for name, path, url in pairs:  # all or nothing, as far as this can be had
        tree = url.endswith("/")
        if not (any(_files_in(path)) if tree else path.is_file()):
            what = "anything into the directory" if tree else "the file"
            raise TransferFailed(
                f"{fn.__name__} returned without having written {what} of its parameter {name!r}, which was to go to "
                f"{hide_password(url)}"
            )
    for _, path, url in pairs:
        try:
            (_store_tree if url.endswith("/") else _store)(path, *_open(url, options))
        except UsageError:
            raise
        except Exception as error:
            _fail("cannot store", url, error)


def _store(source: Path, system: Any, path: str, protocol: str) -> None:
    if protocol in WHOLE_PUTS:
        system.put_file(str(source), path)
        return
    parent, _, name = path.rpartition("/")
    beside = f"{parent}/.{name}.{os.urandom(6).hex()}.part"
    system.makedirs(parent, exist_ok=True)
    try:
        system.put_file(str(source), beside)
        if protocol in ("file", "local"):
            os.replace(beside, path)
        else:
            system.mv(beside, path)
    except BaseException:
        with contextlib.suppress(Exception):
            system.rm_file(beside)
        raise


def _files_in(tree: Path) -> Iterator[Path]:
    """The files below a directory; links to directories are not followed."""
    return (Path(place, name) for place, _, names in os.walk(tree) for name in names)


def _store_tree(source: Path, system: Any, path: str, protocol: str) -> None:
    path = path.rstrip("/")
    names = [file.relative_to(source).as_posix() for file in _files_in(source)]
    if protocol in WHOLE_PUTS:
        _replace_objects(source, names, system, path)
        return
    parent, _, name = path.rpartition("/")
    beside = f"{parent}/.{name}.{os.urandom(6).hex()}"
    new, old = f"{beside}.part", f"{beside}.old"
    try:
        for name in names:
            target = f"{new}/{name}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(source / name), target)
        system.invalidate_cache()
        if replaced := system.exists(path):  # a directory cannot be renamed over another
            _move(system, path, old)
        try:
            _move(system, new, path)
        except BaseException:
            if replaced:
                _move(system, old, path)
            raise
    finally:
        for left in (new, old):
            with contextlib.suppress(FileNotFoundError):
                system.rm(left, recursive=True)


def _move(system: Any, source: str, target: str) -> None:
    """Rename a tree."""
    try:
        system.mv(source, target, recursive=True)
    except TypeError:  # such as SFTP's, which renames whatever it is
        system.mv(source, target)


def _replace_objects(source: Path, names: Sequence[str], system: Any, path: str) -> None:
    """Objects in place of those that are there; the mark that they are complete goes first and comes last."""
    mark = f"{path}/{COMPLETE}"
    system.invalidate_cache()
    before = _objects(system, path) if system.exists(path) else {}
    if system.exists(mark):
        system.rm_file(mark)
    for name in names:
        system.put_file(str(source / name), f"{path}/{name}")
    for name, target in before.items():
        if name not in names and system.exists(target):
            system.rm_file(target)
    system.pipe_file(mark, b"")


def _objects(system: Any, path: str) -> dict[str, str]:
    """The files below a path: name relative to it → path."""
    path = path.rstrip("/")
    return {one[len(path) :].lstrip("/"): one for one in system.find(path) if not one.endswith("/")}


# -- this host ---------------------------------------------------------------------------------------------------------


def _root() -> Path:
    """This user's directory for items and cache; on one file system, so that files can be linked and renamed."""
    root = Path(tempfile.gettempdir()) / f"nbparallel-files-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UsageError(f"{root} belongs to somebody else; set TMPDIR to a directory of your own")
    for part in ("fetched", "items"):
        (root / part).mkdir(exist_ok=True)
    return root


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; False when somebody else has it and ``wait`` is not set."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory for one item, removed at its end; if the process is killed, by whoever fetches next on this host."""
    items = _root() / "items"
    own = items / os.urandom(8).hex()
    lock = own.with_suffix(".lock")
    with _locked(lock):
        try:
            own.mkdir()
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _room(directory: Path) -> Callable[[str, Any], Path]:
    """Gives a path for each file that is to be created, with the name that it will have."""
    made: list[Path] = []

    def path_of(url: str, _: Any) -> Path:
        made.append(directory / str(len(made)) / (url.rstrip("/").rpartition("/")[2] or "file"))
        (made[-1] if url.endswith("/") else made[-1].parent).mkdir(parents=True)
        return made[-1]

    return path_of


class _Cache:
    """The host's cache as one item uses it."""

    def __init__(self, own: Path, keep_seconds: float, keep_bytes: int) -> None:
        self._own, self._keep_seconds, self._keep_bytes = own, keep_seconds, keep_bytes
        self._shelf = own.parent.parent / "fetched"
        self._count = 0

    def fetch(self, url: str, options: Mapping[str, Mapping[str, Any]]) -> Path:
        """A path of the file or the tree at a URL, with its name."""
        try:
            system, path, protocol = _open(url, options)
            system.invalidate_cache()
            info = system.info(path)
            tree = info.get("type") == "directory"
            if tree != url.endswith("/"):
                raise (
                    IsADirectoryError("it is a directory; put a / at its end to have all that is in it")
                    if tree
                    else NotADirectoryError("it is a file; leave out the / at its end")
                )
            if protocol in ("file", "local"):
                return Path(path)
            self._count += 1
            place = self._own / f"needs-{self._count}" / (url.rstrip("/").rpartition("/")[2] or "file")
            files = (
                {name: one for name, one in _objects(system, path).items() if name != COMPLETE} if tree else {"": path}
            )
            for name, one in files.items():
                self._link(system, one, f"{url}{name}", place / name)
            _sweep(self._own.parent)
            _prune(self._shelf, self._keep_seconds, self._keep_bytes)
            return place
        except UsageError:
            raise
        except Exception as error:  # every file system raises errors of its own
            _fail("cannot fetch", url, error)

    def _link(self, system: Any, path: str, url: str, place: Path) -> None:
        """Have a file at a place of the item's, fetched now or by somebody before."""
        version = f"{url}\n{system.ukey(path)}\n{system.info(path).get('size')}"
        shelved = self._shelf / hashlib.sha256(version.encode()).hexdigest()[:32]
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(shelved.with_suffix(".lock")):
            try:
                os.link(shelved, place)  # from now on nobody can take it away
            except FileNotFoundError:
                system.get_file(path, str(place))
                place.chmod(0o400)
                part = self._own / "part"
                os.link(place, part)
                part.rename(shelved)
            os.utime(place)


def _prune(shelf: Path, keep_seconds: float, keep_bytes: int) -> int:
    """Remove from the cache what is too old or too much; what items have linked stays theirs."""
    known = []
    for path in shelf.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if not path.suffix:
                known.append((path.stat().st_mtime, path.stat().st_size, path))
    gone, total, oldest = 0, 0, time.time() - keep_seconds
    for used, size, path in sorted(known, reverse=True):
        total += size
        if used > oldest and total <= keep_bytes:
            continue
        lock = path.with_suffix(".lock")
        with _locked(lock, wait=False) as mine:
            if mine:
                path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                gone += 1
    return gone


def _sweep(items: Path) -> None:
    """Remove the directories of items whose process was killed: nobody holds their locks."""
    for lock in items.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime < YOUNG:
                continue
            with _locked(lock, wait=False) as mine:
                if mine:
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    lock.unlink(missing_ok=True)
