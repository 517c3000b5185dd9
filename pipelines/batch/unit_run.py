"""How the requests of one unit are answered: from the log, from an equal request, else by the engine.

Requests that were in an engine when it died are suspects. They run after the others, in groups that get smaller with
each death, alone in the engine; one whose engine dies whenever it runs, at last with nothing beside it, is given up.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.batch.order import Feed, Waiting
from pipelines.ledger.claims import Answer
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import History, LogWriter, read_history
from pipelines.ledger.outcome import decode, encode, outcome_of, plain_outcome
from serve.engine.protocol import Outcome, Rejection

ASK_AGAIN_S = 0.25
"""Seconds between two questions whether another replica has answered."""
SETTLE_ROWS = 256
"""Outcomes that are made known to others at a time."""


class Desk(Protocol):
    """Where equal requests of all replicas meet; see `pipelines.ledger.claims.Claims`."""

    def claim(self, keys: list[bytes]) -> Answer:
        """Claims requests."""
        ...

    def settle(self, outcomes: list[tuple[bytes, bytes]]) -> None:
        """Makes outcomes known. Returns at once."""
        ...


class Asking(Protocol):
    """The engine, seen from a thread."""

    def ask(self, feed: Feed, is_alone: bool, on_outcome: Any, on_tick: Any) -> None:
        """Runs requests to their end, or until the job is stopped.

        Args:
            feed: the requests; each begins as the engine has room for it.
            is_alone: whether nothing else may be in the engine meanwhile.
            on_outcome: called for each outcome, in the engine's thread.
            on_tick: called there after each run of outcomes, and of requests taken.
        """
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the job is to end early."""
        ...


@dataclass(kw_only=True, slots=True)
class Found:
    """What came of a unit's requests."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By entry; see `identify.request_entry`."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Times in an engine that died."""
    replayed: set[str] = field(default_factory=set)
    """Entries whose outcomes former runs or a dead replica had left."""
    shared: set[str] = field(default_factory=set)
    """Entries that another unit has answered."""

    given_up: set[str] = field(default_factory=set)
    """Entries that kill engines."""

    def ran(self) -> set[str]:
        """Returns the entries that this unit's engine has answered."""
        return self.outcomes.keys() - self.replayed - self.shared - self.given_up


