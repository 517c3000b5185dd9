"""A student that learns a teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class Answers(Enum):
    """Whose answers the student reads while it learns: those of the rows, or those that the teacher writes."""

    rows = "rows"
    teacher = "teacher"


@dataclass(kw_only=True, slots=True)
class DistillSpec:
    """Training of the checkpoint, the student, on what the recipe's first model, the teacher, would answer."""

    teacher: str | None = None
    """Folder of another teacher than the recipe's first model, where that one is the student."""
    answers: Answers = Answers.rows
    """``teacher`` writes greedily. Its answers from a batch job are rows like any other: data.answer=COLUMN."""
    kl_weight: float = 1.0
    """Of the divergence of the student's next-token probabilities from the teacher's (logit-level distillation)."""
    answer_weight: float = 0.0
    """Of the cross-entropy of the answers' tokens (sequence-level distillation)."""
    temperature: float = 1.0
    """Of both models' probabilities in the divergence."""
    on_policy: float = 0.0
    """Share of the steps in which the student writes the answers, by chance, and the teacher says what it would say."""
    max_answer_tokens: int = 256
    """Tokens of an answer that the teacher or the student writes, at most."""
    top_k: int | None = None
    """Store the teacher's K likeliest tokens of each position once, instead of running it at each step."""
    keep_mask: bool = True
    """Weights that are zero in a pruned source stay zero."""
    steps: int = 400
    """Of training."""
    batch_size: int = 32
    """Rows a step, over all workers."""
    learning_rate: float | None = None
    """At its peak, after the warm-up; it falls to 2 % of it along a cosine. Null: 0.4 / hidden_size, which is 2e-3 of a
    model 200 wide and 1e-4 of one 4,096 wide."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    num_workers: int = 1
    """Processes that share the steps' rows (Ray Train)."""
    gpus_per_worker: float | None = None
    """Null: one where the cluster has one for each worker, else none. Of num_workers > 1."""
    checkpoint_steps: int = 100
    """Steps between two states from which a broken run goes on; 0 keeps none."""
    log_s: float = 10.0
    """Seconds between two lines of progress."""

    def __post_init__(self) -> None:
        for key in ("kl_weight", "answer_weight", "weight_decay", "checkpoint_steps"):
            if getattr(self, key) < 0:
                raise UserError(f"distill.{key} must be >= 0, got {getattr(self, key)}")
        if self.kl_weight == self.answer_weight == 0:
            raise UserError("distill.kl_weight or distill.answer_weight must be > 0, or there is nothing to learn")
        for key in ("temperature", "max_grad_norm", "log_s"):
            if not getattr(self, key) > 0:
                raise UserError(f"distill.{key} must be > 0, got {getattr(self, key)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"distill.learning_rate must be > 0 or null, got {self.learning_rate}")
        for key in ("on_policy", "warmup"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"distill.{key} must be in 0..1, got {getattr(self, key)}")
        for key in ("steps", "batch_size", "num_workers", "max_answer_tokens"):
            if getattr(self, key) < 1:
                raise UserError(f"distill.{key} must be >= 1, got {getattr(self, key)}")
        if self.batch_size % self.num_workers:
            raise UserError(
                f"distill.batch_size must be a multiple of distill.num_workers={self.num_workers},"
                f" got {self.batch_size}"
            )
        if self.top_k is not None:
            self._check_stored(self.top_k)
        if self.on_policy and self.kl_weight == 0:
            raise UserError(
                "distill.on_policy needs distill.kl_weight > 0: what the student writes is no answer to copy"
            )

    def _check_stored(self, top_k: int) -> None:
        if top_k < 1:
            raise UserError(f"distill.top_k must be >= 1 or null, got {top_k}")
        if self.on_policy:
            raise UserError("distill.top_k needs distill.on_policy=0: nothing is stored of what the student will write")
        if self.kl_weight == 0:
            raise UserError("distill.top_k needs distill.kl_weight > 0")

    @property
    def needs_rows(self) -> bool:
        """It always does."""
        return True

    @property
    def needs_answers(self) -> bool:
        """Whether rows must have answers."""
        return self.answers is Answers.rows and self.on_policy < 1
