"""The way to the claims: what former runs have answered is known, and where the claims are gone work goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.schema.batch import BatchSpec, Dedupe
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch.answers import answer_columns, answer_names
from pipelines.batch.desk import ClaimsDesk, FormerClaims, start_claims
from pipelines.ledger.claims import Answer, Claims
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import LogWriter
from pipelines.ledger.outcome import decode, encode, outcome_of, plain_outcome
from pipelines.storage import locate
from serve.engine.protocol import Completion, Rejection, Sample

UNITS = [f"{n:012x}" for n in range(4)]


class ActorError(Exception):
    """As Ray raises where an actor is gone."""


class Handle:
    """An actor's handle: a call happens at once, `ray.get` gives what it came to."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Callable[[], Any]:
            if self._actor is None:
                return lambda: (_ for _ in ()).throw(ActorError())
            value = getattr(self._actor, name)(*arguments)
            return lambda: value

        return SimpleNamespace(remote=remote)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = SimpleNamespace(RayActorError=ActorError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda call: call(), exceptions=exceptions))
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path / "out"), "output.path"), suffix="parquet")


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def said(text: str) -> Completion:
    sample = Sample(text=text, finish_reason="stop", completion_tokens=1)
    return Completion(request_id="", samples=(sample,), prompt_tokens=2)


def part(folder: Folder, unit: str, *numbers: int) -> None:
    """Leaves a part file behind that answers these requests."""
    columns = answer_columns([said(f"of {n}") for n in numbers], Task.generate, answer_names(Task.generate))
    named = {"request_key": [key(n).hex() for n in numbers], "row_id": [str(n) for n in numbers]}
    place = Path(folder.answers(unit).path)
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, **named}), place)


def log(folder: Folder, unit: str, *entries: str) -> None:
    writer = LogWriter(folder, unit, "earlier", "replica")
    for entry in entries:
        writer.end(entry, encode(plain_outcome(Rejection(request_id="", error=entry, message=""))))
    writer.close()


def test_what_is_asked_at_the_desk_reaches_the_claims(ray: None, tmp_path: Path) -> None:
    claims = Claims(str(tmp_path))
    one, two = (ClaimsDesk(Handle(claims), replica, "unit") for replica in ("one", "two"))
    assert one.claim([key(1)]) == Answer(mine=[key(1)])
    assert two.claim([key(1)]) == Answer(others=[key(1)])
    one.settle([(key(1), b"x")])
    assert two.claim([key(1)]) == Answer(known={key(1): b"x"})
    claims.close()


def test_units_of_a_replica_ask_for_themselves(ray: None, tmp_path: Path) -> None:
    claims = Claims(str(tmp_path))
    one, two = (ClaimsDesk(Handle(claims), "replica", unit) for unit in UNITS[:2])
    assert one.claim([key(1)]).mine == [key(1)]
    assert two.claim([key(1)]).others == [key(1)]
    claims.release("replica")
    assert two.claim([key(1)]).mine == [key(1)]
    claims.close()


def test_where_the_claims_are_gone_each_replica_works_for_itself(ray: None) -> None:
    desk = ClaimsDesk(Handle(None), "one", "unit")
    assert desk.claim([key(1), key(2)]) == Answer(mine=[key(1), key(2)])
    desk.settle([(key(1), b"x")])


def test_what_former_runs_have_answered_is_known(folder: Folder, tmp_path: Path) -> None:
    part(folder, UNITS[0], 1, 2)
    log(folder, UNITS[1], key(3).hex(), f"{key(4).hex()}:7")
    claims = FormerClaims(folder, "", Task.generate, str(tmp_path))
    got = claims.claim("one", [key(n) for n in range(1, 6)])
    known = {k: outcome_of(decode(data)) for k, data in got.known.items()}
    assert known == {
        key(1): said("of 1"),
        key(2): said("of 2"),
        key(3): Rejection(request_id="", error=key(3).hex(), message=""),
    }
    assert got.mine == [key(4), key(5)]  # drawn anew each time; never asked
    claims.close()


def test_what_a_unit_that_is_done_again_had_answered_is_known_to_other_units(folder: Folder, tmp_path: Path) -> None:
    """Rows move between units when others are put before them; their answers must not be paid for again."""
    part(folder, UNITS[0], 1)
    claims = FormerClaims(folder, "", Task.generate, str(tmp_path))
    assert list(claims.claim(f"one/{UNITS[1]}", [key(1)]).known) == [key(1)]
    claims.close()


@pytest.mark.parametrize("kept", ["log", "part", "part set aside"])
def test_what_a_unit_had_answered_that_the_input_has_lost_is_known_to_the_others(
    folder: Folder, tmp_path: Path, kept: str
) -> None:
    """Rows that are taken out of a file move those after them into other units, and the last one is gone."""
    if kept == "log":
        log(folder, UNITS[3], key(1).hex())
    else:
        part(folder, UNITS[3], 1)
    if kept == "part set aside":
        folder.set_aside(folder.name(folder.answers(UNITS[3])))
    claims = FormerClaims(folder, "", Task.generate, str(tmp_path))
    assert list(claims.claim(f"one/{UNITS[1]}", [key(1)]).known) == [key(1)]
    claims.close()


@pytest.mark.parametrize(
    "dedupe, temperature, task, is_redrive",
    [
        (Dedupe.off, 0, Task.generate, False),
        (Dedupe.off, 0, Task.embed, False),
        (Dedupe.deterministic, 1, Task.generate, False),
        (Dedupe.all, 0, Task.generate, True),
    ],
)
def test_where_no_answer_is_shared_there_are_no_claims(
    dedupe: Dedupe, temperature: float, task: Task, is_redrive: bool
) -> None:
    job = SimpleNamespace(task=task, batch=BatchSpec(dedupe=dedupe), sampling=SamplingSpec(temperature=temperature))
    plan, work = SimpleNamespace(job=job), SimpleNamespace(is_redrive=is_redrive)
    assert start_claims(plan, work, None) is None  # type: ignore[arg-type]
