r"""One row for each recipe: made by manta optimize, measured by manta evaluate, put side by side by manta compare.

    python scripts/bench_optimize.py --out docs/benchmarks/optimization
    python scripts/bench_optimize.py --model demo --recipes w8a8 w4a16 --rows 300 --work out/optimize --out /tmp/table
    python scripts/bench_optimize.py --model out/teacher --steps 200 --work out/large --out /tmp/large

Steps learn and calibrate on tickets of the training pool; all models are asked the same held-out tickets. Results and
cards lie below --work, and what is there and still holds is not made again: a run that broke goes on. --out gets the
cards (.json) and quality against speed (.html, where any has a speed); the table is printed. --no-runs measures quality
alone, on a machine that others use.
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
    course: str | None = None
    """The key below which it says how it trains."""
    steps: int = 0
    """Of the training, of `BATCH` rows each."""

    def words_for(self, steps: int | None) -> tuple[str, ...]:
        """Returns its words, with another number of steps where one is given."""
        if self.course is None:
            return self.words
        count = steps or self.steps
        rows = min(TRAINING_ROWS, BATCH * count)
        return (*self.words, f"{self.course}.steps={count}", f"examples.rows={rows}")


DISTILL, QAT = "recipe.steps.distill.distill", "recipe.steps.quantize.quantize.qat"
BATCH = 32
CASES = {
    case.recipe: case
    for case in (
        Case(recipe="w8a8"),
        Case(recipe="w8a8_static", words=("examples.rows=128",)),
        Case(recipe="w4a16", words=("examples.rows=128",)),
        Case(recipe="w4a16_awq", words=("examples.rows=32",)),
        Case(recipe="qat_w4", course=QAT, steps=50),
        Case(recipe="magnitude"),
        Case(recipe="wanda", words=("examples.rows=256",)),
        Case(recipe="sparse_2of4", words=("examples.rows=256",)),
        Case(recipe="sparse_2of4_distill", course=DISTILL, steps=150),
        Case(recipe="magnitude_distill", course=DISTILL, steps=150),
        Case(recipe="depth", words=("examples.rows=256",)),
        Case(recipe="width_distill", course=DISTILL, steps=400),
        Case(recipe="prune_distill_int8", course=DISTILL, steps=400),
        Case(recipe="gguf", engine=("engine=gguf", "quality.parent_kind=vllm")),
        Case(recipe="gguf_int4", engine=("engine=gguf", "quality.parent_kind=vllm")),
        Case(recipe="onnx_int8", engine=("engine=edge", "quality.parent_kind=vllm")),
        # emulated on a CPU, and there hundreds of times slower
        Case(recipe="fp8"),
    )
}


LATER = ("fp8", "gguf", "gguf_int4")
"""Those that are asked for by name: hundreds of times slower on a CPU, or an extra."""


def run(case: Case, args: argparse.Namespace, rows: Path) -> float | None:
    """Makes a model and its card, where they are not there yet.

    Returns:
        Seconds of manta optimize; none where the model was there.
    """
    out = args.work / case.recipe
    before, began = _key(out), time.monotonic()
    data = ("data=tickets", f"data.input={rows}")
    store = f"output.store={args.work / 'steps'}"
    manta(
        "optimize", f"model={args.model}", f"recipe={case.recipe}", f"output.path={out}", store, *data,
        *case.words_for(args.steps), "output.register=false",
    )  # fmt: skip
    took = round(time.monotonic() - began, 1)
    evaluate(out, args, f"parent={args.model}", *case.engine)
    return took if _key(out) != before else None


def _key(folder: Path) -> str | None:
    """What decides the result that lies in a folder; none where none does."""
    record = folder / "artifact.json"
    return json.loads(record.read_text())["key"] if record.exists() else None


def evaluate(folder: Path | str, args: argparse.Namespace, *words: str) -> None:
    """Measures a model, where it has no card yet."""
    out = args.work / "cards" / Path(folder).name
    if not is_measured(out / "card.json", folder, args.rows):
        where = f"model={folder}" if isinstance(folder, str) else f"model.path={folder}"
        measured = (f"data.limit={args.rows}", f"speed.runs={args.runs}", f"output.path={out}")
        asked = () if args.rows <= demo_tickets.DEMO_ROWS else (f"data.input={held_out(args)}",)
        manta("evaluate", where, "data=tickets", *asked, *measured, *words)


def is_measured(card: Path, folder: Path | str, rows: int) -> bool:
    """Whether a card is there, of so many rows and of what lies in the folder now, which other steps may have made."""
    if not card.exists():
        return False
    measured = json.loads(card.read_text())
    made = measured if isinstance(folder, str) else json.loads((folder / "artifact.json").read_text())
    return measured["fingerprint"] == made["fingerprint"] and measured["data"]["asked"] == rows


def training_rows(work: Path) -> Path:
    """Returns a file of tickets of the training pool, which lies below ``work``."""
    path = work / "training.jsonl"
    if not path.exists():
        path.write_text(demo_tickets.rows_to_jsonl(demo_tickets.make_rows(TRAINING_ROWS, TRAINING_SEED, "train")))
    return path


def held_out(args: argparse.Namespace) -> Path:
    """Returns a file of more held-out tickets than are shipped: those, and what the same seed goes on with."""
    path = args.work / f"held-{args.rows}.jsonl"
    if not path.exists():
        path.write_text(demo_tickets.rows_to_jsonl(demo_tickets.make_rows(args.rows)))
    return path


def manta(*words: str) -> str:
    """Runs a verb and returns what it printed.

    Raises:
        RuntimeError: when it fails.
    """
    path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    print("manta", *words, file=sys.stderr, flush=True)
    line = [sys.executable, "-m", "conf.cli", *words]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"manta {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def write(args: argparse.Namespace, names: list[str], seconds: dict[str, float]) -> None:
    """Writes the table of all cards so far."""
    cards = {name: args.work / "cards" / name / "card.json" for name in names}
    found = {name: json.loads(path.read_text()) for name, path in cards.items() if path.exists()}
    has_speed = any(card["speed"] for card in found.values())
    plot = [f"--plot={args.out.with_suffix('.html')}"] if has_speed else []
    print(manta("compare", *(str(cards[name]) for name in found), *plot), flush=True)
    said = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "optimize_s": seconds,
        "cards": {name: _short(card) for name, card in found.items()},
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
    parser.add_argument("--recipes", nargs="+", default=[name for name in CASES if name not in LATER], choices=CASES)
    parser.add_argument("--rows", type=int, default=600, help="held-out tickets that each model is asked")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement of speed")
    parser.add_argument("--no-runs", dest="runs", action="store_const", const=0, help="measure no speed")
    parser.add_argument("--steps", type=int, help="of what trains, in place of each recipe's own")
    parser.add_argument("--work", type=Path, default=Path("out/optimize"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.absolute()
    rows = training_rows(args.work)
    evaluate(args.model, args)
    told = args.out.with_suffix(".json")
    seconds: dict[str, float] = json.loads(told.read_text())["optimize_s"] if told.exists() else {}
    for name in args.recipes:
        if took := run(CASES[name], args, rows):
            seconds[name] = took
        write(args, [Path(args.model).name, *args.recipes], seconds)


if __name__ == "__main__":
    main()
