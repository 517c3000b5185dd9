"""Pages of jobs that never ran, and a reader of them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from conf.schema.batch import BatchJob
from pipelines.batch.attribution import attribute
from pipelines.batch.monitor import ReplicaReport
from pipelines.batch.record import plain
from pipelines.batch.report.page import build_page
from pipelines.batch.timeline import Timeline
from serve.engine.protocol import EngineStats

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>&amp;"
VOID = {"meta"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that tags are closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def ran(num_replicas: int, wall_s: float = 60.0, tokens_out: int = 151) -> Timeline:
    timeline = Timeline(num_replicas=num_replicas, began_at=0.0)
    engines = [EngineStats() for _ in range(num_replicas)]
    for at in range(10, int(wall_s)):
        for number, engine in enumerate(engines):
            engine.running, engine.completions = 16, engine.completions + 1
            engine.prompt_tokens, engine.completion_tokens = at * 100, at * tokens_out
            report = ReplicaReport(replica=f"r{number}", engine=engine, slots=16, ready_at=10.0, last_request_at=50.0)
            timeline.hear(report, at)
    return timeline.close(wall_s)


def record(**changes: Any) -> dict[str, Any]:
    job = plain(BatchJob())
    job["model"]["path"], job["output"]["path"] = "models/small", "out/here"
    values = {
        "job": job,
        "run": "0a1b2c3d",
        "model_fingerprint": "f00d",
        "inputs": [{"name": "in.jsonl", "row_id_prefix": "00", "rows": 1234}],
        "rows": 1234,
        "answers": 1111,
        "failed": 0,
        "unfinished": 0,
        "done_before": 17,
        "replayed": 18,
        "shared": 19,
        "saved_tokens": 2020,
        "errors": {},
        "prompt_tokens": 1_234_567,
        "completion_tokens": 45_678,
        "prompt_lengths": [0, 0, 3, 1108],
        "completion_lengths": [0, 1111],
        "truncated": 21,
        "exact_match": 0.9321,
        "seconds": {"plan": 1.5, "cluster": 2.5, "engines": 10.0, "inference": 48.5, "total": 65.0},
        "prompt_tokens_per_s": 25_455.4,
        "completion_tokens_per_s": 941.8,
        "engine_deaths": [],
        "interrupted": False,
        "versions": {"ray": "2.60.0", "pyarrow": "26.0.0"},
    }
    return values | changes


def page(
    timeline: Timeline | None = None,
    rows: list[dict[str, Any]] | None = None,
    letters: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> str:
    timeline = timeline or ran(2)
    return build_page(record(**changes), timeline, attribute(timeline), rows or [], letters or [])


def row(**values: Any) -> dict[str, Any]:
    return {"source": "in.jsonl", "position": 7, "input": {"question": "why?"}, "answer": {"output": "so"}} | values
