"""`manta optimize`: a model and a recipe in, a cheaper model out."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.connect import connect, keep_logs
from cluster.terminal import divert_output, scratch_folder
from conf.errors import UserError
from conf.schema.optimize import OptimizeJob
from pipelines.artifact import Artifact, Form, read_artifact
from pipelines.evaluate.size import weight_bytes
from pipelines.optimize.chain import Link, check_parent, find_done, link_steps
from pipelines.optimize.check import check_room, check_steps
from pipelines.optimize.environment import check_site
from pipelines.optimize.examples import Examples, read_examples
from pipelines.optimize.fragment import check_name, register
from pipelines.optimize.step.task import StepFailed, StepTask
from pipelines.optimize.worker import StepDied, is_published, publish, run_step, share_of
from serve.engine.checkpoint import read_model_config
from serve.engine.fingerprint import fingerprint_model


def run(job: OptimizeJob) -> int:
    """Runs what is not done of a recipe; prints progress to stderr and the result to stdout.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for the user's mistake, before anything long.
    """
    job = replace(job, model=job.model.absolute())
    config = _check(job)
    target = Path(job.output.path or Path("out") / job.title).expanduser().absolute()
    store = Path(job.output.store).expanduser().absolute() if job.output.store else target / "_manta" / "steps"
    examples: Examples | None = None
    if any(step.needs_rows for step in job.recipe.steps.values()):
        examples = read_examples(job, config, any(step.needs_answers for step in job.recipe.steps.values()))
    digest = examples.digest if examples is not None else None
    chain = link_steps(job.recipe, fingerprint_model(job.model), digest, job.seed, store)
    _check_target(job, target, chain)
    done = _done_links(chain)
    if job.dry_run:
        print(_listing(chain, done))
        return 0
    try:
        if len(done) < len(chain):
            _run_missing(job, chain, done, examples, store)
    except StepFailed as failure:
        raise UserError(f"recipe.steps.{failure}") from failure
    except StepDied as death:
        print(f"manta optimize: recipe.steps.{death}\nlogs: {store / 'logs'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("manta optimize: stopped; finished steps are kept, the same command goes on", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)
    if not is_published(chain[-1], target):  # a card may lie beside what is
        publish(chain[-1].folder, target)
    print(_summary(job, target, chain, done))
    return 0


def _check(job: OptimizeJob) -> dict[str, Any]:
    """Everything that can be known before rows are read.

    Returns:
        The model's config.json.

    Raises:
        UserError: for the first mistake found.
    """
    job.recipe.check()
    config = read_model_config(job.model)
    if "quantization_config" in config:
        raise UserError(f"model.path={job.model.path}: it is quantized already; a recipe begins with plain weights")
    if job.model.adapters:
        raise UserError("model.adapters has no use with manta optimize: merge an adapter into its model first")
    if job.model.trust_remote_code:
        raise UserError("model.trust_remote_code has no use with manta optimize: steps run no code of a model's folder")
    if job.output.register:
        check_name(job.title)
    for name, step in job.recipe.steps.items():
        check_site(name, step)
        if step.needs_rows and job.data.input is None:
            raise UserError(f"recipe.steps.{name} ({step.kind.value}) needs rows: set data.input, or data=NAME")
    check_steps(job.recipe.steps, config)
    check_room(job.model.path)
    return config


def _check_target(job: OptimizeJob, target: Path, chain: list[Link]) -> None:
    if not target.exists() or job.output.overwrite:
        return
    if not target.is_dir():
        raise UserError(f"output.path={target}: it is a file")
    artifact = read_artifact(target)
    others = [path.name for path in target.iterdir() if path.name != "_manta"]
    if artifact is None and others:
        raise UserError(f"output.path={target}: it holds other files, such as {sorted(others)[0]}")
    if artifact is not None and artifact.key != chain[-1].key:
        raise UserError(
            f"output.path={target}: it holds the result of another recipe, model or input (step {artifact.step},"
            f" key {artifact.key}, not {chain[-1].key}); choose another folder, or set output.overwrite=true"
        )


def _done_links(chain: list[Link]) -> dict[str, Artifact]:
    """What former runs left, by the step's key."""
    found = {link.key: find_done(link) for link in chain}
    return {key: artifact for key, artifact in found.items() if artifact is not None}


