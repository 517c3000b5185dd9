"""What an answer takes in each format: bytes, the service's CPU time and a client's.

    python scripts/bench_wire.py --runs 9 --seconds 0.4 --out docs/benchmarks/wire.json

*Written* is what the service does beyond JSON: from the JSON bytes that the engine's API has made to the bytes that go
out. JSON itself is passed on. *Read* is a client in Python that gets at each token, or at each vector as a numpy array,
with the generated code where there is some. The cases take turns within each run; a figure is CPU time of this process.
"""

from __future__ import annotations

import argparse
import base64
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from bench_machine import machine

from serve.wire import api_generated, api_pb2
from serve.wire.formats import EMBEDDINGS, Format, write

CHAT = "/v1/chat/completions"
NUM_TOKENS, NUM_TOP, NUM_VECTORS, NUM_DIMENSIONS = 150, 5, 32, 1024
PACKAGES = ("msgspec", "protobuf", "flatbuffers", "pyarrow", "numpy")


def chat_answer(has_logprobs: bool) -> dict[str, Any]:
    """Returns an answer as vLLM gives it, nulls and all."""
    draw = random.Random(0)

    def token() -> dict[str, Any]:
        text = " " + "".join(draw.choices("abcdefghij", k=4))
        return {"token": text, "logprob": float(np.float32(-draw.random() * 9)), "bytes": list(text.encode())}

    tokens = [token() | {"top_logprobs": [token() for _ in range(NUM_TOP)]} for _ in range(NUM_TOKENS)]
    message = {"role": "assistant", "content": "".join(str(item["token"]) for item in tokens), "refusal": None}
    message |= {"annotations": None, "audio": None, "function_call": None, "tool_calls": [], "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": {"content": tokens} if has_logprobs else None}
    choice |= {"finish_reason": "stop", "stop_reason": None, "token_ids": None}
    usage = {"prompt_tokens": 40, "total_tokens": 40 + NUM_TOKENS, "completion_tokens": NUM_TOKENS}
    answer = {"id": "chatcmpl-" + "0" * 32, "object": "chat.completion", "created": 1_790_000_000, "model": "demo"}
    answer |= {"choices": [choice], "service_tier": None, "system_fingerprint": None}
    return answer | {"usage": usage | {"prompt_tokens_details": None}, "prompt_logprobs": None}


def embeddings_answer(is_text: bool) -> dict[str, Any]:
    """Returns vectors as numbers, or as text, which is what the service asks of vLLM for other formats than JSON."""
    vectors = np.random.default_rng(0).standard_normal((NUM_VECTORS, NUM_DIMENSIONS), dtype=np.float32)
    written = [base64.b64encode(vector.tobytes()).decode() if is_text else vector.tolist() for vector in vectors]
    data = [{"index": n, "object": "embedding", "embedding": value} for n, value in enumerate(written)]
    answer = {"id": "embd-" + "0" * 32, "object": "list", "created": 1_790_000_000, "model": "demo", "data": data}
    return answer | {"usage": {"prompt_tokens": 320, "total_tokens": 320, "completion_tokens": 0}}


def read_chat(format: Format, raw: bytes) -> int:
    """Returns how many tokens a client found."""
    match format:
        case Format.json | Format.messagepack:
            body = json.loads(raw) if format is Format.json else msgspec.msgpack.decode(raw)
            choice = body["choices"][0]
            seen = [choice["message"]["content"]]
            seen += [item["logprob"] for item in (choice.get("logprobs") or {"content": []})["content"]]
        case Format.protobuf:
            choice = api_pb2.ChatCompletion.FromString(raw).choices[0]
            seen = [choice.message.content, *(item.logprob for item in choice.logprobs.content)]
        case _:
            found: Any = api_generated.ChatCompletion.GetRootAs(raw).Choices(0)  # type: ignore[attr-defined]
            logprobs = found.Logprobs()
            seen = [found.Message().Content()]
            seen += [] if logprobs is None else [logprobs.Content(n).Logprob() for n in range(logprobs.ContentLength())]
    return len(seen)


def read_vectors(format: Format, raw: bytes) -> int:
    """Returns how many numbers a client found."""
    match format:
        case Format.json:
            found = [np.array(item["embedding"], "f4") for item in json.loads(raw)["data"]]
        case Format.messagepack:
            found = [np.frombuffer(item["embedding"], "<f4") for item in msgspec.msgpack.decode(raw)["data"]]
        case Format.protobuf:
            found = [np.array(item.embedding, "f4") for item in api_pb2.EmbeddingList.FromString(raw).data]
        case Format.flatbuffers:
            table: Any = api_generated.EmbeddingList.GetRootAs(raw)  # type: ignore[attr-defined]
            found = [table.Data(n).EmbeddingAsNumpy() for n in range(table.DataLength())]
        case _:
            column = pa.ipc.open_stream(raw).read_all()["embedding"].chunk(0)
            found = [column.flatten().to_numpy()]
    return sum(vector.size for vector in found)


def cpu_us(work: Callable[[], Any], seconds: float) -> float:
    """Returns the CPU microseconds of one call, the mean of as many as fill the time."""
    count, began, deadline = 0, time.process_time_ns(), time.monotonic() + seconds
    while time.monotonic() < deadline or not count:
        work()
        count += 1
    return (time.process_time_ns() - began) / 1e3 / count


def main() -> None:
    """Measures, prints a line a case and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each case in each run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    answers: dict[str, tuple[str, dict[str, Any], Any, Callable[[Format, bytes], int]]] = {
        "chat, 150 tokens": (CHAT, chat_answer(False), None, read_chat),
        "chat, 150 tokens with 5 logprobs each": (CHAT, chat_answer(True), None, read_chat),
        "32 embeddings of 1,024": (EMBEDDINGS, embeddings_answer(False), embeddings_answer(True), read_vectors),
    }
    rows: dict[tuple[str, Format], dict[str, Any]] = {}
    for _ in range(options.runs):
        for name, (path, answer, inner, read) in answers.items():
            plain, engine = json.dumps(answer, separators=(",", ":")).encode(), msgspec.json.encode(inner or answer)
            for format in Format:
                if format is Format.arrow and path != EMBEDDINGS:
                    continue

                def convert(format: Format = format, engine: bytes = engine, path: str = path) -> bytes:
                    return write(format, msgspec.json.decode(engine), path)

                raw = plain if format is Format.json else convert()
                row = rows.setdefault((name, format), {"bytes": len(raw), "written_us": [], "read_us": []})
                row["written_us"].append(0.0 if format is Format.json else cpu_us(convert, options.seconds))
                row["read_us"].append(
                    cpu_us(lambda read=read, format=format, raw=raw: read(format, raw), options.seconds)
                )
    cases = []
    for (name, format), row in rows.items():
        case: dict[str, Any] = {"answer": name, "format": format.value, "bytes": row["bytes"]}
        for figure in ("written_us", "read_us"):
            case[figure] = {"median": statistics.median(row[figure]), "all": [round(value, 1) for value in row[figure]]}
        cases.append(case)
        print(f"{name:40}{format.value:18}{case['bytes']:9}", end="")
        print(
            *(f"{case[f]['median']:10.0f} ({min(row[f]):.0f} to {max(row[f]):.0f})" for f in ("written_us", "read_us"))
        )
    if options.out:
        facts = machine() | {
            "versions": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
        }
        record = {"date": datetime.now(UTC).date().isoformat(), "machine": facts, "runs": options.runs, "cases": cases}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
