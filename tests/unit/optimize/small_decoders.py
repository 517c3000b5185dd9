"""Small decoders of each supported kind, and steps to run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.distill import DistillSpec
from conf.schema.prune import PruneSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.step.task import EXAMPLES, StepTask

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def make_decoder(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Writes an untrained decoder in bfloat16, with weights large enough to tell its parts apart."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{KINDS[kind]}Config")(**{**SHAPE, "head_dim": 8, **changes})
    model = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.1) + (weight.ndim == 1))
    folder.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_examples(path: Path, count: int = 24, answers: bool = True) -> Path:
    """Writes rows of different lengths over the small vocabulary; each answer ends with the end token."""
    prompts = [[1, *((3 + row * 7 + at * at) % 45 + 3 for at in range(4 + row % 5))] for row in range(count)]
    ends = [[(row * 5) % 45 + 3, (row * 11) % 45 + 3, 2] if answers else None for row in range(count)]
    pq.write_table(pa.table({"prompt": prompts, "answer": ends}, schema=EXAMPLES), path)
    return path


def prune_task(folder: Path, source: Path, target: str = "pruned", **spec: Any) -> StepTask:
    return _task(folder, source, source, target, StepSpec(kind=StepKind.prune, prune=PruneSpec(**spec)))


def distill_task(folder: Path, source: Path, teacher: Path, target: str = "distilled", **spec: Any) -> StepTask:
    part = DistillSpec(**{"steps": 6, "batch_size": 8, "learning_rate": 3e-3, "log_s": 1e9, **spec})
    return _task(folder, source, teacher, target, StepSpec(kind=StepKind.distill, distill=part))


def _task(folder: Path, source: Path, teacher: Path, target: str, spec: StepSpec) -> StepTask:
    (folder / target).mkdir()
    examples = folder / "examples.parquet"
    if not examples.exists():
        write_examples(examples)
    return StepTask(spec=spec, source=source, teacher=teacher, target=folder / target, examples=examples, seed=3)
