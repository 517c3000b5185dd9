"""The root of `manta evaluate`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError
from conf.schema.cluster import ClusterSpec
from conf.schema.data import DataSpec
from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec


class Metric(Enum):
    """What is measured of the answers.

    ``exact``: the answer is the expected text. ``json_fields``: each field of a JSON answer, and all of them.
    ``number``: the number in the answer. ``perplexity``: of the expected answer. Against a parent: ``agreement``, the
    answers are equal, and ``divergence``, the KL divergence of the next-token distributions along its answers.
    """

    exact = "exact"
    json_fields = "json_fields"
    number = "number"
    perplexity = "perplexity"
    agreement = "agreement"
    divergence = "divergence"


AGAINST_PARENT = (Metric.agreement, Metric.divergence)
FORCED = (Metric.perplexity, Metric.divergence)
"""Those that need the likelihood of a given text."""


@dataclass(kw_only=True, slots=True)
class QualitySpec:
    """What is measured of the answers, and how sure it is."""

    metrics: list[Metric] = field(default_factory=list)
    """Of exact, json_fields, number, perplexity, agreement, divergence; where empty, all that rows, engine and parent
    allow."""
    number_pattern: str = r"-?\d[\d,]*(?:\.\d+)?"
    """For number: a regular expression; its last match in an answer counts, or its first group there."""
    number_marker: str = "####"
    """For number: where an answer has this text, what follows the last one is looked at first, as in GSM8K."""
    parent_kind: EngineKind | None = None
    """The kind of engine that runs the parent; the model's where null."""
    top_k: int = 20
    """For divergence: likely tokens of each place that are told apart; the others are taken together."""
    bootstrap_samples: int = 2000
    """Of the intervals of means."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        rules = [
            ("top_k", self.top_k >= 1, ">= 1"),
            ("bootstrap_samples", self.bootstrap_samples >= 100, ">= 100"),
            ("seed", self.seed >= 0, ">= 0"),
        ]
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"quality.{key} must be {rule}, got {getattr(self, key)}")
        try:
            re.compile(self.number_pattern)
        except re.error as error:
            raise UserError(f"quality.number_pattern must be a regular expression: {error}") from error


@dataclass(kw_only=True, slots=True)
class SpeedSpec:
    """How speed is measured, with one request at a time and with a full batch."""

    runs: int = 5
    """Their median counts; 0 measures no speed."""
    answer_tokens: int = 64
    """Of each answer in a run, whatever the model says."""
    probes: int = 16
    """Requests whose time to first token is taken."""
    limit_s: float = 20.0
    """When runs of one kind have taken so long no other begins; one is made always."""
    batch: int | None = None
    """Requests of a full batch; engine.max_num_seqs where null."""

    def __post_init__(self) -> None:
        rules = [
            ("runs", self.runs >= 0, ">= 0"),
            ("answer_tokens", self.answer_tokens >= 2, ">= 2"),
            ("limit_s", self.limit_s > 0, "> 0"),
            ("probes", self.probes >= 1, ">= 1"),
            ("batch", self.batch is None or self.batch >= 1, ">= 1 or null"),
        ]
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"speed.{key} must be {rule}, got {getattr(self, key)}")


@dataclass(kw_only=True, slots=True)
class CardSpec:
    """Where the model card goes."""

    path: str | None = None
    """The folder for card.md and card.json; the model's own where null."""
    json_file: str | None = None
    """Write the card as JSON to this file too; - prints it in the place of the page, as --json does."""


@dataclass(kw_only=True, slots=True)
class EvaluateJob:
    """A model and labelled rows in, its card out."""

    model: ModelSpec = field(default_factory=ModelSpec)
    engine: EngineSpec = field(default_factory=EngineSpec)
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    data: DataSpec = field(default_factory=DataSpec)
    parent: str = ""
    """A model to compare with, that it was made from: a folder, or a name as model=NAME takes it; none where empty."""
    quality: QualitySpec = field(default_factory=QualitySpec)
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    output: CardSpec = field(default_factory=CardSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)

    def __post_init__(self) -> None:
        for metric in self.quality.metrics:
            if metric in AGAINST_PARENT and not self.parent:
                raise UserError(f"quality.metrics has {metric.value}, which needs a parent: set parent=FOLDER")
