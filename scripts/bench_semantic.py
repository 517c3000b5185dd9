"""How often the semantic cache gives a wrong answer, and from which threshold on it seldom does.

    manta serve model=hf model.path=EMBEDDER model.name=embed task=embed cache=off deployment.port=8001
    python scripts/bench_semantic.py --url http://127.0.0.1:8001/v1/embeddings --model embed --texts MINE.jsonl

A line of MINE.jsonl is {"text": ..., "label": ...}: two texts with the same label have the same answer. Without --texts
it is texts made of demo/phrases.toml; see scripts/semantic_texts.py. A key for the endpoint: MANTA_EMBEDDING_KEY.

The texts come to an empty cache one after the other, in an order drawn once. Each gets the answer of the nearest one
that is kept, if that is near enough, or is kept itself. A *wrong hit* is an answer of another label. Half of the
families choose the threshold: the lowest one from which on at most 1 % of the hits are wrong. What is reported of it is
what it does to the other half. Intervals are Wilson's, 95 %. *Recall* is right hits, of those lookups whose label had
come before. `--latency N` then sends N requests through the cache, with an app behind it that answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
import urllib.request
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from semantic_texts import Text, make_questions, make_tickets, read_texts

from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.semantic import SemanticSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.likeness import numbers
from serve.engine.protocol import Sample
from serve.middleware.cache import Cache

PATH = "/v1/chat/completions"
THRESHOLDS = [round(0.7 + 0.005 * step, 4) for step in range(60)]
SHOWN = (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)
Matrix = np.ndarray[Any, np.dtype[np.float32]]


def embed(texts: list[str], url: str, model: str) -> Matrix:
    """Returns unit vectors, a row a text.

    Raises:
        OSError: when the endpoint does not answer.
    """
    headers = {"content-type": "application/json"}
    if key := os.environ.get("MANTA_EMBEDDING_KEY"):
        headers["authorization"] = f"Bearer {key}"
    rows: list[list[float]] = []
    for at in range(0, len(texts), 64):
        asked = json.dumps({"model": model, "input": texts[at : at + 64], "encoding_format": "float"}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, asked, headers), timeout=120) as answered:
            rows += [row["embedding"] for row in json.load(answered)["data"]]
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read_vectors(path: Path | None, texts: list[Text], url: str, model: str) -> Matrix:
    """Returns what a former run has kept, or embeds and keeps."""
    if path is not None and path.exists() and len(kept := np.load(path)) == len(texts):
        return kept
    vectors = embed([text.text for text in texts], url, model)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return vectors


def interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a rate, 95 %."""
    if total == 0:
        return 0.0, 1.0
    z, rate = 1.96, count / total
    middle = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * ((rate * (1 - rate) / total + z * z / (4 * total * total)) ** 0.5)
    return max(0.0, middle - half), min(1.0, middle + half)


def replay(texts: list[Text], cosines: Matrix, threshold: float) -> dict[str, Any]:
    """Sends texts to an empty cache in their order.

    Args:
        texts: in the order in which they come.
        cosines: of each with each; below any threshold where the two must never be taken for equal.
        threshold: what counts as near.
    """
    labels = np.array([text.label for text in texts])
    kept = np.zeros(len(texts), bool)
    right = wrong = possible = 0
    seen: set[str] = set()
    for at, text in enumerate(texts):
        possible += text.label in seen
        seen.add(text.label)
        near = int(np.argmax(np.where(kept, cosines[at], -2)))
        if kept[near] and cosines[at, near] >= threshold:
            is_right = labels[near] == text.label
            right, wrong = right + bool(is_right), wrong + (not is_right)
        else:
            kept[at] = True
    hits, total = right + wrong, len(texts)
    return {
        "threshold": threshold,
        "lookups": total,
        "possible": possible,
        "hits": hits,
        "wrong": wrong,
        "recall": round(right / possible, 4) if possible else None,
        "wrong_of_hits": [round(x, 4) for x in (wrong / hits if hits else 0.0, *interval(wrong, hits))],
        "wrong_of_lookups": [round(x, 4) for x in (wrong / total, *interval(wrong, total))],
    }


