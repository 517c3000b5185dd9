"""Pruned checkpoints in the engine: `python pruned_models.py FOLDER` prints what vLLM and transformers say of each.

The processes are forked after the imports, which take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from contract_bench import ROOT
from model_cases import in_own_process

from conf.schema.engine import Device, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.prune import PruneMethod, PruneSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.step import prune
from pipelines.optimize.step.task import StepTask
from serve.engine.prompt import load_renderer
from serve.engine.protocol import Completion, Request
from serve.engine.start import start_engine

DEMO = ROOT / "demo" / "model"
CASES = {
    "width": {"method": PruneMethod.width, "heads": 0.5, "ffn": 0.5, "hidden": 0.75},
    "depth": {"method": PruneMethod.depth, "layers": 0.75},
}
PROMPTS = [[1, 4, *range(300 + 9 * row, 320 + 9 * row), 2, 5] for row in range(4)]
TOKENS = 12


def make(folder: Path, name: str) -> dict[str, Any]:
    """Prunes the demo's model."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.optimize.step.task import EXAMPLES

    rows = folder / "rows.parquet"
    pq.write_table(pa.table({"prompt": PROMPTS, "answer": [None] * len(PROMPTS)}, schema=EXAMPLES), rows)
    target = folder / name
    target.mkdir()
    spec = StepSpec(kind=StepKind.prune, prune=PruneSpec(**CASES[name]))
    return prune.run(StepTask(spec=spec, source=DEMO, teacher=DEMO, target=target, examples=rows, seed=0))


def reference(folder: Path) -> list[str]:
    """What transformers writes greedily."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        for _ in range(TOKENS):
            with torch.inference_mode():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        texts.append(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True))
    return texts


async def ask(folder: Path) -> list[str]:
    """What vLLM writes greedily."""
    model = ModelSpec(path=str(folder), dtype="float32")
    spec = EngineSpec(process=EngineProcess.inline, max_model_len=64, max_num_seqs=4, kv_cache_bytes=1 << 28)
    engine = await start_engine(model, spec, Device.cpu, 64)
    load_renderer(model, 64, False)
    sampling = SamplingSpec(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    requests = [Request(id=str(at), token_ids=tokens, sampling=sampling) for at, tokens in enumerate(PROMPTS)]
    outcomes = {outcome.request_id: outcome async for outcome in engine.generate(requests)}
    await engine.close()
    texts = []
    for request in requests:
        outcome = outcomes[request.id]
        assert isinstance(outcome, Completion), outcome
        texts.append(outcome.text)
    return texts


def main(folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import vllm.v1.engine.llm_engine  # noqa: F401

    found = {}
    for name in CASES:
        found[name] = {
            "measured": in_own_process(lambda name=name: make(folder, name)),
            "reference": in_own_process(lambda name=name: reference(folder / name)),
            "engine": in_own_process(lambda name=name: asyncio.run(ask(folder / name))),
        }
    print("PRUNED " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
