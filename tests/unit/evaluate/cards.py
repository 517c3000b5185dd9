"""Cards for tests: as `manta evaluate` makes them, of answers that the tests write."""

from __future__ import annotations

from typing import Any

from conf.schema.evaluate import Metric, QualitySpec
from conf.schema.sampling import SamplingSpec
from pipelines.evaluate.card import Card
from pipelines.evaluate.conduct import Findings
from pipelines.evaluate.examiner import Answer
from pipelines.evaluate.quality import Measured, judge
from pipelines.evaluate.rows import Row

SPEC = QualitySpec(bootstrap_samples=200)


def row(expected: str, at: int = 0) -> Row:
    return Row(
        place=("in.jsonl", at),
        tokens=[1, 2],
        sampling=SamplingSpec(),
        adapter=None,
        expected=expected,
        expected_tokens=[3, 4],
    )


def answer(text: str | None) -> Answer:
    return Answer(text=text, error=None if text is not None else "engine_rejected", is_cut=False, tokens=2)


def findings(*texts: str | None, **more: Any) -> Findings:
    return Findings(start={}, answers=[answer(text) for text in texts], **more)


def exact(hits: int, misses: int, parent: int | None = None) -> dict[str, Measured]:
    """Exact match of so many rows; ``parent`` gets so many of the first rows right."""
    rows = [row("yes", at) for at in range(hits + misses)]
    said = ["yes"] * hits + ["no"] * misses
    other = None if parent is None else findings(*(["yes"] * parent + ["no"] * (len(rows) - parent)))
    return judge([Metric.exact], rows, findings(*said), other, SPEC)


def card(name: str, hits: int = 90, misses: int = 10, tokens_per_s: float = 100.0, **changes: Any) -> Card:
    """A card with what tables and plots read."""
    from dataclasses import asdict

    figures = changes.pop("quality", None) or exact(hits, misses)
    pace = {
        "tokens_per_s": {"median": tokens_per_s, "least": 0.9 * tokens_per_s, "most": 1.1 * tokens_per_s},
        "ttft_p50_s": 0.01,
    }
    content: dict[str, Any] = {
        "card": 1,
        "name": name,
        "path": f"/models/{name}",
        "fingerprint": "0" * 16,
        "architecture": "LlamaForCausalLM",
        "made": None,
        "parent": None,
        "data": {
            "input": ["in.jsonl"],
            "key": "data",
            "rows": hits + misses,
            "asked": hits + misses,
            "left_out": {},
            "rejected": 0,
            "cut_off": 0,
            "answer_tokens": 5,
        },
        "sampling": {"temperature": 0.0, "max_tokens": 256},
        "quality": {key: {**asdict(each), "within_parent": each.within_parent} for key, each in figures.items()},
        "not_measured": {},
        "size": {
            "disk_bytes": 7_000_000,
            "parameters": 3_500_000,
            "bits_per_parameter": 16.0,
            "linear_parameters": 3_000_000,
            "linear_bits": 16.0,
            "linear_sparsity": 0.5,
            "two_of_four": 0.9,
        },
        "memory": {"before_bytes": 10**8, "loaded_bytes": 10**9, "resident_bytes": 2 * 10**9, "gpu_bytes": None},
        "start": {"seconds": 9.0, "parts_s": {}},
        "speed": [{"batch": 1, **pace}, {"batch": 64, **pace}],
        "engine": {"kind": "vllm", "max_num_seqs": 64},
        "hardware": {"cpu": "a processor", "cores": 2, "memory": 10**10},
        "speed_key": "machine",
        "versions": {"vllm": "1.0"},
        "intervals": {"level": 0.95, "bootstrap_samples": 200, "seed": 0},
        "top_k": 20,
        "seconds": {"all": 65.0},
        "made_at": "2026-01-01T00:00:00Z",
        "is_fake": False,
    }
    return Card(content={**content, **changes})
