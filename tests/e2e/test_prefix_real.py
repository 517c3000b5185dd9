"""Rows that share beginnings, with the real engine and a cache that holds a part of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real import manta, record

from conf.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GROUPS, ROWS, HEAD_WORDS = 16, 10, 400
TOKEN_BYTES, CACHE_TOKENS = 4096, 4096
"""Of the demo's model in float32; of its cache, which holds seven prompts, or the beginnings of eight groups."""


@pytest.mark.slow
def test_the_order_of_prefixes_finds_most_of_what_can_be_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = random.Random(5)
    words = ["parcel", "door", "refund", "blue", "late", "box", "order", "shoe", "north", "letter"]
    heads = [" ".join(drawn.choices(words, k=HEAD_WORDS)) for _ in range(GROUPS)]
    texts = [f"{head} {number}" for head in heads for number in range(ROWS)]
    drawn.shuffle(texts)
    table = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": texts}), table)
    common = (
        *("model=demo", "model.dtype=float32", f"data.input={table}", "data.prompt={{ text }}"),
        *("sampling.max_tokens=4", "engine.max_num_seqs=4", "engine.max_model_len=1024"),
        "engine.vllm.block_size=32",
        f"engine.kv_cache_bytes={CACHE_TOKENS * TOKEN_BYTES}",
        # the engine would take all rows as they come; until all are there it gets so many tokens as 16 steps have
        *("engine.max_in_flight=160", "engine.vllm.max_num_batched_tokens=512"),
    )
    assert main(["plan", "engine=cpu", *common, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["input"]["best_prefix_hit_rate"]
    found = {}
    for order in ("input", "prefix"):
        out = tmp_path / order
        done = manta(*common, f"batch.order={order}", f"output.path={out}")
        assert done.returncode == 0, done.stderr
        found[order] = record(out)["prefix_hit_rate"]
    print(f"of at best {best:.3f}: {found}")
    assert found["prefix"] >= 0.9 * best
    assert found["prefix"] >= 1.5 * found["input"]
