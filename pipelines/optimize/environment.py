"""The environment of the steps: libraries that vLLM's own versions do not go with."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conf.errors import UserError
from conf.schema.distill import DistillSpec
from conf.schema.export import ExportFormat
from conf.schema.prune import CALIBRATED, PruneSpec
from conf.schema.step import StepKind, StepSpec

FOLDER = "MANTA_OPTIMIZE_SITE"
"""The environment variable that names the folder, where it is not in its usual place."""
ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = (
    *("torch", "transformers", "llmcompressor", "compressed-tensors", "torchao"),
    *("onnx", "onnxruntime", "gguf", "xllamacpp"),
)
"""Libraries whose versions an artifact's record names."""


def site() -> Path:
    """Returns the folder into which `make optimize` installs; it need not be there."""
    return Path(os.environ.get(FOLDER) or Path(sys.prefix) / "optimize").absolute()


def check_site(name: str, step: StepSpec) -> None:
    """Checks that a step's libraries are there.

    Args:
        name: the step's, for the message.
        step: what it does.

    Raises:
        UserError: when they are not.
    """
    if isinstance(step.part, DistillSpec) or (isinstance(step.part, PruneSpec) and step.part.method not in CALIBRATED):
        return  # torch and transformers are enough
    if step.kind is StepKind.export and step.export.format is ExportFormat.gguf:
        if missing := [each for each in ("gguf", "xllamacpp") if find_spec(each) is None]:
            raise UserError(f"recipe.steps.{name} needs {' and '.join(missing)}, an extra: run 'make gguf'")
        return
    library = "onnx" if step.kind is StepKind.export else "llmcompressor"
    if not (site() / library).is_dir() and find_spec(library) is None:
        raise UserError(
            f"recipe.steps.{name} ({step.kind.value}) needs libraries that stand apart from vLLM's: run 'make optimize'"
            f" (or set {FOLDER} to the folder that holds them)"
        )


def runtime_env() -> dict[str, Any]:
    """Returns Ray's runtime environment of a step: our packages, before them what stands apart."""
    before = os.environ.get("PYTHONPATH")
    path = [str(site()), str(ROOT), *([before] if before else [])]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}}


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that a step uses, Python's among them."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for place in (*sys.path, str(site())):
        for each in distributions(path=[place]):
            if each.name in NAMES:
                found[each.name] = each.version  # the folder that stands apart comes last, and wins
    return found
