"""Checks of the contract: how likely a given text is."""

from __future__ import annotations

from dataclasses import replace

from contract_bench import CONTEXT, GREEDY, Bench

from serve.engine.protocol import Completion, Rejection, Request


def forced(bench: Bench, index: int, answer: list[int], top: int) -> Request:
    asked = bench.request(index, name="forced")
    return replace(asked, token_ids=[*asked.token_ids, *answer], forced_from=len(asked.token_ids), forced_top=top)


async def check_forced_tokens_are_as_likely_as_when_they_were_drawn(bench: Bench) -> None:
    if bench.is_fake or not bench.knows_forced:
        return  # to the fake all texts are alike
    sampling = replace(GREEDY, logprobs=3)
    drawn = {o.request_id: o for o in await bench.ask(*(bench.request(i, sampling) for i in range(8)))}
    compared = 0
    for index in range(8):
        first = drawn[f"r{index}"]
        assert isinstance(first, Completion)
        (answer,) = bench.renderer.answers([first.text])
        places = first.samples[0].logprobs or ()
        if first.finish_reason != "stop" or len(answer) != len(places):
            continue  # cut off, or not tokenized as it was drawn
        (outcome,) = await bench.ask(forced(bench, index, answer, 3))
        assert isinstance(outcome, Completion)
        assert outcome.forced is not None
        assert [place.token_id for place in outcome.forced] == answer
        for mine, place in zip(outcome.forced, places, strict=True):
            assert abs(mine.logprob - place.logprob) < 0.05, (mine, place)  # bf16: another batch, other rounding
            assert len(mine.top) == 3
            assert mine.top[0][0] == mine.token_id or mine.top[0][1] >= mine.logprob
            assert [logprob for _, logprob in mine.top] == sorted((lp for _, lp in mine.top), reverse=True)
        compared += 1
    assert compared >= 4


async def check_forced_and_drawn_requests_go_together(bench: Bench) -> None:
    if not bench.knows_forced:
        return
    answer = bench.prompts[9][:5]
    outcomes = await bench.ask(*(forced(bench, i, answer, 0) for i in range(4)), *(bench.request(i) for i in range(4)))
    asked = {outcome.request_id: outcome for outcome in outcomes}
    assert len(asked) == 8
    for index in range(4):
        given, drawn = asked[f"forced{index}"], asked[f"r{index}"]
        assert isinstance(given, Completion)
        assert isinstance(drawn, Completion)
        assert given.forced is not None
        assert [place.token_id for place in given.forced] == answer
        assert all(place.logprob <= 0 for place in given.forced)
        assert given.prompt_tokens == len(bench.prompts[index]) + 5
        assert drawn.forced is None


async def check_a_given_text_without_room_is_the_rows_fault(bench: Bench) -> None:
    if not bench.knows_forced:
        return
    (outcome,) = await bench.ask(forced(bench, 0, [5] * CONTEXT, 0))
    assert isinstance(outcome, Rejection)
    assert outcome.error == "prompt_too_long"
