"""The steps of a recipe with the folders of their results: what is done already, and what is to be done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import UserError
from conf.schema.export import ExportFormat
from conf.schema.model import ModelSpec
from conf.schema.recipe import RecipeSpec
from conf.schema.step import StepKind, StepSpec
from pipelines.artifact import Artifact, Form, read_artifact
from serve.engine.fingerprint import fingerprint_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A step with its place in the chain."""

    name: str
    spec: StepSpec
    key: str
    """16 hex digits of all that decides its result."""
    parent: str
    """The key before it; of the first one the model's fingerprint."""
    folder: Path
    """Where its result is kept."""

    @property
    def form(self) -> Form:
        """How the weights of its result lie."""
        if self.spec.kind is StepKind.quantize:
            return Form.compressed
        if self.spec.kind is StepKind.export:
            return Form.gguf if self.spec.export.format is ExportFormat.gguf else Form.onnx
        return Form.plain


def link_steps(recipe: RecipeSpec, fingerprint: str, rows: str | None, seed: int, store: Path) -> list[Link]:
    """Returns the chain.

    Args:
        recipe: the steps.
        fingerprint: of the first model, which is also the teacher.
        rows: a digest of the examples; null where there are none.
        seed: of what is drawn.
        store: the folder of results.
    """
    chain: list[Link] = []
    parent = fingerprint
    for name, spec in recipe.steps.items():
        decides = {
            "parent": parent,
            "step": spec.settings,
            "rows": rows if spec.needs_rows else None,
            "teacher": _teacher(spec, fingerprint),
            "seed": seed if spec.needs_rows else None,
        }
        key = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=8).hexdigest()
        chain.append(Link(name=name, spec=spec, key=key, parent=parent, folder=store / f"{name}-{key}"))
        parent = key
    return chain


def _teacher(spec: StepSpec, first: str) -> str | None:
    """The fingerprint of the model that a step learns from; null where it learns from none."""
    if spec.lesson is None:
        return None
    own = spec.lesson.teacher
    return first if own is None else fingerprint_folder(Path(own).expanduser())


def find_done(link: Link) -> Artifact | None:
    """Returns what a former run made of a step; null where none did.

    Raises:
        UserError: when it was changed since: nothing that is built on it could be explained.
    """
    artifact = read_artifact(link.folder)
    if artifact is None:
        return None
    if artifact.fingerprint != fingerprint_folder(link.folder):
        raise UserError(f"{link.folder} was changed after it was made: delete it, and the step is done again")
    return artifact


def check_parent(chain: Sequence[Link], at: int, model: ModelSpec) -> None:
    """Checks that what a step starts from is still what its key was made of.

    Args:
        chain: the steps.
        at: the step's place among them.
        model: the first model.

    Raises:
        UserError: when it was changed, or is gone.
    """
    if at == 0 and fingerprint_model(model) != chain[0].parent:
        raise UserError(f"model.path={model.path}: it was changed since this run began; run the same command again")
    if at > 0 and find_done(chain[at - 1]) is None:
        raise UserError(f"{chain[at - 1].folder} is gone since this run began; run the same command again")


def fingerprint_folder(folder: Path) -> str:
    """Returns 16 hex digits of a checkpoint's files; see `serve.engine.fingerprint`."""
    return fingerprint_model(ModelSpec(path=str(folder)))
