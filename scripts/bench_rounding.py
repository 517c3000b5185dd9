r"""4 bits, rounded or trained: what each way costs a model, ticket by ticket.

    python scripts/bench_rounding.py --model out/student --teacher demo/model --out docs/benchmarks/rounding.json
    python scripts/bench_rounding.py --model demo/model --grids 64 --ways rtn qat --rows 300 --out /tmp/rounding.json

Each way is a step of manta optimize, and what it saved is read back. All are asked the same held-out tickets, in
transformers: exact match of greedy answers (bfloat16), and the KL divergence of the next-token probabilities along the
expected answers from the unrounded model's, and from --teacher's (float32, a mean of tickets). Ways of a grid are
compared by differences of tickets. Ways that train do so on tickets of the training pool.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_teacher
import demo_tickets
import numpy as np
from bench_machine import machine
from bench_optimize import BATCH, TRAINING_ROWS, manta, training_rows

from pipelines.evaluate.interval import bootstrap, paired_difference, wilson
from pipelines.optimize.chain import fingerprint_folder

QUANTIZE = "recipe.steps.quantize.quantize"
SAMPLES = 2000
"""Draws of a bootstrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How weights reach the grid."""

    rounding: str
    rate: float | None = None
    """Of training."""
    by_teacher: bool = False
    """Whether the lesson is that of --teacher, in place of the unrounded model's."""

    def words(self, args: argparse.Namespace) -> tuple[str, ...]:
        """Returns its words of manta optimize."""
        found = [f"{QUANTIZE}.rounding={self.rounding}"]
        if self.rate is None:
            return (*found, "examples.rows=128")
        found += [f"{QUANTIZE}.qat.steps={args.steps}", f"{QUANTIZE}.qat.learning_rate={self.rate}"]
        if self.by_teacher:
            found.append(f"{QUANTIZE}.qat.teacher={args.teacher.absolute()}")
        return (*found, f"examples.rows={min(TRAINING_ROWS, BATCH * args.steps)}")


WAYS = {
    "rtn": Way(rounding="rtn"),
    "gptq": Way(rounding="gptq"),
    "awq": Way(rounding="awq"),
    "qat": Way(rounding="qat", rate=3e-5),
    "qat_1e-4": Way(rounding="qat", rate=1e-4),
    "qat_3e-4": Way(rounding="qat", rate=3e-4),
    "qat_teacher_1e-4": Way(rounding="qat", rate=1e-4, by_teacher=True),
    "qat_teacher_3e-4": Way(rounding="qat", rate=3e-4, by_teacher=True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was asked of a model: an item for each ticket."""

    is_right: np.ndarray
    """bool."""
    nats: np.ndarray
    """float64, of a token of the ticket's answer: KL from the unrounded model."""
    from_teacher: np.ndarray | None
    """The same from --teacher, where there is one."""

    def figures(self) -> dict[str, Any]:
        """Returns the figures with their intervals."""
        exact = wilson(int(self.is_right.sum()), len(self.is_right))
        told = {"exact": _told(exact), "nats": _told(_mean(self.nats))}
        return told | ({} if self.from_teacher is None else {"nats_from_teacher": _told(_mean(self.from_teacher))})

    def less(self, other: Found) -> dict[str, Any]:
        """Returns the differences to another way, on the same tickets: below 0 nats this one is nearer."""
        exact = paired_difference(self.is_right, other.is_right)
        told = {"exact": _told(exact), "nats": _told(_mean(self.nats - other.nats))}
        if self.from_teacher is not None and other.from_teacher is not None:
            told["nats_from_teacher"] = _told(_mean(self.from_teacher - other.from_teacher))
        return told


def _told(interval: Any) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _mean(values: np.ndarray) -> Any:
    sums = np.stack([values, np.ones_like(values)], axis=1)
    return bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], SAMPLES, 0)


