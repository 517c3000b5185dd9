"""What a person sees while the job runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

from conf.schema.batch import ProgressSpec
from pipelines.batch.monitor import JobState


class Rate:
    """A rate over the last seconds, so that start-up does not count."""

    def __init__(self, window_s: float = 15.0) -> None:
        """``window_s`` is how far it looks back."""
        self._window_s = window_s
        self._points: list[tuple[float, float]] = []

    def add(self, at_s: float, value: float) -> None:
        """Adds a reading of a counter."""
        self._points.append((at_s, value))
        while len(self._points) > 2 and self._points[1][0] < at_s - self._window_s:
            self._points.pop(0)

    @property
    def per_second(self) -> float:
        """The rate, 0 before there are two readings."""
        if len(self._points) < 2:
            return 0.0
        (t0, v0), (t1, v1) = self._points[0], self._points[-1]
        return max(0.0, (v1 - v0) / (t1 - t0)) if t1 > t0 else 0.0


class Readings:
    """The figures that both displays show."""

    def __init__(self, total_rows: int) -> None:
        """``total_rows`` is the number of rows to be done."""
        self.total_rows = total_rows
        self.rows = self.failed = self.ready = self.replicas = self.deaths = 0
        self._rates = {name: Rate() for name in ("rows", "prompt", "completion")}

    def update(self, state: JobState, at_s: float) -> None:
        """Takes the job's state at a time."""
        self.rows = min(state.rows, self.total_rows)
        self.failed, self.ready, self.replicas = state.failed, state.ready, len(state.replicas)
        self.deaths = state.restarts
        if state.rows:
            self._rates["rows"].add(at_s, state.rows)
            self._rates["prompt"].add(at_s, state.prompt_tokens)
            self._rates["completion"].add(at_s, state.completion_tokens)

    @property
    def eta_s(self) -> float | None:
        """Seconds to go; null while nobody knows."""
        rate = self._rates["rows"].per_second
        return (self.total_rows - self.rows) / rate if rate else None

    @property
    def tokens(self) -> str:
        """Tokens a second, in and out."""
        return f"{self._rates['prompt'].per_second:,.0f} in, {self._rates['completion'].per_second:,.0f} out tok/s"

    @property
    def phase(self) -> str:
        """What is being waited for."""
        dead = f", {self.deaths} engine{'s' if self.deaths > 1 else ''} replaced" if self.deaths else ""
        return ("starting engines" if not self.ready else "rows") + dead


class Display(Protocol):
    """Shows readings."""

    def show(self, readings: Readings) -> None:
        """Shows them as they are now."""
        ...

    def note(self, text: str) -> None:
        """Shows a line that stays."""
        ...

    def close(self) -> None:
        """Ends the display."""
        ...


class Bar:
    """A live bar."""

    def __init__(self, total_rows: int, stream: TextIO) -> None:
        """Args are the number of rows to be done and a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=total_rows, figures="")
        self._progress.start()

    def show(self, readings: Readings) -> None:
        """See `Display`."""
        figures = f"{readings.tokens} · failed {readings.failed:,} · ETA {duration(readings.eta_s)}"
        shown = figures if readings.rows else ""
        self._progress.update(self._task, completed=readings.rows, description=readings.phase, figures=shown)

    def note(self, text: str) -> None:
        """See `Display`."""
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()


class Lines:
    """A plain line at intervals."""

    def __init__(self, interval_s: float, stream: TextIO) -> None:
        """Args are the time between two lines, and where they go."""
        self._interval_s = interval_s
        self._stream = stream
        self._began = self._last = time.monotonic()

    def show(self, readings: Readings) -> None:
        """See `Display`."""
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return
        self._last = now
        done = f"{readings.rows:,}/{readings.total_rows:,} rows"
        self.note(
            f"{readings.phase} · {done} · {readings.tokens} · failed {readings.failed:,}"
            f" · ETA {duration(readings.eta_s)}"
        )

    def note(self, text: str) -> None:
        """See `Display`."""
        print(f"[{duration(time.monotonic() - self._began)}] {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """See `Display`."""


class Silence:
    """Shows nothing."""

    def show(self, readings: Readings) -> None:
        """See `Display`."""

    def note(self, text: str) -> None:
        """See `Display`."""

    def close(self) -> None:
        """See `Display`."""


def make_display(spec: ProgressSpec, total_rows: int, stream: TextIO) -> Display:
    """Returns what suits the output: a bar on a terminal, lines elsewhere, nothing where quiet is asked for."""
    if spec.quiet:
        return Silence()
    return Bar(total_rows, stream) if stream.isatty() else Lines(spec.interval_s, stream)


def duration(seconds: float | None) -> str:
    """Writes seconds as ``42s``, ``3m07s`` or ``2h05m``; ``?`` for null."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
