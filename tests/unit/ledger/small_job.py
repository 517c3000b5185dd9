"""What stands for Ray, the model and the engine where a whole job runs in this process, and ways for it to end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from conf.schema.batch import BatchJob
from conf.schema.data import DataSpec
from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.output import OutputSpec
from pipelines.batch.plan import Plan, make_plan
from pipelines.storage import Location
from serve.engine.protocol import Outcome, Request

WRITES = {"part": "out/part-", "failed": "out/failed/", "mark": "out/_manta/done/"}
POINTS = ("before a flush", "after a flush", *WRITES, "a delete")
"""Where a job may crash."""


class Crash(BaseException):
    """Everything ends at once."""


class Died(Exception):
    """One replica ends; the job goes on."""


@cache
def some_plan() -> Plan:
    with tempfile.TemporaryDirectory() as name:
        for file, text in {"in.jsonl": '{"q": 1}', "config.json": '{"max_position_embeddings": 9}'}.items():
            Path(name, file).write_text(text)
        Path(name, "tokenizer.json").write_text("{}")
        data = DataSpec(input=f"{name}/in.jsonl", prompt="{{ q }}")
        output, engine = OutputSpec(path=f"{name}/out"), EngineSpec(kind=EngineKind.fake)
        return make_plan(BatchJob(model=ModelSpec(path=name), engine=engine, data=data, output=output))


class Engine:
    """Answers one by one, and ends as it is told to."""

    def __init__(self, compute: Callable[[Request], Outcome], point: str | None, after: int) -> None:
        self._compute, self._point, self._after = compute, point, after
        self.is_stopping = False

    def ask(self, requests: Iterator[Request], is_alone: bool, on_outcome: Any, on_tick: Any) -> None:
        for request in requests:
            on_tick()
            outcome = self._compute(request)
            self._after -= 1
            if self._after == 0 and self._point == "before a flush":
                raise Crash
            on_outcome(outcome)
            on_tick()
            if self._after == 0 and self._point == "after a flush":
                raise Crash
            if self._after == 0 and self._point == "a replica":
                raise Died
            if self._after == 0 and self._point == "stop":
                self.is_stopping = True
                return


def crash_at(point: str | None, after: int) -> Any:
    """Ends everything when a file of that kind is about to be written, or any deleted, for the n-th time."""
    left = iter(range(after - 1))
    write, delete = Location.write_bytes, Location.delete

    def crash_or(is_meant: bool) -> None:
        if is_meant and next(left, None) is None:
            raise Crash

    def write_bytes(place: Location, data: bytes) -> None:
        crash_or(point in WRITES and WRITES[point] in place.path)
        write(place, data)

    def delete_file(place: Location) -> None:
        crash_or(point == "a delete" and place.exists())
        delete(place)

    return mock.patch.multiple(Location, write_bytes=write_bytes, delete=delete_file)
