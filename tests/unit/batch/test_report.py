"""The report for a person: it shows what the record holds, and nothing in it can run or call home."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from report_pages import EVIL, Page, page, ran, record, row

from pipelines.batch.attribution import attribute, plain_shares
from pipelines.batch.report.page import MAX_SIGNS, build_page
from pipelines.batch.report.plot import Plot, compact, rates, round_step
from pipelines.batch.timeline import Timeline


def test_every_figure_is_shown() -> None:
    text = Page(page(rows=[row()])).text
    for shown in (
        *("Done", "out/here", "models/small", "0a1b2c3d", "1,234", "1,111", "17 done before", "2,020 tokens saved"),
        *("21 cut off", "0.9321", "1.23M", "25,455/s", "942/s", "1m05s", "48.5 s of it inference", "1.5 s looking"),
        *("in.jsonl:7", "why?", "→ output", "so", "ray 2.60.0", "f00d", "engine.max_num_seqs=256", "in.jsonl"),
        *("2 to 3", "4 to 7", "1,108", "engine 1", "engine 2", "start-up", "starved"),
    ):
        assert shown in text, shown


def test_the_time_of_each_engine_is_in_the_table_and_in_its_bar() -> None:
    timeline = ran(2)
    shares = attribute(timeline)
    html = build_page(record(), timeline, shares, [], [])
    for cause, s in shares[0].seconds.items():
        assert f"<td>{s:,.1f} <small>{100 * s / 60:.0f} %</small></td>" in html
        assert f'<rect class="{cause.value}"' in html
    widths = [float(a["width"] or 0) for a in Page(html).of("rect") if a["class"] in plain_shares(shares)["seconds"]]
    bars = [width for width in widths if width != 10]  # the others are the legend's
    assert sum(bars) == pytest.approx(2 * 1000, abs=0.1)


def test_what_others_wrote_is_text() -> None:
    job = record()["job"]
    job["output"]["path"] = job["data"]["prompt"] = job["model"]["path"] = EVIL
    html = page(
        rows=[row(source=EVIL, input={EVIL: EVIL}, answer={EVIL: EVIL})],
        job=job,
        run=EVIL,
        failed=3,
        errors={EVIL: {"rows": 3, "example": EVIL}},
        engine_deaths=[EVIL],
        letters=[dict.fromkeys(("source", "position", "error", "message", "attempts", "row"), EVIL) | {"attempts": 2}],
        inputs=[{"name": EVIL, "row_id_prefix": "00", "rows": 1}],
        versions={EVIL: EVIL},
        model_fingerprint=EVIL,
    )
    parsed = Page(html)
    assert "<script" not in html
    assert not parsed.of("script") + parsed.of("img")
    assert parsed.text.count(EVIL) >= 14
    for _, attributes in parsed.tags:
        assert not {"style", "href", "src"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]


def test_the_page_may_load_and_run_nothing() -> None:
    html = page()
    (policy,) = (a["content"] for a in Page(html).of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"https?://|@import|url\(", html)


def test_plots_can_be_read_aloud() -> None:
    named = [a for a in Page(page()).of("svg") if a.get("role") == "img"]
    assert len(named) == 2 + 3  # a bar for each engine; answers, answers of each, prompts
    ids = {a["id"] for tag, a in Page(page()).tags if a.get("id")}
    for attributes in named:
        labels = (attributes.get("aria-labelledby") or "").split()
        assert set(labels) <= ids
        assert labels or attributes["aria-label"]


def test_failed_rows_are_told_of_the_most_frequent_first() -> None:
    errors = {"rare": {"rows": 1, "example": "e1"}, "frequent": {"rows": 99, "example": "e2"}}
    text = Page(page(failed=100, errors=errors)).text
    assert "Done, with 100 failed rows" in text
    assert text.index("frequent") < text.index("rare")


def test_an_interrupted_job_says_so() -> None:
    text = Page(page(interrupted=True, unfinished=55)).text
    assert "Interrupted: the same command goes on, with this output.path" in text
    assert "unfinished55" in text


def test_a_job_with_nothing_to_do_has_a_page() -> None:
    rates = {"prompt_tokens_per_s": None, "completion_tokens_per_s": None, "exact_match": None}
    text = Page(build_page(record(**rates), None, [], [], [])).text
    assert "no engine was started" in text
    assert "Speed" not in text


def test_a_job_whose_engines_did_not_start_has_a_page() -> None:
    timeline = Timeline(num_replicas=2, began_at=0.0)
    timeline.begin()
    text = Page(page(timeline.close(12.0), interrupted=True)).text
    assert "100 % start-up" in text


def test_vectors_have_no_answers_tokens_and_costs_are_shown() -> None:
    text = Page(page(ran(1, tokens_out=0), completion_lengths=[1111], cost=12.345)).text
    assert "Prompts, all engines" in text
    assert "Answers, all engines" not in text
    assert "12.35" in text or "12.34" in text


def test_long_values_are_cut() -> None:
    html = page(rows=[row(input={"q": "x" * 10**6})])
    assert len(html) < 100_000
    assert "x" * MAX_SIGNS + "…" in html


def test_many_engines_and_files_stay_small() -> None:
    files = [{"name": f"{n}.jsonl", "row_id_prefix": "00", "rows": 1} for n in range(10_000)]
    html = page(ran(64), inputs=files)
    assert len(html) < 400_000
    assert "and 9950 more files" in html


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.dictionaries(st.text(), values, max_size=3), st.text(), st.text())
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
def test_any_row_file_and_message_can_be_shown(cells: dict[str, Any], name: str, message: str) -> None:
    html = page(rows=[row(source=name, input=cells)], failed=1, errors={name: {"rows": 1, "example": message}})
    Page(html.encode("utf-8", "replace").decode())


@example([5e-324], 1.0)
@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50), st.floats(0.1, 1e7))
def test_a_line_stays_within_its_axes(line: list[float], wall_s: float) -> None:
    plot = Plot(name="p", title="t", unit="u", wall_s=wall_s, lines={"a": line})
    assert 2 <= len(plot.y_ticks) <= 7
    assert 1 <= len(plot.x_ticks) <= 8
    ys = [tick.place for tick in plot.y_ticks]
    xs = [tick.place for tick in plot.x_ticks]
    for point in plot.points("a").split():
        x, y = map(float, point.split(","))
        assert min(ys) - 0.1 <= y <= max(ys) + 0.1
        assert xs[0] - 0.1 <= x <= 720
    assert "nan" not in plot.points("a")


def test_rates_add_up_to_what_was_made() -> None:
    timeline = ran(3)
    lives = list(timeline.lives.values())
    line = rates(lives, 1, timeline.wall_s)
    assert sum(line) * timeline.wall_s / len(line) == pytest.approx(sum(life.last.completion_tokens for life in lives))


@pytest.mark.parametrize(
    "value, shown", [(0, "0"), (0.25, "0.25"), (17, "17"), (1234, "1.23k"), (2e6, "2M"), (3.5e9, "3.5G")]
)
def test_numbers_in_few_signs(value: float, shown: str) -> None:
    assert compact(value) == shown


@pytest.mark.parametrize("top, step", [(5, 1), (7, 2), (82_000, 20_000), (0.4, 0.1), (100, 20), (101, 50)])
def test_steps_are_round(top: float, step: float) -> None:
    assert round_step(top, 5) == pytest.approx(step)
