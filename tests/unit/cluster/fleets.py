"""Clusters, composed and rendered as `manta cluster render` does."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.render import render
from conf import entry
from conf.schema.fleet import FleetSpec

ROOT = Path(__file__).resolve().parents[3]
LAUNCHED = ("aws", "gcp", "on_prem")
KUBERAY = ("kuberay", "kuberay_tpu_v5e", "kuberay_tpu_v6e")


def fleet_of(name: str, *words: str) -> FleetSpec:
    fleet: FleetSpec = entry.compose("render", f"fleet={name}", *words).fleet
    fleet.check()
    return fleet


def rendered(name: str, *words: str) -> dict[str, dict[str, Any]]:
    """Each file's content, by the file's name without its ending; a copy of one's own."""
    return copy.deepcopy(_rendered(name, *words))


@cache
def _rendered(name: str, *words: str) -> dict[str, dict[str, Any]]:
    files = render(fleet_of(name, *words), [f"fleet={name}", *words])
    return {Path(file).stem: yaml.safe_load(text) for file, text in files.items()}
