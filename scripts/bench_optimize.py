r"""One row for each recipe: made by manta optimize, measured by manta evaluate, put side by side by manta compare.

    python scripts/bench_optimize.py --out docs/benchmarks/optimization
    python scripts/bench_optimize.py --model demo --recipes w8a8 w4a16 --rows 300 --work out/optimize --out /tmp/table

Steps learn and calibrate on tickets of the training pool; all models are asked the same held-out tickets. Results and
cards lie below --work, and what is there is not made again: a run that broke goes on. --out gets the cards (.json) and
quality against speed (.html); the table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_tickets
from bench_machine import machine

ROOT = Path(__file__).resolve().parent.parent
TRAINING_ROWS, TRAINING_SEED = 13_000, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A recipe with what it needs of words."""

    recipe: str
    words: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    """Words of manta evaluate."""


_LEARN = ("examples.rows=12800", "recipe.steps.distill.distill.steps=400")
CASES = {
    case.recipe: case
    for case in (
        Case(recipe="w8a8"),
        Case(recipe="w8a8_static", words=("examples.rows=128",)),
        Case(recipe="w4a16", words=("examples.rows=128",)),
        Case(recipe="w4a16_awq", words=("examples.rows=32",)),
        Case(recipe="qat_w4", words=("examples.rows=1600", "recipe.steps.quantize.quantize.qat.steps=50")),
        Case(recipe="magnitude"),
        Case(recipe="wanda", words=("examples.rows=256",)),
        Case(recipe="sparse_2of4", words=("examples.rows=256",)),
        Case(
            recipe="magnitude_distill",
            words=("examples.rows=4800", "recipe.steps.distill.distill.steps=150"),
        ),
        Case(recipe="depth", words=("examples.rows=256",)),
        Case(recipe="width_distill", words=_LEARN),
        Case(recipe="prune_distill_int8", words=_LEARN),
        Case(recipe="onnx_int8", engine=("engine=edge", "quality.parent_kind=vllm")),
        # emulated on a CPU, and there hundreds of times slower
        Case(recipe="fp8"),
    )
}


def run(case: Case, args: argparse.Namespace, rows: Path) -> float:
    """Makes a model and its card, where they are not there yet.

    Returns:
        Seconds of manta optimize.
    """
    out = args.work / case.recipe
    began = time.monotonic()
    data = ("data=tickets", f"data.input={rows}")
    store = f"output.store={args.work / 'steps'}"
    manta(
        "optimize", f"model={args.model}", f"recipe={case.recipe}", f"output.path={out}", store, *data, *case.words,
        "output.register=false",
    )  # fmt: skip
    took = time.monotonic() - began
    evaluate(out, args, f"parent={args.model}", *case.engine)
    return took


def evaluate(folder: Path | str, args: argparse.Namespace, *words: str) -> None:
    """Measures a model, where it has no card yet."""
    out = args.work / "cards" / Path(folder).name
    if not (out / "card.json").exists():
        where = f"model={folder}" if isinstance(folder, str) else f"model.path={folder}"
        measured = (f"data.limit={args.rows}", f"speed.runs={args.runs}", f"output.path={out}")
        manta("evaluate", where, "data=tickets", *measured, *words)


def manta(*words: str) -> str:
    """Runs a verb and returns what it printed.

    Raises:
        RuntimeError: when it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    print("manta", *words, file=sys.stderr, flush=True)
    line = [sys.executable, "-m", "conf.cli", *words]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"manta {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def write(args: argparse.Namespace, names: list[str], seconds: dict[str, float]) -> None:
    """Writes the table of all cards so far."""
    cards = {name: args.work / "cards" / name / "card.json" for name in names}
    cards = {name: path for name, path in cards.items() if path.exists()}
    table = manta("compare", *map(str, cards.values()), f"--plot={args.out.with_suffix('.html')}")
    print(table, flush=True)
    said = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "optimize_s": seconds,
        "cards": {name: _short(json.loads(path.read_text())) for name, path in cards.items()},
    }
    args.out.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n")


def _short(card: dict[str, Any]) -> dict[str, Any]:
    """A card without the sign of each row, and without this machine's folders."""
    if isinstance(card, dict):
        return {key: _short(value) for key, value in card.items() if key not in ("outcomes", "path", "input")}
    return card


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recipes", nargs="+", default=[name for name in CASES if name != "fp8"], choices=CASES)
    parser.add_argument("--rows", type=int, default=600, help="held-out tickets that each model is asked")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement of speed")
    parser.add_argument("--work", type=Path, default=Path("out/optimize"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.absolute()
    rows = args.work / "training.jsonl"
    if not rows.exists():
        rows.write_text(demo_tickets.rows_to_jsonl(demo_tickets.make_rows(TRAINING_ROWS, TRAINING_SEED, "train")))
    evaluate(args.model, args)
    seconds: dict[str, float] = {}
    for name in args.recipes:
        seconds[name] = round(run(CASES[name], args, rows), 1)
        write(args, [args.model, *args.recipes], seconds)


if __name__ == "__main__":
    main()
