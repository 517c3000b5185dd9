r"""FP8's quality where no device computes it: its arithmetic in float32, ticket by ticket.

    python scripts/bench_fp8.py --models demo/model out/teacher --out docs/benchmarks/fp8.json

Makes each model by recipe=fp8 and reads back what was saved. Weights are those of the file times their scales; what
goes into each of those layers is rounded to FP8 as vLLM rounds it, a scale for each token. Exact match of greedy
answers (bfloat16), and the KL divergence of the next-token probabilities along the expected answers from the model that
it was made from (float32, a mean of tickets), both on held-out tickets. vLLM emulates FP8 on CPUs too, far slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import demo_teacher
import demo_tickets
import numpy as np
from bench_machine import machine
from bench_optimize import manta
from bench_rounding import Found, divergences, right, tensors

LARGEST = 448.0
"""Of E4M3, torch.float8_e4m3fn."""
LEAST_SCALE = 1 / (LARGEST * 512)


def dense(source: Path, saved: Path) -> Any:
    """Returns a model in float32 with the weights of an FP8 checkpoint."""
    import torch

    from pipelines.optimize.decoder import load_decoder

    held = tensors(saved)
    model = load_decoder(source, torch.float32)
    num_scales = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in held:
                scale = held.get(f"{name}_scale")
                weight.copy_(held[name].float() * (1 if scale is None else scale.float()))
                num_scales += scale is not None
    assert num_scales == 7 * model.config.num_hidden_layers, f"{saved} has {num_scales} scales"
    return model


def rounded(values: Any) -> Any:
    """Returns activations as FP8 holds them, a scale for each token: float [..., width], of the type that came.

    Source: vllm/model_executor/layers/quantization/utils/fp8_utils.py and csrc's dynamic_per_token_scaled_fp8_quant.
    """
    import torch

    scale = (values.float().abs().amax(-1, keepdim=True) / LARGEST).clamp_min(LEAST_SCALE)
    return ((values.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(values.dtype)


def round_inputs(model: Any) -> None:
    """Has a model's linear layers round what goes into them, but for the output embedding's."""
    import torch

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.register_forward_pre_hook(lambda _layer, inputs: (rounded(inputs[0]),))


def ask(source: Path, work: Path, rows: list[dict[str, str]]) -> tuple[Found, Found]:
    """Returns what the tickets say of a model and of its FP8 form, made below ``work``."""
    import torch
    import transformers

    from pipelines.optimize.decoder import load_decoder, save_decoder

    saved, folder = work / "fp8", work / "dense"
    manta("optimize", f"model.path={source}", "recipe=fp8", f"output.path={saved}", "output.register=false")
    model = dense(source, saved)
    round_inputs(model)
    nats = divergences(load_decoder(source, torch.float32), model, source, rows)
    folder.mkdir()
    save_decoder(model, source, folder)  # in bfloat16: it changes the model
    served = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    round_inputs(served)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before, after = demo_teacher.evaluate(source, rows, "cpu"), demo_teacher.score(served, tokenizer, rows)
    plain = Found(is_right=right(before, rows), nats=np.zeros_like(nats), from_teacher=None)
    return plain, Found(is_right=right(after, rows), nats=nats, from_teacher=None)


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--rows", type=int, default=demo_tickets.DEMO_ROWS, help="held-out tickets")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = demo_tickets.make_rows(args.rows)
    said: dict[str, Any] = {"command": " ".join(sys.argv), "machine": machine(), "rows": args.rows}
    for source in args.models:
        with tempfile.TemporaryDirectory(prefix="manta-") as work:
            before, after = ask(source.absolute(), Path(work), rows)
        said[str(source)] = {"model": before.figures(), "fp8": after.figures(), "less_model": after.less(before)}
        print(source, json.dumps(said[str(source)]), flush=True)
        args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
