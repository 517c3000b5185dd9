"""One worker and two on the same rows: `python distill_workers.py FOLDER` prints what each found, and how far apart."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ray
from safetensors.torch import load_file
from small_decoders import distill_task, make_decoder, prune_task

from pipelines.optimize.step import distill, prune


def main(folder: Path) -> None:
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": environment}, log_to_driver=False)
    teacher = make_decoder(folder / "teacher", seed=2)
    pruned = prune_task(folder, teacher)
    prune.run(pruned)
    tasks = {n: distill_task(folder, pruned.target, teacher, f"by{n}", num_workers=n, steps=12) for n in (1, 2)}
    found = {workers: distill.run(task) for workers, task in tasks.items()}
    one, two = (load_file(task.target / "model.safetensors") for task in tasks.values())
    start = load_file(pruned.target / "model.safetensors")
    apart = max((one[name].float() - two[name].float()).abs().max().item() for name in one)
    moved = max((one[name].float() - start[name].float()).abs().max().item() for name in one)
    left = sorted(path.name for path in folder.iterdir())
    print("FOUND " + json.dumps({"found": found, "apart": apart, "moved": moved, "left": left}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
