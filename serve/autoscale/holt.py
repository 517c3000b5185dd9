"""What a series will be some steps from now: the better of two simple models, by their own past errors.

Holt's linear smoothing with a damped trend, once with a trend (a load that rises or falls) and once without (one
that is noisy about a level). Which is better changes from service to service and from hour to hour, so both run along,
and the one with the smaller discounted squared error at the horizon speaks. Backtest: docs/decisions/0011-forecast.md.

Source: Gardner and McKenzie, Forecasting Trends in Time Series, Management Science 31 (1985): damped trend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

MODELS = ((0.5, 0.3, 0.9), (0.3, 0.0, 1.0))
"""(weight of a new value in the level, of a new slope in the trend, damping of the trend a step)."""
DISCOUNT = 0.98
"""Of squared errors, a step: half after 34."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One model's view of the series."""

    level: float
    trend: float = 0.0
    error: float = 0.0
    """Discounted sum of squared errors at the horizon."""
    weight: float = 0.0
    """Discounted number of them."""
    ahead: tuple[float, ...] = ()
    """Forecasts made, the oldest first, whose value has not come."""
    misses: tuple[float, ...] = ()
    """Value less forecast, the oldest first: how far the series went beyond what was expected."""

    @property
    def mean_error(self) -> float:
        """Mean squared error at the horizon; infinite before the first."""
        return self.error / self.weight if self.weight else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What is expected."""

    value: float
    """Never below 0."""
    upper: float
    """What the series exceeds, judged by this model's past misses, as seldom as was asked; never below ``value``."""


def follow(
    tracks: tuple[Track, ...], value: float, horizon: int, quantile: float = 0.5, memory: int = 360
) -> tuple[tuple[Track, ...], Forecast]:
    """Takes the series' next value, and says what it will be.

    Args:
        tracks: of the value before; none at the beginning.
        value: the series' next value.
        horizon: steps from this value to the one that is forecast, 1 at least; a smaller one forgets those under way.
        quantile: share of past misses that the upper value would have covered.
        memory: misses that are remembered.

    Returns:
        The tracks for the next value, and the forecast of the better model.
    """
    if not tracks:
        tracks = tuple(Track(level=value) for _ in MODELS)
    tracks = tuple(_step(track, model, value, horizon, memory) for track, model in zip(tracks, MODELS, strict=True))
    # with no error known yet, the one without a trend
    best = min(reversed(tracks), key=lambda track: track.mean_error)
    expected = best.ahead[-1]
    misses = sorted(best.misses)
    miss = misses[min(len(misses) - 1, int(len(misses) * quantile))] if misses else 0.0
    return tracks, Forecast(value=expected, upper=expected + max(0.0, miss))


def _step(track: Track, model: tuple[float, float, float], value: float, horizon: int, memory: int) -> Track:
    fresh, turning, damping = model
    expected = track.level + damping * track.trend
    level = fresh * value + (1 - fresh) * expected
    trend = turning * (level - track.level) + (1 - turning) * damping * track.trend if turning else 0.0
    ahead = max(0.0, level + trend * sum(damping**step for step in range(1, horizon + 1)))
    if len(track.ahead) != horizon:
        if len(track.ahead) > horizon:
            track = replace(track, ahead=())
        return replace(track, level=level, trend=trend, ahead=(*track.ahead, ahead))
    miss = value - track.ahead[0]
    return Track(
        level=level,
        trend=trend,
        error=DISCOUNT * track.error + miss * miss,
        weight=DISCOUNT * track.weight + 1,
        ahead=(*track.ahead[1:], ahead),
        misses=(*track.misses[-memory + 1 :], miss) if memory > 1 else (miss,),
    )
