"""Random jobs and random faults, both drawn from one seed, and what must hold whatever they are.

The oracle: the values that a plain loop would give, and a log in which every start of an item leaves a line.
"""

from __future__ import annotations

import ctypes
import functools
import heapq
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from acceptance.hosts import Rig
from support import eventually, our_processes, stack_of

from nbparallel import ItemError, JobCancelled, RetryPolicy, WorkerCrashed, pmap
from nbparallel.client.job import Job
from nbparallel.cluster.handle import RemoteCluster

#: Hosts and processes of each; short times, yet long enough for a parent that stands still for a second.
HOSTS, PROCESSES = 2, 2
SETTINGS = {"lease_seconds": 3.0, "renew_seconds": 0.5, "cancel_grace": 0.3, "session_grace": 10.0}
CONFIG = ("appendonly yes", "appendfsync always")
#: A job may take this long beyond its work: for each fault, and in any case.
FAULT_SECONDS, SPARE_SECONDS = 12.0, 20.0
#: Celery's queue in the store, and the messages that workers hold.
QUEUE, UNACKED = "nbparallel", "unacked"


class Item(NamedTuple):
    """One item: how long it runs, its fate (``""``, ``error``, ``poison``, or how often it fails at first), and whether
    it waits in a C call that lets no other thread run."""

    index: int
    seconds: float
    fate: str
    size: int
    deaf: bool = False


def run_item(log: str, item: Item) -> tuple[int, int, bytes]:
    """What the workers run."""
    line = f"{item.index} {os.getpid()} {time.time():.3f}\n"
    file = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, line.encode())
    os.close(file)
    if item.deaf:
        ctypes.PyDLL(None).usleep(int(item.seconds * 1e6))
    else:
        time.sleep(item.seconds)
    if item.fate == "error":
        raise ValueError(item.index)
    if item.fate == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if item.fate:
        with open(log) as lines:
            starts = sum(line.split()[0] == str(item.index) for line in lines)
        if starts <= int(item.fate):
            raise ConnectionError(f"{item.index}: start {starts}")
    return serially(item)


def serially(item: Item) -> tuple[int, int, bytes]:
    """The value of an item that does not fail."""
    return item.index, item.index**2, item.index.to_bytes(4, "little") * item.size


@dataclass
class Plan:
    """All that a seed stands for."""

    seed: int
    items: list[Item] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    generator: bool = False
    faults: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """The plan of a seed."""
        rng = random.Random(seed)
        count = rng.choice([1, rng.randint(2, 12), rng.randint(20, 150), rng.randint(50, 400)])
        work = rng.uniform(2.0, 8.0)
        weights = [rng.expovariate(1.0) if rng.random() < 0.5 else 1.0 for _ in range(count)]
        scale = min(work / sum(weights), 0.5)
        size = rng.choice([0, 10, 5000])
        troubled = rng.random() < 0.5
        fates = [_fate(rng) if troubled else "" for _ in range(count)]
        if rng.random() < 0.15:
            fates[rng.randrange(count)] = "poison"
        deafness = rng.choice([0.0, 0.0, 0.2, 1.0])
        items = [
            Item(i, w * scale, f, size, rng.random() < deafness)
            for i, (w, f) in enumerate(zip(weights, fates, strict=True))
        ]
        options = {
            "ordered": rng.random() < 0.6,
            "chunks": rng.choice(["auto", "auto", 1, 3, 20]),
            "retries": RetryPolicy(3, backoff=0.05),
            "max_running": rng.choice([0, 0, 0, 2]),
            "timeout": rng.choice([None, None, 60.0]),
        }
        lasts = 0.4 + 1.3 * sum(item.seconds for item in items) / (HOSTS * PROCESSES)
        names = rng.choices(list(FAULTS), [weight for weight, _, _ in FAULTS.values()], k=rng.choice([1, 1, 2, 3]))
        faults = sorted((rng.uniform(0.0, lasts), name) for name in names)
        return cls(seed, items, options, rng.random() < 0.35, faults)

    def __str__(self) -> str:
        fates = Counter(item.fate for item in self.items if item.fate)
        work = sum(item.seconds for item in self.items)
        form = "generator" if self.generator else "list"
        faults = ", ".join(f"{name} at {at:.2f} s" for at, name in self.faults)
        shown = ("chunks", "ordered", "max_running", "timeout")
        options = ", ".join(f"{name}={self.options[name]!r}" for name in shown)
        fates["in C"] = sum(item.deaf for item in self.items)
        return f"CHAOS_SEED={self.seed}: {len(self.items)} items ({form}), {work:.1f} s, {options}, {fates}: {faults}"

    def row(self) -> dict[str, Any]:
        """What of it is logged."""
        return {"seed": self.seed, "items": len(self.items), "faults": [name for _, name in self.faults]}

    def inputs(self) -> Any:
        """What ``pmap`` is given."""
        return (item for item in self.items) if self.generator else self.items


