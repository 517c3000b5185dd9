"""What a job was asked: kept in its folder, so that another job does not go on with it unnoticed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipelines.ledger.folder import Folder


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """The job that began a folder."""

    decides: dict[str, Any]
    """What decides the answers and how they are written, by configuration key; plain values."""
    unit_rows: int
    """Records of a unit: a job keeps what it began with."""
    job: dict[str, Any]
    """The whole configuration; plain values."""

    def write(self, folder: Folder) -> None:
        """Writes it."""
        plain = {"decides": self.decides, "unit_rows": self.unit_rows, "job": self.job}
        folder.spec.write_bytes(json.dumps(plain, indent=2, ensure_ascii=False).encode())

    def differences(self, other: JobSpec) -> list[str]:
        """Returns what another job asks otherwise, a phrase each: ``sampling.max_tokens is 64, it was 256``."""
        names = [*self.decides, *(name for name in other.decides if name not in self.decides)]
        return [
            f"{name} is {_short(other.decides.get(name))}, it was {_short(self.decides.get(name))}"
            for name in names
            if self.decides.get(name) != other.decides.get(name)
        ]


def read_spec(folder: Folder) -> JobSpec | None:
    """Reads a folder's job; null where there is none.

    Raises:
        ValueError: when the file is no job.
        OSError: when it cannot be read.
    """
    try:
        plain = json.loads(folder.spec.read_bytes())
    except FileNotFoundError:
        return None
    try:
        return JobSpec(decides=dict(plain["decides"]), unit_rows=int(plain["unit_rows"]), job=dict(plain["job"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.spec.path} is no job of Manta's: {error!r}") from error


def _short(value: Any) -> str:
    text = " ".join(json.dumps(value, ensure_ascii=False).split())
    return text if len(text) <= 60 else text[:40] + "…" + text[-19:]
