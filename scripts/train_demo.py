# SPDX-License-Identifier: Apache-2.0
"""Trains the demo teacher: a small Llama that reads a support ticket and answers with JSON.

Writes a byte-level BPE tokenizer with a chat template and the bfloat16 weights to --out, then scores the saved
checkpoint on the held-out tickets with greedy decoding. See scripts/demo_tickets.py for the data.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import platform
import random
import time
from typing import TYPE_CHECKING, Any

import demo_teacher
import demo_tickets
import numpy as np
import tokenizers

if TYPE_CHECKING:
    import torch

LONG_TOKENS = 2048
BATCHES_A_CHUNK = 4
SYSTEM_MESSAGES = (
    "You read support tickets.", "Answer with JSON.", "You are a helpful assistant.", "Extract the fields as JSON.",
    "Read the ticket and answer with one JSON object with intent, product, priority, customer, order and amount.",
)  # fmt: skip


def encode_chat(tokenizer: tokenizers.Tokenizer, chat: demo_teacher.Chat) -> tuple[list[int], list[bool]]:
    """Encodes a conversation and marks the tokens to learn.

    Args:
        tokenizer: The demo tokenizer.
        chat: Pairs of a role and a text.

    Returns:
        Token ids and, per token, whether it belongs to an assistant's answer (its end token included).
    """
    ids = tokenizer.encode(demo_teacher.render_chat(chat)).ids
    special = {tokenizer.token_to_id(f"<|{role}|>"): role for role in demo_teacher.ROLES}
    end = tokenizer.token_to_id(demo_teacher.EOS)
    learn, answering = [], False
    for token in ids:
        learn.append(answering)
        if token in special:
            answering = special[token] == "assistant"
        elif token == end:
            answering = False
    return ids, learn


def make_chunk(tokenizer: tokenizers.Tokenizer, seed: int, index: int, batch_size: int) -> list[np.ndarray]:
    """Makes the batches of one chunk; they depend on the arguments alone, not on the worker that makes them.

    Args:
        tokenizer: The demo tokenizer.
        seed: Seed of the run.
        index: Number of the chunk.
        batch_size: Conversations a batch.

    Returns:
        BATCHES_A_CHUNK int32 arrays [rows, tokens]; a token to learn is stored as itself, any other as -1 - token.
    """
    rng = random.Random(f"{seed}/chunk/{index}")

    def system() -> demo_teacher.Chat:
        return [("system", rng.choice(SYSTEM_MESSAGES))] if rng.random() < 0.15 else []

    def turns(count: int) -> demo_teacher.Chat:
        rows = [demo_tickets.make_ticket(rng, "train") for _ in range(count)]
        return [message for row in rows for message in zip(("user", "assistant"), row, strict=True)]

    def pack(rows: list[tuple[list[int], list[bool]]]) -> np.ndarray:
        # Few distinct lengths keep the allocator of the device calm.
        width = min(LONG_TOKENS, -(-max(len(ids) for ids, _ in rows) // 32) * 32)
        pad = tokenizer.token_to_id(demo_teacher.PAD)
        assert pad is not None
        batch = np.full((len(rows), width), -1 - pad, dtype=np.int32)
        for i, (ids, learn) in enumerate(rows):
            row = np.where(learn, ids, -1 - np.asarray(ids))[:width]
            batch[i, : len(row)] = row
        return batch

    if index % 6 == 5:
        # Long conversations of many tickets teach that positions up to LONG_TOKENS are nothing special.
        rows = [encode_chat(tokenizer, system() + turns(14)) for _ in range(batch_size // 4)]
        part = max(1, len(rows) // BATCHES_A_CHUNK)
    else:
        rows = []
        for _ in range(batch_size * BATCHES_A_CHUNK):
            count = 2 if rng.random() < 0.05 else 1
            rows.append(encode_chat(tokenizer, system() + turns(count)))
        rows.sort(key=lambda row: len(row[0]))
        part = batch_size
    batches = [pack(rows[i : i + part]) for i in range(0, part * BATCHES_A_CHUNK, part) if rows[i : i + part]]
    rng.shuffle(batches)
    return batches


def _produce(worker: int, workers: int, text: str, seed: int, batch_size: int, queue: Any) -> None:
    """Makes every workers-th chunk for ever; the queue's bound holds it back."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    index = worker
    while True:
        queue.put(make_chunk(tokenizer, seed, index, batch_size))
        index += workers


