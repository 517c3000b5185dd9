"""Prometheus' configuration: where it finds services, and Ray's agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.targets import JOB

INTERVAL = "5s"
"""Peaks are over in tens of seconds. Ray's agents hear from processes every ten."""
SERVICE = "127.0.0.1:8000"
"""Where `manta serve` answers when nothing else is said (deployment.host and deployment.port)."""
RAY_FILE = "/tmp/ray/prom_metrics_service_discovery.json"
"""Ray's own list of nodes: of clusters that `ray start` made, in their folder for temporary files."""
KEY_FILE = "manta.key"
"""Beside the configuration: one key of the service, a line."""
HEAD = """# Written by manta cluster dashboards; change conf/metrics.py or cluster/monitoring/ instead.
# prometheus --config.file=prometheus.yml, in this folder
"""


def scrape_config(services: Sequence[str], targets: Path, ray_files: Sequence[str], key_file: str | None) -> str:
    """Returns prometheus.yml.

    Args:
        services: host and port of each.
        targets: the folder in which clusters that manta started are told of; see `cluster.targets`.
        ray_files: Ray's own lists of nodes, one for each cluster.
        key_file: with a key of the services; null where they are open.
    """
    service: dict[str, Any] = {"job_name": "manta", "static_configs": [{"targets": list(services)}]}
    if key_file is not None:
        service["authorization"] = {"type": "Bearer", "credentials_file": key_file}
    files = [f"{targets}/*.json", *ray_files]
    config = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "scrape_configs": [service, {"job_name": JOB, "file_sd_configs": [{"files": files, "refresh_interval": "5s"}]}],
    }
    return HEAD + yaml.safe_dump(config, sort_keys=False)