def _run_missing(
    job: OptimizeJob, chain: list[Link], done: dict[str, Artifact], examples: Examples | None, store: Path
) -> None:
    store.mkdir(parents=True, exist_ok=True)
    source, teacher = Path(job.model.path), Path(job.model.path)
    with scratch_folder() as scratch, divert_output(store / "driver.log") as terminal:
        rows = store / f"examples-{examples.digest}.parquet" if examples is not None else None
        if examples is not None and rows is not None and not rows.exists():
            examples.write(rows)
        began = time.monotonic()

        def say(line: str) -> None:
            print(f"[{time.monotonic() - began:.0f}s] {line}", file=terminal, flush=True)

        with connect(job.cluster, 2, Path(scratch)) as connection:
            for number, link in enumerate(chain, 1):
                title = f"step {number} of {len(chain)}, {link.name} ({link.spec.kind.value})"
                if link.key in done:
                    say(f"{title}: done before")
                else:
                    say(title)
                    check_parent(chain, number - 1, job.model)
                    share = share_of(link.spec, connection.resources)
                    task = StepTask(
                        spec=link.spec,
                        source=source,
                        teacher=teacher,
                        target=link.folder,
                        examples=rows if link.spec.needs_rows else None,
                        seed=job.seed,
                    )
                    try:
                        artifact = run_step(link, task, job.model.name, share, say)
                    except StepFailed as failure:
                        raise StepFailed(f"{link.name}: {failure}") from failure
                    except StepDied as death:
                        raise StepDied(f"{link.name} ({link.spec.kind.value}) failed: {death}") from death
                    finally:
                        keep_logs(connection.logs, store / "logs")
                    say(f"{title}: {artifact.seconds:.1f} s, {_words(artifact.measured)}")
                source = link.folder


def _listing(chain: list[Link], done: dict[str, Artifact]) -> str:
    lines = []
    for number, link in enumerate(chain, 1):
        state = "done before" if link.key in done else "to be done"
        lines.append(f"{number}. {link.name} ({link.spec.kind.value}): {state}, {link.folder}")
    return "\n".join(lines)


def _summary(job: OptimizeJob, target: Path, chain: list[Link], done: dict[str, Artifact]) -> str:
    last = read_artifact(target)
    assert last is not None
    before, after = weight_bytes(Path(job.model.path)), weight_bytes(target)
    skipped = f" ({len(done)} of them before)" if done else ""
    lines = [
        f"{job.title}: {len(chain)} step{'s' if len(chain) > 1 else ''}{skipped} -> {target}",
        f"weights  {before / 1e6:,.2f} MB -> {after / 1e6:,.2f} MB ({after / before - 1:+.0%})",
        f"{chain[-1].name}  {_words(last.measured)}",
    ]
    name = {Form.onnx: "edge", Form.gguf: "gguf"}.get(last.form)
    engine, parents = (f" engine={name}", " quality.parent_kind=vllm") if name else ("", "")
    if job.output.register:
        path = register(job.title, target)
        lines.append(f"model={job.title}  {path}")
    model = f"model={job.title}" if job.output.register else f"model.path={target}"
    parent = f"parent={job.model.path}"
    lines.append(f"next: manta evaluate {model}{engine} {parent}{parents} data=...")
    lines.append(f"      manta batch {model}{engine} data=...")
    return "\n".join(lines)


def _words(measured: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    shown = {key: value for key, value in measured.items() if not isinstance(value, (dict, list, type(None)))}
    return ", ".join(f"{key} {word(value)}" for key, value in shown.items())