class UnitRun:
    """One unit on one replica."""

    def __init__(self, folder: Folder, unit: str, run: str, replica: str, desk: Desk | None, max_attempts: int) -> None:
        """Args: where the ledger is, whose log is written, who writes it, and where equal requests meet."""
        self._folder, self._unit, self._run = folder, unit, run
        self._desk = desk
        self._max_attempts = max_attempts
        self.log = LogWriter(folder, unit, run, replica)
        self._unsettled: list[tuple[bytes, bytes]] = []

    def answer(self, requests: dict[str, Waiting], former: dict[str, Outcome], engine: Asking) -> Found:
        """Answers requests, each once.

        Args:
            requests: by entry.
            former: outcomes of a former part file, by entry.
            engine: what answers.

        Returns:
            The outcomes; where the job is stopped, those that there are.

        Raises:
            OSError: when the log cannot be read or written.
        """
        history = read_history(self._folder, self._unit, self._run)
        found = Found(attempts=history.attempts)
        for entry in requests:
            if (outcome := history.outcomes.get(entry) or former.get(entry)) is not None:
                found.outcomes[entry] = outcome
                found.replayed.add(entry)
                if entry in history.outcomes:  # a replica that died may have had no time to tell
                    self._settle(entry, encode(plain_outcome(outcome)))
            elif self._is_poison(history, entry):
                found.outcomes[entry] = self._given_up(history, entry)
                found.given_up.add(entry)
                self._settle(entry, encode(plain_outcome(found.outcomes[entry])))
        todo = [entry for entry in requests if entry not in found.outcomes]
        while todo and not engine.is_stopping:
            mine, todo = self._claim(todo, found)
            if mine:
                self._run_all({entry: requests[entry] for entry in mine}, history, found, engine)
            self._post()  # before it waits: others may wait for this
            if todo and not mine:
                time.sleep(ASK_AGAIN_S)
        self._post()
        return found

    def _claim(self, entries: list[str], found: Found) -> tuple[list[str], list[str]]:
        """Parts entries in those to be run here and those that another replica runs."""
        shared = {entry: bytes.fromhex(entry) for entry in entries if ":" not in entry}
        if self._desk is None or not shared:
            return entries, []
        answer = self._desk.claim(list(shared.values()))
        others = set(answer.others)
        for entry, key in shared.items():
            if key in answer.known:
                found.outcomes[entry] = outcome_of(decode(answer.known[key]), entry)
                found.shared.add(entry)
        mine = [e for e in entries if e not in found.outcomes and shared.get(e) not in others]
        return mine, [e for e in entries if shared.get(e) in others]

    def _run_all(self, requests: dict[str, Waiting], history: History, found: Found, engine: Asking) -> None:
        clean = [entry for entry in requests if not history.attempts[entry]]
        suspects = [entry for entry in requests if history.attempts[entry]]
        if clean:
            self._run_some(clean, requests, found, engine, is_alone=False)
        for group in suspect_groups(suspects, history.attempts, self._max_attempts):
            if engine.is_stopping:
                return
            self._run_some(group, requests, found, engine, is_alone=True)

    def _run_some(
        self, entries: list[str], requests: dict[str, Waiting], found: Found, engine: Asking, is_alone: bool
    ) -> None:
        entry_of = {requests[entry].id: entry for entry in entries}
        first = requests[entries[0]].id

        def begin(waiting: Waiting) -> None:
            if not is_alone:
                self.log.begin(entry_of[waiting.id])
            elif waiting.id == first:
                # here, and not before: until the engine asks for the first, it may hold others, and die of them
                self.log.begin_alone(entries)
                self.log.flush(is_last=True)

        def keep(outcome: Outcome) -> None:
            entry = entry_of[outcome.request_id]
            found.outcomes[entry] = outcome
            encoded = encode(plain_outcome(outcome))
            self.log.end(entry, encoded)
            self._settle(entry, encoded)

        engine.ask(Feed([requests[entry] for entry in entries], begin), is_alone, keep, self.log.flush)

    def _is_poison(self, history: History, entry: str) -> bool:
        # a process that ends without a word may have been ended by others: more such deaths are wanted
        deaths = 1 if entry in history.killed else 3
        return history.attempts[entry] >= self._max_attempts and history.alone[entry] >= deaths

    def _given_up(self, history: History, entry: str) -> Rejection:
        message = f"its engine died {history.attempts[entry]} times, at last with this row alone: "
        return Rejection(request_id=entry, error="engine_killer", message=message + history.causes[entry])

    def _settle(self, entry: str, encoded: bytes) -> None:
        if self._desk is not None and ":" not in entry:
            self._unsettled.append((bytes.fromhex(entry), encoded))
            if len(self._unsettled) >= SETTLE_ROWS:
                self._post()

    def _post(self) -> None:
        if self._desk is not None and self._unsettled:
            self._desk.settle(self._unsettled)
            self._unsettled = []


def suspect_groups(suspects: list[str], attempts: Counter[str], max_attempts: int) -> list[list[str]]:
    """Parts suspects in groups to be run one after another.

    After the k-th death, n suspects run in groups of n^(1 - k / (max_attempts - 1)): alone before the last attempt.
    """
    groups = []
    for times in sorted({attempts[entry] for entry in suspects}):
        alike = [entry for entry in suspects if attempts[entry] == times]
        share = 1 - times / max(max_attempts - 1, 1)
        size = max(1, int(len(alike) ** share)) if share > 0 else 1
        groups += [alike[start : start + size] for start in range(0, len(alike), size)]
    return groups
