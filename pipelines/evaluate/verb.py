"""`manta evaluate`: asks a model labelled rows in the engine that will serve it, and writes its card."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from cluster.connect import connect, keep_logs
from cluster.terminal import divert_output, scratch_folder
from conf.errors import UserError
from conf.schema.evaluate import EvaluateJob
from pipelines.evaluate.card import NAMES, Card, build_card, write_card
from pipelines.evaluate.conduct import CannotStart, TrialFailed, conduct
from pipelines.evaluate.page import card_page, summary
from pipelines.evaluate.quality import judge
from pipelines.evaluate.trial import Trial, make_trial


def run(job: EvaluateJob) -> int:
    """Measures a model; prints progress to stderr and the summary to stdout.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for the user's mistake, a model that the engine cannot run among them.
    """
    trial = make_trial(job)
    left_out = sum(trial.bad.values())
    _say(sys.stderr, f"{len(trial.model.rows):,} rows asked, {left_out:,} left out")
    try:
        card = _measure(trial)
    except TrialFailed as error:
        print(f"manta evaluate: {error}", file=sys.stderr)
        return 1
    write_card(trial.card, card, card_page(card))
    text = json.dumps(card.content, indent=2, ensure_ascii=False)
    place = job.output.json_file
    if place is not None and place != "-":
        try:
            Path(place).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"output.json_file={place}: cannot be written: {error.strerror}") from error
    print(text if place == "-" else summary(card, [str(trial.card / name) for name in NAMES]))
    return 3 if left_out or card.content["data"]["rejected"] else 0


def _measure(trial: Trial) -> Card:
    """Runs the engines; what they and Ray print goes to a log, which is kept where they fail.

    Raises:
        CannotStart: when an engine cannot run its model.
        TrialFailed: when one dies.
    """
    began = time.monotonic()
    subjects = [subject for subject in (trial.parent, trial.model) if subject is not None]
    num_cpus = int(max(subject.plan.placement.total.get("CPU", 1) for subject in subjects)) + 1
    with scratch_folder() as scratch:
        log = Path(scratch, "driver.log")
        with divert_output(log) as terminal, connect(trial.job.cluster, num_cpus, Path(scratch)) as connection:
            try:
                model, parent, seconds = conduct(trial, connection, lambda text: _say(terminal, text))
            except (CannotStart, TrialFailed) as error:
                kept = Path(tempfile.mkdtemp(prefix="manta-evaluate-"))
                keep_logs(connection.logs, kept)
                shutil.copy(log, kept)
                raise type(error)(f"{error} (logs: {kept})") from None
    rows, quality = trial.model.rows, trial.job.quality
    measured = judge(trial.metrics, rows, model, parent, quality)
    return build_card(trial, measured, model, {**seconds, "all": time.monotonic() - began}, time.time())


def _say(stream: object, text: str) -> None:
    print(f"manta evaluate: {text}", file=stream, flush=True)  # type: ignore[call-overload]
