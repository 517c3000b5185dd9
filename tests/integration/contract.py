"""What every engine promises, as checks that run in the engine's own process.

`python contract.py '{"kind": "vllm", ...}'` starts an engine from the fields of an EngineSpec, runs each check and
prints a JSON object: each check's failure or null, and the greedy answers to compare engines by.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import contract_grammar
import contract_samples
from contract_bench import CONTEXT, GREEDY, ROOT, Bench
from contract_forced import (  # noqa: F401 - checks, found by their names
    check_a_given_text_without_room_is_the_rows_fault,
    check_forced_and_drawn_requests_go_together,
    check_forced_tokens_are_as_likely_as_when_they_were_drawn,
)

from conf.schema.engine import Device, EngineKind, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.service import ServiceSpec
from serve.engine.errors import EngineDead
from serve.engine.prompt import load_renderer
from serve.engine.protocol import Completion, Rejection, Request
from serve.engine.start import start_engine


async def check_every_request_has_one_outcome(bench: Bench) -> None:
    requests = [bench.request(index) for index in range(100)]  # more than the engine holds at a time
    outcomes = await bench.ask(*requests)
    assert sorted(o.request_id for o in outcomes) == sorted(r.id for r in requests)
    assert all(isinstance(outcome, Completion) for outcome in outcomes)


async def check_greedy_answers_repeat(bench: Bench) -> None:
    one = {o.request_id: o for o in await bench.ask(*(bench.request(i) for i in range(4)))}
    two = {o.request_id: o for o in await bench.ask(*(bench.request(i) for i in range(4)))}
    assert one == two


async def check_a_seed_repeats(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=16, temperature=1.0, seed=7)
    assert await bench.ask(bench.request(0, sampling)) == await bench.ask(bench.request(0, sampling))


async def check_short_answers_do_not_wait_for_long_ones(bench: Bench) -> None:
    long = bench.request(0, SamplingSpec(max_tokens=200, ignore_eos=True), "long")
    short = bench.request(1, SamplingSpec(max_tokens=1), "short")
    outcomes = await bench.ask(long, short)
    if bench.is_fake:
        return  # it takes no time for either
    assert [o.request_id for o in outcomes] == ["short1", "long0"]


async def check_max_tokens_ends_an_answer(bench: Bench) -> None:
    (outcome,) = await bench.ask(bench.request(0, SamplingSpec(max_tokens=3, ignore_eos=True)))
    assert isinstance(outcome, Completion)
    assert (outcome.completion_tokens, outcome.finish_reason) == (3, "length")
    assert outcome.prompt_tokens == len(bench.prompts[0])


async def check_a_stop_text_ends_an_answer_and_is_no_part_of_it(bench: Bench) -> None:
    (plain,) = await bench.ask(bench.request(0))
    assert isinstance(plain, Completion)
    stop = plain.text[4:7]
    (outcome,) = await bench.ask(bench.request(0, replace(GREEDY, stop=[stop])))
    assert isinstance(outcome, Completion)
    assert outcome.finish_reason == "stop"
    assert outcome.text == plain.text[: plain.text.index(stop)]


async def check_a_bad_request_is_rejected_and_the_others_go_on(bench: Bench) -> None:
    long = Request(id="long", token_ids=[5] * (CONTEXT + 1), sampling=GREEDY)
    outcomes = {o.request_id: o for o in await bench.ask(bench.request(0), long, bench.request(1))}
    rejection = outcomes["long"]
    assert isinstance(rejection, Rejection), rejection
    assert rejection.error == "prompt_too_long", rejection
    assert str(CONTEXT) in rejection.message
    assert isinstance(outcomes["r0"], Completion)
    assert isinstance(outcomes["r1"], Completion)


async def check_streams_share_the_engine(bench: Bench) -> None:
    streams = [bench.ask(*(bench.request(i, name=f"s{s}-") for i in range(20))) for s in range(3)]
    outcomes = await asyncio.gather(*streams)
    assert [len(stream) for stream in outcomes] == [20, 20, 20]
    texts = [
        sorted((o.request_id.split("-")[1], o.text) for o in stream if isinstance(o, Completion)) for stream in outcomes
    ]
    matches = sum(a == b for a, b in zip(texts[0], texts[1], strict=True))
    assert matches >= 18, texts  # batches of another size may turn a floating-point tie


async def check_closing_a_stream_aborts_its_requests(bench: Bench) -> None:
    sampling = SamplingSpec(max_tokens=300, ignore_eos=True)
    stream = bench.engine.generate([bench.request(i, sampling, "cut") for i in range(8)])
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await stream.aclose()  # type: ignore[attr-defined]
    assert bench.engine.stats().running == 0
    began = time.monotonic()
    (outcome,) = await bench.ask(bench.request(0))
    assert isinstance(outcome, Completion)
    assert time.monotonic() - began < 20


async def check_stats_count(bench: Bench) -> None:
    before = replace(bench.engine.stats())
    outcomes = await bench.ask(bench.request(0), Request(id="x", token_ids=[5] * (CONTEXT + 1), sampling=GREEDY))
    after = bench.engine.stats()
    completion = next(o for o in outcomes if isinstance(o, Completion))
    assert after.completions - before.completions == 1
    assert after.rejections - before.rejections == 1
    assert after.completion_tokens - before.completion_tokens == completion.completion_tokens
    assert after.max_model_len == CONTEXT


async def check_a_closed_engine_is_dead(bench: Bench) -> None:
    await bench.engine.health()
    await bench.engine.close()
    await bench.engine.close()
    try:
        await bench.ask(bench.request(0))
    except EngineDead:
        return
    raise AssertionError("it answered after close")


def _checks_in(names: dict[str, Any]) -> dict[str, Any]:
    return {name: check for name, check in names.items() if name.startswith("check_")}


GRAMMAR_CHECKS = _checks_in(vars(contract_grammar))
WITHOUT_GRAMMARS = (EngineKind.fake, EngineKind.onnx, EngineKind.gguf)
"""They have no compiler for them: the fake goes on without, those of the edge reject the row."""
CHECKS = {**_checks_in(vars(contract_samples)), **GRAMMAR_CHECKS, **_checks_in(globals())}  # close is last


async def run_contract(fields: dict, api_key: str | None = None) -> dict:
    """Starts an engine and runs all checks.

    Args:
        fields: of the engine's node.
        api_key: of the service, where that is the engine.
    """
    fields = {**fields, "kind": EngineKind[fields.pop("kind")], "process": EngineProcess[fields.pop("process", "auto")]}
    device = Device[fields.pop("device", "cpu")]
    fields["service"] = ServiceSpec(**fields.get("service", {}))
    model = ModelSpec(path=fields.pop("model", str(ROOT / "demo" / "model")))
    spec = EngineSpec(**{"max_num_seqs": 16, "max_in_flight": 24, "max_model_len": CONTEXT, **fields})
    engine = await start_engine(model, spec, device, CONTEXT, api_key=api_key)
    bench = Bench(engine, load_renderer(model, CONTEXT, None))
    greedy = {
        o.request_id: o.text
        for o in await bench.ask(*(bench.request(i) for i in range(32)))
        if isinstance(o, Completion)
    }
    results: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        if spec.kind in WITHOUT_GRAMMARS and name in GRAMMAR_CHECKS:
            continue
        try:
            await asyncio.wait_for(check(bench), 100)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    return {"checks": results, "greedy": greedy, "start_s": engine.stats().start_s}


if __name__ == "__main__":
    print("CONTRACT " + json.dumps(asyncio.run(run_contract(json.loads(sys.argv[1])))), flush=True)
