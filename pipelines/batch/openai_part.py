"""Part files in the shape of OpenAI's batch output, written and read back."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.answers import PREFIX, former_outcomes
from pipelines.batch.openai_request import CHAT
from pipelines.batch.openai_response import chat_body, completion_body, embedding_body, error_line, response_line
from pipelines.ledger.folder import JOINED, Folder
from serve.engine.protocol import Completion, Outcome, Pooled, Sample, TokenLogprob

OUR_FAULTS = frozenset({"engine_killer"})
"""Errors that are no fault of the request: status 500."""
_KEY_DIGITS = 32


def answer_lines(good: pa.Table, model: str, task: Task) -> Iterator[dict[str, Any]]:
    """Yields the lines of answered requests.

    Args:
        good: rows with their answers, on their way.
        model: what the job's model is called.
        task: what was asked.
    """
    created = int(time.time())
    heads = good.select([c.ROW_ID, c.REQUEST_KEY, "custom_id", "url", "body"]).to_pylist()
    for head, outcome in zip(heads, former_outcomes(good, PREFIX, task), strict=True):
        name = f"{head[c.ROW_ID]}-{head[c.REQUEST_KEY]}"  # tells the next run what was paid for
        if isinstance(outcome, Completion):
            make = chat_body if head["url"] == CHAT else completion_body
            body = make(
                request_id=name,
                created=created,
                model=model,
                samples=outcome.samples,
                prompt_tokens=outcome.prompt_tokens,
            )
        else:
            assert isinstance(outcome, Pooled)
            form = json.loads(head["body"]).get("encoding_format") or "float"
            vector = pa.Array.from_buffers(pa.float32(), len(outcome.vector) // 4, [None, pa.py_buffer(outcome.vector)])
            body = embedding_body(
                model=model, vector=vector.to_pylist(), prompt_tokens=outcome.prompt_tokens, encoding_format=form
            )
        yield response_line(head["custom_id"], name, body)


def letter_lines(letters: pa.Table, custom_ids: list[str | None]) -> Iterator[dict[str, Any]]:
    """Yields the lines of requests that were not answered; ``letters`` is of `commit.FAILED_SCHEMA`."""
    for letter, custom_id in zip(letters.to_pylist(), custom_ids, strict=True):
        name = f"{letter['row_id']}-{letter['request_key'] or ''}"
        status = 500 if letter["error"] in OUR_FAULTS else 400
        line = error_line(custom_id, name, status, letter["error"], letter["message"])
        yield line | {"manta": {name: letter[name] for name in ("source", "position", "attempts", "row")}}


def read_answer(line: dict[str, Any]) -> tuple[str, str, Outcome]:
    """Reads an answered request's line back.

    Returns:
        Its row id, its request key and the outcome.

    Raises:
        KeyError: when it is no such line; TypeError and ValueError likewise.
    """
    row_id, key = _names(line)
    body = line["response"]["body"]
    usage = body["usage"]
    if "choices" not in body:
        vector = body["data"][0]["embedding"]
        if isinstance(vector, str):
            raise ValueError("base64")  # not worth the bytes: it is computed again
        buffer = pa.array(vector, pa.float32()).buffers()[1]
        data = buffer.to_pybytes()[: 4 * len(vector)] if buffer else b""
        return row_id, key, Pooled(request_id="", vector=data, prompt_tokens=usage["prompt_tokens"])
    share, rest = divmod(usage["completion_tokens"], len(body["choices"]))
    samples = tuple(
        Sample(
            text=choice["text"] if "text" in choice else choice["message"]["content"],
            finish_reason=choice["finish_reason"],
            completion_tokens=share + (rest if index == 0 else 0),
            logprobs=_logprobs(choice["logprobs"]),
        )
        for index, choice in enumerate(body["choices"])
    )
    return row_id, key, Completion(request_id="", samples=samples, prompt_tokens=usage["prompt_tokens"])


def read_letter(line: dict[str, Any]) -> dict[str, Any]:
    """Reads an unanswered request's line back, as a row of `commit.FAILED_SCHEMA`."""
    row_id, key = _names(line)
    error = line["response"]["body"]["error"]
    named = {"row_id": row_id, "request_key": key or None, "error": error["code"], "message": error["message"]}
    return named | line.get("manta", {})


def _names(line: dict[str, Any]) -> tuple[str, str]:
    name = line["response"]["request_id"]
    return (name[: -_KEY_DIGITS - 1], name[-_KEY_DIGITS:]) if not name.endswith("-") else (name[:-1], "")


def _logprobs(plain: dict[str, Any] | None) -> tuple[TokenLogprob, ...] | None:
    if plain is None:
        return None
    if "content" in plain:
        return tuple(
            TokenLogprob(
                token=token["token"],
                logprob=token["logprob"],
                top=tuple((other["token"], other["logprob"]) for other in token["top_logprobs"]),
            )
            for token in plain["content"]
        )
    each = zip(plain["tokens"], plain["token_logprobs"], plain["top_logprobs"], strict=True)
    return tuple(
        TokenLogprob(token=token, logprob=-math.inf if value is None else value, top=tuple(top.items()))
        for token, value, top in each
    )


def join_parts(folder: Folder, units: Iterable[str]) -> None:
    """Writes all answers into OUT/output.jsonl and all errors into OUT/errors.jsonl, in the order of the input.

    Raises:
        OSError: when they cannot be written.
    """
    names = list(units)
    for target, part in zip(JOINED, (folder.answers, folder.failed), strict=True):
        places = [part(unit) for unit in names if part(unit).exists()]
        if not places:
            folder.root.join(target).delete()
            continue
        with ExitStack() as stack:
            stream = stack.enter_context(folder.root.filesystem.open_output_stream(folder.root.join(target).path))
            for place in places:
                stream.write(place.read_bytes())
