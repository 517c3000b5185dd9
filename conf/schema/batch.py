"""The root of `manta batch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError
from conf.schema.cluster import ClusterSpec
from conf.schema.data import DataSpec
from conf.schema.engine import EngineSpec
from conf.schema.hardware import HardwareSpec
from conf.schema.model import ModelSpec
from conf.schema.output import OutputSpec
from conf.schema.plan import PlanSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task


@dataclass(kw_only=True, slots=True)
class ProgressSpec:
    """What a running job shows."""

    interval_s: float = 10.0
    """Seconds between lines where the output is no terminal."""
    quiet: bool = False
    """Show nothing before the summary."""
    show_rows: int = 3
    """Answers shown under the summary."""

    def __post_init__(self) -> None:
        if not self.interval_s > 0:
            raise UserError(f"progress.interval_s must be > 0, got {self.interval_s}")
        if self.show_rows < 0:
            raise UserError(f"progress.show_rows must be >= 0, got {self.show_rows}")


class Dedupe(Enum):
    """Which equal requests run once: those whose answer is ``deterministic``, ``all`` or none (``off``)."""

    deterministic = "deterministic"
    all = "all"
    off = "off"


class Order(Enum):
    """How a replica orders the rows that it holds.

    ``prefix`` computes rows whose prompts begin alike next to each other, so that the engine's prefix cache serves
    them, and begins long answers before the end of the job; ``input`` takes rows as they come. ``auto`` is prefix where
    answers are text, input where they are vectors.
    """

    auto = "auto"
    prefix = "prefix"
    input = "input"


@dataclass(kw_only=True, slots=True)
class BatchSpec:
    """How rows are scheduled."""

    dedupe: Dedupe = Dedupe.deterministic
    """Equal requests run once and fan out: those with temperature 0 or a seed, all, or none."""
    order: Order = Order.auto
    """Rows with a common prefix run together and long answers in good time (prefix), or rows as they come (input)."""
    window_rows: int = 8192
    """Rows that a replica holds to order them, at 8 bytes a token. More find more in common. One of several replicas
    holds its share of the job at most, and none less than its engine needs."""
    max_attempts: int = 4
    """A row in flight at so many deaths of engines, at last alone, is a dead letter."""

    def __post_init__(self) -> None:
        if self.window_rows < 1:
            raise UserError(f"batch.window_rows must be >= 1, got {self.window_rows}")
        if self.max_attempts < 2:
            raise UserError(f"batch.max_attempts must be >= 2, got {self.max_attempts}")


@dataclass(kw_only=True, slots=True)
class BatchJob:
    """A table of prompts in, a table of answers out."""

    task: Task = Task.generate
    """What is asked of the model."""
    model: ModelSpec = field(default_factory=ModelSpec)
    engine: EngineSpec = field(default_factory=EngineSpec)
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    data: DataSpec = field(default_factory=DataSpec)
    output: OutputSpec = field(default_factory=OutputSpec)
    batch: BatchSpec = field(default_factory=BatchSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    hardware: HardwareSpec = field(default_factory=HardwareSpec)
    plan: PlanSpec = field(default_factory=PlanSpec)
    progress: ProgressSpec = field(default_factory=ProgressSpec)
    dry_run: bool = False
    """Run nothing: print what manta plan prints."""
