"""Boards, panels and queries, and what Grafana calls them.

Source: grafana.com/docs, "Dashboard JSON model" (classic, schema version 39: Grafana 10 and later).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from conf.metrics import Metric

COLUMNS = 24
"""Of Grafana's grid."""
STAT_ROWS, CHART_ROWS = 4, 8
"""Heights in it."""
SCHEMA_VERSION = 39
SOURCE = {"type": "prometheus", "uid": "${source}"}
"""The data source that the reader has chosen at the top of the board."""
RATE = "$__rate_interval"
"""Grafana's word for a span that holds samples enough for a rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A line, or several."""

    expr: str
    """PromQL, with Grafana's variables in it."""
    legend: str = ""
    """With labels in braces: ``{{replica}}``."""
    needs: str = ""
    """Why a small run has no such series; empty where every run has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A chart, or a figure."""

    title: str
    says: str
    """What a reader learns from it."""
    queries: Sequence[Query]
    unit: str = "short"
    """Grafana's name of a unit."""
    is_figure: bool = False
    is_stacked: bool = False
    width: int = 8
    decimals: int | None = None

    def plain(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Returns Grafana's JSON.

        Args:
            number: unique in the board.
            x: column of the grid.
            y: row of the grid.
        """
        custom = {
            "fillOpacity": 60 if self.is_stacked else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
        }
        if self.is_stacked:
            custom["stacking"] = {"mode": "normal", "group": "A"}
        defaults: dict[str, Any] = {"unit": self.unit, "min": 0}
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        if self.is_figure:
            options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"}
        else:
            defaults["custom"] = custom
        return {
            "id": number,
            "type": "stat" if self.is_figure else "timeseries",
            "title": self.title,
            "description": self.says,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": STAT_ROWS if self.is_figure else CHART_ROWS},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": SOURCE,
                    "editorMode": "code",
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "range": True,
                }
                for place, query in enumerate(self.queries)
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """A choice at the top of a board: values of a label, of which all are chosen at first."""

    label: str
    metric: Metric

    def plain(self) -> dict[str, Any]:
        """Returns Grafana's JSON."""
        query = f"label_values({self.metric.series}, {self.label})"
        return {
            "name": self.label,
            "label": self.label,
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": "values"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A dashboard."""

    name: str
    """Of its file, and after ``manta-`` its identifier in Grafana."""
    title: str
    says: str
    panels: Sequence[Panel]
    variables: Sequence[Variable]

    def plain(self) -> dict[str, Any]:
        """Returns Grafana's JSON."""
        return {
            "uid": f"manta-{self.name}",
            "title": f"Manta: {self.title}",
            "description": self.says,
            "tags": ["manta"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {
                "list": [
                    {"name": "source", "label": "data source", "type": "datasource", "query": "prometheus"},
                    *(variable.plain() for variable in self.variables),
                ]
            },
            "links": [
                {"type": "dashboards", "title": "Manta", "tags": ["manta"], "asDropdown": True, "keepTime": True}
            ],
            "panels": self._placed(),
        }

    def _placed(self) -> list[dict[str, Any]]:
        """The panels, from left to right and down."""
        placed: list[dict[str, Any]] = []
        x = y = height = 0
        for number, panel in enumerate(self.panels, 1):
            rows = STAT_ROWS if panel.is_figure else CHART_ROWS
            if x + panel.width > COLUMNS or (x and rows != height):
                x, y = 0, y + height
            placed.append(panel.plain(number, x, y))
            x, height = x + panel.width, rows
        return placed


def chosen(*labels: str, **fixed: str) -> str:
    """Returns a selector of the series that the board's variables choose.

    Args:
        labels: whose variables count.
        fixed: further matches, as PromQL's regular expressions.
    """
    parts = [f'{label}=~"${label}"' for label in labels] + [f'{label}=~"{value}"' for label, value in fixed.items()]
    return "{" + ",".join(parts) + "}" if parts else ""


def figures(*panels: Panel) -> tuple[Panel, ...]:
    """Returns panels as single figures with a small trend, six in a row."""
    return tuple(replace(panel, is_figure=True, width=4) for panel in panels)


def rate(metric: Metric, selector: str, by: str = "") -> str:
    """Returns a counter's rise in a second, by labels, in the span that Grafana thinks right."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric.series}{selector}[{RATE}]))"


def total(series: str, selector: str, by: str = "") -> str:
    """Returns the sum of what is so now, by labels."""
    return f"sum{f' by ({by})' if by else ''} ({series}{selector})"
