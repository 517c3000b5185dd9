r"""Says whether an engine's answers stay the model's own, whatever of its steps it captures as CUDA graphs.

    python scripts/check_graphs.py --device cuda --out docs/benchmarks/graphs.json

Models of random weights, one for each width of a head, and the demo's are asked in each of `WAYS`, each time in a
process of its own. Steps hold few tokens (`--step-tokens`), so that most mix prompts with answers and are as small as
those that a graph of decoding steps could be taken for. transformers then says, in float32, how much less likely each
token that the engine chose was than the token that the model itself would have chosen there: nats, 0 but for rounding.
``unmasked`` is what a model says of the same answers when its tokens see those that follow them: what a graph that lost
the mask would cost. Of the demo's model also the share of held-out tickets that were answered right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench_machine import machine
from bench_models import LLAMA, ROOT, SHIPPED
from profile_steps import search_path

from serve.engine.vllm.graphs import SIZES, UNCOMPILED

_SIZES: dict[str, Any] = {"cudagraph_capture_sizes": list(SIZES)}
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "eager": ({"enforce_eager": True}, "0"),
    "compiled": ({"compilation_config": _SIZES}, "0"),
    "uncompiled": ({"compilation_config": _SIZES}, "1"),
    "whole": ({"compilation_config": {"mode": 0, "cudagraph_mode": "FULL", **_SIZES}}, "0"),
}
"""Engine arguments and `UNCOMPILED`: no graphs; graphs of what is between two calls of attention, compiled or not; and
graphs with attention in them."""
WIDTH, LAYERS, VOCABULARY = 1024, 4, 2048
NUM_PROMPTS, NUM_ALONE, NUM_TICKETS, MAX_TOKENS = 96, 4, 400, 32


def make_random(folder: Path, head_dim: int) -> None:
    """Writes a Llama of random weights, whose attention says much of what comes next."""
    import torch
    import transformers

    torch.manual_seed(head_dim)
    heads = WIDTH // head_dim
    config: dict[str, Any] = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type")}
    config |= {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * WIDTH,
        "vocab_size": VOCABULARY,
    }
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": head_dim}
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, initializer_range=0.045))
    model.to(torch.bfloat16).save_pretrained(folder)


def ask(model: str, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the engine's answers, and the share that is right where that is known.

    Args:
        model: a folder; the demo's gets tickets, others random prompts, together and some of them alone.
        way: of `WAYS`.
        args: the command line.
    """
    from vllm import LLM, SamplingParams

    is_demo = model == str(SHIPPED["demo"])
    engine: dict[str, Any] = {"max_num_seqs": 512, "max_num_batched_tokens": args.step_tokens, "max_model_len": 1024}
    if args.device == "cuda":
        engine |= {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.2}
    began = time.time()
    llm = LLM(model, skip_tokenizer_init=not is_demo, enable_prefix_caching=False, **engine, **WAYS[way][0])
    found: dict[str, Any] = {"load_s": time.time() - began}
    if is_demo:
        rows = [json.loads(line) for line in (ROOT / "demo" / "tickets.jsonl").read_text().splitlines()[:NUM_TICKETS]]
        chats: Any = [[{"role": "user", "content": row["ticket"]}] for row in rows]
        outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=160), use_tqdm=False)
        found["right"] = sum(o.outputs[0].text == row["answer"] for o, row in zip(outputs, rows, strict=True)) / len(
            rows
        )
    else:
        drawn = random.Random(7)
        sizes = [drawn.randrange(2, 200) for _ in range(NUM_PROMPTS)]
        prompts: Any = [{"prompt_token_ids": [drawn.randrange(3, VOCABULARY) for _ in range(size)]} for size in sizes]
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for prompt in prompts[:NUM_ALONE]:
            outputs += llm.generate([prompt], params, use_tqdm=False)
    pairs = [(list(o.prompt_token_ids or ()), list(o.outputs[0].token_ids)) for o in outputs]
    return {**found, "answers": pairs}


def loss_of(model: Any, found: dict[str, Any], is_masked: bool) -> float:
    """Returns nats by which the chosen tokens are less likely than the model's own choices, a mean over all."""
    import torch

    losses = []
    for prompt, answer in found["answers"]:
        tokens = torch.tensor([prompt + answer], device=model.device)
        size = tokens.shape[1]
        mask = None if is_masked else torch.zeros((1, 1, size, size), device=model.device)
        with torch.inference_mode():
            logits = model(tokens, attention_mask=mask).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
        losses.append(logits.amax(-1) - chosen)
    return torch.cat(losses).mean().item()


def judge(model: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what a model says of its engine's answers in each way."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    own: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    own.to(device).eval()
    report = {}
    for way, result in found.items():
        loss, unmasked = loss_of(own, result, True), loss_of(own, result, False)
        right = {"right": result["right"]} if "right" in result else {}
        report[way] = {"loss": loss, "unmasked": unmasked, "load_s": result["load_s"], **right}
    return report


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="*", default=[64, 128, 256], help="widths of a head")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--step-tokens", type=int, default=512, help="that a step holds at most")
    parser.add_argument("--beside", type=int, default=4, help="engines at a time")
    parser.add_argument("--alone", nargs=2, metavar=("MODEL", "WAY"), help="one engine, in this process")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    if args.alone:
        model, way = args.alone
        print("RESULT " + json.dumps(ask(model, way, args)), flush=True)
        return 0
    report: dict[str, Any] = {"machine": machine(), "step_tokens": args.step_tokens, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        models = {f"head_{width}": str(Path(folder, str(width))) for width in args.heads}
        for width in args.heads:
            make_random(Path(folder, str(width)), width)
        models = {"demo": str(SHIPPED["demo"])} | models

        def run(model: str, way: str) -> dict[str, Any] | None:
            environment = {**os.environ, "PYTHONPATH": search_path(), UNCOMPILED: WAYS[way][1]}
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            command = [sys.executable, __file__, "--alone", models[model], way, "--device", args.device]
            command += ["--step-tokens", str(args.step_tokens)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                print(f"{model} {way}: FAILED: {done.stderr[-3000:]}", file=sys.stderr, flush=True)
                return None
            return json.loads(line.removeprefix("RESULT "))

        with ThreadPoolExecutor(args.beside) as pool:
            runs = {(model, way): pool.submit(run, model, way) for model in models for way in args.ways}
            for model, path in models.items():
                found = {way: result for way in args.ways if (result := runs[model, way].result())}
                report["models"][model] = judge(path, found)
                for way, figures in report["models"][model].items():
                    print(model, way, {key: round(value, 4) for key, value in figures.items()}, flush=True)
                if args.out:
                    args.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(len(ways) < len(args.ways) for ways in report["models"].values()))


if __name__ == "__main__":
    sys.exit(main())
