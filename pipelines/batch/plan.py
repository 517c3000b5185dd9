"""Everything that is decided, and every mistake that is found, before Ray and an engine start. Writes nothing."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.connect import decide_device
from conf.errors import UserError, nearest
from conf.schema.batch import BatchJob
from conf.schema.data import DataFormat
from conf.schema.engine import Device, EngineKind
from conf.schema.output import OutputFormat
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import answer_names
from pipelines.batch.grammar import check_grammar, read_json_schema
from pipelines.batch.identify import Identity
from pipelines.batch.prompter import check_urls
from pipelines.batch.source import Source, open_source
from pipelines.batch.template import MessageBuilder, prompt_source
from pipelines.ledger.folder import Folder
from pipelines.storage import Location, locate
from serve.engine.adapters import check_adapters
from serve.engine.arguments import check_engine_arguments
from serve.engine.capability import check_task, is_cross_encoder, labels, overridden
from serve.engine.checkpoint import check_partition, context_tokens, read_model_config
from serve.engine.fingerprint import fingerprint_model
from serve.engine.gguf.limits import check_gguf, check_gguf_sampling
from serve.engine.limits import check_no_grammar
from serve.engine.onnx.limits import check_edge, check_not_edge
from serve.engine.placement import Placement, place

_DECIDE = (
    *("quantization", "kv_cache_dtype", "hf_overrides", "load_format", "tokenizer_mode", "revision", "seed"),
    *("rope_scaling", "convert", "override_generation_config", "pooler_config", "override_pooler_config"),
)
"""vLLM's engine arguments that change the answers; others, such as memory limits, may change between runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A job, looked at."""

    job: BatchJob
    source: Source
    """What is read: the first `data.limit` rows of the input."""
    whole: Source
    """All of the input."""
    output: Folder
    format: OutputFormat
    """Decided: not ``auto``."""
    identity: Identity
    answer_names: list[str]
    labels: list[str]
    """Of task classify, the classes' names."""
    decides: dict[str, Any]
    """What decides the answers; see `JobSpec`."""
    placement: Placement
    device: Device
    seconds: float
    """What looking took."""

    @property
    def again(self) -> str:
        """What goes on with the job where it has stopped: without an output.path each run has a folder of its own."""
        named = "" if self.job.output.path else f" with output.path={self.output.root.path}"
        return f"the same command{named} goes on"


def make_plan(job: BatchJob, now: float | None = None) -> Plan:
    """Checks a job and decides how it runs. Reads files, but touches neither the output, Ray nor an engine.

    Args:
        job: the composed job.
        now: seconds since the epoch, for the name of an output folder that the user did not name.

    Raises:
        UserError: for the first mistake found.
    """
    began = time.monotonic()
    job.data.check(job.task)
    if job.engine.min_replicas < 1:
        raise UserError(f"engine.num_replicas must begin at 1 (0 is for manta serve), got {job.engine.num_replicas}")
    config = read_model_config(job.model)
    if job.engine.kind is EngineKind.onnx:
        check_edge(job.model, job.engine, job.task)
        check_no_grammar("edge", job.sampling)
    elif job.engine.kind is EngineKind.gguf:
        check_gguf(job.model, job.engine, job.task)
        check_gguf_sampling(job.sampling)
    else:
        check_engine_arguments(job.engine.vllm)
        check_not_edge(job.model, job.engine)
    if job.engine.kind is EngineKind.vllm:
        config = dict(overridden(config, job.engine.vllm))
        check_task(config, job.task, job.model.path)
        check_adapters(job.model)
        most = int(job.engine.vllm.get("max_logprobs") or 20)
        if (job.sampling.logprobs or 0) > most:
            raise UserError(
                f"sampling.logprobs must be <= engine.vllm.max_logprobs={most}, got {job.sampling.logprobs}"
            )
    if job.engine.kind is EngineKind.service:
        if job.engine.service.url is None:
            raise UserError("engine=service needs engine.service.url, say engine.service.url=http://127.0.0.1:8000")
        if job.task is Task.score:
            raise UserError("task=score has no use with engine=service: it takes pairs as texts, a job has tokens")
    job = replace(job, sampling=read_json_schema(job.sampling))
    max_model_len = context_tokens(config, job.engine.max_model_len)
    check_partition(config, job.engine.tensor_parallel_size, job.engine.pipeline_parallel_size)
    source = open_source(job.data)
    columns = source.schema.names
    names = answer_names(job.task, job.sampling.n, job.sampling.logprobs is not None)
    if job.data.format is DataFormat.openai_batch:
        names = answer_names(job.task, n=2, has_logprobs=True)  # each line says what it wants
        check_urls(source, job.task)
    else:
        _check_columns(job, columns, names)
        MessageBuilder(job.data, columns)  # finds the templates' mistakes; readers build their own
    fingerprint = fingerprint_model(job.model)
    kind = _output_format(job)
    device = decide_device(job.engine, job.cluster)
    root = _output_root(job, now)
    if job.engine.kind is EngineKind.vllm and job.task is Task.generate:
        check_grammar(job.sampling, job.engine.vllm)  # last: it takes seconds
    suffix = "parquet" if kind is OutputFormat.parquet else "jsonl"
    return Plan(
        job=job,
        source=source.first(job.data.limit),
        whole=source,
        output=Folder(root=root, suffix=suffix),
        format=kind,
        identity=Identity(
            model=job.model,
            model_fingerprint=_engine_fingerprint(job, fingerprint),
            task=job.task,
            data=job.data,
            sampling=job.sampling,
            dedupe=job.batch.dedupe,
            columns=columns,
            max_model_len=max_model_len,
            is_joint=is_cross_encoder(config),
        ),
        answer_names=names,
        labels=labels(config) if job.task is Task.classify else [],
        decides=_decides(job, fingerprint, kind),
        placement=place(job.engine, device),
        device=device,
        seconds=time.monotonic() - began,
    )


