"""A batch from its lines to its answers, by OpenAI's client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import openai
from openai.types import Batch

PATH = "/v1/completions"


def begin_batch(client: openai.OpenAI, asks: dict[str, dict[str, Any]]) -> Batch:
    lines = [{"custom_id": name, "method": "POST", "url": PATH, "body": body} for name, body in asks.items()]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    source = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=source.id, endpoint=PATH, completion_window="24h")


def until(client: openai.OpenAI, name: str, is_so: Callable[[Batch], bool], timeout_s: float = 240) -> Batch:
    deadline = time.monotonic() + timeout_s
    while not is_so(batch := client.batches.retrieve(name)):
        assert batch.status in ("validating", "in_progress", "finalizing"), batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.5)
    return batch


def assert_answers(client: openai.OpenAI, batch: Batch, asks: dict[str, dict[str, Any]]) -> None:
    """Each line has one answer, and it is one that the model gives."""
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        len(asks),
    ) * 2 + (0,)
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(asks)
    for line in lines:
        body = line["response"]["body"]
        assert line["response"]["status_code"] == 200
        assert 1 <= body["usage"]["completion_tokens"] <= asks[line["custom_id"]]["max_tokens"]


def assert_batch(client: openai.OpenAI, asks: dict[str, dict[str, Any]]) -> None:
    made = begin_batch(client, asks)
    assert_answers(client, until(client, made.id, lambda batch: batch.status == "completed"), asks)
