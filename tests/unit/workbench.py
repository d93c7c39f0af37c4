"""A job in a store in memory, as a client would have sent it, and the means to read what workers made of it."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

from nbparallel import envelope, pickling, wire
from nbparallel.model import Block, Chunk, ErrorRecord
from nbparallel.settings import Settings
from nbparallel.store import keys
from nbparallel.store.fake import MemoryStore
from nbparallel.store.protocol import Opening, Submission
from nbparallel.worker.slot import Slot, Slots

KEY = b"0123456789abcdef"
SID = "5" * 32


class Clock:
    """Milliseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


def new_slot() -> Slot:
    """A slot that no child owns yet."""
    return Slots(1)[0]


def settings(**changes: Any) -> Settings:
    """Settings under which a turn does not wait for anything."""
    return Settings.load({"linger_seconds": 0.0, "turn_seconds": 60.0, **changes}, {})


#: Functions by name, for ``Here``.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


class Here:
    """A test's own function, which travels by name: a copy would not see what the test sees."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = keys.new_id()
        FUNCTIONS[self._name] = function

    def __call__(self, *arguments: Any) -> Any:
        return FUNCTIONS[self._name](*arguments)

    def __reduce__(self) -> Any:
        # Nothing of this module, which would travel by value.
        return eval, (f"__import__({__name__!r}, fromlist=['']).FUNCTIONS[{self._name!r}]",)


class Work:
    """One job on a store, and what is in its stream.

    Args:
        function: what the items are passed to.
        options: rules of the job, as ``running.py`` seals them into its meta.
    """

    def __init__(self, function: Callable[..., Any], store: Any = None, **options: Any) -> None:
        self.clock = Clock()
        self.store: Any = MemoryStore(self.clock) if store is None else store
        self.id = keys.new_id()
        self.key = keys.job_key("default", self.id, 0)
        self._serials: Iterator[int] = itertools.count(1)
        self._submitted = 0
        self._rules = {"sid": SID, "star": False, "timeout": None, "budget": None, "seed": None, "rng": False}
        self._rules |= {"log_level": logging.getLogger().level, **options}
        self._function = Here(function) if isinstance(function, FunctionType) else function
        self.open()

    def open(self, **changes: Any) -> None:
        """Open the job; ``changes`` replace sealed parts of it."""
        self.store.session_beat(SID, b"beat", None)
        function = wire.seal(KEY, envelope.place(self.key, "function"), pickling.dump_function(self._function))
        opening = Opening(SID, envelope.seal_meta(KEY, self.key, self._rules), function, 0, False, 10**12, "label")
        self.store.submit(self.key, 0, [], [], opening._replace(**changes))

    def submit(
        self, items: Sequence[Any], size: int = 0, *, tickets: int = 1, cap: int = 100, **known: Any
    ) -> list[str]:
        """Submit items as chunks of ``size``; the tickets that were minted. ``known``: payload or attempt, as given."""
        submissions, base = [], self._submitted
        self._submitted += len(items)
        for lo in range(base, self._submitted, size or len(items)):
            part = items[lo - base : lo - base + (size or len(items))]
            sealed, _ = envelope.seal_payload(KEY, self.key, f"b{lo}", lo, [part])
            chunk = Chunk(f"c{lo}", lo, lo + len(part), known.get("attempt", 1), f"b{lo}")
            submissions.append(Submission(next(self._serials), chunk, known.get("payload", sealed)))
        return list(self.store.submit(self.key, cap, [keys.new_id() for _ in range(tickets)], submissions).tickets)

    def ticket(self) -> str:
        """A new ticket for what is pending."""
        (ticket,) = self.store.remint(self.key, -1, 1, [keys.new_id()])
        return str(ticket)

    def entries(self) -> list[Block | envelope.Verdict]:
        """What the job's stream holds."""
        found = self.store.read({self.key: "0"}, 0)
        return [envelope.open_entry(KEY, self.key, sealed) for _, entries in found for _, sealed in entries]

    def blocks(self) -> list[Block]:
        """The blocks of outcomes among them."""
        return [entry for entry in self.entries() if isinstance(entry, Block)]

    def verdicts(self) -> list[str]:
        """The reasons of the verdicts among them."""
        return [entry.reason for entry in self.entries() if isinstance(entry, envelope.Verdict)]

    def all_outcomes(self) -> dict[int, list[Any]]:
        """Every outcome of each index: its value, or its ErrorRecord."""
        found: dict[int, list[Any]] = defaultdict(list)
        for block in self.blocks():
            for index, outcome in outcomes_of(block).items():
                found[index].append(outcome)
        return dict(found)

    def outcomes(self) -> dict[int, Any]:
        """The outcome of each index, of which there must be one only."""
        found = self.all_outcomes()
        assert all(len(outcomes) == 1 for outcomes in found.values()), found
        return {index: outcomes[0] for index, outcomes in sorted(found.items())}


def outcomes_of(block: Block) -> dict[int, Any]:
    """Value or ErrorRecord of each item of a block."""
    body = b"".join(block.body) if isinstance(block.body, list) else block.body  # one not sent yet is in parts
    values = pickling.load(body)
    assert len(values) == block.count
    return {block.lo + at: block.errors.get(block.lo + at, value) for at, value in enumerate(values)}


def kinds(outcomes: dict[int, Any]) -> dict[int, str]:
    """The kind of each error among outcomes."""
    return {index: outcome.kind for index, outcome in outcomes.items() if isinstance(outcome, ErrorRecord)}
