"""One step of a recipe: from a checkpoint to a cheaper one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from conf.schema.distill import DistillSpec
from conf.schema.export import ExportSpec
from conf.schema.prune import PruneSpec
from conf.schema.quantize import QuantizeSpec, Rounding


class StepKind(Enum):
    """What a step does: fewer bits, fewer weights, training on a teacher's answers, or another format."""

    quantize = "quantize"
    prune = "prune"
    distill = "distill"
    export = "export"


@dataclass(kw_only=True, slots=True)
class StepSpec:
    """A step; of the parts below it, the one that ``kind`` names counts."""

    kind: StepKind = MISSING
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    prune: PruneSpec = field(default_factory=PruneSpec)
    distill: DistillSpec = field(default_factory=DistillSpec)
    export: ExportSpec = field(default_factory=ExportSpec)

    @property
    def part(self) -> QuantizeSpec | PruneSpec | DistillSpec | ExportSpec:
        """The part that counts."""
        return getattr(self, self.kind.value)

    @property
    def settings(self) -> dict[str, Any]:
        """The kind and all that decides what the step makes, as plain values."""
        part = {key: _plain(value) for key, value in asdict(self.part).items()}
        if self.kind is StepKind.quantize and self.quantize.rounding is not Rounding.qat:
            del part["qat"]
        return {"kind": self.kind.value, **part}

    @property
    def lesson(self) -> DistillSpec | None:
        """How it learns from a teacher; null where it does not."""
        if self.kind is StepKind.quantize:
            return self.quantize.qat if self.quantize.rounding is Rounding.qat else None
        return self.distill if self.kind is StepKind.distill else None

    @property
    def needs_rows(self) -> bool:
        """Whether it learns or calibrates from the user's rows."""
        return self.part.needs_rows

    @property
    def needs_answers(self) -> bool:
        """Whether each of these rows must have an answer."""
        return self.lesson is not None and self.lesson.needs_answers


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