def _check_columns(job: BatchJob, columns: list[str], answers: list[str]) -> None:
    for key in ("id", "answer"):
        name = getattr(job.data, key)
        if name is not None and name not in columns:
            hint = f"{nearest(name, columns)} (there are {', '.join(columns)})"
            raise UserError(f"data.{key} names the column '{name}', which the table lacks{hint}")
    for name in columns:
        if name.startswith(c.MARK):
            raise UserError(f"data.input has a column '{name}': names that begin with {c.MARK} are Manta's own")
        if name in {job.output.prefix + ours for ours in (*answers, *c.NAMED.values())}:
            raise UserError(f"data.input has a column '{name}' already; set output.prefix, say output.prefix=manta_")


def _output_root(job: BatchJob, now: float | None) -> Location:
    path = job.output.path or f"out/{job.model.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    root = locate(path, "output.path")
    if root.path in [locate(uri, "data.input").path for uri in job.data.inputs]:
        raise UserError(f"output.path={path} is data.input: answers would lie among what is read; name another folder")
    return root


def _output_format(job: BatchJob) -> OutputFormat:
    is_openai = job.data.format is DataFormat.openai_batch
    if job.output.format is OutputFormat.openai_batch and not is_openai:
        raise UserError("output.format=openai_batch goes with data.format=openai_batch: it answers such requests")
    if job.output.format is OutputFormat.auto:
        return OutputFormat.openai_batch if is_openai else OutputFormat.parquet
    return job.output.format


def _decides(job: BatchJob, fingerprint: str, kind: OutputFormat) -> dict[str, Any]:
    decides: dict[str, Any] = {"task": job.task.value, "model (fingerprint)": fingerprint}
    decides["engine.kind"] = job.engine.kind.value
    if job.data.messages is None and job.data.format is not DataFormat.openai_batch:
        decides["data.prompt"] = prompt_source(job.data)
    for name in ("system", "messages", "document", "adapter", "max_tokens", "apply_chat_template", "id"):
        decides[f"data.{name}"] = getattr(job.data, name)
    if job.task is Task.generate:
        decides |= {f"sampling.{name}": value for name, value in asdict(job.sampling).items()}
    decides |= {f"engine.vllm.{name}": value for name, value in job.engine.vllm.items() if name in _DECIDE}
    return decides | {"output.format": kind.value, "output.prefix": job.output.prefix}


def _engine_fingerprint(job: BatchJob, model: str) -> str:
    """A model's fingerprint, and what of the engine changes its answers: equal keys must mean equal answers."""
    engine = {name: value for name, value in job.engine.vllm.items() if name in _DECIDE}
    if not engine and job.engine.kind is not EngineKind.fake:
        return model  # also of a service: whoever names it vouches that it has this model
    text = json.dumps([model, job.engine.kind.value, engine], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def on_device(plan: Plan, device: Device) -> Plan:
    """Returns the plan for another device: what a cluster has is known only once it is joined."""
    return replace(plan, device=device, placement=place(plan.job.engine, device))


def absolute(job: BatchJob) -> BatchJob:
    """Returns the job with local paths made absolute: workers run in other folders."""

    def path(value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())

    inputs = [uri if "://" in str(uri) else path(str(uri)) for uri in job.data.inputs]
    data = replace(
        job.data,
        input=inputs if isinstance(job.data.input, (list, tuple)) else inputs[0],
        prompt_file=path(job.data.prompt_file),
    )
    return replace(job, model=job.model.absolute(), data=data)
