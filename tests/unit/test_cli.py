"""The command line: thin, and clear when it fails."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nbparallel import cli, demo
from nbparallel.errors import ConnectionFailed
from nbparallel.settings import Settings
from nbparallel.store.real import RedisStore
from nbparallel.worker.config import WorkerConfig

SECRET = "sixteen bytes or more"


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module of this content in the place of ``name``: what is tested here is the command line alone."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[WorkerConfig]:
    """What the command line hands to the worker."""
    seen: list[WorkerConfig] = []

    def run_worker(config: WorkerConfig) -> int:
        seen.append(config)
        return 0

    stand_in(monkeypatch, "nbparallel.worker.main", run_worker=run_worker)
    monkeypatch.setattr(RedisStore, "check_server", lambda self: None)
    return seen


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with a key, as an editor leaves it: with a line end."""
    path = tmp_path / "cluster.key"
    path.write_text(SECRET + "\n")
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints the version and ends well."""
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("nbparallel ")


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help is shown and the status says that nothing was done."""
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().out


def test_python_m_runs_the_same_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m nbparallel`` is the command, with its exit status."""
    monkeypatch.setattr(sys, "argv", ["nbparallel"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("nbparallel", run_name="__main__")
    assert end.value.code == 2
    assert "usage: nbparallel" in capsys.readouterr().out


def test_worker_gets_what_the_command_line_says(configs: list[WorkerConfig], key_file: Path) -> None:
    """URL, key, processes, queues and namespace reach the worker."""
    line = f"worker --url redis://h --key-file {key_file} --concurrency 3 --queues a,b --namespace n"
    assert cli.main(line.split()) == 0
    (config,) = configs
    assert (config.key, config.queues, config.concurrency) == (SECRET.encode(), ("a", "b"), 3)
    assert (config.store_url, config.namespace) == ("redis://h", "n")


def test_worker_reads_the_environment(
    configs: list[WorkerConfig], key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in a container is configured by its environment alone."""
    monkeypatch.setenv("NBPARALLEL_URL", "redis://h")
    monkeypatch.setenv("NBPARALLEL_KEY_FILE", str(key_file))
    assert cli.main(["worker"]) == 0
    assert configs[0].queues == (Settings().queue,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("worker", "needs the URL of its cluster: pass --url"),
        ("worker --url redis://h", "needs its cluster's key: pass --key-file"),
        ("worker --url redis://h --key-file {missing}", "key file .*missing.key cannot be read"),
        ("worker --url redis://h --key-file {empty}", "empty.key holds 0 bytes"),
        ("worker --url redis://h --key-file {empty} --queues ,", "--queues must name one queue or more"),
        ("worker --url redis://h --concurrency -1", "setting workers must be at least 0, not -1"),
        ("demo --workers -2", "setting workers must be at least 0, not -2"),
    ],
)
def test_wrong_use_is_explained_without_a_traceback(
    line: str, message: str, tmp_path: Path, configs: list[WorkerConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong use ends with status 2 and one line that says what to do; no worker starts."""
    (tmp_path / "empty.key").write_text("\n")
    line = line.format(missing=tmp_path / "missing.key", empty=tmp_path / "empty.key")
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, configs) == ("", [])
    assert err.startswith("nbparallel: ")
    assert "Traceback" not in err
    assert re.search(message, err)


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    """Ctrl-C ends a command with the status that shells use for it."""

    def run_worker(config: WorkerConfig) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "nbparallel.worker.main", run_worker=run_worker)
    monkeypatch.setattr(RedisStore, "check_server", lambda self: None)
    assert cli.main(["worker", "--url", "redis://h", "--key-file", str(key_file)]) == 130


def test_status_shows_settings_and_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is shown with its source, the password of a URL is not; the cluster speaks for itself."""
    monkeypatch.setenv("NBPARALLEL_WORKERS", "3")
    stand_in(
        monkeypatch, "nbparallel.cluster.handle", describe=lambda settings: {"workers": ["host-a: 2", "host-b: 4"]}
    )
    assert cli.main(["status", "--url", "redis://me:secret@h"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line.strip()}
    assert rows["workers"] == ["3", "environment"]
    assert rows["url"] == ["redis://me:***@h", "argument"]
    assert "secret" not in out
    assert out.endswith("workers: host-a: 2\nworkers: host-b: 4\n")


def test_status_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` gives the same for programs."""
    stand_in(monkeypatch, "nbparallel.cluster.handle", describe=lambda settings: {"workers": []})
    assert cli.main(["status", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cluster"] == {"workers": []}
    assert report["settings"]["queue"]["from"] == "default"
    assert set(report["settings"]) == {row[0] for row in Settings.explain()}
    assert "celery" in report["versions"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_of_a_cluster_that_does_not_answer(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings are shown all the same, with the problem, and the exit status tells a script."""

    def describe(settings: Settings) -> dict[str, Any]:
        raise ConnectionFailed("no answer from redis://h")

    stand_in(monkeypatch, "nbparallel.cluster.handle", describe=describe)
    assert cli.main(["status", *options]) == 1
    out, err = capsys.readouterr()
    assert "lease_seconds" in out
    assert "no answer from redis://h" in (out if options else err)


# --- the demo ----------------------------------------------------------------------------------------------------


class Cluster:
    """Stands in for the embedded cluster."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    workers = 2

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Job(list[Any]):
    """Stands in for a job that has ended."""

    chunks = 3

    def snapshot(self) -> Job:
        """Itself is snapshot enough."""
        return self


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with two files that count and three that do not."""
    for name, text in {
        "a.py": "one two Two",
        "deep/b.txt": "two snake_case x1",
        "c.so": "no",
        "site-packages/d.py": "no",
        "lib/dist-packages/d.py": "no",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_demo_finds_text_files_of_the_library_alone(library: Path) -> None:
    """Installed packages and other kinds of files are left out."""
    assert demo.find_files(library) == [str(library / "a.py"), str(library / "deep/b.txt")]


def test_demo_counts_words(library: Path) -> None:
    """Words are letters in lower case; digits and underscores separate them."""
    assert demo.count_words(str(library / "deep/b.txt")) == {"two": 1, "snake": 1, "case": 1, "x": 1}


@pytest.mark.parametrize(("loses", "status"), [(False, 0), (True, 1)])
def test_demo_compares_with_a_serial_count(
    loses: bool, status: int, library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo ends well when both counts agree, and with status 1 when a result got lost."""
    calls: list[dict[str, Any]] = []

    def pmap(function: Any, paths: list[str], **options: Any) -> Job:
        calls.append(options)
        return Job(map(function, paths[1:] if loses and len(calls) > 1 else paths))

    stand_in(monkeypatch, "nbparallel.api", pmap=pmap)
    stand_in(monkeypatch, "nbparallel.cluster.handle", Cluster=Cluster)
    assert demo.demo(2, library) == status
    out = capsys.readouterr().out
    assert calls[1]["progress"] is True
    assert calls[1]["session"].options == {"workers": 2}
    assert ("FAILED" in out) == loses
    assert ("two 3, one 1" in out) != loses
    assert "in 3 chunks" in out
