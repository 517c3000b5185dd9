"""Streams of vLLM's own bookkeeping, whose interval changes while they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from serve.engine.vllm.interval import BUSY, IDLE, LOOK_S, MOST, StreamInterval, decide

TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[3] / "demo" / "model")


@pytest.mark.parametrize(
    "tokens, busy, then",
    [(1, 0.4, 1), (1, 0.6, 2), (2, 0.6, 4), (MOST, 1.0, MOST), (4, 0.3, 4), (4, 0.1, 2), (1, 0.0, 1)],
)
def test_a_busy_process_says_more_in_an_event_and_an_idle_one_less(tokens: int, busy: float, then: int) -> None:
    assert decide(tokens, busy) == then


def test_what_is_saved_does_not_at_once_lead_back() -> None:
    assert 2 * IDLE < BUSY


@dataclass(slots=True)
class Stage:
    """vLLM's own bookkeeping of requests, fed with tokens by hand."""

    processor: OutputProcessor = field(default_factory=lambda: OutputProcessor(TOKENIZER, log_stats=False))
    queues: dict[str, RequestOutputCollector] = field(default_factory=dict)
    now: float = 0.0
    used: float = 0.0
    interval: StreamInterval = field(init=False)

    def __post_init__(self) -> None:
        states = self.processor.request_states
        self.interval = StreamInterval(states, lambda: self.now, lambda: self.used)
        self.now, self.used = LOOK_S, 100.0  # what the thread took before it had requests
        self.interval.look()

    def ask(self, name: str, **options: Any) -> None:
        sampling = SamplingParams(max_tokens=200, **{"output_kind": RequestOutputKind.DELTA, **options})
        self.queues[name] = RequestOutputCollector(sampling.output_kind, name)
        request = EngineCoreRequest(name, [1, 2], None, sampling, None, 0.0, None, None, None, external_req_id=name)
        self.processor.add_request(request, None, queue=self.queues[name])

    def step(self, tokens: dict[str, int], busy: float | None = None, last: bool = False) -> None:
        """One step of the engine, after a look where a share of a core is given."""
        if busy is not None:
            self.now, self.used = self.now + LOOK_S, self.used + busy * LOOK_S
            self.interval.look()
        reason = FinishReason.LENGTH if last else None
        outputs = [EngineCoreOutput(name, [token], finish_reason=reason) for name, token in tokens.items()]
        self.processor.process_outputs(outputs)

    def heard(self, name: str) -> Any:
        """What a request's stream has to say since it was last asked; none where that is nothing."""
        said = self.queues[name].get_nowait()
        return None if said is None else said.outputs[0]


@pytest.fixture
def ids() -> Iterator[int]:
    return (3 + number % 200 for number in count())


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.lists(st.integers(3, 400), min_size=2, max_size=60),
    shares=st.lists(st.none() | st.sampled_from([0.0, 0.5, 0.9]), min_size=60, max_size=60),
)
def test_a_stream_has_each_token_once_whenever_the_interval_changes(tokens: list[int], shares: list[Any]) -> None:
    thin, plain = Stage(), Stage()
    heard: dict[int, list[Any]] = {0: [], 1: []}
    for stage in (thin, plain):
        stage.ask("a")
    for at, token in enumerate(tokens):
        is_last = at == len(tokens) - 1
        thin.step({"a": token}, shares[at], is_last)
        plain.step({"a": token}, None, is_last)
        for number, stage in enumerate((thin, plain)):
            if (said := stage.heard("a")) is not None:
                heard[number].append(said)
        if at == 0:
            assert len(heard[0]) == 1, "the first token waits for nothing"
    assert [token for said in heard[0] for token in said.token_ids] == tokens
    assert "".join(said.text for said in heard[0]) == "".join(said.text for said in heard[1])
    assert heard[0][-1].finish_reason == "length"


def test_events_get_fewer_while_the_process_is_busy_and_as_many_as_before_once_it_is_not(ids: Iterator[int]) -> None:
    stage = Stage()
    stage.ask("a")

    def events(steps: int, busy: float | None) -> int:
        found = 0
        for _ in range(steps):
            stage.step({"a": next(ids)}, busy)
            found += stage.heard("a") is not None
        return found

    assert events(8, None) == 8
    events(3, 0.95)
    assert stage.interval.tokens == MOST
    assert events(4 * MOST, None) == 4
    events(MOST, 0.1)
    assert stage.interval.tokens == 1
    assert events(8, None) == 8


def test_who_asked_for_an_interval_keeps_it_and_who_wants_the_whole_answer_gets_it(ids: Iterator[int]) -> None:
    stage = Stage()
    stage.ask("own", stream_interval=3)
    stage.ask("whole", output_kind=RequestOutputKind.FINAL_ONLY)
    for _ in range(3):
        stage.step({"own": 5, "whole": 6}, 0.95)
    assert stage.processor.request_states["own"].stream_interval == 3
    assert stage.heard("whole") is None
    stage.step({"own": 5, "whole": 6}, 0.1, last=True)
    assert list(stage.heard("whole").token_ids) == [6, 6, 6, 6]


def test_it_looks_now_and_then() -> None:
    stage = Stage()
    stage.ask("a")
    stage.used += 10.0
    stage.now += LOOK_S / 2
    stage.interval.look()
    assert stage.interval.tokens == 1
    stage.now += LOOK_S / 2
    stage.interval.look()
    assert stage.interval.tokens == 2
