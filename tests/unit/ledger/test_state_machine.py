"""A job over a file that changes, run and crashed in any order, against a model of a few lines.

The ledger is real, and so are the files; Ray, the tokenizer and the engine are stand-ins in this process. What is on
the disk when a run begins was paid for: the engine must not be asked for it again. After a run to the end each row has
one answer, the right one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from small_job import POINTS, Crash, Died, Engine, crash_at, some_plan

from conf.schema.data import DataSpec
from conf.schema.output import OnChange
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch import source as source_module
from pipelines.batch import unit_run as unit_run_module
from pipelines.batch.answers import answer_names
from pipelines.batch.commit import Sink, commit
from pipelines.batch.desk import FormerClaims
from pipelines.batch.plan import Plan
from pipelines.batch.read import read_split
from pipelines.batch.resume import open_output
from pipelines.batch.source import open_source
from pipelines.batch.unit import Parcel, cut_units
from pipelines.batch.unit_answer import UnitAnswer
from pipelines.batch.unit_run import Found, UnitRun
from pipelines.ledger.lease import lease_file
from serve.engine.protocol import Completion, Outcome, Rejection, Request, Sample

REJECTED, MALFORMED = 8, 9
TEXTS = st.integers(0, MALFORMED)
PLACES = st.integers(0, 30)
MEMORY = Path("/dev/shm")


class JobMachine(RuleBasedStateMachine):
    @initialize(shares=st.booleans(), unit_rows=st.sampled_from([2, 3, 4, 6, 8]), rows=st.lists(TEXTS))
    def begin(self, shares: bool, unit_rows: int, rows: list[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.shares, self.unit_rows = shares, unit_rows
        self.prompt = self.runs = self.serial = 0
        self.paid: set[str] = set()
        """Entries that the engine must not be asked for."""
        self.said: dict[str, set[str]] = {}
        """All that the engine said to an entry."""
        self.last: dict[tuple[int, str], str] = {}
        """Answers when the job was last at its end, by position and key."""
        self.limit: int | None = len(rows) // 2 or None
        self._write([*rows, 0])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    # what the user does

    def _write(self, rows: list[int]) -> None:
        self.rows = rows
        lines = ["{" if text == MALFORMED else json.dumps({"q": text}) for text in rows]
        (self.folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))

    @rule(texts=st.lists(TEXTS, min_size=1, max_size=6))
    def append(self, texts: list[int]) -> None:
        self._write([*self.rows, *texts])

    @rule(at=PLACES, text=TEXTS)
    def change(self, at: int, text: int) -> None:
        at %= len(self.rows) - 1 or 1
        self._write([*self.rows[:at], text, *self.rows[at + 1 :], 0])  # an input of bad rows alone has no columns

    @rule(start=PLACES, count=st.integers(1, 4), at=PLACES)
    def duplicate(self, start: int, count: int, at: int) -> None:
        start, at = start % len(self.rows), at % (len(self.rows) + 1)
        self._write([*self.rows[:at], *self.rows[start : start + count], *self.rows[at:]])

    @rule(count=st.integers(1, 12))
    def cut_off(self, count: int) -> None:
        self._write([*self.rows[:-count], 0])

    @rule(more=st.none() | st.integers(1, 9))
    def read_on(self, more: int | None) -> None:
        self.limit = None if self.limit is None or more is None else self.limit + more

    @rule(which=PLACES, cut=st.sampled_from([None, 1, 30]))
    def lose_a_part(self, which: int, cut: int | None) -> None:
        if parts := sorted(self.folder.glob("out/**/part-*.parquet")):
            path = parts[which % len(parts)]
            path.write_bytes(path.read_bytes()[:-cut]) if cut else path.unlink()
            self.last.clear()

    @rule()
    def ask_otherwise(self) -> None:
        self.prompt += 1

    # runs

    @rule(rows_per_file=st.integers(1, 9))
    def run_to_the_end(self, rows_per_file: int) -> None:
        self._run(None, 0, rows_per_file)
        self._check()

    @rule(after=st.integers(1, 9))
    def run_with_a_replica_that_dies(self, after: int) -> None:
        self._run("a replica", after)
        self._check()

    @rule(after=st.integers(1, 9))
    def run_and_stop(self, after: int) -> None:
        self._run("stop", after)

    @rule(point=st.sampled_from(POINTS), after=st.integers(1, 9), torn=st.integers(0, 40))
    def run_and_crash(self, point: str, after: int, torn: int) -> None:
        try:
            self._run(point, after)
        except Crash:
            logs = sorted(self.folder.glob("out/_manta/log/*"), key=lambda path: path.stat().st_mtime_ns)
            if torn and logs:
                logs[-1].write_bytes(logs[-1].read_bytes()[:-torn])

    def _plan(self, rows_per_file: int | None = None) -> Plan:
        plan = some_plan()
        rows_per_file = rows_per_file if rows_per_file and self.runs > 1 else self.unit_rows
        output = replace(plan.job.output, rows_per_file=rows_per_file, on_change=OnChange.recompute)
        whole = open_source(DataSpec(input=str(self.folder / "in.jsonl"), prompt="{{ q }}"))
        return replace(
            plan,
            job=replace(plan.job, output=output),
            whole=whole,
            source=whole.first(self.limit),
            output=replace(plan.output, root=replace(plan.output.root, path=str(self.folder / "out"))),
            decides={"data.prompt": self.prompt},
        )

    def _run(self, point: str | None, after: int, rows_per_file: int | None = None) -> None:
        self.runs += 1
        self.paid = self._on_disk()
        asked = {(at, self._key(text)) for at, text in enumerate(self.rows[: self.limit], start=1)}
        self.last = {of: said for of, said in self.last.items() if of in asked}  # a part loses what its rows lost
        plan, run, engine = self._plan(rows_per_file), f"run{self.runs}", Engine(self.compute, point, after)
        replica: Any = SimpleNamespace(folder=plan.output, prefix="", task=Task.generate, labels=[], is_redrive=False)
        replica.sampling, replica.answer_names = SamplingSpec(), answer_names(Task.generate)
        where: dict[str, Any] = {"folder": plan.output, "run": run, "format": plan.format, "task": Task.generate}
        sink = Sink(**where, prefix="", answer_column=None, model="m")
        lease_file(plan.output, run).write_bytes(b"")
        with ExitStack() as stack:
            stack.enter_context(crash_at(point, after))
            work = open_output(plan)
            claims = FormerClaims(plan.output, "", Task.generate, str(self.folder))
            stack.callback(claims.close)
            for reading in work.readings:
                tables = read_split(reading.split, plan.source.schema, plan.source.json_columns, None)
                for unit, table in cut_units(reading.units, tables, work.unit_rows):
                    if unit.id in reading.wanted and not engine.is_stopping:
                        answer = UnitAnswer(replica, Parcel(unit=unit, table=self._identify(table), note={}))
                        commit([answer.parcel(self._answer(answer, unit.id, plan, run, claims, engine))], sink)

    def _answer(self, answer: UnitAnswer, unit: str, plan: Plan, run: str, claims: Any, engine: Engine) -> Found:
        for replica in ("one", "another"):
            holder = f"{replica}/{unit}"
            desk: Any = SimpleNamespace(
                claim=lambda keys, holder=holder: claims.claim(holder, keys),
                settle=lambda outcomes, holder=holder: claims.settle(holder, outcomes),
            )
            unit_run = UnitRun(plan.output, unit, run, replica, desk if self.shares else None, 4)
            try:
                return unit_run.answer(answer.requests, answer.former, engine)
            except Died:
                unit_run.log.died("it says why")
                claims.release(replica)
            finally:
                unit_run.log.close()
        raise AssertionError

    # the stand-ins and the model

    def _identify(self, table: pa.Table) -> pa.Table:
        rows = list(zip(table.column("q").to_pylist(), table.column(c.POSITION).to_pylist(), strict=True))
        values: dict[str, list[Any]] = {name: [None] * len(rows) for name in (c.SPLIT, c.ADAPTER, c.SAMPLING)}
        values[c.TOKENS] = [None if text is None else [text, position] for text, position in rows]
        values[c.REQUEST_KEY] = [None if text is None else self._key(text) for text, _ in rows]
        values[c.ENTRY] = [None if text is None else self._entry(self._key(text), position) for text, position in rows]
        for name, column in values.items():
            table = c.with_column(table, name, column)
        return table

    def _key(self, text: int) -> str:
        return blake2b(f"{self.prompt} {text}".encode(), digest_size=16).hexdigest()

    def _entry(self, key: str, position: int) -> str:
        return key if self.shares else f"{key}:{position}"

    def compute(self, request: Request) -> Outcome:
        text, position = request.token_ids
        if text == REJECTED:
            return Rejection(request_id=request.id, error="engine_rejected", message="no")
        entry = self._entry(self._key(text), position)
        assert entry not in self.paid, f"row {position} is paid for again"
        self.paid.add(entry)
        self.serial += 1
        answer = f"{self.prompt} {text}" if self.shares else f"{self.prompt} {text} #{self.serial}"
        self.said.setdefault(entry, set()).add(answer)
        sample = Sample(text=answer, finish_reason="stop", completion_tokens=1)
        return Completion(request_id=request.id, samples=(sample,), prompt_tokens=1)

    def _on_disk(self) -> set[str]:
        """Entries whose answers can be read from a part file or a log."""
        found = {self._entry(row["request_key"], place(row)) for row in self._rows("part-*.parquet")}
        for path in self.folder.glob("out/_manta/log/*"):
            lines = path.read_bytes().split(b"\n")
            found |= {json.loads(line)["e"] for line in lines if line.startswith(b'{"e"') and line.endswith(b"}")}
        return found

    def _rows(self, pattern: str) -> list[dict[str, Any]]:
        rows = []
        for path in (self.folder / "out").glob(pattern):
            try:
                rows += pq.read_table(path).to_pylist()
            except (OSError, pa.ArrowException):
                continue
        return rows

    def _check(self) -> None:
        good, bad = self._rows("part-*.parquet"), self._rows("failed/part-*.parquet")
        wanted = dict(enumerate(self.rows[: self.limit], start=1))
        wrong = {REJECTED: "engine_rejected", MALFORMED: "malformed_line"}
        assert sorted(place(row) for row in [*good, *bad]) == list(wanted)
        assert {place(row): row["error"] for row in bad} == {n: wrong[t] for n, t in wanted.items() if t in wrong}
        for row in good:
            assert row["q"] == wanted[place(row)]
            assert row["output"] in self.said[self._entry(self._key(row["q"]), place(row))]
        now = {(place(row), row["request_key"]): row["output"] for row in good}
        assert {name: now[name] for name in self.last.keys() & now} == {n: self.last[n] for n in self.last.keys() & now}
        self.last = now
        assert not open_output(self._plan()).readings


def place(row: dict[str, Any]) -> int:
    return int(row["row_id"].split("-")[1])


@pytest.mark.timeout(300)
def test_no_row_is_lost_doubled_or_paid_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MARK_LINES", 4)
    monkeypatch.setattr(unit_run_module, "ASK_AGAIN_S", 0.001)
    quick = settings(max_examples=100, stateful_step_count=20, deadline=None, database=None, derandomize=True)
    quick = settings(quick, report_multiple_bugs=False)
    run_state_machine_as_test(JobMachine, settings=quick)
