"""Dashboards, Prometheus' configuration and documents name what is exported, and nothing else."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from cluster.monitoring import verb
from cluster.monitoring.foreign import FOREIGN, Foreign
from cluster.monitoring.panel import COLUMNS, Board
from conf import metrics
from conf.cli import main
from conf.errors import UserError
from conf.metrics import METRICS, Kind, Metric, Origin
from conf.schema.serve import DeploymentSpec

BOARDS = verb.build_boards()
NAME = re.compile(r"\b(?:ray_manta_|manta_|vllm:|ray_node_)\w+")
MADE_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
KNOWN = {metric.series for metric in METRICS if metric.kind is not Kind.histogram}
KNOWN |= {metric.series + end for metric in METRICS if metric.kind is Kind.histogram for end in MADE_OF_HISTOGRAMS}
KNOWN |= {other.series for other in FOREIGN}


@pytest.mark.parametrize("name,text", verb.shipped_files().items())
def test_what_is_shipped_is_what_would_be_written(name: str, text: str):
    hint = "run: manta cluster dashboards --out cluster --shipped"
    assert (ROOT / "cluster" / name).read_text() == text, hint


def test_nothing_else_is_shipped():
    found = {
        f"{kind}/{path.name}" for kind in ("grafana", "prometheus") for path in (ROOT / "cluster" / kind).iterdir()
    }
    assert found == verb.shipped_files().keys() - {"metrics.md"}


def test_names_are_said_once_and_suit_what_they_count():
    assert len({metric.series for metric in METRICS}) == len(METRICS)
    every = {value for value in vars(metrics).values() if isinstance(value, Metric)}
    assert every == set(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"manta_[a-z_]+", metric.name)
        assert not metric.name.endswith("_total")  # exporters add it
        assert metric.unit in ("", "s")
        assert ("seconds" in metric.name) == (metric.unit == "s")
        assert bool(metric.buckets) == (metric.kind is Kind.histogram)
        assert metric.buckets == tuple(sorted(metric.buckets))
        assert metric.help.endswith((".", ")."))
        # of Ray's histograms the sums are made of the middles of buckets
        assert metric.origin is Origin.page or metric.kind is not Kind.histogram


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_queries_name_what_there_is(board: Board):
    for panel in board.panels:
        for query in panel.queries:
            names = set(NAME.findall(query.expr))
            assert names, query.expr
            assert names <= KNOWN, query.expr
            others = [other for other in FOREIGN if other.series in names]
            assert {other.needs for other in others} <= {query.needs}, query.expr
            labels = {label for name in names for label in _labels(name)}
            for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
                assert label in labels, (query.legend, labels)
            for label in re.findall(r'(\w+)=~"', query.expr):
                assert label in labels, query.expr


def _labels(name: str) -> set[str]:
    if any(other.series == name for other in FOREIGN):
        return {"replica", "model_name", "NodeAddress", "GpuIndex"}
    (metric,) = (m for m in METRICS if name in (m.series, *(m.series + end for end in MADE_OF_HISTOGRAMS)))
    return {*metric.labels, "le", *(("replica",) if metric.origin is Origin.page else ())}


def test_every_metric_is_shown_somewhere():
    shown = {name for board in BOARDS for panel in board.panels for q in panel.queries for name in NAME.findall(q.expr)}
    assert shown == {name for name in KNOWN if not name.endswith(("_sum", "_count"))}


@pytest.mark.parametrize("other", FOREIGN, ids=lambda other: other.series)
def test_others_have_what_we_take_from_them(other: Foreign):
    package, _, path = other.source.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert f'"{other.name}"' in (Path(spec.origin).parent / path).read_text()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_panels_lie_side_by_side_and_none_covers_another(board: Board):
    plain = board.plain()
    cells: set[tuple[int, int]] = set()
    for panel in plain["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
        assert panel["description"].endswith(".")
    assert [panel["id"] for panel in plain["panels"]] == list(range(1, len(plain["panels"]) + 1))
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in plain["panels"]])))
    assert used - {"__rate_interval", "source"} <= {v["name"] for v in plain["templating"]["list"]}


def test_documents_name_metrics_that_there_are():
    names = {name for metric in METRICS for name in (metric.name, metric.series)}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`(?:ray_)?(manta_\w+)", path.read_text()):
            assert name in names or f"ray_{name}" in names, f"{path.name}: {name}"


def test_what_is_written_is_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    words = ["cluster", "dashboards", "--out", str(out), "--service", "a:1", "--service", "[::1]:2", "--key-file", "/k"]
    assert main([*words, "--ray-file", "/r.json"]) == 0
    config = yaml.safe_load((out / "prometheus" / "prometheus.yml").read_text())
    service, ray = config["scrape_configs"]
    assert service["static_configs"] == [{"targets": ["a:1", "[::1]:2"]}]
    assert service["authorization"] == {"type": "Bearer", "credentials_file": "/k"}
    assert ray["file_sd_configs"][0]["files"] == [f"{tmp_path}/home/metrics/*.json", "/r.json"]
    said = capsys.readouterr().out.split()
    assert said == [str(out / name) for name in verb.shipped_files()]
    assert all(Path(path).is_file() for path in said)
    assert main(["cluster", "dashboards", "--out", str(out), "--open"]) == 0
    assert "authorization" not in (out / "prometheus" / "prometheus.yml").read_text()


def test_the_shipped_address_is_where_a_service_answers():
    spec = DeploymentSpec()
    assert f"{spec.host}:{spec.port}" == verb.SERVICE


def test_mistakes_are_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--service must be HOST:PORT, got 'nine'"):
        verb.run(["--service", "nine"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: Not a directory"):
        verb.run(["--out", str(tmp_path / "file")])
    assert verb.run(["--nope"]) == 2
