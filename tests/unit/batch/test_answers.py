"""Outcomes as columns, and back: what was paid for is read from a part file as it was."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.task import Task
from pipelines.batch.answers import answer_columns, answer_names, former_outcomes
from pipelines.batch.commit import json_text
from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Sample, TokenLogprob

QUICK = settings(deadline=None, max_examples=40, database=None, derandomize=True)
REJECTED = Rejection(request_id="", error="e", message="m")
SINGLES = st.floats(width=32, allow_nan=False, allow_infinity=False)
LOGPROBS = st.floats(max_value=0, width=32, allow_nan=False, allow_infinity=False)
TOKENS = st.builds(
    TokenLogprob,
    token=st.text(max_size=3),
    logprob=LOGPROBS,
    top=st.lists(st.tuples(st.text(max_size=3), LOGPROBS), max_size=2).map(tuple),
)


def samples(has_logprobs: bool) -> st.SearchStrategy[Sample]:
    return st.builds(
        Sample,
        text=st.text(max_size=9),
        finish_reason=st.sampled_from(["stop", "length"]),
        completion_tokens=st.integers(0, 99),
        logprobs=st.lists(TOKENS, max_size=3).map(tuple) if has_logprobs else st.none(),
    )


def completions(n: int, has_logprobs: bool) -> st.SearchStrategy[Completion]:
    each = st.lists(samples(has_logprobs), min_size=n, max_size=n).map(tuple)
    return st.builds(Completion, request_id=st.just(""), samples=each, prompt_tokens=st.integers(0, 99))


def pooled(size: int) -> st.SearchStrategy[Pooled]:
    vectors = st.lists(SINGLES, min_size=size, max_size=size).map(lambda v: struct.pack(f"<{size}f", *v))
    return st.builds(Pooled, request_id=st.just(""), vector=vectors, prompt_tokens=st.integers(0, 99))


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(io.BytesIO(buffer.getvalue()))


def through_jsonl(table: pa.Table) -> pa.Table:
    return pa.Table.from_pylist([json.loads(json_text(row)) for row in table.to_pylist()])


THROUGH = pytest.mark.parametrize("through", [through_parquet, through_jsonl])
Through = Callable[[pa.Table], pa.Table]


def back(outcomes: list[Any], task: Task, names: list[str], through: Through, prefix: str = "") -> list[Outcome]:
    columns = answer_columns(outcomes, task, names, labels=["no", "yes"])
    assert list(columns) == names
    table = through(pa.table({"q": ["x"] * len(outcomes), **{prefix + name: array for name, array in columns.items()}}))
    return list(former_outcomes(table, prefix, task))


def total(outcome: Completion) -> Completion:
    """Of several samples only the sum of their tokens is kept: all counts on the first."""
    first, *others = outcome.samples
    others = [replace(sample, completion_tokens=0) for sample in others]
    return replace(outcome, samples=(replace(first, completion_tokens=outcome.completion_tokens), *others))


@THROUGH
@pytest.mark.parametrize("n, has_logprobs", [(1, False), (1, True), (2, False), (3, True)])
@QUICK
@given(data=st.data(), prefix=st.sampled_from(["", "m_"]))
def test_texts_come_back(through: Through, n: int, has_logprobs: bool, data: st.DataObject, prefix: str) -> None:
    wanted = data.draw(st.lists(completions(n, has_logprobs), min_size=1, max_size=3))
    got = back(wanted, Task.generate, answer_names(Task.generate, n, has_logprobs), through, prefix)
    assert [total(outcome) for outcome in got if isinstance(outcome, Completion)] == [total(one) for one in wanted]
    assert [outcome.completion_tokens for outcome in got if isinstance(outcome, Completion)] == [
        one.completion_tokens for one in wanted
    ]


@THROUGH
@pytest.mark.parametrize("task, size", [(Task.embed, 8), (Task.classify, 3), (Task.score, 1)])
@QUICK
@given(data=st.data(), prefix=st.sampled_from(["", "m_"]))
def test_vectors_come_back(through: Through, task: Task, size: int, data: st.DataObject, prefix: str) -> None:
    wanted = data.draw(st.lists(pooled(size), min_size=1, max_size=3))
    assert back(wanted, task, answer_names(task), through, prefix) == wanted


@pytest.mark.parametrize(
    "task, n, has_logprobs, names",
    [
        (Task.generate, 1, False, ["output", "finish_reason", "prompt_tokens", "completion_tokens"]),
        (Task.embed, 1, False, ["embedding", "prompt_tokens"]),
        (Task.classify, 1, False, ["label", "probabilities", "prompt_tokens"]),
        (Task.score, 1, False, ["score", "prompt_tokens"]),
    ],
)
def test_each_task_adds_its_columns(task: Task, n: int, has_logprobs: bool, names: list[str]) -> None:
    assert answer_names(task, n, has_logprobs) == names


def test_several_answers_and_their_logprobs_add_columns() -> None:
    one = answer_names(Task.generate)
    assert answer_names(Task.generate, n=2) == [*one, "outputs", "finish_reasons"]
    assert answer_names(Task.generate, has_logprobs=True) == [*one, "logprobs"]
    assert answer_names(Task.generate, n=2, has_logprobs=True) == [*one, "outputs", "finish_reasons", "logprobs"]


def said(text: str, **fields: Any) -> Completion:
    sample = Sample(text=text, finish_reason="stop", completion_tokens=2, **fields)
    return Completion(request_id="", samples=(sample, replace(sample, text=text + "!")), prompt_tokens=5)


def test_a_rejected_row_has_nulls_and_the_types_stay() -> None:
    token = TokenLogprob(token="a", logprob=-0.5, top=(("a", -0.5),))
    names = answer_names(Task.generate, n=2, has_logprobs=True)
    with_answer = answer_columns([said("a", logprobs=(token,)), REJECTED, None], Task.generate, names)
    without = answer_columns([REJECTED, None], Task.generate, names)
    assert {name: array.type for name, array in without.items()} == {n: a.type for n, a in with_answer.items()}
    for array in with_answer.values():
        assert array.is_valid().to_pylist() == [True, False, False]
    assert with_answer["outputs"].to_pylist()[0] == ["a", "a!"]
    assert with_answer["completion_tokens"].to_pylist()[0] == 4


@pytest.mark.parametrize("task, name", [(Task.embed, "embedding"), (Task.score, "score"), (Task.classify, "label")])
def test_a_rejected_row_has_no_vector(task: Task, name: str) -> None:
    vector = Pooled(request_id="", vector=struct.pack("<f", 0.5), prompt_tokens=5)
    columns = answer_columns([REJECTED, vector, None], task, answer_names(task), labels=["only"])
    for array in columns.values():
        assert array.is_valid().to_pylist() == [False, True, False]
    assert columns[name].to_pylist()[1] == {"embedding": [0.5], "score": 0.5, "label": "only"}[name]


@pytest.mark.parametrize(
    "values, label", [([0.1, 0.7, 0.2], "b"), ([0.2, 0.1, 0.7], "2"), ([0.9, 0.05, 0.05], "a"), ([0.5, 0.5, 0], "a")]
)
def test_a_label_is_the_likeliest_class_by_its_name_or_else_its_number(values: list[float], label: str) -> None:
    vector = Pooled(request_id="", vector=struct.pack("<3f", *values), prompt_tokens=1)
    columns = answer_columns([vector], Task.classify, answer_names(Task.classify), labels=["a", "b"])
    assert columns["label"].to_pylist() == [label]


@THROUGH
def test_what_a_mask_has_ruled_out_stays_ruled_out(through: Through) -> None:
    token = TokenLogprob(token="a", logprob=-math.inf, top=(("b", -math.inf), ("a", 0.0)))
    outcome = said("x", logprobs=(token,))
    (got,) = back([outcome], Task.generate, answer_names(Task.generate, 2, True), through)
    assert got == outcome


@THROUGH
@pytest.mark.parametrize("column, value", [("outputs", ["mine", "too"]), ("logprobs", "mine"), ("finish_reasons", [])])
def test_a_users_own_column_is_not_taken_for_an_answer(through: Through, column: str, value: Any) -> None:
    """A name that this job does not add is the user's to use."""
    outcome = Completion(request_id="", samples=said("ours").samples[:1], prompt_tokens=5)
    columns = answer_columns([outcome], Task.generate, answer_names(Task.generate))
    table = through(pa.table({column: [value], **columns}))
    assert list(former_outcomes(table, "", Task.generate)) == [outcome]


def test_a_users_own_vectors_are_not_taken_for_scores() -> None:
    outcome = Pooled(request_id="", vector=struct.pack("<f", 0.5), prompt_tokens=5)
    columns = answer_columns([outcome], Task.score, answer_names(Task.score))
    table = pa.table({"embedding": [[1.0, 2.0]], **columns})
    assert list(former_outcomes(table, "", Task.score)) == [outcome]