def _fate(rng: random.Random) -> str:
    return rng.choices(["", "1", "2", "error"], [85, 6, 3, 6])[0]


# -- faults ------------------------------------------------------------------------------------------------------------

#: What undoes a fault, and after how many seconds.
Undo = tuple[float, Callable[[], None]]


class Stage:
    """Where a schedule is played: a rig whose hosts are replaced when they end, and the job."""

    def __init__(self, rig: Rig, cluster: RemoteCluster) -> None:
        self.rig, self.cluster = rig, cluster
        self.rng = random.Random()
        self.job: Job[Any] | None = None
        self.cancelled: float | None = None

    def revive(self) -> None:
        """Do what a service manager does: start a host for each that ended."""
        for number, host in enumerate(self.rig.hosts):
            if host.poll() is not None:
                self.rig.add_host(PROCESSES)
                self.rig.hosts[number] = self.rig.hosts.pop()

    def a_host(self) -> int:
        """Process id of some host."""
        return self.rng.choice(self.rig.hosts).pid

    def a_child(self) -> int | None:
        """Process id of some child, if there is one now."""
        parents = {host.pid for host in self.rig.hosts}
        children = sorted(pid for pid, process in our_processes().items() if process.parent in parents)
        return self.rng.choice(children) if children else None


def _signal(pid: int | None, number: int) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_child(stage: Stage) -> list[Undo]:
    """A pool process is killed."""
    _signal(stage.a_child(), signal.SIGKILL)
    return []


def kill_parent(stage: Stage) -> list[Undo]:
    """The parent alone is killed: its children are orphans."""
    _signal(stage.a_host(), signal.SIGKILL)
    return []


def kill_host(stage: Stage) -> list[Undo]:
    """The whole host is gone."""
    stage.rig.kill(stage.rng.choice(stage.rig.hosts))
    return []


def end_host(stage: Stage) -> list[Undo]:
    """A deploy ends a host: it gives back what it has not started, and another one takes its place."""
    _signal(stage.a_host(), signal.SIGTERM)
    return []


def quit_host(stage: Stage) -> list[Undo]:
    """A spot machine is taken away: the host gives back what it runs, too."""
    _signal(stage.a_host(), signal.SIGQUIT)
    return []


def roll(stage: Stage) -> list[Undo]:
    """A deploy restarts all hosts, one shortly after the other."""
    hosts = [host.pid for host in stage.rig.hosts]
    return [(0.5 * number, functools.partial(_signal, pid, signal.SIGTERM)) for number, pid in enumerate(hosts)]


def stop_child(stage: Stage) -> list[Undo]:
    """A pool process stands still for a second."""
    pid = stage.a_child()
    _signal(pid, signal.SIGSTOP)
    return [(1.0, lambda: _signal(pid, signal.SIGCONT))]


def stop_parent(stage: Stage) -> list[Undo]:
    """A parent stands still for a second."""
    pid = stage.a_host()
    _signal(pid, signal.SIGSTOP)
    return [(1.0, lambda: _signal(pid, signal.SIGCONT))]


