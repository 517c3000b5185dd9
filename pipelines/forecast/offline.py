"""What can be said before a job whose rows a service answers: how much it asks for, not how long that takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from conf.schema.engine import EngineSpec
from pipelines.forecast.lengths import Answers
from pipelines.forecast.sample import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineWork:
    """What a service is asked for."""

    rows: int
    sampled_rows: int
    bad_rows: float
    bad: dict[str, int]
    """In the sample, by class of error."""
    prompt_tokens: float
    """Before equal requests share an answer, and without what a prefix cache saves."""
    completion_tokens: float
    answers_from: str

    def plain(self) -> dict[str, object]:
        """Returns it for JSON."""
        return asdict(self)

    def page(self, engine: EngineSpec, looked_s: float) -> str:
        """Returns it for a person."""
        rule = engine.service.admission.rule.value
        bad = ", ".join(f"{name} {rows:,}" for name, rows in self.bad.items())
        rows = [
            ("rows", f"{self.rows:,}", f"{self.sampled_rows:,} looked at"),
            ("bad rows", f"{self.bad_rows:,.0f}", bad),
            ("tokens in", f"{self.prompt_tokens:,.0f}", "before equal rows share an answer"),
            ("tokens out", f"{self.completion_tokens:,.0f}", f"from {self.answers_from}"),
        ]
        lines = [f"  {name:<22}{value:>12}   {more}".rstrip() for name, value, more in rows]
        return "\n".join(
            [
                f"manta plan: {engine.service.url} answers the rows in the gaps of what others ask of it, so nobody can"
                f" say how long that takes; nothing was run, looking took {looked_s:.1f} s",
                "",
                *lines,
                "",
                f"  no device here; at most {engine.in_flight_rows:,} rows at the service at a time"
                f" (engine.max_in_flight), admitted by engine.service.admission.rule={rule}",
            ]
        )


def offline_work(sample: Sample, answers: Answers) -> OfflineWork:
    """Makes it of a sample of the input and what is known of the answers."""
    scale = sample.total_rows / max(sample.rows, 1)
    return OfflineWork(
        rows=sample.total_rows,
        sampled_rows=sample.rows,
        bad_rows=sum(sample.bad.values()) * scale,
        bad=dict(sample.bad),
        prompt_tokens=sum(map(len, sample.prompts)) * scale,
        completion_tokens=answers.mean * len(sample.prompts) * scale,
        answers_from=answers.source,
    )
