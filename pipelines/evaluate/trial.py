"""Everything that is decided, and every mistake that is found, before Ray and an engine start."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf import entry
from conf.errors import UserError, nearest
from conf.schema.batch import BatchJob, BatchSpec, Dedupe
from conf.schema.data import DataFormat
from conf.schema.engine import EngineKind
from conf.schema.evaluate import FORCED, EvaluateJob, Metric
from conf.schema.model import ModelSpec
from conf.schema.output import OutputSpec
from pipelines.artifact import Artifact, read_artifact
from pipelines.batch.plan import Plan, absolute, make_plan
from pipelines.evaluate.outcome import find_number, read_object
from pipelines.evaluate.rows import Row, Rows, read_rows
from pipelines.evaluate.size import Size, measure_size
from serve.engine.capability import overridden
from serve.engine.checkpoint import read_model_config
from serve.engine.start import knows_forced


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model that is run, with the rows as it reads them."""

    plan: Plan
    rows: list[Row]

    @property
    def model(self) -> ModelSpec:
        """The checkpoint."""
        return self.plan.job.model


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A job, looked at."""

    job: EvaluateJob
    model: Subject
    parent: Subject | None
    metrics: list[Metric]
    skipped: dict[str, str]
    """Metrics that nobody asked for by name and that cannot be measured here, with the reason."""
    bad: Counter[str]
    """Rows that are left out, by class of error."""
    places: list[tuple[str, int]]
    """Of all rows of the input, those left out among them."""
    data_key: str
    """Equal for the same rows, prompts and sampling, whatever the model."""
    size: Size
    artifact: Artifact | None
    config: dict[str, Any]
    """The model's config.json."""
    card: Path
    """The folder for the card."""


def make_trial(job: EvaluateJob) -> Trial:
    """Checks a job and reads its rows.

    Raises:
        UserError: for the first mistake found.
    """
    _check(job)
    plan = make_plan(_batch_job(job, job.model, job.engine.kind))
    config = dict(overridden(read_model_config(plan.job.model), job.engine.vllm))
    folder = Path(plan.job.model.path)
    card = Path(job.output.path).expanduser().absolute() if job.output.path is not None else folder
    check_writable(card, job.output.path is not None)
    parent = None
    if job.parent:
        spec = ModelSpec(path=find_folder(job.parent, "parent"), dtype=job.model.dtype)
        spec.trust_remote_code = job.model.trust_remote_code
        try:
            parent = make_plan(_batch_job(job, spec.absolute(), job.quality.parent_kind or job.engine.kind))
        except UserError as error:
            raise UserError(f"parent={job.parent}: {error}") from None
    artifact = read_artifact(folder)
    size = measure_size(folder, config, artifact.measured if artifact is not None else None)
    found = read_rows(plan)
    other = read_rows(parent) if parent is not None else None
    rows, others, bad = _common(found, other)
    if not rows:
        worst = ", ".join(f"{name} {count:,}" for name, count in bad.most_common(3))
        raise UserError(
            f"data.input={job.data.input}: none of {found.num_rows:,} rows can be asked and judged ({worst})"
        )
    same_tokens = others is not None and all(
        (one.tokens, one.expected_tokens) == (two.tokens, two.expected_tokens)
        for one, two in zip(rows, others, strict=True)
    )
    metrics, skipped = _metrics(job, rows, same_tokens)
    return Trial(
        job=job,
        model=Subject(plan=plan, rows=rows),
        parent=Subject(plan=parent, rows=others or []) if parent is not None else None,
        metrics=metrics,
        skipped=skipped,
        bad=bad,
        places=found.places,
        data_key=found.key,
        size=size,
        artifact=artifact,
        config=config,
        card=card,
    )


def find_folder(text: str, key: str) -> str:
    """Returns the folder of a model: of the one of that name, as model=NAME finds it, else the text itself.

    Raises:
        UserError: when it is neither.
    """
    names = entry.options("model")
    if text in names:
        model = entry.compose_config("evaluate", f"model={text}").model
        if "path" in model:
            return str(model.path)
    if Path(text).expanduser().is_dir():
        return str(Path(text).expanduser().absolute())
    hint = f"{nearest(text, names)} (models are {', '.join(names)})"
    raise UserError(f"{key}={text}: no such folder, and no model of that name{hint}")


