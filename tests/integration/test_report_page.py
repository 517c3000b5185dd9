"""report.html in a real browser: of a job as it is run, and of the worst that rows and files can say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import Tab, browsing, tab
from jobs import manta

EVIL = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">'\"&amp;"
ROWS = 60
WIDTHS = {"desk": 1100, "phone": 375}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browsing(tmp_path_factory.mktemp("browser")) as address:
        yield address


@pytest.fixture
def page(browser: str) -> Iterator[Tab]:
    with tab(browser) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a job whose every cell, column, file and error says something evil; the browser is there before it runs."""
    folder = tmp_path_factory.mktemp("job")
    source = folder / f"in {EVIL.replace('/', '')[:40]}.jsonl"
    rows = [{"question": f"{n} {EVIL} " + "refuse " * (n % 10 == 0) + "word " * n, EVIL: EVIL} for n in range(ROWS)]
    source.write_text("\n".join([*map(json.dumps, rows), '{"question": "' + EVIL]))
    done = manta(
        *(f"data.input='{folder}'", f"output.path={folder}/out", "engine.fault.reject_marker=refuse"),
        *("engine.num_replicas=2", "engine.fault.latency_ms=50", "engine.max_num_seqs=4", "output.rows_per_file=10"),
        *("cluster.price_per_hour=2.5", "sampling.max_tokens=64"),
    )
    assert done.returncode == 3, done.stderr
    return folder / "out" / "_manta" / "report.html"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_of_a_job_shows_all_and_runs_and_loads_nothing(
    page: Tab, report: Path, device: str, is_dark: bool, tmp_path: Path
):
    page.open(report, WIDTHS[device], 900, is_dark)
    assert page.complaints == []
    assert page.asked_for == [report.as_uri()]
    assert page.run("document.title").startswith("Manta: ")
    assert page.run("document.scripts.length + document.images.length") == 0
    text = page.run("document.body.innerText")
    for shown in ("Done, with 7 failed rows", "Where the time went", "Plan against actual", "Cost", "Lengths", EVIL):
        assert shown in text, shown
    assert text.count("engine_rejected") >= 2  # the class, and its examples
    # no scrolling sideways, but in tables that say so
    assert page.run("document.documentElement.scrollWidth") <= WIDTHS[device]
    light = page.run("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") is not is_dark
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


CONTRAST = """
(() => {
  const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c; e = e.parentElement; } return 'rgb(255, 255, 255)'; };
  let least = 99;
  for (const e of document.querySelectorAll('h1, h2, h3, p, td, th, dt, dd, small, code, pre, li, svg text')) {
    const s = getComputedStyle(e), pen = light(e.tagName === 'text' ? s.fill : s.color), paper = light(under(e));
    least = Math.min(least, (Math.max(pen, paper) + 0.05) / (Math.min(pen, paper) + 0.05));
  }
  return least;
})()
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_who_sees_little_or_nothing_has_the_page_too(page: Tab, report: Path, is_dark: bool):
    page.open(report, WIDTHS["desk"], 900, is_dark)
    assert page.run(CONTRAST) >= 4.5  # WCAG 2.2, AA
    spoken = page.spoken()
    charts = [name for role, name in spoken if role in ("image", "img", "graphics-document")]
    assert any(name.startswith("Answers, all engines over time") for name in charts)
    assert sum(name.startswith(("engine 1: ", "engine 2: ")) for name in charts) == 2
    assert all(charts)
    headless = "[...document.querySelectorAll('table')].filter((t) => !t.querySelector('th[scope]')).length"
    assert page.run("document.querySelectorAll('table').length") > 5
    assert page.run(headless) == 0
    # tables that scroll sideways can be reached without a mouse, and say what they are
    assert page.run("[...document.querySelectorAll('.scroll')].every((e) => e.tabIndex === 0 && e.ariaLabel)")
    assert page.run("document.documentElement.lang") == "en"
    levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_what_is_looked_for_would_be_seen(page: Tab, tmp_path: Path):
    policy = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html>{policy}<img src=missing.png><script>document.title='pwned'</script>")
    page.open(path, 800, 600)
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
    assert any("ERR_FILE_NOT_FOUND" in complaint for complaint in page.complaints)
    assert (tmp_path / "missing.png").as_uri() in page.asked_for
