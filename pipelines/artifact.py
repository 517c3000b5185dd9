"""A model in a folder, and the record beside it that says how it came to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from conf.errors import UserError

RECORD = "artifact.json"
"""Written last: a folder without it is no artifact."""


class Form(Enum):
    """How an artifact's weights lie: plain, in compressed-tensors' grids, or in another runtime's file."""

    plain = "plain"
    compressed = "compressed"
    onnx = "onnx"
    gguf = "gguf"


@dataclass(kw_only=True, slots=True)
class Artifact:
    """What a step made, with what was measured of it."""

    key: str
    """16 hex digits of all that decides what it holds: parent, step, rows, versions."""
    form: Form
    step: str
    """The step's name in its recipe."""
    spec: dict[str, Any]
    """The step as it was configured."""
    parent: str
    """The key of the artifact that it was made from, or the fingerprint of the first model."""
    model: str
    """The first model's name."""
    fingerprint: str
    """Of the folder's files; see `serve.engine.fingerprint`."""
    seconds: float
    versions: dict[str, str]
    measured: dict[str, Any] = field(default_factory=dict)
    """What the step found in what it saved, such as ``sparsity`` or ``parameters``."""

    def write(self, folder: Path) -> None:
        """Writes the record; the folder is an artifact from then on."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, default=lambda value: value.value)
        (folder / f"{RECORD}.tmp").write_text(text + "\n", encoding="utf-8")
        (folder / f"{RECORD}.tmp").replace(folder / RECORD)


def read_artifact(folder: Path) -> Artifact | None:
    """Returns a folder's record; null where it has none.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        saved = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Artifact(**{**saved, "form": Form(saved["form"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / RECORD} cannot be read: {error}") from error
