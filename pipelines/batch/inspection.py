"""`manta inspect OUT`: what a job has come to, from its ledger alone. Reads; starts nothing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from pipelines.batch.letters import examples as examples_of
from pipelines.batch.redrive import open_spec
from pipelines.batch.summary import Totals, short
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import Holder, live_holder
from pipelines.ledger.log import read_history
from pipelines.ledger.mark import read_marks
from pipelines.ledger.spec import JobSpec
from pipelines.storage import locate


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found."""

    path: str
    spec: JobSpec
    totals: Totals
    units: int
    """Units that are done."""
    open_units: int
    """Units that were begun and are not done."""
    waiting: int
    """Requests of theirs that are answered: they will not be paid for again."""
    report: str | None
    """The last run's report for a person; null where no run has ended."""
    holder: Holder | None
    """Who works on it now."""
    failed: list[dict[str, Any]]
    """Dead letters, some of each class of error."""

    def plain(self) -> dict[str, Any]:
        """Returns it as what JSON can hold."""
        return {
            "path": self.path,
            "decides": self.spec.decides,
            **asdict(self.totals),
            "rows": self.totals.rows,
            "units": self.units,
            "open_units": self.open_units,
            "answers_waiting": self.waiting,
            "report": self.report,
            "running": None if self.holder is None else asdict(self.holder),
            "examples": self.failed,
        }

    def text(self) -> str:
        """Returns it as a person reads it."""
        t, job = self.totals, self.spec.job
        lines = [f"manta inspect: {self.path}", ""]
        lines.append(f"  job          task={job['task']} model={job['model']['path']} data={job['data']['input']}")
        lines.append(f"  done         {t.rows:>9,}   rows; in units of {self.spec.unit_rows:,} at most: {self.units:,}")
        lines.append(f"  answers      {t.answers:>9,}   {t.prompt_tokens:,} tokens in, {t.completion_tokens:,} out")
        lines.append(f"  failed       {t.failed:>9,}")
        for error, (rows, message) in sorted(t.errors.items(), key=lambda item: -item[1][0]):
            lines.append(f"    {error:<18} {rows:>6,}   {short(message, 90)}")
        if t.shared:
            lines.append(f"  shared       {t.shared:>9,}   rows, {t.saved_tokens:,} tokens saved")
        if self.open_units:
            said = f"of the units that are not done; {self.waiting:,} answers wait in the log"
            lines.append(f"  begun        {self.open_units:>9,}   {said}")
        if self.holder is not None:
            lines.append(f"  running                  process {self.holder.pid} on {self.holder.host}")
        if self.report is not None:
            lines.append(f"  report       {self.report}")
        for row in self.failed:
            lines += ["", f"  {row['source']}:{row['position']}  {row['error']}  ({row['attempts']} attempts)"]
            lines += [f"    {short(row['message'], 110)}", f"    {short(row['row'] or '', 110)}"]
        if t.failed:
            lines += ["", f"  manta redrive {self.path} asks the failed rows again"]
        return "\n".join(lines)


def inspect_output(path: str, examples: int) -> Inspection:
    """Looks at an output folder.

    Args:
        path: the folder or URI.
        examples: dead letters to show of each class of error.

    Raises:
        UserError: when it holds no job.
    """
    spec = open_spec(path)
    suffix = "parquet" if spec.decides.get("output.format") == "parquet" else "jsonl"
    folder = Folder(root=locate(path, "OUT"), suffix=suffix)
    written = folder.written()
    units = [PurePosixPath(name).stem for name in written if name.startswith("_manta/done/")]
    marks = {unit: mark for unit, mark in read_marks(folder, units).items() if mark.is_whole(folder, written)}
    begun = {PurePosixPath(name).name.split(".")[0] for name in written if name.startswith("_manta/log/")}
    return Inspection(
        path=path,
        spec=spec,
        totals=Totals.of(marks.values()),
        units=len(marks),
        open_units=len(begun - marks.keys()),
        waiting=sum(len(read_history(folder, unit, "").outcomes) for unit in begun - marks.keys()),
        report=folder.report.path if folder.name(folder.report) in written else None,
        holder=live_holder(folder),
        failed=examples_of(folder, marks.values(), examples),
    )


def run(words: list[str]) -> int:
    """Runs the verb.

    Args:
        words: the folder, and options.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: when the folder holds no job.
    """
    parser = argparse.ArgumentParser(
        prog="manta inspect", description="Shows what a job has come to: counts, error classes, failed rows."
    )
    parser.add_argument("output", metavar="OUT", help="the job's output folder or URI")
    parser.add_argument("--examples", type=int, default=2, metavar="N", help="failed rows to show of each class (2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    found = inspect_output(options.output, options.examples)
    print(json.dumps(found.plain(), indent=2, default=str, ensure_ascii=False) if options.json else found.text())
    return 0
