"""Wanda and SparseGPT on the demo's model: `python calibrated_pruning.py FOLDER` prints what each measured.

Runs with llmcompressor on PYTHONPATH, whose compressed-tensors is another one than vLLM's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema.prune import Pattern, PruneMethod, PruneSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.step import prune
from pipelines.optimize.step.task import EXAMPLES, StepTask

DEMO = Path(__file__).resolve().parent.parent.parent / "demo" / "model"
CASES = {
    "wanda": PruneSpec(method=PruneMethod.wanda, sparsity=0.6),
    "sparsegpt_free": PruneSpec(method=PruneMethod.sparsegpt, sparsity=0.5),
    "sparsegpt": PruneSpec(method=PruneMethod.sparsegpt, pattern=Pattern.two_of_four),
}


def main(folder: Path) -> None:
    prompts = [[1, 4, *range(300 + 9 * row, 330 + 8 * row), 2, 5] for row in range(8)]
    rows = folder / "rows.parquet"
    pq.write_table(pa.table({"prompt": prompts, "answer": [[7, 2]] * 8}, schema=EXAMPLES), rows)
    found = {}
    for name, spec in CASES.items():
        (folder / name).mkdir()
        step = StepSpec(kind=StepKind.prune, prune=spec)
        found[name] = prune.run(
            StepTask(spec=step, source=DEMO, teacher=DEMO, target=folder / name, examples=rows, seed=0)
        )
    print("PRUNED " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