def judge(texts: list[Text], vectors: Matrix, is_guarded: bool, seed: int, limit: float) -> dict[str, Any]:
    """Chooses a threshold on one half and returns what it does to the other one, with the sweep over both."""
    rng = random.Random(seed)
    families = sorted({text.family for text in texts})
    rng.shuffle(families)
    first = set(families[: len(families) // 2])
    halves: list[list[dict[str, Any]]] = []
    for is_first in (True, False):
        order = [at for at, text in enumerate(texts) if (text.family in first) == is_first]
        rng.shuffle(order)
        some = [texts[at] for at in order]
        cosines = vectors[order] @ vectors[order].T
        if is_guarded:
            held = [tuple(numbers(text.text)) for text in some]
            ids = np.array([{value: at for at, value in enumerate(sorted(set(held)))}[value] for value in held])
            cosines[ids[:, None] != ids[None, :]] = -2
        halves.append([replay(some, cosines, threshold) for threshold in THRESHOLDS])
    chosen = None
    for place in range(len(THRESHOLDS) - 1, -1, -1):
        if halves[0][place]["wrong_of_hits"][0] > limit:
            break
        chosen = place if halves[0][place]["hits"] else None  # of no hits none is wrong
    return {
        "chosen": None if chosen is None else THRESHOLDS[chosen],
        "calibrated_on": None if chosen is None else halves[0][chosen],
        "held_out": None if chosen is None else halves[1][chosen],
        "sweep_of_both": [
            {"calibration": one, "held_out": other}
            for one, other in zip(*halves, strict=True)
            if one["threshold"] in SHOWN
        ],
    }


async def ask(app: Any, text: str) -> tuple[float, str]:
    """Sends one request past any socket; returns milliseconds and what ``x-manta-cache`` said."""
    asked = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0}
    body, said = json.dumps(asked).encode(), ""
    waits = asyncio.Event()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        if (message := next(messages, None)) is not None:
            return message
        await waits.wait()

    async def send(message: Any) -> None:
        nonlocal said
        if message["type"] == "http.response.start":
            said = dict(message["headers"]).get(b"x-manta-cache", b"").decode()

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    began = time.perf_counter()
    await app(scope, receive, send)
    return (time.perf_counter() - began) * 1000, said


async def bench_latency(texts: list[str], url: str, model: str) -> dict[str, Any]:
    """Returns p50 and p99 of a request without the semantic cache, and with it by what happened, in milliseconds."""
    sample = Sample(text="answer " * 50, finish_reason="stop", completion_tokens=50)
    answered = json.dumps(chat_body(request_id="1", created=1, model="m", samples=[sample], prompt_tokens=9)).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": answered})

    own = SemanticSpec(enabled=True, url=url, model=model, threshold=0.999, timeout_s=5)
    took: dict[str, list[float]] = {}
    for name, spec in (("exact", SemanticSpec()), ("semantic", own)):
        cache = Cache(app, CacheSpec(kind=CacheKind.memory, semantic=spec), "f")
        await ask(cache, "a first one, for the connection")
        for text in texts:
            for asked in (text, f"{text} ", text):  # computed; worded otherwise by a space, which models drop; equal
                took_ms, said = await ask(cache, asked)
                took.setdefault(f"{name} {said}", []).append(took_ms)
        if cache._similar is not None:
            await cache._similar.embedder.close()
    result = {}
    for name, values in sorted(took.items()):
        cuts = statistics.quantiles(values, n=100) if len(values) > 1 else values * 99
        result[name] = {"requests": len(values), "p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3)}
    return result


def main() -> None:
    """Embeds, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8001/v1/embeddings")
    parser.add_argument("--model", default="embed")
    parser.add_argument("--texts", type=Path, nargs="*", help="labelled JSON lines in place of the demo's texts")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="the same, beside the demo's texts")
    parser.add_argument("--vectors", type=Path, help="a folder that keeps each set's vectors, for the next run")
    parser.add_argument("--max-text-chars", type=int, default=SemanticSpec().max_text_chars)
    parser.add_argument("--limit", type=float, default=0.01, help="wrong hits of all hits")
    parser.add_argument("--latency", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets = {path.stem: read_texts(path) for path in [*(options.texts or []), *options.more]}
    if not options.texts:
        sets |= {"questions": make_questions(options.seed), "tickets": make_tickets(options.seed)}
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "aiohttp")},
        "sets": {},
    }
    for name, texts in sets.items():
        texts = [text for text in texts if len(text.text) <= options.max_text_chars]
        vectors = read_vectors(options.vectors and options.vectors / f"{name}.npy", texts, options.url, options.model)
        made = {"texts": len(texts), "labels": len({text.label for text in texts}), "dims": vectors.shape[1]}
        for is_guarded in (True, False):
            found = judge(texts, vectors, is_guarded, options.seed, options.limit)
            made["numbers guarded" if is_guarded else "numbers free"] = found
            print(name, "numbers guarded" if is_guarded else "numbers free", "chosen", found["chosen"])
            for at in found["sweep_of_both"]:
                held = at["held_out"]
                print(f"  {held['threshold']:.3f} recall {held['recall']} wrong/hits {held['wrong']}/{held['hits']}")
        result["sets"][name] = made
    if options.latency:
        some = [text.text for texts in sets.values() for text in texts][-options.latency :]
        result["latency"] = asyncio.run(bench_latency(some, options.url, options.model))
        print(json.dumps(result["latency"], indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
