"""A batch of a thousand lines outlives its service, twice."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from batches import assert_answers, begin_batch, until
from openai.types import Batch
from services import Service, serving


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_batch_goes_on_in_the_next_service_and_pays_for_nothing_twice(tmp_path: Path, is_killed: bool):
    asks = {f"line-{n}": {"model": "demo", "prompt": f"Order {n}", "max_tokens": 16} for n in range(1000)}
    words = ["model=demo", "engine.max_model_len=512", "engine.max_num_seqs=16", f"batches.path={tmp_path}/batches"]

    def num_done(batch: Batch) -> int:
        return batch.request_counts.completed if batch.request_counts else 0

    def client_of(service: Service) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=60)

    name = ""
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with serving(folder, *words) as service, client_of(service) as client:
            if not name:
                name = begin_batch(client, asks).id
            before = num_done(client.batches.retrieve(name))
            if turn == 2:
                assert_answers(client, until(client, name, lambda batch: batch.status == "completed", 600), asks)
                return
            until(client, name, lambda batch, before=before: num_done(batch) > before)
            if is_killed:
                service.process.kill()
                service.process.wait()
