"""Plans of small jobs, made without a model that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.schema.batch import BatchJob
from conf.schema.data import DataSpec
from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.output import OutputSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch.plan import Plan, make_plan


def small_plan(folder: Path, **nodes: dict[str, Any]) -> Plan:
    """Plans a job over in.jsonl, into out, four rows to a file, but for what the caller changes: ``output={...}``."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    config = {"max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").write_text("{}")
    return make_plan(
        BatchJob(
            model=ModelSpec(path=str(model)),
            engine=EngineSpec(**{"kind": EngineKind.fake, **nodes.get("engine", {})}),
            data=DataSpec(**{"input": str(folder / "in.jsonl"), "prompt": "{{ q }}", **nodes.get("data", {})}),
            sampling=SamplingSpec(**nodes.get("sampling", {})),
            output=OutputSpec(**{"path": str(folder / "out"), "rows_per_file": 4, **nodes.get("output", {})}),
        )
    )
