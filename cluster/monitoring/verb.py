"""`manta cluster dashboards`: writes what Prometheus and Grafana need."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cluster.monitoring.autoscaling import build_autoscaling
from cluster.monitoring.batch import build_batch
from cluster.monitoring.cost import build_cost
from cluster.monitoring.panel import Board
from cluster.monitoring.reference import metrics_page
from cluster.monitoring.scrape import KEY_FILE, RAY_FILE, SERVICE, scrape_config
from cluster.monitoring.serve import build_serve
from cluster.targets import targets_folder
from conf.errors import UserError

OUT = "out/dashboards"
SHIPPED_TARGETS = "targets"
"""Where the shipped configuration looks for clusters: it cannot know anybody's folder."""


def build_boards() -> tuple[Board, ...]:
    """Returns all dashboards."""
    return build_batch(), build_serve(), build_autoscaling(), build_cost()


def build_files(config: str) -> dict[str, str]:
    """Returns what is written, by path below the folder.

    Args:
        config: Prometheus'.
    """
    boards = {
        f"grafana/{board.name}.json": json.dumps(board.plain(), indent=2, ensure_ascii=False) + "\n"
        for board in build_boards()
    }
    return {"prometheus/prometheus.yml": config, **boards, "metrics.md": metrics_page()}


def shipped_files() -> dict[str, str]:
    """Returns what lies under cluster/ in the repository: made for no machine."""
    return build_files(scrape_config([SERVICE], Path(SHIPPED_TARGETS), [RAY_FILE], KEY_FILE))


def run(words: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        words: its options.

    Returns:
        The exit code; see `conf.cli`.

    Raises:
        UserError: for an address that is none, and a folder that cannot be written.
    """
    try:
        options = _parser().parse_args(words)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    for service in options.service or ():
        host, _, port = service.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--service must be HOST:PORT, got '{service}'")
    files = shipped_files()
    if not options.shipped:
        services, ray_files = options.service or [SERVICE], options.ray_file or [RAY_FILE]
        key_file = None if options.open else options.key_file
        files = build_files(scrape_config(services, targets_folder(os.environ), ray_files, key_file))
    out = Path(options.out)
    try:
        for name, text in files.items():
            place = out / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    print("\n".join(str(out / name) for name in files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manta cluster dashboards",
        description="Writes Prometheus' configuration, Grafana's dashboards and the list of metrics.",
    )
    parser.add_argument("--out", metavar="FOLDER", default=OUT, help=f"where to ({OUT})")
    parser.add_argument(
        "--service", metavar="HOST:PORT", action="append", help=f"a service, once or more often ({SERVICE})"
    )
    parser.add_argument("--key-file", metavar="FILE", default=KEY_FILE, help=f"with a key of the services ({KEY_FILE})")
    parser.add_argument("--open", action="store_true", help="the services need no key")
    parser.add_argument(
        "--ray-file", metavar="FILE", action="append", help=f"a running cluster's own list of nodes ({RAY_FILE})"
    )
    parser.add_argument("--shipped", action="store_true", help="as in the repository, for no machine in particular")
    return parser
