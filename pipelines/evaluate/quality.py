"""From what engines said to figures of quality with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conf.schema.evaluate import Metric, QualitySpec
from pipelines.evaluate.conduct import Findings, Likelihoods
from pipelines.evaluate.divergence import text_divergence
from pipelines.evaluate.examiner import Answer
from pipelines.evaluate.interval import Interval, bootstrap, mcnemar, paired_difference, wilson
from pipelines.evaluate.outcome import find_number, has_all_fields, is_exact, read_object, right_fields
from pipelines.evaluate.rows import Row

ABSENT = "-"
"""In a string of outcomes, a row that has none."""
Marks = list[bool | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One figure of quality."""

    figure: Interval
    rows: int
    """That it was taken of."""
    is_share: bool
    higher_is_better: bool = True
    outcomes: str = ""
    """Of a share, a sign for each row that was asked: 1, 0, or - where the row has none."""
    parent: Interval | None = None
    """The same of the parent, on the same rows."""
    difference: Interval | None = None
    """Model - parent, row by row."""
    p: float | None = None
    """McNemar's: how likely so uneven a split of the rows that differ is, where both are alike."""
    covered: float | None = None
    """Of a divergence: the parent's probability that lies on tokens that were told apart."""

    @property
    def within_parent(self) -> bool | None:
        """Whether the figure is no worse than the worse end of the parent's interval; null without a parent."""
        if self.parent is None:
            return None
        if self.higher_is_better:
            return self.figure.value >= self.parent.low
        return self.figure.value <= self.parent.high


def judge(
    metrics: Sequence[Metric], rows: Sequence[Row], model: Findings, parent: Findings | None, spec: QualitySpec
) -> dict[str, Measured]:
    """Returns the figures by name: the metrics', and ``field.NAME`` for each field of JSON answers.

    Args:
        metrics: what is measured.
        rows: that were asked.
        model: what the model's engine said of them.
        parent: what the parent's said.
        spec: pattern and marker of numbers, the bootstrap.
    """
    others = parent.answers if parent is not None else None
    found: dict[str, Measured] = {}
    for metric in metrics:
        if metric is Metric.json_fields:
            found |= _fields(rows, model.answers, others)
        elif metric in _JUDGES:
            found[metric.value] = _share(_JUDGES[metric], rows, model.answers, others, spec)
        elif metric is Metric.perplexity and model.expected is not None:
            found["perplexity"] = _perplexity(model.expected, parent and parent.expected, spec)
        elif metric is Metric.agreement and others is not None:
            marks = [
                a.text.strip() == b.text.strip() if a.text is not None and b.text is not None else None
                for a, b in zip(model.answers, others, strict=True)
            ]
            found["agreement"] = _measured(marks, None)
        elif (
            metric is Metric.divergence and parent is not None and parent.along is not None and model.along is not None
        ):
            found["divergence"] = _divergence(parent.along, model.along, spec)
    return {name: measured for name, measured in found.items() if measured.rows}


def _exact(answer: str, row: Row, spec: QualitySpec) -> bool | None:
    return is_exact(answer, row.expected)


def _number(answer: str, row: Row, spec: QualitySpec) -> bool | None:
    expected = find_number(row.expected, spec)
    return None if expected is None else find_number(answer, spec) == expected


_JUDGES: dict[Metric, Callable[[str, Row, QualitySpec], bool | None]] = {
    Metric.exact: _exact,
    Metric.number: _number,
}


def _share(
    of: Callable[[str, Row, QualitySpec], bool | None],
    rows: Sequence[Row],
    answers: Sequence[Answer],
    others: Sequence[Answer] | None,
    spec: QualitySpec,
) -> Measured:
    def marks(given: Sequence[Answer]) -> Marks:
        pairs = zip(given, rows, strict=True)
        return [None if answer.text is None else of(answer.text, row, spec) for answer, row in pairs]

    return _measured(marks(answers), None if others is None else marks(others))


