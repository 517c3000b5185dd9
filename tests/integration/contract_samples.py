"""The contract's checks of samples, log-probabilities, adapters and exclusive streams."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from contract_bench import Bench

from conf.schema.sampling import SamplingSpec
from serve.engine.protocol import Completion, Rejection


async def check_each_request_has_as_many_samples_as_asked_for(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=40, temperature=2.0, seed=3, n=3, ignore_eos=True)
    outcomes = await bench.ask(*(bench.request(index, sampling) for index in range(4)), bench.request(4))
    samples = {o.request_id: o.samples for o in outcomes if isinstance(o, Completion)}
    assert {name: len(s) for name, s in samples.items()} == {"r0": 3, "r1": 3, "r2": 3, "r3": 3, "r4": 1}
    several = [samples[f"r{index}"] for index in range(4)]
    assert any(len({sample.text for sample in one}) > 1 for one in several), several
    assert all(sample.completion_tokens == 40 for one in several for sample in one)
    first = next(o for o in outcomes if o.request_id == "r0")
    assert isinstance(first, Completion)
    assert (first.completion_tokens, first.prompt_tokens) == (120, len(bench.prompts[0]))


async def check_closing_a_stream_aborts_all_samples(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=300, temperature=1.0, n=4, ignore_eos=True)
    stream = bench.engine.generate([bench.request(i, sampling, "cut") for i in range(4)])
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await stream.aclose()  # type: ignore[attr-defined]
    (outcome,) = await bench.ask(bench.request(0, SamplingSpec(max_tokens=4)))
    assert isinstance(outcome, Completion)
    before = bench.engine.stats().steps
    await asyncio.sleep(0.2)
    assert bench.engine.stats().steps == before, "it goes on with what was aborted"


async def check_steps_are_a_sign_of_life_before_the_answer(bench: Bench) -> None:
    if bench.is_fake or bench.is_remote:
        return  # it takes none, or they are looks at a service, as often as it is told to
    asked = asyncio.ensure_future(bench.ask(bench.request(0, SamplingSpec(max_tokens=200, ignore_eos=True))))
    seen: set[int] = set()
    while not asked.done():
        seen.add(bench.engine.stats().steps)
        await asyncio.sleep(0.01)
    assert len(seen) > 5, seen


async def check_logprobs_have_a_place_for_each_token(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=24, logprobs=2)
    (outcome,) = await bench.ask(bench.request(0, sampling))
    assert isinstance(outcome, Completion)
    (sample,) = outcome.samples
    assert sample.logprobs is not None
    assert len(sample.logprobs) == sample.completion_tokens
    assert "".join(place.token for place in sample.logprobs).startswith(sample.text)
    for place in sample.logprobs:
        assert place.logprob <= 0
        assert place.top[0] == (place.token, place.logprob)  # greedy
        assert len(place.top) == 2
        assert place.top[0][1] >= place.top[1][1]
    (bare,) = await bench.ask(bench.request(0, replace(sampling, logprobs=0)))
    assert isinstance(bare, Completion)
    assert bare.text == sample.text
    assert bare.samples[0].logprobs is not None
    assert {place.top for place in bare.samples[0].logprobs} == {()}
    (without,) = await bench.ask(bench.request(0, replace(sampling, logprobs=None)))
    assert isinstance(without, Completion)
    assert without.samples[0].logprobs is None


async def check_logprobs_of_an_unlikely_choice_leave_it_out_of_the_likeliest(bench: Bench) -> None:
    if bench.is_fake:
        return  # its choice is always the likeliest
    sampling = SamplingSpec(max_tokens=40, temperature=2.0, seed=1, logprobs=1, ignore_eos=True)
    (outcome,) = await bench.ask(bench.request(0, sampling))
    assert isinstance(outcome, Completion)
    places = outcome.samples[0].logprobs or ()
    assert {len(place.top) for place in places} == {1}
    unlikely = [place for place in places if place.top[0][0] != place.token]
    assert unlikely
    assert all(place.logprob <= place.top[0][1] for place in places)


async def check_an_exclusive_stream_is_alone(bench: Bench) -> None:
    long = SamplingSpec(max_tokens=60, ignore_eos=True)
    seen: list[str] = []
    running: list[int] = []

    async def ask(count: int, name: str, exclusive: bool) -> None:
        requests = [bench.request(index, long, name) for index in range(count)]
        async for outcome in bench.engine.generate(requests, exclusive=exclusive):
            seen.append(outcome.request_id.rstrip("0123456789"))
            if exclusive:
                running.append(bench.engine.stats().running)

    tasks = [asyncio.ensure_future(ask(6, "before", False))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(ask(3, "alone", True)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(ask(6, "after", False)))
    await asyncio.gather(*tasks)
    assert seen == ["before"] * 6 + ["alone"] * 3 + ["after"] * 6, seen
    if not bench.is_fake:
        assert max(running) <= 2, running  # the other ones of the three


async def check_an_unknown_adapter_is_the_rows_fault(bench: Bench) -> None:
    lost = replace(bench.request(0, name="lost"), adapter="lost")
    outcomes = {o.request_id: o for o in await bench.ask(lost, bench.request(1))}
    rejection = outcomes["lost0"]
    assert isinstance(rejection, Rejection)
    assert rejection.error == "unknown_adapter"
    assert isinstance(outcomes["r1"], Completion)
