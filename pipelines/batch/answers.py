"""Outcomes as columns of the answer, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from conf.schema.task import Task
from serve.engine.protocol import Completion, Outcome, Pooled, Sample, TokenLogprob

PREFIX = "__manta_answer."
"""Before an answer's columns on their way; the user's prefix replaces it in the part file."""
_TOP = pa.struct([("token", pa.string()), ("logprob", pa.float32())])
LOGPROBS = pa.list_(pa.struct([("token", pa.string()), ("logprob", pa.float32()), ("top", pa.list_(_TOP))]))


def answer_names(task: Task, n: int = 1, has_logprobs: bool = False) -> list[str]:
    """Returns the names of the columns that a task adds."""
    if task is Task.generate:
        names = ["output", "finish_reason", "prompt_tokens", "completion_tokens"]
        return names + (["outputs", "finish_reasons"] if n > 1 else []) + (["logprobs"] if has_logprobs else [])
    own = {Task.embed: ["embedding"], Task.classify: ["label", "probabilities"], Task.score: ["score"]}
    return [*own[task], "prompt_tokens"]


def answer_columns(
    outcomes: Sequence[Outcome | None], task: Task, names: Sequence[str], labels: Sequence[str] = ()
) -> dict[str, pa.Array]:
    """Returns the columns of an answer, null where there is none.

    Args:
        outcomes: one for each row.
        task: what was asked.
        names: of `answer_names`.
        labels: of task classify, the classes' names.
    """
    done = [outcome if isinstance(outcome, (Completion, Pooled)) else None for outcome in outcomes]
    columns = {"prompt_tokens": pa.array([d.prompt_tokens if d else None for d in done], pa.int32())}
    if task is Task.generate:
        columns |= _generated([d if isinstance(d, Completion) else None for d in done], names)
    else:
        columns |= _pooled([d if isinstance(d, Pooled) else None for d in done], task, labels)
    return {name: columns[name] for name in names}


def _generated(done: list[Completion | None], names: Sequence[str]) -> dict[str, pa.Array]:
    columns = {
        "output": pa.array([d.text if d else None for d in done], pa.string()),
        "finish_reason": pa.array([d.finish_reason if d else None for d in done], pa.string()),
        "completion_tokens": pa.array([d.completion_tokens if d else None for d in done], pa.int32()),
    }
    is_many = "outputs" in names
    if is_many:
        texts = [[s.text for s in d.samples] if d else None for d in done]
        reasons = [[s.finish_reason for s in d.samples] if d else None for d in done]
        columns["outputs"] = pa.array(texts, pa.list_(pa.string()))
        columns["finish_reasons"] = pa.array(reasons, pa.list_(pa.string()))
    if "logprobs" in names:
        tokens = [[_tokens(s) for s in d.samples] if d else None for d in done]
        kind = pa.list_(LOGPROBS) if is_many else LOGPROBS
        columns["logprobs"] = pa.array(tokens if is_many else [t[0] if t else None for t in tokens], kind)
    return columns


def _tokens(sample: Sample) -> list[dict[str, Any]] | None:
    if sample.logprobs is None:
        return None
    return [
        {"token": t.token, "logprob": t.logprob, "top": [{"token": text, "logprob": value} for text, value in t.top]}
        for t in sample.logprobs
    ]


def _pooled(done: list[Pooled | None], task: Task, labels: Sequence[str]) -> dict[str, pa.Array]:
    size = next((len(d.vector) // 4 for d in done if d), 1)
    empty = bytes(4 * size)
    values = pa.Array.from_buffers(
        pa.float32(), len(done) * size, [None, pa.py_buffer(b"".join(d.vector if d else empty for d in done))]
    )
    mask = pa.array([d is None for d in done], pa.bool_())
    if task is Task.score:
        return {"score": values if None not in done else pa.array(_or_null(values, done), pa.float32())}
    vectors = pa.FixedSizeListArray.from_arrays(values, size, mask=mask)
    if task is Task.embed:
        return {"embedding": vectors}
    best = [max(range(size), key=vector.__getitem__) if vector else None for vector in vectors.to_pylist()]
    names = [None if i is None else labels[i] if i < len(labels) else str(i) for i in best]
    return {"label": pa.array(names, pa.string()), "probabilities": vectors}


def _or_null(values: pa.Array, done: list[Pooled | None]) -> list[float | None]:
    return [value if d else None for value, d in zip(values.to_pylist(), done, strict=True)]


def former_outcomes(table: pa.Table, prefix: str, task: Task) -> Iterator[Outcome]:
    """Reads outcomes back from a part file, one for each row.

    Args:
        table: the part file.
        prefix: what the user put before our columns.
        task: what was asked.

    Raises:
        ValueError: when it holds no such answers.
    """
    # the user's own columns stand before ours, and may have a name that another job adds
    first = table.column_names.index(prefix + answer_names(task)[0])
    names = [name for name in table.column_names[first:] if name.startswith(prefix)]
    own = table.select(names).rename_columns([name.removeprefix(prefix) for name in names])
    own = own.select([name for name in own.column_names if name in _READ_BACK])
    if set(own.column_names) == set(answer_names(Task.generate)):  # by far the most: a job of millions of rows goes on
        yield from _plain_completions(own)
        return
    for row in own.to_pylist():
        if task is Task.generate:
            yield _completion(row)
        else:
            value = row.get("embedding") or row.get("probabilities") or [row.get("score")]
            vector = pa.array(value, pa.float32()).buffers()[1]
            data = vector.to_pybytes()[: 4 * len(value)] if vector else b""
            yield Pooled(request_id="", vector=data, prompt_tokens=row["prompt_tokens"])


def _plain_completions(own: pa.Table) -> Iterator[Completion]:
    """Reads completions of one sample without logprobs."""
    columns = (own.column(name).to_pylist() for name in answer_names(Task.generate))
    for text, reason, prompt_tokens, completion_tokens in zip(*columns, strict=True):
        sample = Sample(text=text, finish_reason=reason, completion_tokens=completion_tokens)
        yield Completion(request_id="", samples=(sample,), prompt_tokens=prompt_tokens)


_READ_BACK = frozenset(name for task in Task for name in answer_names(task, n=2, has_logprobs=True) if name != "label")


def _completion(row: dict[str, Any]) -> Completion:
    texts = row.get("outputs") or [row["output"]]
    reasons = row.get("finish_reasons") or [row["finish_reason"]]
    logprobs = row.get("logprobs")
    each: list[Any] = [None] * len(texts)
    if logprobs is not None:
        each = logprobs if "outputs" in row else [logprobs]
    share, rest = divmod(row["completion_tokens"], len(texts))  # only their sum is kept
    samples = tuple(
        Sample(
            text=text,
            finish_reason=reason,
            completion_tokens=share + (rest if index == 0 else 0),
            logprobs=None if tokens is None else tuple(_logprob(token) for token in tokens),
        )
        for index, (text, reason, tokens) in enumerate(zip(texts, reasons, each, strict=True))
    )
    return Completion(request_id="", samples=samples, prompt_tokens=row["prompt_tokens"])


def _logprob(token: dict[str, Any]) -> TokenLogprob:
    top = tuple((other["token"], _number(other["logprob"])) for other in token["top"] or ())
    return TokenLogprob(token=token["token"], logprob=_number(token["logprob"]), top=top)


def _number(logprob: float | None) -> float:
    return -math.inf if logprob is None else logprob  # JSON has no infinity