def _fields(rows: Sequence[Row], answers: Sequence[Answer], others: Sequence[Answer] | None) -> dict[str, Measured]:
    expected = [read_object(row.expected) for row in rows]
    names = sorted({name for fields in expected for name in fields or ()})

    def marks(given: Sequence[Answer]) -> dict[str, Marks]:
        found: dict[str, Marks] = {name: [] for name in ("json_fields", *names)}
        for answer, wanted in zip(given, expected, strict=True):
            is_there = wanted is not None and answer.text is not None
            right = right_fields(answer.text or "", wanted) if is_there and wanted is not None else {}
            for name in names:
                found[name].append(right.get(name))
            found["json_fields"].append(has_all_fields(answer.text or "", wanted or {}) if is_there else None)
        return found

    own, theirs = marks(answers), marks(others) if others is not None else {}
    return {name if name == "json_fields" else f"field.{name}": _measured(own[name], theirs.get(name)) for name in own}


def _measured(marks: Marks, parent: Marks | None) -> Measured:
    outcomes = "".join(ABSENT if mark is None else "01"[mark] for mark in marks)
    known = [mark for mark in marks if mark is not None]
    if not known:
        return Measured(figure=Interval(value=0, low=0, high=0), rows=0, is_share=True)
    more: dict[str, Any] = {}
    if parent is not None:
        more = against(outcomes, "".join(ABSENT if mark is None else "01"[mark] for mark in parent))
    return Measured(figure=wilson(sum(known), len(known)), rows=len(known), is_share=True, outcomes=outcomes, **more)


def against(outcomes: str, others: str) -> dict[str, Any]:
    """Returns parent, difference and p of two strings of outcomes on the same rows; nothing where they share none."""
    pairs = [(a == "1", b == "1") for a, b in zip(outcomes, others, strict=True) if ABSENT not in (a, b)]
    if not pairs:
        return {}
    first, second = (np.array(side, bool) for side in zip(*pairs, strict=True))
    return {
        "parent": wilson(int(second.sum()), len(second)),
        "difference": paired_difference(first, second),
        "p": mcnemar(first, second),
    }


def _perplexity(expected: Likelihoods, parent: Likelihoods | None, spec: QualitySpec) -> Measured:
    both = [
        (own, other)
        for own, other in zip(expected, parent or expected, strict=True)
        if own is not None and other is not None
    ]
    if not both:
        return Measured(figure=Interval(value=0, low=0, high=0), rows=0, is_share=False)
    sums = np.array([[_nats(own), len(own), _nats(other), len(other)] for own, other in both], float)

    def drawn(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        return bootstrap(sums, statistic, spec.bootstrap_samples, spec.seed)

    def own(totals: np.ndarray) -> np.ndarray:
        return np.exp(totals[:, 0] / totals[:, 1])

    def theirs(totals: np.ndarray) -> np.ndarray:
        return np.exp(totals[:, 2] / totals[:, 3])

    return Measured(
        figure=drawn(own),
        rows=len(both),
        is_share=False,
        higher_is_better=False,
        parent=drawn(theirs) if parent is not None else None,
        difference=drawn(lambda totals: own(totals) - theirs(totals)) if parent is not None else None,
    )


def _nats(places: Any) -> float:
    return -sum(place.logprob for place in places)


def _divergence(parent: Likelihoods, model: Likelihoods, spec: QualitySpec) -> Measured:
    pairs = [(p, q) for p, q in zip(parent, model, strict=True) if p is not None and q is not None]
    if not pairs:
        return Measured(figure=Interval(value=0, low=0, high=0), rows=0, is_share=False)
    sums = np.array([[*text_divergence(p, q), len(p)] for p, q in pairs], float)
    figure = bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 2], spec.bootstrap_samples, spec.seed)
    covered = float(sums[:, 1].sum() / sums[:, 2].sum())
    return Measured(figure=figure, rows=len(pairs), is_share=False, higher_is_better=False, covered=covered)
