from __future__ import annotations

import json
import math

import pytest
from cards import SPEC, exact, findings, row

from conf.schema.evaluate import Metric
from pipelines.evaluate.interval import wilson
from pipelines.evaluate.quality import judge
from serve.engine.protocol import ForcedToken


def forced(*logprobs: float) -> tuple[ForcedToken, ...]:
    return tuple(ForcedToken(token_id=3, logprob=each, top=((3, each),)) for each in logprobs)


def test_a_share_and_its_parent_on_the_same_rows():
    found = exact(90, 10, parent=95)["exact"]
    assert found.figure == wilson(90, 100)
    assert found.parent == wilson(95, 100)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-0.05)
    assert found.difference.low < -0.05 < found.difference.high
    assert found.p == pytest.approx(2 / 32)
    assert found.outcomes == "1" * 90 + "0" * 10
    assert found.within_parent  # 95 of 100 may as well be 88.8 %


@pytest.mark.parametrize("hits,within", [(95, True), (89, True), (88, False), (100, True)])
def test_within_the_parents_interval_means_no_worse_than_its_worse_end(hits: int, within: bool):
    assert exact(hits, 100 - hits, parent=95)["exact"].within_parent is within


def test_fields_have_a_share_each_and_one_for_all():
    expected = [{"a": 1, "b": "x"}, {"a": 2, "c": None}]
    rows = [row(json.dumps(each), at) for at, each in enumerate(expected)]
    model = findings('{"a": 1, "b": "y"}', '{"a": 2, "c": null}')
    found = judge([Metric.json_fields], rows, model, None, SPEC)
    figures = {name: (each.figure.value, each.rows) for name, each in found.items()}
    assert figures == {"json_fields": (0.5, 2), "field.a": (1.0, 2), "field.b": (0.0, 1), "field.c": (1.0, 1)}
    assert found["field.b"].outcomes == "0-"


def test_rows_that_the_engine_rejects_are_in_no_figure():
    rows = [row("yes", at) for at in range(3)]
    found = judge(
        [Metric.exact, Metric.agreement], rows, findings("yes", None, "no"), findings("yes", "yes", None), SPEC
    )
    assert (found["exact"].rows, found["exact"].outcomes) == (2, "1-0")
    assert found["exact"].parent == wilson(1, 1)  # the one row that both answered
    assert (found["agreement"].rows, found["agreement"].figure.value) == (1, 1.0)


def test_numbers_count_where_one_is_expected():
    rows = [row("#### 4", 0), row("none", 1), row("#### 1,000", 2)]
    found = judge([Metric.number], rows, findings("it is 4.0", "7", "#### 100"), None, SPEC)
    assert (found["number"].outcomes, found["number"].figure.value) == ("1-0", 0.5)


def test_perplexity_is_that_of_all_tokens_together():
    rows = [row("yes", at) for at in range(2)]
    expected = [forced(-1.0, -2.0, -3.0), forced(-2.0)]
    model = findings("a", "b", expected=expected)
    alone = judge([Metric.perplexity], rows, model, None, SPEC)["perplexity"]
    assert alone.figure.value == pytest.approx(math.exp(2))
    assert not alone.higher_is_better
    assert alone.within_parent is None
    parent = findings("a", "b", expected=[forced(-1.0, -1.0, -1.0), forced(-1.0)])
    both = judge([Metric.perplexity], rows, model, parent, SPEC)["perplexity"]
    assert both.parent is not None
    assert both.parent.value == pytest.approx(math.e)
    assert both.difference is not None
    assert both.difference.value == pytest.approx(math.exp(2) - math.e)
    assert both.within_parent is False


def test_divergence_is_a_mean_over_tokens():
    rows = [row("yes", at) for at in range(2)]
    half, quarter = math.log(0.5), math.log(0.25)
    parent = findings("a", "b", along=[forced(half, half), forced(half)])
    model = findings("a", "b", along=[forced(half, half), forced(quarter)])
    found = judge([Metric.divergence], rows, model, parent, SPEC)["divergence"]
    kl = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert found.figure.value == pytest.approx(kl / 3)
    assert found.covered == pytest.approx(0.5)


def test_a_row_whose_likelihood_is_not_known_is_left_out():
    rows = [row("yes", at) for at in range(2)]
    model = findings("a", "b", expected=[forced(-1.0), None])
    assert judge([Metric.perplexity], rows, model, None, SPEC)["perplexity"].rows == 1
    nothing = findings("a", "b", expected=[None, None])
    assert judge([Metric.perplexity], rows, nothing, None, SPEC) == {}
