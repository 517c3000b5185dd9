"""Real engines with models for each task, and with adapters: each in a process of its own.

`python model_cases.py FOLDER DEVICE` makes models in FOLDER, asks each through vLLM, and prints what came as JSON.
The processes are forked after the imports, which take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from contract_bench import ROOT
from model_files import ADAPTERS, QUESTION, TEXTS, make_models, references

from conf.schema.engine import Device, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.prompt import PromptRenderer, load_renderer
from serve.engine.protocol import Completion, Outcome, Pooled, Request
from serve.engine.start import start_engine

CONTEXT = 128
INLINE, SEPARATE = EngineProcess.inline, EngineProcess.separate
Case = Callable[[Path], Coroutine[Any, Any, Any]]


async def run(
    model: ModelSpec, task: Task, process: EngineProcess, ask: Callable[[PromptRenderer], list[Request]]
) -> list[Any]:
    """Starts an engine, asks and gives each outcome as plain data, in the order of asking."""
    spec = EngineSpec(process=process, max_model_len=CONTEXT, max_num_seqs=8, kv_cache_bytes=1 << 30)
    engine = await start_engine(model, spec, Device[sys.argv[2]], CONTEXT, task=task)
    requests = ask(load_renderer(model, CONTEXT, False))
    outcomes = {outcome.request_id: outcome async for outcome in engine.generate(requests)}
    running = engine.stats().running
    await engine.close()
    assert running == 0
    return [plain(outcomes[request.id]) for request in requests]


def plain(outcome: Outcome) -> Any:
    if isinstance(outcome, Pooled):
        return {"vector": array("f", outcome.vector).tolist(), "tokens": outcome.prompt_tokens}
    if isinstance(outcome, Completion):
        places = outcome.samples[0].logprobs or ()
        return {"text": outcome.text, "logprobs": [[place.token, place.logprob] for place in places]}
    return {"error": outcome.error, "message": outcome.message}


def numbered(prompts: list[list[int]]) -> list[Request]:
    return [Request(id=str(i), token_ids=tokens, sampling=SamplingSpec()) for i, tokens in enumerate(prompts)]


def texts(renderer: PromptRenderer) -> list[Request]:
    return numbered([*renderer.tokens(TEXTS), [5] * CONTEXT, [5] * (CONTEXT + 1)])


def pairs(renderer: PromptRenderer, joint: bool) -> list[Request]:
    made = [renderer.pair(QUESTION, text, joint) for text in TEXTS]
    if not joint:
        made.append(([5, 6] + [5] * (CONTEXT + 1), 2))
    return [
        Request(id=str(i), token_ids=tokens, sampling=SamplingSpec(), split=split)
        for i, (tokens, split) in enumerate(made)
    ]


def adapted(renderer: PromptRenderer) -> list[Request]:
    (tokens,) = renderer.tokens([QUESTION])
    sampling = SamplingSpec(max_tokens=8, logprobs=1, ignore_eos=True)
    names = [None, *ADAPTERS, "lost"]
    return [Request(id=str(name), token_ids=tokens, sampling=sampling, adapter=name) for name in names]


def model_of(path: Path, adapters: dict[str, str] | None = None) -> ModelSpec:
    return ModelSpec(path=str(path), dtype="float32", adapters=adapters or {})


def adapters_in(folder: Path) -> dict[str, str]:
    return {name: str(folder / name) for name in ADAPTERS}


DEMO = ROOT / "demo" / "model"
CASES: dict[str, Case] = {
    "embed": lambda _: run(model_of(DEMO), Task.embed, INLINE, texts),
    "classify": lambda folder: run(model_of(folder / "classifier"), Task.classify, INLINE, texts),
    "score_cosine": lambda _: run(model_of(DEMO), Task.score, INLINE, lambda r: pairs(r, False)),
    "score_joint": lambda folder: run(model_of(folder / "ranker"), Task.score, SEPARATE, lambda r: pairs(r, True)),
    "score_types": lambda folder: run(model_of(folder / "bert"), Task.score, INLINE, lambda r: pairs(r, True)),
    "adapters": lambda folder: run(model_of(DEMO, adapters_in(folder)), Task.generate, INLINE, adapted),
    "adapters_separate": lambda folder: run(model_of(DEMO, adapters_in(folder)), Task.generate, SEPARATE, adapted),
    "adapter_broken": lambda folder: run(
        model_of(DEMO, {"broken": str(folder / "broken")}), Task.generate, INLINE, adapted
    ),
    "cannot_classify": lambda _: run(model_of(DEMO), Task.classify, INLINE, texts),
}


def in_own_process(function: Callable[[], Any]) -> Any:
    """Calls a function in a fork and gives its result, or what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = {"result": function()}
        except BaseException:
            result = {"raised": traceback.format_exc()}
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"raised": "the process died"}


def main(folder: Path) -> None:
    os.environ.update({"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})
    import transformers  # noqa: F401
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.llm_engine  # noqa: F401

    results = {"files": in_own_process(lambda: make_models(DEMO, folder))}
    results["references"] = in_own_process(lambda: references(DEMO, folder, CONTEXT))
    for name, case in CASES.items():
        results[name] = in_own_process(lambda case=case: asyncio.run(case(folder)))
    print("CASES " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
