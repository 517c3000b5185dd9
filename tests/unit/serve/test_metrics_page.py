from __future__ import annotations

import asyncio

import httpx
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from small_service import CHAT, Clock
from starlette.applications import Starlette

from serve.middleware.record import Record
from serve.middleware.scrape import Scrape, page
from serve.middleware.tally import Tally


def samples(text: bytes) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@given(st.lists(st.lists(st.sampled_from(["a", 'b"\\\n', "ü"]), max_size=8), min_size=1, max_size=4))
def test_a_page_has_the_samples_of_every_replica_each_once(keys: list[list[str]]):
    replicas = []
    for number, names in enumerate(keys):
        tally = Tally(["demo"])
        for key in names:
            tally.count(Record(time="", request_id="", key=key, method="", path=CHAT, status=200, duration_ms=1), None)
        replicas.append((f"r{number}", tally.families()))
    text = page(replicas)
    assert text.count(b"# TYPE manta_requests_total ") == 1
    found = samples(text)
    for number, names in enumerate(keys):
        for key in set(names):
            labels = {"route": CHAT, "status": "2xx", "key": key, "replica": f"r{number}"}
            assert found["manta_requests_total", frozenset(labels.items())] == names.count(key)
    assert sum(value for (name, _), value in found.items() if name == "manta_requests_total") == sum(map(len, keys))


async def test_replicas_are_asked_once_a_second_however_often_a_page_is_fetched():
    num_asked = 0

    async def gather():
        nonlocal num_asked
        num_asked += 1
        await asyncio.sleep(0)
        return [("r", Tally(["demo"]).families())]

    clock = Clock()
    app = Scrape(Starlette(), gather, clock)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")
    answers = await asyncio.gather(*(client.get("/metrics") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert num_asked == 1
    clock.now_s += 1
    await client.get("/metrics")
    assert num_asked == 2
    assert (await client.post("/metrics")).status_code == 405
    assert (await client.get("/metricsx")).status_code == 404