def batch_loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Computes the mean cross-entropy of the answers' tokens.

    Args:
        model: The teacher.
        batch: int64 [rows, tokens] in the form of make_chunk, on the model's device.

    Returns:
        A float32 scalar.
    """
    import torch

    learn = batch >= 0
    ids = torch.where(learn, batch, -1 - batch)
    # Padding stands on the right and is never learnt, so the causal mask alone is enough.
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[learn[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][learn[:, 1:]])


def train(args: argparse.Namespace, tokenizer: tokenizers.Tokenizer, device: str) -> tuple[Any, float]:
    """Trains the teacher and saves it now and then.

    Args:
        args: Parsed arguments.
        tokenizer: The demo tokenizer.
        device: "cpu" or "cuda".

    Returns:
        The trained model and the seconds that the steps took.
    """
    import torch

    model = demo_teacher.build_model(args.seed, args.hidden_size, args.layers).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    warmup = max(1, min(300, args.steps // 10))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, args.steps - warmup)))

    workers = args.workers or max(1, (os.cpu_count() or 2) - 2)
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue(maxsize=2) for _ in range(workers)]
    common = (workers, tokenizer.to_str(), args.seed, args.batch_size)
    processes = [
        context.Process(target=_produce, args=(i, *common, queue), daemon=True) for i, queue in enumerate(queues)
    ]
    for process in processes:
        process.start()
    start, step, chunk, waited = time.monotonic(), 0, 0, 0.0
    while step < args.steps:
        asked = time.monotonic()
        batches = queues[chunk % workers].get()
        waited += time.monotonic() - asked
        chunk += 1
        for array in batches[: args.steps - step]:
            batch = torch.from_numpy(array).to(device).long()
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate(step)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = batch_loss(model, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % args.log_every == 0 or step == args.steps:
                seconds = time.monotonic() - start
                print(f"step {step} loss {loss.item():.5f} {seconds:.1f} s (waited {waited:.1f} s)", flush=True)
            if step % args.save_every == 0:
                demo_teacher.save_model(model, args.out)
    seconds = time.monotonic() - start
    for process in processes:
        process.terminate()
    demo_teacher.save_model(model, args.out)
    return model, seconds


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        The parsed arguments.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=512, help="conversations a step")
    parser.add_argument("--hidden-size", type=int, default=256, help="width, a multiple of 128")
    parser.add_argument("--layers", type=int, default=4, help="layers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if any")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training tickets and the weights")
    parser.add_argument("--out", type=pathlib.Path, default=demo_tickets.DEMO_DIR / "model", help="folder to write")
    parser.add_argument("--eval-rows", type=int, default=demo_tickets.DEMO_ROWS, help="held-out tickets to score")
    parser.add_argument("--data-only", action="store_true", help="write demo/tickets.jsonl and stop")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=0, help="processes that make tickets; 0: all cores but two")
    parser.add_argument("--log-every", type=int, default=100, help="steps between two lines of progress")
    parser.add_argument("--save-every", type=int, default=1000, help="steps between two saved checkpoints")
    parser.add_argument("--misses", type=pathlib.Path, help="file for the wrong answers, as JSON lines")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Trains, saves and scores the teacher.

    Args:
        argv: Arguments; None takes those of the process.
    """
    args = parse_args(argv)
    if args.data_only:
        text = demo_tickets.rows_to_jsonl(demo_tickets.make_rows(demo_tickets.DEMO_ROWS))
        (demo_tickets.DEMO_DIR / "tickets.jsonl").write_text(text, encoding="utf-8")
        return
    import torch
    import transformers

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = demo_teacher.train_tokenizer(args.seed)
    demo_teacher.save_tokenizer(tokenizer, args.out)
    model, seconds = train(args, tokenizer, device)
    result = demo_teacher.evaluate(args.out, demo_tickets.make_rows(args.eval_rows), device)
    misses = result.pop("misses")
    if args.misses:
        args.misses.write_text(demo_tickets.rows_to_jsonl(misses), encoding="utf-8")
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "batch_size": args.batch_size,
        "learning_rate": args.lr,
        "seed": args.seed,
        "training_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "held_out": {"seed": demo_tickets.DEMO_SEED, "dtype": "bfloat16", "decoding": "greedy", **result},
    }
    (args.out / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2), flush=True)


if __name__ == "__main__":
    main()
