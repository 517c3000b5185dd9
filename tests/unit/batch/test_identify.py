"""Who a request is: equal ones have one key, and share one answer where that is what the user wants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.batch import Dedupe
from conf.schema.data import DataSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch import columns as c
from pipelines.batch.identify import (
    Identity,
    identify,
    request_entry,
    request_key,
    request_salt,
    row_sampling,
)
from serve.engine.fingerprint import fingerprint_model

QUICK = settings(deadline=None, max_examples=200, database=None, derandomize=True)
GREEDY, SEEDED, DRAWN = SamplingSpec(), SamplingSpec(temperature=1, seed=7), SamplingSpec(temperature=1)
SALT = request_salt("fingerprint", Task.generate, GREEDY)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5)


def identity(model: Path | None = None, **changes: Any) -> Identity:
    known: dict[str, Any] = {
        "model": ModelSpec(path=str(model)),
        "model_fingerprint": "fingerprint",
        "task": Task.generate,
        "data": DataSpec(input="x", prompt="{{ q }}"),
        "sampling": GREEDY,
        "dedupe": Dedupe.deterministic,
        "columns": ["q"],
        "max_model_len": 64,
    }
    return Identity(**{**known, **changes})


@pytest.mark.parametrize(
    "dedupe, sampling, task, shares",
    [
        (Dedupe.deterministic, GREEDY, Task.generate, True),
        (Dedupe.deterministic, SEEDED, Task.generate, True),
        (Dedupe.deterministic, DRAWN, Task.generate, False),
        (Dedupe.deterministic, DRAWN, Task.embed, True),
        (Dedupe.all, DRAWN, Task.generate, True),
        (Dedupe.off, GREEDY, Task.generate, False),
        (Dedupe.off, GREEDY, Task.embed, False),
    ],
)
def test_equal_requests_share_one_entry_where_their_answers_would_be_equal(
    dedupe: Dedupe, sampling: SamplingSpec, task: Task, shares: bool
) -> None:
    who = identity(dedupe=dedupe, task=task)
    entries = {request_entry("k", who, sampling, position) for position in (1, 2)}
    assert entries == ({"k"} if shares else {"k:1", "k:2"})


@QUICK
@given(one=TOKENS, other=TOKENS)
def test_a_key_is_32_hex_digits_and_changes_with_the_tokens(one: list[int], other: list[int]) -> None:
    key = request_key(SALT, one)
    assert len(bytes.fromhex(key)) == 16
    assert (key == request_key(SALT, other)) == (one == other)


@pytest.mark.parametrize("number", range(8))
def test_a_key_changes_with_everything_that_decides_the_answer(number: int) -> None:
    salts = [
        SALT,
        request_salt("other", Task.generate, GREEDY),
        request_salt("fingerprint", Task.generate, replace(GREEDY, max_tokens=7)),
        request_salt("fingerprint", Task.embed, GREEDY),
    ]
    keys = [request_key(salt, [1, 2, 3]) for salt in salts]
    keys += [request_key(SALT, [1, 2, 3], split) for split in (0, 1)]
    keys += [request_key(SALT, [1, 2, 3], None, adapter) for adapter in ("", "a")]
    assert keys.count(keys[number]) == 1


def test_how_tokens_are_drawn_decides_no_vector() -> None:
    assert request_salt("f", Task.embed, GREEDY) == request_salt("f", Task.embed, DRAWN)


def test_a_rows_own_sampling_changes_what_it_names() -> None:
    assert row_sampling(None, DRAWN) is DRAWN
    assert row_sampling('{"max_tokens": 3}', DRAWN) == replace(DRAWN, max_tokens=3)


def rows(*texts: str | None, error: str | None = None) -> pa.Table:
    table = pa.table({"q": pa.array(texts, pa.string())})
    table = c.with_column(table, c.POSITION, list(range(1, len(texts) + 1)))
    table = c.with_column(table, c.ERROR, [error] * len(texts))
    return c.with_column(table, c.MESSAGE, [error] * len(texts))


def test_equal_prompts_have_equal_keys_and_bad_rows_none(demo_model: Path) -> None:
    table = identify(rows("a b", "a b", "c", None, "  ", "x " * 99), identity(demo_model))
    keys, entries = table.column(c.REQUEST_KEY).to_pylist(), table.column(c.ENTRY).to_pylist()
    assert keys[0] == keys[1] != keys[2]
    assert entries[:3] == keys[:3]
    assert table.column(c.ERROR).to_pylist() == [None] * 3 + ["template_error", "empty_prompt", "prompt_too_long"]
    assert keys[3:] == entries[3:] == table.column(c.TOKENS).to_pylist()[3:] == [None] * 3
    assert all(table.column(c.MESSAGE).to_pylist()[3:])
    assert {name: table.schema.field(name).type for name in (c.TOKENS, c.ENTRY)} == {
        name: c.TYPES[name] for name in (c.TOKENS, c.ENTRY)
    }


def test_drawn_answers_of_equal_prompts_have_entries_of_their_own(demo_model: Path) -> None:
    table = identify(rows("a", "a"), identity(demo_model, sampling=DRAWN))
    (key, same) = table.column(c.REQUEST_KEY).to_pylist()
    assert key == same
    assert table.column(c.ENTRY).to_pylist() == [f"{key}:1", f"{key}:2"]


def test_a_row_that_could_not_be_read_keeps_its_error(demo_model: Path) -> None:
    table = identify(rows("a", error="malformed_line"), identity(demo_model))
    assert table.column(c.ERROR).to_pylist() == ["malformed_line"]
    assert table.column(c.ENTRY).to_pylist() == [None]


def test_a_rows_own_limit_is_part_of_its_request_and_a_bad_one_an_error(demo_model: Path) -> None:
    table = rows("a", "a", "a", "a", "a").append_column("n", pa.array(["3", "3", None, "", "0"]))
    limited = identity(demo_model)
    limited = replace(limited, data=replace(limited.data, max_tokens="n"), columns=["q", "n"])
    table = identify(table, limited)
    keys = table.column(c.REQUEST_KEY).to_pylist()
    assert (keys[0] == keys[1], keys[2] == keys[3], len(set(keys))) == (True, True, 3)
    assert table.column(c.SAMPLING).to_pylist() == ['{"max_tokens": 3}'] * 2 + [None] * 3
    assert table.column(c.ERROR).to_pylist() == [None] * 4 + ["bad_max_tokens"]


@pytest.mark.parametrize("change", ["weights", "tokenizer.json", "config.json", "dtype", "chat_template", "adapter"])
def test_a_models_fingerprint_changes_with_each_of_its_parts(tmp_path: Path, change: str) -> None:
    for folder in ("model", "adapter"):
        (tmp_path / folder).mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors", "notes.md"):
            (tmp_path / folder / name).write_bytes(b"x" * 100)
    (tmp_path / "chat.jinja").write_text("a")
    model = ModelSpec(
        path=str(tmp_path / "model"),
        chat_template=str(tmp_path / "chat.jinja"),
        adapters={"a": str(tmp_path / "adapter")},
    )
    before = fingerprint_model(model)
    (tmp_path / "model" / "notes.md").write_text("other")
    assert fingerprint_model(model) == before
    if change == "dtype":
        model = replace(model, dtype="float16")
    elif change == "chat_template":
        (tmp_path / "chat.jinja").write_text("b")
    else:
        folder = "adapter" if change == "adapter" else "model"
        name = change if change.endswith("json") else "model.safetensors"
        (tmp_path / folder / name).write_bytes(b"y" * 100)
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("place", [0, 5_000_000, 9_999_999])
def test_of_large_weights_both_ends_and_pieces_between_count(tmp_path: Path, place: int) -> None:
    data = bytearray(10_000_000)
    (tmp_path / "model.safetensors").write_bytes(data)
    before = fingerprint_model(ModelSpec(path=str(tmp_path)))
    data[place] = 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert fingerprint_model(ModelSpec(path=str(tmp_path))) != before