def check_writable(folder: Path, is_named: bool) -> None:
    """Checks that the card can be written, before hours of work.

    Raises:
        UserError: when it cannot.
    """
    probe = folder / "card.json.tmp"
    try:
        if is_named:
            folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        advice = "" if is_named else ": set output.path=FOLDER for the card"
        key = "output.path" if is_named else "model.path"
        raise UserError(f"{key}={folder} cannot be written ({error.strerror}){advice}") from error


def _check(job: EvaluateJob) -> None:
    if job.data.format is DataFormat.openai_batch:
        raise UserError("data.format=openai_batch has no expected answers: manta evaluate needs a table")
    if job.data.answer is None:
        raise UserError("data.answer must be set: the column of expected answers")
    if job.sampling.n != 1:
        raise UserError(f"sampling.n must be 1 here, got {job.sampling.n}")
    for key, kind in (("engine.kind", job.engine.kind), ("quality.parent_kind", job.quality.parent_kind)):
        if kind is EngineKind.service:
            raise UserError(f"{key}=service has no use here: size, memory and speed are an engine's own")
    most = int(job.engine.vllm.get("max_logprobs") or 20)
    if job.parent and job.quality.top_k > most:
        raise UserError(f"quality.top_k must be <= engine.vllm.max_logprobs={most}, got {job.quality.top_k}")


def _batch_job(job: EvaluateJob, model: ModelSpec, kind: EngineKind) -> BatchJob:
    """The job that would answer the rows: what it refuses is refused here, and it says how they are read."""
    return absolute(
        BatchJob(
            model=model,
            engine=replace(job.engine, kind=kind, num_replicas="1"),
            sampling=replace(job.sampling, logprobs=None),
            data=job.data,
            output=OutputSpec(prefix="manta_evaluate_"),  # no column of ours is written: any may be in the table
            batch=BatchSpec(dedupe=Dedupe.off),
            cluster=job.cluster,
        )
    )


def _common(found: Rows, other: Rows | None) -> tuple[list[Row], list[Row] | None, Counter[str]]:
    """The rows that model and parent can both be asked, and what is wrong with the others."""
    bad = Counter(found.bad.values())
    if other is None:
        return found.rows, None, bad
    bad += Counter(f"parent: {error}" for place, error in other.bad.items() if place not in found.bad)
    rows = [row for row in found.rows if row.place not in other.bad]
    return rows, [row for row in other.rows if row.place not in found.bad], bad


def _metrics(job: EvaluateJob, rows: list[Row], same_tokens: bool) -> tuple[list[Metric], dict[str, str]]:
    """Decides what is measured.

    Raises:
        UserError: when something that was asked for by name cannot be.
    """
    wanted = job.quality.metrics or [metric for metric in Metric if metric not in _NEED_PARENT or job.parent]
    kinds = (job.engine.kind, job.quality.parent_kind or job.engine.kind)
    reasons: dict[Metric, str] = {}
    objects = sum(read_object(row.expected) is not None for row in rows)
    if objects < len(rows) * (0 if job.quality.metrics else 1) or not objects:
        reasons[Metric.json_fields] = f"{len(rows) - objects:,} of {len(rows):,} expected answers are no JSON object"
    numbers = sum(find_number(row.expected, job.quality) is not None for row in rows)
    marked = sum(job.quality.number_marker in row.expected for row in rows) if job.quality.number_marker else 0
    if not numbers:
        reasons[Metric.number] = "no expected answer has a number"
    elif not job.quality.metrics and marked < len(rows) and not all(_is_number(row.expected) for row in rows):
        reasons[Metric.number] = "expected answers are more than a number"
    for metric in FORCED:
        needed = kinds if metric is Metric.divergence else kinds[:1]
        unable = next((kind for kind in needed if not knows_forced(kind)), None)
        if unable is not None:
            reasons[metric] = f"engine.kind={unable.value} cannot say how likely a given text is"
    if job.parent and not same_tokens:
        reasons.setdefault(Metric.divergence, "model and parent have different tokenizers")
    for metric in job.quality.metrics:
        if metric in reasons:
            raise UserError(f"quality.metrics has {metric.value}, but {reasons[metric]}")
    chosen = [metric for metric in dict.fromkeys(wanted) if metric not in reasons]
    return chosen, {metric.value: reasons[metric] for metric in wanted if metric in reasons}


_NEED_PARENT = (Metric.agreement, Metric.divergence)


def _is_number(text: str) -> bool:
    try:
        return isinstance(json.loads(text.strip().replace(",", "")), (int, float))
    except ValueError:
        return False
