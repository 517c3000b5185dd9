"""What a hit of the semantic cache takes beyond a trivial Serve app: whole services, over sockets, embedding included.

    MANTA_API_KEYS=sk-x-123456789 manta serve model=demo model.name=embed task=embed cache=off deployment.port=8001
    MANTA_EMBEDDING_KEY=sk-x-123456789 python scripts/bench_semantic_hits.py --out docs/benchmarks/semantic_hits.json

One client asks one request after the other over one connection to each, and the cases take turns within each run:
`floor` is a Ray Serve app that answers at once, behind Ray Serve's own proxy; `floor_direct` is it behind HAProxy,
which is the form that `manta serve` has. `hit` and `similar` are answers of `manta serve cache=semantic` to an equal
request and to another wording of one; `embedding` is what the embedding model takes by itself, asked as the cache asks.
The threshold is low, so that each wording finds something: what it finds does not matter here.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bench_models
from bench_answers import percentile
from bench_load import PATH
from bench_machine import machine
from bench_ray_apps import NAME
from bench_servers import CONTENDERS, DIRECT, KEY, Contender, serving
from semantic_texts import make_questions

ENGINE = {"max_model_len": 2048, "max_num_seqs": 16, "enforce_eager": True}
OTHERS = ("floor", "floor_direct", "hit", "similar", "embedding")


class Client:
    """One connection to a server."""

    def __init__(self, url: str, path: str, key: str | None) -> None:
        """Args: ``http://HOST:PORT``, what is asked there, and who asks."""
        self._connection, self._path = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60), path
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def ask(self, what: dict[str, Any]) -> tuple[float, str | None]:
        """Returns milliseconds, and what ``x-manta-cache`` said.

        Raises:
            RuntimeError: when the answer is an error.
        """
        body, began = json.dumps(what).encode(), time.perf_counter()
        self._connection.request("POST", self._path, body, self._headers)
        answered = self._connection.getresponse()
        said = answered.read()
        took_ms = (time.perf_counter() - began) * 1000
        if answered.status != 200:
            raise RuntimeError(f"status {answered.status}: {said[:300]!r}")
        return took_ms, answered.headers.get("x-manta-cache")


def chat(text: str) -> dict[str, Any]:
    """A deterministic request."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 16}


def measure(clients: dict[str, Client], texts: list[str], model: str, runs: int) -> dict[str, list[dict[str, float]]]:
    """Returns p50 and p99 of each case in each run, in milliseconds, and how many were not what they should be."""
    clients["hit"].ask(chat(texts[0]))  # everything else is near enough to it, and an answer so found is not kept
    found: dict[str, list[dict[str, float]]] = {name: [] for name in OTHERS}
    for run in range(runs + 1):
        for name in OTHERS:
            took, num_others = [], 0
            for text in texts:
                asked = chat(texts[0] if name == "hit" else text)
                if name == "similar":
                    asked = chat(f"{text} {'please ' * run}now")
                if name == "embedding":
                    asked = {"model": model, "input": [text], "encoding_format": "float"}
                took_ms, said = clients[name].ask(asked)
                took.append(took_ms)
                num_others += name in ("hit", "similar") and said != name
            if run > 0:  # the first one warms up
                cuts = {"p50_ms": percentile(took, 50), "p99_ms": percentile(took, 99)}
                found[name].append({**cuts, "not_as_expected": num_others})
    return found


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Returns medians with their range, and what each case takes beyond both trivial apps in the same run."""

    def spread(values: list[float]) -> dict[str, float]:
        ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        return {name: round(value, 3) for name, value in ends.items()}

    made: dict[str, Any] = {}
    for name, runs in found.items():
        made[name] = {cut: spread([run[cut] for run in runs]) for cut in ("p50_ms", "p99_ms")}
        made[name]["not_as_expected"] = sum(run["not_as_expected"] for run in runs)
        for floor in ("floor", "floor_direct"):
            beyond = [run["p50_ms"] - least["p50_ms"] for run, least in zip(runs, found[floor], strict=True)]
            made[name][f"p50_beyond_{floor}_ms"] = spread(beyond)
    return made


def main() -> None:
    """Starts the three services, asks them in turn and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8001", help="where the embedding model is")
    add("--model", default="embed")
    add("--texts", type=int, default=200, help="of each case in each run")
    add("--runs", type=int, default=5)
    add("--out", type=Path)
    args = parser.parse_args()
    texts = [text.text for text in make_questions(7)][: args.texts]
    semantic = (f"cache.semantic.url={args.url}/v1/embeddings", f"cache.semantic.model={args.model}")
    words = ("cache=semantic", *semantic, "cache.semantic.threshold=0.5", "cache.semantic.timeout_s=5")
    contenders = {
        "floor": CONTENDERS["floor"],
        "floor_direct": Contender(name="floor_direct", server="floor", environment=DIRECT),
        "hit": Contender(name="semantic", server="manta", words=words),
    }
    clients = {"embedding": Client(args.url, "/v1/embeddings", os.environ.get("MANTA_EMBEDDING_KEY"))}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b", ignore_cleanup_errors=True)))
        for at, (name, contender) in enumerate(contenders.items()):
            own = folder / str(at)
            own.mkdir()
            model = str(bench_models.SHIPPED["demo"])
            server = stack.enter_context(serving(contender, model, "cpu", ENGINE, own, 300))
            clients[name] = Client(server.url, PATH, KEY)
            print(f"{name} is up after {server.start_s:.0f} s", flush=True)
        clients["similar"] = clients["hit"]
        found = measure(clients, texts, args.model, args.runs)
    result = {"machine": machine(), "load_average": os.getloadavg()[0], "texts": len(texts), "runs": args.runs}
    result |= {"summary": summary(found), "each": found}
    print(json.dumps(result["summary"], indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
