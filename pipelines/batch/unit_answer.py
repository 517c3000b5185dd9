"""A unit's rows on one side, its requests on the other: many rows may make one request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from conf.schema.sampling import SamplingSpec
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX, answer_columns
from pipelines.batch.former import read_former
from pipelines.batch.identify import row_sampling
from pipelines.batch.order import Waiting, tokens_as_bytes
from pipelines.batch.unit import Parcel
from pipelines.batch.unit_run import Found
from serve.engine.protocol import Completion, Outcome, Rejection

if TYPE_CHECKING:
    from pipelines.batch.infer import Replica

MAX_SAMPLINGS = 1024
"""Different sampling parameters that are kept for the next units: an engine makes its own of each once."""


class UnitAnswer:
    """Makes requests of a unit's rows, and columns of what came of them."""

    def __init__(
        self, replica: Replica, parcel: Parcel, samplings: dict[str | None, SamplingSpec] | None = None
    ) -> None:
        """Makes the requests.

        Args:
            replica: what the rows are asked.
            parcel: the unit as `identify` left it.
            samplings: rows' own sampling parameters, as JSON and made; those that are missing are added.
        """
        samplings = {} if samplings is None else samplings
        self._replica, self._parcel = replica, parcel
        table = parcel.table
        self._entries: list[str | None] = table.column(c.ENTRY).to_pylist()
        self.former: dict[str, Outcome] = {}
        """Outcomes of the unit's former part files, by entry."""
        if parcel.unit.has_former:
            self._recall(table)
        self.bad_rows = self._entries.count(None)
        """Rows that make no request."""
        self.requests: dict[str, Waiting] = {}
        """By entry."""
        tokens = tokens_as_bytes(table.column(c.TOKENS))
        splits, adapters = table.column(c.SPLIT).to_pylist(), table.column(c.ADAPTER).to_pylist()
        own = table.column(c.SAMPLING).to_pylist()
        if len(samplings) > MAX_SAMPLINGS:
            samplings.clear()
        specs: dict[str | None, SamplingSpec] = {}
        for text in set(own):  # never by what is left in `samplings`: other units' threads clear it too
            specs[text] = samplings[text] = samplings.get(text) or row_sampling(text, replica.sampling)
        for index, entry in enumerate(self._entries):
            if entry is not None and entry not in self.requests:
                self.requests[entry] = Waiting(
                    id=f"{parcel.unit.id}-{index}",
                    tokens=tokens[index],
                    sampling=specs[own[index]],
                    split=splits[index],
                    adapter=adapters[index],
                )

    def _recall(self, table: pa.Table) -> None:
        r = self._replica
        former = read_former(r.folder, self._parcel.unit.id, r.prefix, r.task)
        keys, ids = table.column(c.REQUEST_KEY).to_pylist(), table.column(c.ROW_ID).to_pylist()
        errors, positions = table.column(c.ERROR).to_pylist(), table.column(c.POSITION).to_pylist()
        kept = iter(former.rows if len(former.rows) + len(former.failed) == len(table) else [])
        for index, (key, row_id) in enumerate(zip(keys, ids, strict=True)):
            entry = self._entries[index]
            if r.is_redrive:
                # what was answered stays, whatever this run would ask instead; both are in the order of the input
                own = None if positions[index] in former.failed else next(kept, None)
                if own is not None:
                    keys[index], self._entries[index], errors[index] = own[0], f"former:{index}", None
                    self.former[f"former:{index}"] = own[1]
            elif entry is not None and (outcome := former.outcome(entry, key, row_id)):
                self.former[entry] = outcome
        if r.is_redrive:
            table = c.with_column(c.with_column(table, c.REQUEST_KEY, keys), c.ERROR, errors)
            self._parcel = replace(self._parcel, table=table)

    def parcel(self, found: Found) -> Parcel:
        """Returns the unit with its answers, and what is to be noted of them."""
        table, outcomes = self._parcel.table, found.outcomes
        kept = [i for i, entry in enumerate(self._entries) if entry is None or entry in outcomes]
        is_partial = len(kept) < len(self._entries)
        if is_partial:
            table = table.take(pa.array(kept, pa.int64()))
        errors, messages = table.column(c.ERROR).to_pylist(), table.column(c.MESSAGE).to_pylist()
        of_row = [None if entry is None else outcomes[entry] for entry in (self._entries[index] for index in kept)]
        attempts = []
        ran = found.ran()
        for place, index in enumerate(kept):
            entry, outcome = self._entries[index], of_row[place]
            attempts.append(0 if entry is None else found.attempts[entry] + (entry in ran))
            if isinstance(outcome, Rejection):
                errors[place], messages[place] = outcome.error, outcome.message
        columns = answer_columns(of_row, self._replica.task, self._replica.answer_names, self._replica.labels)
        table = c.with_column(table.drop_columns([c.TOKENS]), c.ERROR, errors)
        table = c.with_column(c.with_column(table, c.MESSAGE, messages), c.ATTEMPTS, attempts)
        for name, column in columns.items():
            table = table.append_column(PREFIX + name, column)
        counts = _counts([self._entries[index] for index in kept], found)
        return replace(self._parcel, table=table, note={"is_partial": is_partial, "counts": counts})


def _counts(entries: list[str | None], found: Found) -> dict[str, int]:
    """Counts where the rows' answers came from; see `Mark`."""
    ran = found.ran()
    seen: set[str] = set()
    counts: dict[str, int] = {"replayed": 0, "shared": 0, "saved_tokens": 0}
    for entry in entries:
        if entry is None:
            continue
        if entry in seen or entry in found.shared:
            counts["shared"] += 1
            counts["saved_tokens"] += sum(_tokens(found.outcomes[entry]))
        else:
            counts["replayed"] += entry in found.replayed
        seen.add(entry)
    tokens = [_tokens(found.outcomes[entry]) for entry in ran]
    counts["requests"] = len(ran)
    counts["engine_prompt_tokens"] = sum(prompt for prompt, _ in tokens)
    counts["engine_completion_tokens"] = sum(completion for _, completion in tokens)
    return counts


def _tokens(outcome: Outcome) -> tuple[int, int]:
    if isinstance(outcome, Rejection):
        return 0, 0
    return outcome.prompt_tokens, outcome.completion_tokens if isinstance(outcome, Completion) else 0
