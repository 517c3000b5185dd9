"""`manta redrive OUT`: asks the failed rows of a job again, perhaps otherwise, and merges their answers."""

from __future__ import annotations

import sys
from dataclasses import replace

from conf.entry import compose
from conf.errors import UserError
from conf.saved import words_of
from conf.schema.batch import BatchJob
from pipelines.batch.job import run_plan
from pipelines.batch.monitor import now
from pipelines.batch.plan import Plan, absolute, make_plan
from pipelines.batch.resume import Work, find_work
from pipelines.ledger.folder import Folder
from pipelines.ledger.spec import JobSpec, read_spec
from pipelines.storage import locate

USAGE = """usage: manta redrive OUT [group=option ...] [key=value ...]

Asks the failed rows of the job in OUT again: as before, or with what the words change. Answered rows keep their answer.

examples:
  manta redrive OUT
  manta redrive OUT engine.max_model_len=32768
  manta redrive OUT model=hf model.path=LARGER_MODEL"""
_FIXED = ("data.input", "data.format", "data.limit", "data.id", "output.", "task", "sampling.n", "sampling.logprobs")
"""What a redrive cannot change: which rows there are, and what columns an answer has."""
_UNUSED = ("dry_run", "plan.")
"""What is for `manta plan`, which knows nothing of failed rows."""


def run(words: list[str]) -> int:
    """Runs the verb.

    Args:
        words: the folder, and overrides.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: when there is no such job, or an override would change the rows.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    path, overrides = words[0], words[1:]
    for word in overrides:
        if word.lstrip("+~").startswith(_FIXED):
            raise UserError(f"{word}: a redrive cannot change which rows there are or what an answer's columns are")
        if word.lstrip("+~").startswith(_UNUSED):
            raise UserError(f"{word}: a redrive cannot be planned; manta inspect {path} shows its rows")
    spec = open_spec(path)
    job: BatchJob = compose("batch", *words_of("batch", spec.job, overrides), *overrides)
    job = replace(job, output=replace(job.output, path=path, overwrite=False))
    return run_plan(make_plan(absolute(job), now()), lambda plan: _find_failed(plan, spec))


def open_spec(path: str) -> JobSpec:
    """Reads the job of an output folder.

    Raises:
        UserError: when there is none.
    """
    folder = Folder(root=locate(path, "OUT"), suffix="")
    try:
        spec = read_spec(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: its job cannot be read: {' '.join(str(error).split())[:300]}") from error
    if spec is None:
        raise UserError(f"{path}: no job of manta batch in it (no _manta/spec.json)")
    return spec


def _find_failed(plan: Plan, spec: JobSpec) -> Work:
    return find_work(plan, plan.output, plan.output.written(), spec.unit_rows, is_redrive=True)
