"""Rows for benchmarks: which prompts, how long, and how long their answers are.

All but the tickets are made of token ids: a prompt is its ids as words, which the tokenizer of `bench_models` takes one
to one, so every runner computes exactly the same tokens, whether it takes chats, texts or files. Their answers go on to
their limit, whatever the model says.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.forecast.prefix import BLOCK_TOKENS, best_prefix_hit_rate

FIRST_ID = 16
"""Token ids below are left to special tokens."""
MEAN_IN_TOKENS, MEAN_OUT_TOKENS = 245, 153
"""Of `longtail`: 190 words are about 245 tokens."""
SIGMA = 0.7
"""Of the logarithm of a length: one row in a hundred is four times as long as the mean."""
LONGEST_TOKENS = 1024
TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prompt."""

    id: str
    text: str
    max_tokens: int
    token_ids: tuple[int, ...] = ()
    """What the text is to the model; empty where only its tokenizer knows."""
    answer: str | None = None
    """The expected answer. Null: there is none, and the model is not to stop before `max_tokens`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a workload is made from."""

    num_rows: int
    vocab_size: int
    max_tokens: int | None = None
    """Cuts every answer's limit."""
    trace: Path | None = None
    """Of `prefix`: a trace with lengths and block ids."""
    scale: int = 16
    """Of `prefix`: lengths are divided by it."""
    seed: int = 0


class Unavailable(Exception):
    """A workload whose data is not here."""


def tickets(shape: Shape) -> Iterator[Row]:
    """Yields held-out support tickets with their answers, none twice; 64 tokens at most."""
    from demo_tickets import make_rows

    for row in make_rows(shape.num_rows, seed=77):
        yield Row(id=row["id"], text=row["ticket"], max_tokens=shape.max_tokens or 64, answer=row["answer"])


def uniform(shape: Shape, num_tokens: int = 256) -> Iterator[Row]:
    """Yields rows of one length, 256 tokens, with answers of 128."""
    drawn = random.Random(shape.seed)
    for index in range(shape.num_rows):
        yield _row(index, _tokens(drawn, num_tokens, shape), 128, shape)


def longtail(shape: Shape) -> Iterator[Row]:
    """Yields rows with log-normal lengths: 245 tokens in and 153 out on average, a few of 1,024."""
    drawn = random.Random(shape.seed)
    for index in range(shape.num_rows):
        num_in, num_out = _length(drawn, MEAN_IN_TOKENS), _length(drawn, MEAN_OUT_TOKENS)
        yield _row(index, _tokens(drawn, num_in, shape), num_out, shape)


def duplicates(shape: Shape) -> Iterator[Row]:
    """Yields rows of `longtail` of which every second, in a random order, equals another."""
    distinct = list(longtail(replace(shape, num_rows=math.ceil(shape.num_rows / 2))))
    rows = (distinct + distinct)[: shape.num_rows]
    random.Random(shape.seed + 1).shuffle(rows)
    for index, row in enumerate(rows):
        yield replace(row, id=f"row-{index}")


def prefix(shape: Shape) -> Iterator[Row]:
    """Yields the requests of a trace in its order, scaled down: equal blocks become equal tokens.

    Source: kvcache-ai/Mooncake, FAST25-release/traces: ``input_length``, ``output_length`` and ``hash_ids``, a number
    for each 512 tokens of the prompt, equal where they and all before them are.

    Raises:
        Unavailable: where the trace is absent.
        ValueError: when a scaled block is no multiple of vLLM's, which would change what can be shared.
    """
    if TRACE_BLOCK_TOKENS % (shape.scale * BLOCK_TOKENS):
        raise ValueError(f"--scale must divide {TRACE_BLOCK_TOKENS // BLOCK_TOKENS}, got {shape.scale}")
    if shape.trace is None or not shape.trace.is_file():
        raise Unavailable(f"prefix: the trace {shape.trace} is absent")
    block = TRACE_BLOCK_TOKENS // shape.scale
    with shape.trace.open(encoding="utf-8") as lines:
        for index, line in enumerate(islice(lines, shape.num_rows)):
            request = json.loads(line)
            length = max(1, math.ceil(request["input_length"] / shape.scale))
            ids = request["hash_ids"]
            tokens = [token for number in ids for token in _tokens(random.Random(number), block, shape)][:length]
            yield _row(index, tokens, math.ceil(request["output_length"] / shape.scale), shape)


WORKLOADS: dict[str, Callable[[Shape], Iterator[Row]]] = {
    "tickets": tickets,
    "uniform": uniform,
    "longtail": longtail,
    "duplicates": duplicates,
    "prefix": prefix,
}


def _row(index: int, token_ids: Iterable[int], max_tokens: int, shape: Shape) -> Row:
    ids = tuple(token_ids)
    limit = min(max_tokens, shape.max_tokens or max_tokens)
    return Row(id=f"row-{index}", text=" ".join(map(str, ids)), token_ids=ids, max_tokens=max(limit, 1))


def _tokens(drawn: random.Random, count: int, shape: Shape) -> list[int]:
    return drawn.choices(range(FIRST_ID, shape.vocab_size), k=count)


def _length(drawn: random.Random, mean: float) -> int:
    """A log-normal length of this mean, 4 to 1,024 tokens."""
    length = drawn.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
    return max(4, min(LONGEST_TOKENS, round(length)))


def describe(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what a report says of a workload: counts, lengths in tokens and what prompts share."""
    facts: dict[str, Any] = {"rows": len(rows), "distinct_prompts": len({row.text for row in rows})}
    if rows and rows[0].token_ids:
        lengths = [len(row.token_ids) for row in rows]
        facts |= {"prompt_tokens": sum(lengths), "longest_prompt_tokens": max(lengths)}
        facts["completion_tokens"] = sum(row.max_tokens for row in rows)
        facts["best_prefix_hit_rate"] = round(best_prefix_hit_rate(row.token_ids for row in rows), 4)
    return facts


def context_tokens(rows: Sequence[Row]) -> int:
    """Returns a context that holds every row with its answer: at least 2,048, in steps of 256 tokens."""
    longest = max(len(row.token_ids) + row.max_tokens for row in rows)
    return max(2048, math.ceil(longest / 256) * 256)


def write_rows(rows: Sequence[Row], folder: Path, model: str) -> None:
    """Writes a workload as the runners take it.

    Args:
        rows: the workload.
        folder: gets ``rows.jsonl``, a table, and ``requests.jsonl``, the same as an OpenAI Batch file.
        model: what the requests call the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as table, (folder / "requests.jsonl").open("w") as requests:
        for row in rows:
            columns = {"id": row.id, "text": row.text, "answer": row.answer, "max_tokens": row.max_tokens}
            table.write(json.dumps(columns) + "\n")
            body = {
                "model": model,
                "messages": [{"role": "user", "content": row.text}],
                "max_tokens": row.max_tokens,
                "temperature": 0,
                "ignore_eos": row.answer is None,
            }
            line = {"custom_id": row.id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            requests.write(json.dumps(line) + "\n")
