"""Sequences lie side by side, keep their tokens when they move, and give memory back."""

from __future__ import annotations

import mmap
import random
from types import SimpleNamespace
from typing import Any

import pytest

from conf.schema.sampling import SamplingSpec
from serve.engine.errors import RequestRejected
from serve.engine.onnx.cache import KvCache
from serve.engine.onnx.layout import EdgeModel
from serve.engine.onnx.limits import check_request
from serve.engine.onnx.slots import Sequence, Slots
from serve.engine.protocol import Request

EDGE = EdgeModel(file="m", scheme="fp32", layers=2, kv_heads=2, head_dim=64, vocabulary=100, context=64, end_ids=[2])


def make_slots(count: int = 6, budget: int = 400) -> Slots:
    return Slots(cache=KvCache(EDGE, count, EDGE.context, budget), count=count, budget=budget)


def seat(slots: Slots, mark: int, tokens: int, is_read: bool = True) -> Sequence:
    prompt = [1] * (tokens if is_read else tokens + 1)
    request = Request(id=str(mark), token_ids=prompt, sampling=SamplingSpec())
    answer: Any = SimpleNamespace(finish_reason=None)
    sequence = Sequence(request=request, answer=answer, reserved=tokens + 8, length=tokens)
    slots.cache.layers[:, len(slots.held), :, :tokens] = mark
    slots.cache.note(len(slots.held), tokens)
    slots.held.append(sequence)
    return sequence


def check(slots: Slots) -> None:
    for slot, sequence in enumerate(slots):
        held = slots.cache.layers[:, slot, :, : sequence.length]
        assert (held == float(sequence.request.id)).all(), (slot, sequence.request.id)
    assert [s.is_read for s in slots] == sorted((s.is_read for s in slots), reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_those_that_stay_keep_their_tokens(seed: int) -> None:
    draw = random.Random(seed)
    slots, mark = make_slots(), 0
    for _ in range(30):
        while len(slots.held) < slots.count and draw.random() < 0.7:
            if slots.num_read < len(slots.held):
                break  # prompts are read before others sit down
            mark += 1
            seat(slots, mark, draw.randint(1, 60), is_read=draw.random() < 0.8)
        going = {id(sequence) for sequence in slots if draw.random() < 0.4}
        slots.leave(lambda sequence, going=going: id(sequence) in going)
        assert not going & {id(sequence) for sequence in slots}
        check(slots)
        for sequence in slots:  # what was being read has been
            if not sequence.is_read:
                slots.cache.layers[:, slots.held.index(sequence), :, sequence.length] = float(sequence.request.id)
                sequence.length += 1
        check(slots)


def test_a_fork_has_what_was_read() -> None:
    slots = make_slots()
    first = seat(slots, 7, 20)
    others = [Sequence(request=first.request, answer=first.answer, reserved=28) for _ in range(2)]
    slots.fork(first, others)
    assert [sequence.length for sequence in slots] == [20, 20, 20]
    check(slots)


def test_room_is_counted_in_slots_and_in_tokens() -> None:
    slots = make_slots(count=3, budget=100)
    seat(slots, 1, 52)  # reserves 60
    assert slots.has_room(2, 40)
    assert not slots.has_room(2, 41)
    assert not slots.has_room(3, 10)


def test_memory_beyond_the_budget_is_given_back() -> None:
    edge = EdgeModel(
        file="m", scheme="fp32", layers=4, kv_heads=4, head_dim=64, vocabulary=100, context=1024, end_ids=[2]
    )
    cache = KvCache(edge, 8, 1024, budget_tokens=2048)
    for slot in range(8):
        cache.layers[:, slot, :, :1024] = 1.0
        cache.note(slot, 1024)
    before = _resident()
    cache.trim([1024, 100])
    assert (cache.layers[:, 0, :, :1024] == 1).all()
    assert (cache.layers[:, 1, :, :100] == 1).all()
    assert not cache.layers[:, 2:, :, 64:960].any()  # all but the pages at a head's ends
    token_bytes = edge.token_bytes
    assert before - _resident() > 0.8 * 6 * 1024 * token_bytes
    cache.layers[:, 2, :, :8] = 2.0  # what was given back can be written again
    assert (cache.layers[:, 2, :, :8] == 2).all()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize(
    "fields, sampling, error",
    [
        ({"token_ids": []}, {}, "empty_prompt"),
        ({"token_ids": [1] * 64}, {}, "prompt_too_long"),
        ({"token_ids": [100]}, {}, "engine_rejected"),
        ({"token_ids": [-1]}, {}, "engine_rejected"),
        ({"token_ids": [1], "adapter": "a"}, {}, "unknown_adapter"),
        ({"token_ids": [1]}, {"regex": "a"}, "bad_grammar"),
        ({"token_ids": [1]}, {"json_schema": "{}"}, "bad_grammar"),
        ({"token_ids": [1]}, {"n": 7, "temperature": 1.0}, "engine_rejected"),
    ],
)
def test_what_can_never_be_answered_is_the_rows_fault(fields: dict, sampling: dict, error: str) -> None:
    request = Request(**{"id": "x", "sampling": SamplingSpec(**sampling), **fields})
    with pytest.raises(RequestRejected) as caught:
        check_request(request, EDGE, EDGE.context, make_slots())
    assert caught.value.error == error


def test_a_prompt_that_leaves_room_for_one_token_is_taken() -> None:
    request = Request(id="x", sampling=SamplingSpec(), token_ids=[1] * 63)
    check_request(request, EDGE, EDGE.context, make_slots())
