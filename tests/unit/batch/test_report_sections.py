"""Plan against actual, cost, and failed rows in the report."""

from __future__ import annotations

import pytest
from report_pages import Page, page, ran, record

from pipelines.batch.attribution import attribute, plain_shares

PREDICTED = {
    "inference_s": 24.25,
    "completion_tokens_per_s": 1883.6,
    "roofline_s": 6.5,
    "efficiency": 0.268,
    "actual_over_predicted": 2.0,
    "bound": "compute",
}


def test_the_plan_is_set_against_what_came():
    html = page(predicted=PREDICTED)
    text = Page(html).text
    for shown in ("inference", "24.2 s", "48.5 s", "2.00", "1,884", "942", "bound by compute, allows 6.5 s", "27 % of"):
        assert shown in text, shown
    bars = [float(a["width"] or 0) for a in Page(html).of("rect") if a["class"] in ("planned", "actual")]
    assert bars[2:] == [50.0, 100.0, 100.0, 50.0]  # the first two are the legend's
    assert "There was no plan" in Page(page()).text


def test_cost_is_parted_by_what_it_was_paid_for():
    timeline, priced = ran(2), record()["job"] | {"cluster": {"price_per_hour": 2.5}}
    html = page(timeline, cost=12.0, job=priced)
    fractions = plain_shares(attribute(timeline))["fractions"]
    text = Page(html).text
    assert "12.00 from the moment the cluster was ready" in text
    assert f"start-up{12 * fractions['start_up']:.2f}" in text.replace(" ", "")
    rows = sum(life.last.rows for life in timeline.lives.values())
    tokens = sum(life.last.completion_tokens for life in timeline.lives.values())
    assert f"{12e3 / rows:,.2f} for a thousand rows" in text
    assert f"{12e6 / tokens:,.2f} for a million output tokens" in text
    assert "cluster.price_per_hour does" in Page(page(cost=None)).text
    assert "Cost" in Page(page(ran(1, tokens_out=0), cost=12.0, job=priced)).text  # vectors have no output tokens


@pytest.mark.parametrize("value, shown", [(0, "0.00"), (12.5, "12.50"), (0.0169, "0.0169"), (0.0000847, "0.000085")])
def test_small_amounts_of_money_are_not_nothing(value: float, shown: str):
    assert f"{shown} from the moment" in Page(page(cost=value)).text


def test_failed_rows_stand_under_their_class():
    letters = [
        {"source": "a.csv", "position": n, "error": error, "message": f"said {n}", "attempts": n, "row": f"row {n}"}
        for n, error in ((1, "bad"), (2, "bad"), (3, "worse"))
    ]
    errors = {name: {"rows": 2, "example": "e"} for name in ("bad", "worse")}
    text = Page(page(letters=letters, errors=errors, failed=4)).text
    at = [text.index(word) for word in ("a.csv:1", "said 1", "row 1", "a.csv:2", "2 attempts", "a.csv:3", "3 attempts")]
    assert at == sorted(at)
    assert text[at[3] : at[5]].count("worse") == 1
    assert "1 attempts" not in text


def test_the_time_before_the_first_engine_is_marked():
    shades = [a for a in Page(page(ran(2))).of("rect") if a["class"] == "shade"]
    assert len(shades) == 3
    assert [float(a["width"] or 0) for a in shades] == [pytest.approx((720 - 64 - 40) * 10 / 60, abs=0.1)] * 3
