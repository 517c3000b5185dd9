"""One step of a recipe: from a checkpoint to a cheaper one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from conf.schema.distill import DistillSpec
from conf.schema.export import ExportSpec
from conf.schema.prune import PruneSpec
from conf.schema.quantize import QuantizeSpec


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
    def needs_rows(self) -> bool:
        """Whether it learns or calibrates from the user's rows."""
        return self.part.needs_rows

    @property
    def needs_answers(self) -> bool:
        """Whether each of these rows must have an answer."""
        return self.kind is StepKind.distill and self.distill.needs_answers