def stop_store(stage: Stage) -> list[Undo]:
    """The store stands still, for longer than leases last."""
    process = stage.rig.server.process
    pid, seconds = process.pid if process else None, stage.rng.uniform(0.5, 6.0)
    # Not by whoever plays: the next fault may wait for the store.
    timer = threading.Timer(seconds, _signal, (pid, signal.SIGCONT))
    _signal(pid, signal.SIGSTOP)
    timer.start()
    return [(seconds, timer.join)]


def fill_store(stage: Stage) -> list[Undo]:
    """The store has reached its ``maxmemory``; later it gets room again."""
    with stage.rig.server.client() as store:
        store.config_set("maxmemory", 1)

    def lift() -> None:
        with suppress(redis.RedisError), stage.rig.server.client() as store:
            store.config_set("maxmemory", 0)

    return [(stage.rng.uniform(0.5, 4.0), lift)]


def cut_connections(stage: Stage) -> list[Undo]:
    """Every connection to the store is cut."""
    with stage.rig.server.client() as store:
        for kind in ("normal", "pubsub"):
            store.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    return []


def flush(stage: Stage) -> list[Undo]:
    """Everything in the store is deleted."""
    with stage.rig.server.client() as store:
        store.flushall()
    return []


def restart(stage: Stage) -> list[Undo]:
    """The store is killed, and comes back with its data."""
    stage.rig.server.stop()
    return [(stage.rng.uniform(0.0, 1.5), lambda: _start(stage))]


def restart_empty(stage: Stage) -> list[Undo]:
    """The store is killed, and comes back empty."""
    stage.rig.server.stop()
    shutil.rmtree(stage.rig.server.directory / "appendonlydir", ignore_errors=True)
    return restart(stage)


def _start(stage: Stage) -> None:
    if stage.rig.server.process is None:
        stage.rig.server.start()


def drop_tickets(stage: Stage) -> list[Undo]:
    """The messages in the queue are lost."""
    with stage.rig.server.client() as store:
        store.delete(QUEUE)
    return []


def double_tickets(stage: Stage) -> list[Undo]:
    """The messages in the queue, and those that workers hold, come once more."""
    with stage.rig.server.client() as store:
        for message in messages(store):
            store.lpush(QUEUE, message)
    return []


def delay_tickets(stage: Stage) -> list[Undo]:
    """The messages in the queue come late."""
    with stage.rig.server.client() as store:
        held = store.lrange(QUEUE, 0, -1)
        store.delete(QUEUE)

    def deliver() -> None:
        with suppress(redis.RedisError), stage.rig.server.client() as store:
            for message in held:
                store.lpush(QUEUE, message)

    return [(stage.rng.uniform(0.5, 2.0), deliver)]


def replay_tickets(stage: Stage) -> list[Undo]:
    """All messages that are there now are delivered again, seconds after their work was done."""
    with stage.rig.server.client() as store:
        held = messages(store)

    def deliver() -> None:
        with suppress(redis.RedisError), stage.rig.server.client() as store:
            for message in held * 3:
                store.lpush(QUEUE, message)

    return [(stage.rng.uniform(0.5, 3.0), deliver)]


def messages(store: redis.Redis) -> list[bytes]:
    """All messages as kombu wrote them: those that wait, and those that were delivered and not acknowledged."""
    held = [json.dumps(json.loads(entry)[0]).encode() for entry in store.hvals(UNACKED)]
    return [*store.lrange(QUEUE, 0, -1), *held]


def cancel(stage: Stage) -> list[Undo]:
    """The user cancels the job."""
    assert stage.job is not None
    if stage.job.cancel():
        stage.cancelled = time.time()
    return []


