from __future__ import annotations

import json

import pytest
import schemathesis
from fastapi import FastAPI
from starlette.applications import Starlette

from serve.batches.document import PATHS
from serve.middleware.document import complete_document
from serve.middleware.routes import EXPOSED, kept_route


def made(has_batches: bool) -> dict:
    app = FastAPI()

    @app.post("/v1/completions")
    def complete() -> None: ...

    complete_document(app, PATHS if has_batches else {})
    return json.loads(json.dumps(app.openapi()))


@pytest.mark.parametrize("has_batches", [False, True])
def test_it_has_what_the_service_answers_itself(has_batches: bool):
    document = made(has_batches)
    assert "/v1/completions" in document["paths"]
    assert {"/health", "/ready", "/metrics"} < set(document["paths"])
    for path in document["paths"]:
        assert path in EXPOSED or kept_route(path.replace("{id}", "file-1")), path
    assert ("/v1/batches/{id}/cancel" in document["paths"]) is has_batches


def test_it_is_a_document_of_openapi():
    schema = schemathesis.openapi.from_dict(made(has_batches=True))
    schema.validate()
    operations = [result.ok() for result in schema.get_all_operations()]
    names = [operation.definition.raw["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == 13


def test_an_app_that_shows_none_stays_as_it_is():
    complete_document(Starlette(), PATHS)
