"""What KubeRay has Ray Serve build: the words of `manta serve` as one application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.errors import UserError
from conf.schema.engine import Device
from serve import application


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_API_KEYS", "secret")


def words_of(demo_model: Path, *more: str) -> dict[str, Any]:
    return {"words": ["cluster=existing", f"model.path={demo_model}", "engine=cpu", *more]}


def test_the_same_words_are_the_same_service(demo_model: Path):
    first, again = (application.plan_of(words_of(demo_model)) for _ in range(2))
    other = application.plan_of(words_of(demo_model, "engine.max_num_seqs=7"))
    assert first.version == again.version != other.version
    assert (first.device, other.job.engine.max_num_seqs) == (Device.cpu, 7)


def test_it_is_the_replicas_and_what_they_are_called_is_published(demo_model: Path, monkeypatch: pytest.MonkeyPatch):
    from ray.serve import Application

    told = []
    monkeypatch.setattr(application, "publish", told.append)
    built = application.build(words_of(demo_model, "model.name=mine"))
    assert isinstance(built, Application)
    (catalogue,) = told
    assert [entry.name for entry in catalogue.entries] == ["mine"]


@pytest.mark.parametrize(
    "args, said",
    [
        ({}, "args must be"),
        ({"words": "model=demo"}, "args must be"),
        ({"words": ["model=demo"]}, "words must have cluster=existing"),
        ({"words": ["cluster=existing", "model=demo", "engine.max_num_seqs=0"]}, "engine.max_num_seqs must be >= 1"),
        ({"words": ["cluster=existing", "model=demo", "deployment.models.b.model=demo"]}, "deployment.models"),
    ],
)
def test_what_is_no_service_is_refused(args: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        application.plan_of(args)