#: How often it is drawn; whether items may run twice for it; what it does.
FAULTS: dict[str, tuple[int, bool, Callable[[Stage], list[Undo]]]] = {
    "child killed": (3, True, kill_child),
    "parent killed": (2, True, kill_parent),
    "host killed": (2, True, kill_host),
    "host ended": (2, False, end_host),
    "host quit": (1, True, quit_host),
    "hosts restarted in turn": (1, False, roll),
    "child stopped": (2, False, stop_child),
    "parent stopped": (2, False, stop_parent),
    "connections cut": (2, False, cut_connections),
    "store stopped": (2, True, stop_store),
    "store full": (2, False, fill_store),
    "store flushed": (2, True, flush),
    "store restarted": (2, False, restart),
    "store restarted empty": (2, True, restart_empty),
    "tickets dropped": (2, False, drop_tickets),
    "tickets doubled": (2, False, double_tickets),
    "tickets delayed": (2, False, delay_tickets),
    "tickets replayed": (1, False, replay_tickets),
    "cancelled": (1, False, cancel),
}


# -- playing -----------------------------------------------------------------------------------------------------------


class Reader(threading.Thread):
    """Reads the job as a user does, so that whoever plays can go on."""

    def __init__(self, job: Job[Any]) -> None:
        super().__init__(name="reader", daemon=True)
        self.job = job
        self.values: list[Any] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Read to the end."""
        try:
            self.values.extend(self.job)
        except BaseException as error:
            self.failure = error


@dataclass
class Account:
    """What a schedule came to."""

    plan: Plan
    seconds: float
    starts: Counter[int]
    doubled: int
    cancelled: bool

    def row(self) -> dict[str, Any]:
        """What is logged; ``extra`` is the time in seconds beyond what the work takes when nothing is in its way."""
        plan = self.plan
        processes = min(HOSTS * PROCESSES, plan.options["max_running"] or len(plan.items), len(plan.items))
        times = [item.seconds * (int(item.fate) + 1 if item.fate.isdigit() else 1) for item in plan.items]
        return {
            **plan.row(),
            "doubled": self.doubled,
            "extra": round(self.seconds - max(sum(times) / processes, *times, 0.0), 2),
            "cancelled": self.cancelled,
        }


def play(stage: Stage, plan: Plan, log: Path) -> Account:
    """Play a schedule and check all that must hold."""
    stage.rng.seed(plan.seed)
    stage.cancelled = None
    began = time.monotonic()
    run = functools.partial(run_item, str(log))
    stage.job = job = pmap(run, plan.inputs(), on_error="return", progress=False, session=stage.cluster, **plan.options)
    reader = Reader(job)
    reader.start()
    limit = sum(item.seconds for item in plan.items) + FAULT_SECONDS * len(plan.faults) + SPARE_SECONDS
    _make_trouble(stage, plan, reader, began + limit)
    if reader.is_alive():
        snapshot = job.snapshot()
        stacks = "\n".join(f"{thread.name}:\n{stack_of(thread)}" for thread in threading.enumerate())
        job.cancel()
        reader.join(5.0)
        shown = replace(snapshot, details=None)
        texts = (f"not ended within {limit:.0f} s", plan, shown, stage.rig.logs(), stacks)
        pytest.fail("\n".join(map(str, texts)), pytrace=False)
    took = time.monotonic() - began
    _probe(stage, plan)
    starts = _starts(log)
    problems = [*_check_values(stage, plan, reader), *_check_starts(stage, plan, starts)]
    if problems:
        pytest.fail("\n".join([str(plan), *problems, stage.rig.logs()]), pytrace=False)
    counts = Counter(index for index, _ in starts)
    needed = {item.index: int(item.fate) + 1 for item in plan.items if item.fate.isdigit()}
    poisoned = {item.index for item in plan.items if item.fate == "poison"}
    doubled = sum(n - min(n, needed.get(i, 1)) for i, n in counts.items() if i not in poisoned)
    return Account(plan, took, counts, doubled, stage.cancelled is not None)


def _make_trouble(stage: Stage, plan: Plan, reader: Reader, deadline: float) -> None:
    """Let every fault come in its time, until the job has ended and all faults are undone."""
    began, order, pause = time.monotonic(), itertools.count(), threading.Event()
    due: list[tuple[float, int, Callable[[], list[Undo] | None], bool]] = []
    for at, name in plan.faults:
        act = functools.partial(FAULTS[name][2], stage)
        heapq.heappush(due, (began + at, next(order), act, False))
    while time.monotonic() < deadline and (reader.is_alive() or any(entry[3] for entry in due)):
        while due and due[0][0] <= time.monotonic():
            _, _, act, undoes = heapq.heappop(due)
            if not undoes and not reader.is_alive():
                continue
            with suppress(redis.RedisError):  # the store is away already
                for delay, undo in act() or []:
                    heapq.heappush(due, (time.monotonic() + delay, next(order), undo, True))
        stage.revive()
        pause.wait(0.02)
    for _, _, act, undoes in due:
        if undoes:
            act()


def _probe(stage: Stage, plan: Plan) -> None:
    """Afterwards the cluster works as before, and holds nothing."""
    job = pmap(abs, range(-8, 0), chunks=1, progress=False, session=stage.cluster)
    # A host that was told to end may take its time, and is replaced only then.
    eventually(lambda: stage.revive() or job.wait(0), 30, f"{job!r} ends after {plan}")
    assert job.result() == list(range(8, 0, -1))
    with stage.rig.server.client() as store:
        eventually(lambda: not store.zcard("nbp:default:leases"), 10, f"no lease is left after {plan}")


def _check_values(stage: Stage, plan: Plan, reader: Reader) -> Iterator[str]:
    """Every item has one outcome, the right one, in its place; after a cancel, as far as they came."""
    if stage.cancelled is None:
        if reader.failure is not None:
            yield f"the job failed: {reader.failure!r}"
    elif reader.failure is not None and not isinstance(reader.failure, JobCancelled):
        yield f"cancelled, but failed with {reader.failure!r}"
    indexes = []
    for value in reader.values:
        index = value.index if isinstance(value, ItemError) else value[0]
        indexes.append(index)
        item = plan.items[index]
        if item.fate == "poison":
            right = isinstance(value, WorkerCrashed)
        elif item.fate == "error":
            right = isinstance(value, ItemError) and isinstance(value.exception, ValueError)
        else:
            right = value == serially(item)
        if not right:
            yield f"item {item} came out as {value!r}"
    expected = list(range(len(plan.items)))
    if stage.cancelled is not None:
        expected = expected[: len(indexes)] if plan.options["ordered"] else sorted(set(indexes))
    if (indexes if plan.options["ordered"] else sorted(indexes)) != expected:
        yield f"outcomes of {len(indexes)} items, of {len(set(indexes))} different ones, expected {len(expected)}"


def _starts(log: Path) -> list[tuple[int, float]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(index), float(at)) for index, _, at in (line.split() for line in lines)]


def _check_starts(stage: Stage, plan: Plan, starts: list[tuple[int, float]]) -> Iterator[str]:
    """Every item ran, none more often than faults and failures explain, and none long after a cancel."""
    counts = Counter(index for index, _ in starts)
    disruptions = sum(FAULTS[name][1] for _, name in plan.faults)
    if stage.cancelled is None and set(counts) != set(range(len(plan.items))):
        yield f"never ran: {sorted(set(range(len(plan.items))) - set(counts))}"
    for index, count in counts.items():
        fate = plan.items[index].fate
        allowed = 1 + disruptions + (int(fate) if fate.isdigit() else 2 if fate == "poison" else 0)
        if fate == "poison" or any(item.fate == "poison" for item in plan.items):
            # What was not reported when the poison killed its process runs again.
            allowed += 3 * (1 + disruptions)
        if count > allowed:
            yield f"{plan.items[index]} ran {count} times, {allowed} at most can be explained"
    if stage.cancelled is not None:
        late = [(index, at - stage.cancelled) for index, at in starts if at > stage.cancelled + FAULT_SECONDS / 2]
        if late:
            yield f"started long after the cancel: {late[:5]}"
