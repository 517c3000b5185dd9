"""What a replica tells Prometheus of itself: what is known, and nothing that is not."""

from __future__ import annotations

from typing import Any

from conf import metrics
from conf.metrics import Kind
from conf.schema.cluster import ClusterSpec
from conf.schema.engine import Device, EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.serve import ServeJob
from serve.autoscale.watch import Report
from serve.engine.speed import Speed, Unbegun
from serve.middleware.scrape import page
from serve.middleware.tally import Tally
from serve.vitals import Vitals

NOT_KNOWN = Speed(0.0, 0.0)


def vitals(**engine: Any) -> Vitals:
    job = ServeJob(
        model=ModelSpec(path="x", name="small"),
        engine=EngineSpec(**{"kind": EngineKind.vllm, **engine}),
        cluster=ClusterSpec(price_per_hour=3.0),
    )
    return Vitals(job, Device.cuda, share=4)


def values(families: list[Any]) -> dict[str, float]:
    samples = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
    assert all(sample.labels == {"model": "small"} for sample in samples)
    return {sample.name: sample.value for sample in samples}


def test_all_that_is_known_is_told():
    load = Report(waiting=3, waiting_tokens=50, prompt_tokens=700.5)
    found = values(vitals(tensor_parallel_size=2).families(5, 12.5, Speed(4000, 900), load, None, 2))
    assert found == {
        metrics.REPLICAS_TARGET.series: 5,
        metrics.REPLICA_START.series: 12.5,
        metrics.PREFILL_SPEED.series: 4000,
        metrics.DECODE_SPEED.series: 900,
        metrics.REPLICA_PRICE.series: 6.0,
        metrics.TOKENS_PER_EVENT.series: 2,
        metrics.WAITING_REQUESTS.series: 3,
        metrics.WAITING_TOKENS.series: 50,
        metrics.ARRIVED_TOKENS.series: 700.5,
    }


def test_who_waits_for_a_first_token_is_told_by_whose_turn_it_is():
    families = vitals().families(1, 0.0, NOT_KNOWN, None, Unbegun(interactive=2, batch=7))
    (told,) = [family for family in families if family.name == metrics.UNBEGUN.name]
    assert {sample.labels["priority"]: sample.value for sample in told.samples} == {"interactive": 2, "batch": 7}


def test_what_is_not_known_is_not_there():
    job = ServeJob(model=ModelSpec(path="x", name="small"))
    assert values(Vitals(job, Device.cpu, 1).families(1, 0.0, NOT_KNOWN, None)) == {metrics.REPLICAS_TARGET.series: 1}


def test_tokens_that_were_expected_in_vain_do_not_make_a_counter_fall():
    it = vitals()
    told = [
        values(it.families(1, 0.0, NOT_KNOWN, Report(prompt_tokens=tokens)))[metrics.ARRIVED_TOKENS.series]
        for tokens in (100.0, 80.0, 120.0)
    ]
    assert told == [100.0, 100.0, 120.0]


def test_a_page_has_each_metric_of_a_service_with_the_labels_and_kind_that_are_defined():
    told = vitals().families(1, 1.0, Speed(1, 1), Report(prompt_tokens=1.0), Unbegun(0, 0), 1)
    families = [*Tally(["small"]).families(), *told]
    text = page([("replica-1", families)]).decode()
    for metric in metrics.SERVE:
        kind = metric.kind.value
        assert f"# TYPE {metric.series} {kind}\n" in text
        assert f"# HELP {metric.series} {metric.help}\n" in text
    made = {family.name: family for family in families}
    for metric in metrics.SERVE:
        family = made[metric.name]
        assert family.type == {Kind.counter: "counter", Kind.gauge: "gauge", Kind.histogram: "histogram"}[metric.kind]