def dense(source: Path, saved: Path) -> Any:
    """Returns a model in float32 whose linear layers have the weights that a packed checkpoint holds.

    Args:
        source: the checkpoint that it was made from.
        saved: with 4-bit weights, packed by compressed-tensors.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    from pipelines.optimize.decoder import load_decoder
    from pipelines.tensors import read_tensors

    model = load_decoder(source, torch.float32)
    if saved == source:
        return model
    held = tensors(saved)
    assert set(held) == set(read_tensors(saved))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            layer = name.removesuffix(".weight")
            if f"{layer}.weight_packed" not in held:
                if name in held:
                    weight.copy_(held[name].float())
                continue
            places = unpack_from_int32(held[f"{layer}.weight_packed"], 4, weight.shape).float()
            scale = held[f"{layer}.weight_scale"].float()
            weight.copy_(places * scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1))
    return model


def tensors(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint's files hold, by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def asked_once(saved: Path, args: argparse.Namespace, rows: list[dict[str, str]]) -> Found:
    """Returns what `ask` does; what a model was asked before is kept below --work by its fingerprint."""
    models = [path for path in (args.model, args.teacher, saved) if path is not None]
    kept = args.work / f"asked-{'-'.join(map(fingerprint_folder, models))}-{len(rows)}.npz"
    if not kept.exists():
        found = ask(saved, args, rows)
        from_teacher = np.zeros(0) if found.from_teacher is None else found.from_teacher
        np.savez(kept, is_right=found.is_right, nats=found.nats, from_teacher=from_teacher)
    arrays = np.load(kept)
    from_teacher = arrays["from_teacher"] if len(arrays["from_teacher"]) else None
    return Found(is_right=arrays["is_right"], nats=arrays["nats"], from_teacher=from_teacher)


def ask(saved: Path, args: argparse.Namespace, rows: list[dict[str, str]]) -> Found:
    """Asks a model the tickets.

    Args:
        saved: what a way made of --model, or that itself.
        args: of the command.
        rows: of demo_tickets.make_rows.
    """
    import torch

    from pipelines.optimize.decoder import load_decoder, save_decoder

    source, work = args.model, args.work / "dense"
    model = dense(source, saved)
    nats = divergences(load_decoder(source, torch.float32), model, source, rows)
    teacher = None if args.teacher is None else load_decoder(args.teacher, torch.float32)
    from_teacher = None if teacher is None else divergences(teacher, model, source, rows)
    work.mkdir(parents=True, exist_ok=True)
    save_decoder(model, source, work)
    is_right = right(demo_teacher.evaluate(work, rows, "cpu"), rows)
    return Found(is_right=is_right, nats=nats, from_teacher=from_teacher)


def right(scored: dict[str, Any], rows: list[dict[str, str]]) -> np.ndarray:
    """Returns which tickets were answered rightly, bool [rows]."""
    misses = {row["id"] for row in scored["misses"]}
    return np.array([row["id"] not in misses for row in rows])


def divergences(parent: Any, model: Any, folder: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """Returns KL(parent || model) in nats a token of each ticket's answer, float64 [rows]."""
    import torch
    import transformers

    from pipelines.optimize.distill.lesson import answer_logits
    from pipelines.optimize.padded import pad_rows
    from pipelines.optimize.step.task import Example

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = np.zeros(len(rows))
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        chats = [[{"role": "user", "content": row["ticket"]}] for row in part]
        asked = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        prompts = tokenizer(asked, add_special_tokens=False)["input_ids"]
        answers = tokenizer([row["answer"] + demo_teacher.EOS for row in part], add_special_tokens=False)["input_ids"]
        batch = pad_rows([Example(prompt=p, answer=a) for p, a in zip(prompts, answers, strict=True)])
        with torch.inference_mode():
            theirs, ours = (torch.log_softmax(answer_logits(each, batch).double(), -1) for each in (parent, model))
            each = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
        lengths = [len(answer) for answer in answers]
        found[at : at + len(part)] = [float(piece.mean()) for piece in each.split(lengths)]
    return found


def make(way: Way, name: str, grid: int, args: argparse.Namespace) -> Path:
    """Returns the folder of what a way made; what is there is not made again."""
    out = args.work / f"{grid}-{name}"
    manta(
        "optimize", f"model.path={args.model}", "recipe=w4a16", f"{QUANTIZE}.group_size={grid}", *way.words(args),
        f"output.path={out}", f"output.store={args.work / 'steps'}", "data=tickets",
        f"data.input={training_rows(args.work)}",
        "output.register=false",
    )  # fmt: skip
    return out


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the unrounded model")
    parser.add_argument("--teacher", type=Path, help="folder of the model that it learnt from, for ways that need it")
    parser.add_argument("--grids", type=int, nargs="+", default=[64, -1], help="weights that share a scale; -1: a row")
    parser.add_argument("--ways", nargs="+", default=["rtn", "gptq", "qat"], choices=WAYS)
    parser.add_argument("--rows", type=int, default=demo_tickets.DEMO_ROWS, help="held-out tickets")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--work", type=Path, default=Path("out/rounding"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = demo_tickets.make_rows(args.rows)
    said: dict[str, Any] = {"command": " ".join(sys.argv), "machine": machine(), "rows": args.rows, "steps": args.steps}
    whole = asked_once(args.model, args, rows)
    said["model"] = whole.figures()
    for grid in args.grids:
        found: dict[str, Found] = {}
        for name in args.ways:
            folder = make(WAYS[name], name, grid, args)
            found[name] = asked_once(folder, args, rows)
            record = json.loads((folder / "artifact.json").read_text())
            measured = record["measured"]
            said[f"{name}, {grid}"] = {
                "seconds": record["seconds"],
                "bits": measured["bits"],
                "elsewhere": measured.get("elsewhere"),
                **found[name].figures(),
                "less": {other: found[name].less(found[other]) for other in found if other != name},
                "less_model": found[name].less(whole),
            }
            print(name, grid, json.dumps(said[f"{name}, {grid}"]), flush=True)
            args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
