"""The page: what the record holds, and how it came about. What rows, files and engines say is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from conf.saved import text
from pipelines.batch.attribution import Cause, Share, in_words, total
from pipelines.batch.progress import duration
from pipelines.batch.report import plot
from pipelines.batch.report.comparison import compared, cost_by_cause, cost_of_each, why
from pipelines.batch.report.plot import Plot, compact, rates
from pipelines.batch.timeline import Life, Timeline

MAX_SIGNS = 1000
"""Of a value or message; the rest is cut."""
FOLDER = Path(__file__).parent
"""That of the templates and the style."""


def build_page(
    record: dict[str, Any],
    timeline: Timeline | None,
    shares: list[Share],
    rows: list[dict[str, Any]],
    failed: list[dict[str, Any]],
) -> str:
    """Makes the page of a job that has ended.

    Args:
        record: what job.json holds.
        timeline: what its replicas did; null where nothing was to be done.
        shares: where their time went, one for each engine.
        rows: some answers: ``source``, ``position``, ``input`` and ``answer``, the last two by column.
        failed: some dead letters; see `letters.examples`.

    Returns:
        HTML that needs nothing else and runs nothing.
    """
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    lives = [[timeline.lives[name] for name in share.replicas] for share in shares] if timeline is not None else []
    wall_s = timeline.wall_s if timeline is not None else 0.0
    engines = [_engine(each, share) for each, share in zip(lives, shares, strict=False)] if any(lives) else []
    made = [sum(engine[name] for engine in engines) for name in ("rows", "tokens_out")]
    plan = compared(record)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            r=record,
            output=record["job"]["output"]["path"],
            headline=_headline(record),
            ended=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(style),
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            tiles=list(_tiles(record)),
            causes=list(Cause),
            shares=shares,
            sum=total(shares),
            wall_s=wall_s,
            plots=_plots(lives, wall_s) if any(lives) and wall_s else [],
            engines=engines,
            failed=failed,
            plan=plan,
            plan_why=why(record) if plan else "",
            costs=cost_by_cause(record, total(shares)),
            costs_each=cost_of_each(record, *made) if record.get("cost") is not None else [],
            histograms=[
                (name, f"{title}, {record[tokens] / max(record['answers'], 1):,.0f} tokens on average", counts)
                for title, name, tokens in (
                    ("Prompts", "prompt_lengths", "prompt_tokens"),
                    ("Answers", "completion_lengths", "completion_tokens"),
                )
                if sum(record[name][1:]) and (counts := _histogram(record[name]))
            ],
            rows=rows,
            settings="\n".join(_settings(record["job"])),
        )
    )


def environment(*folders: Path) -> jinja2.Environment:
    """Returns what renders a page; its templates are those of this folder and of ``folders``."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([FOLDER, *folders]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.filters |= {
        "count": lambda value: f"{value:,.0f}",
        "seconds": lambda value: f"{value:.1f} s" if value < 60 else duration(value),
        "cut": _cut,
        "money": _money,
        "name": lambda value: value.replace("_", "-"),
    }
    for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM"):
        made.globals[name] = getattr(plot, name)
    made.globals["in_words"] = in_words
    return made


def _headline(record: dict[str, Any]) -> str:
    if record["interrupted"]:
        return "Interrupted: the same command goes on, with this output.path"
    failed = record["failed"]
    return f"Done, with {failed:,} failed row{'s' if failed > 1 else ''}" if failed else "Done"


def _tiles(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Names, values and remarks."""
    before = record["done_before"]
    yield "rows", f"{record['rows']:,}", f"{before:,} done before" if before else ""
    yield "answers", f"{record['answers']:,}", f"{record['truncated']:,} cut off" if record["truncated"] else ""
    yield "failed", f"{record['failed']:,}", ""
    if record["unfinished"]:
        yield "unfinished", f"{record['unfinished']:,}", ""
    if record["shared"]:
        yield "shared answers", f"{record['shared']:,}", f"{record['saved_tokens']:,} tokens saved"
    if record["replayed"]:
        yield "replayed", f"{record['replayed']:,}", "paid for before"
    yield "time", duration(record["seconds"]["total"]), f"{record['seconds']['inference']:.1f} s of it inference"
    for name, key in (("in", "prompt_tokens"), ("out", "completion_tokens")):
        rate = record[f"{key}_per_s"]
        yield f"tokens {name}", compact(record[key]), f"{rate:,.0f}/s" if rate else ""
    if record["exact_match"] is not None:
        yield "exact match", f"{record['exact_match']:.4f}", ""
    if isinstance(record.get("cost"), (int, float)):
        yield "cost", _money(record["cost"]), f"{record['job']['cluster']['price_per_hour'] or 0:g} an hour each device"


def _plots(lives: list[list[Life]], wall_s: float) -> list[Plot]:
    everyone = [life for each in lives for life in each]
    ready_s = min(life.ready_s for life in everyone)
    found: list[Plot] = []
    for counter, what in ((1, "Answers"), (0, "Prompts")):  # apart: prompts may be ten times as long
        line = rates(everyone, counter, wall_s)
        if not any(line):
            continue
        lines = {"all engines": line}
        title = f"{what}, all engines"
        found.append(Plot(name=what, title=title, unit="tokens/s", wall_s=wall_s, lines=lines, ready_s=ready_s))
        if len(lives) > 1 and len(found) == 1:
            own = {f"engine {number}": rates(each, counter, wall_s) for number, each in enumerate(lives, 1)}
            title = f"{what}, each engine"
            name = f"each-{what}"
            found.append(Plot(name=name, title=title, unit="tokens/s", wall_s=wall_s, lines=own, ready_s=ready_s))
    return found


def _engine(lives: list[Life], share: Share) -> dict[str, Any]:
    return {
        "rows": sum(life.last.rows for life in lives),
        "tokens_in": sum(life.last.prompt_tokens for life in lives),
        "tokens_out": sum(life.last.completion_tokens for life in lives),
        "ready_s": max(share.total_s - share.seconds[Cause.start_up] - share.seconds[Cause.retries], 1e-9),
        "replaced": max(len(lives) - 1, 0),
        "replicas": share.replicas,
    }


def _histogram(counts: list[int]) -> list[tuple[str, int]]:
    """Labels and counts, from the first that is not empty; see `lengths.count_lengths`."""
    first = next(digits for digits, count in enumerate(counts) if count)
    low = [0, *(1 << digits for digits in range(len(counts)))]
    return [
        (f"{low[d]:,}" if d < 2 else f"{low[d]:,} to {2 * low[d] - 1:,}", counts[d]) for d in range(first, len(counts))
    ]


def _settings(node: Any, key: str = "") -> Iterator[str]:
    """The job as the words that a command line would have."""
    if isinstance(node, dict) and node:
        for name, item in node.items():
            yield from _settings(item, f"{key}.{name}" if key else str(name))
    else:
        yield f"{key}={text(node)}"


def _money(value: float) -> str:
    """Two places, and more where that would leave little: ``12.50``, ``0.0169``, ``0.000085``."""
    places = 2 if value >= 1 or not value else 4 if value >= 0.001 else 6
    return f"{value:,.{places}f}"


def _cut(value: Any, signs: int = MAX_SIGNS) -> str:
    shown = str(value)
    return shown if len(shown) <= signs else shown[:signs] + "…"
