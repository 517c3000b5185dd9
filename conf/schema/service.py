"""An engine that is a service which runs already: where it is, and how much of it a job may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from conf.errors import UserError

API_KEY = "MANTA_API_KEY"
"""The environment variable with the key of a service; it is in no file of a job."""


class AdmissionRule(Enum):
    """How many rows may be at the service: what it has ``room`` for by its metrics, or ``all`` of max_in_flight."""

    room = "room"
    all = "all"


@dataclass(kw_only=True, slots=True)
class AdmissionSpec:
    """What counts as room. Interactive requests come first: rows stop within a poll when one of them has to wait."""

    rule: AdmissionRule = AdmissionRule.room
    """room follows the service's /metrics; all asks for as much as engine.max_in_flight, whatever goes on there."""
    poll_s: float = 0.25
    """Seconds between two looks at the service's /metrics."""
    stale_s: float = 2.0
    """Where no look has succeeded for so long, no more rows are sent."""
    max_kv_fraction: float = 0.85
    """No more rows are sent while a replica's KV cache is fuller than this, and fewer are where it stays so."""
    headroom_fraction: float = 0.2
    """Of what the service held when it was found full, so much is left free for interactive requests."""
    max_ttft_ms: float | None = 1000.0
    """No rows while an interactive stream waits, or would wait, longer for its first token, in milliseconds; null is
    any. What it takes without rows must be well below this."""
    max_tpot_ms: float | None = None
    """Fewer rows while a token takes longer and somebody waits for it, in milliseconds; null is any."""
    cooldown_s: float = 1.0
    """Seconds without rows after an interactive request had to wait."""
    probe_s: float = 30.0
    """So long after it was found full, the service may have more room than it had."""
    cancel: bool = True
    """Take rows back from the service when an interactive request waits. They are asked again later, and what was
    computed of them is lost; false lets them end."""

    def __post_init__(self) -> None:
        key = "engine.service.admission"
        for name in ("poll_s", "stale_s", "probe_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{key}.{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.stale_s < self.poll_s:
            raise UserError(f"{key}.stale_s must be >= {key}.poll_s={self.poll_s}, got {self.stale_s}")
        if not 0 <= self.cooldown_s < float("inf"):
            raise UserError(f"{key}.cooldown_s must be >= 0 and finite, got {self.cooldown_s}")
        if not 0 < self.max_kv_fraction <= 1:
            raise UserError(f"{key}.max_kv_fraction must be in (0, 1], got {self.max_kv_fraction}")
        if not 0 <= self.headroom_fraction < 1:
            raise UserError(f"{key}.headroom_fraction must be in [0, 1), got {self.headroom_fraction}")
        for name in ("max_ttft_ms", "max_tpot_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{key}.{name} must be > 0 or null, got {value}")


@dataclass(kw_only=True, slots=True)
class ServiceSpec:
    """A service that answers in place of an engine. Its API key comes from the environment: MANTA_API_KEY."""

    url: str | None = None
    """Where it is, such as http://127.0.0.1:8000, without /v1."""
    model: str | None = None
    """The model's name there; model.name where null."""
    priority: int = 100
    """vLLM's priority of each request: lower is sooner, interactive requests have 0. A service that knows no priorities
    (vLLM without --scheduling-policy priority) wants 0."""
    connect_timeout_s: float = 5.0
    """How long a connection may take."""
    request_timeout_s: float = 900.0
    """How long an answer may take once it was asked for."""
    max_answer_bytes: int = 32 << 20
    """A longer answer is not read, and its row fails."""
    max_retries: int = 2
    """A request that the service failed to answer (a cut connection, a 5xx) is asked again so often before the engine
    counts as dead; a service that is busy (429, 503), or not there, is waited for and counts as nothing."""
    admission: AdmissionSpec = field(default_factory=AdmissionSpec)

    def __post_init__(self) -> None:
        if self.url is not None:
            self.url = _checked(self.url)
        if not 0 <= self.priority < 2**31:
            raise UserError(f"engine.service.priority must be in 0..2147483647, got {self.priority}")
        for name in ("connect_timeout_s", "request_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"engine.service.{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.max_answer_bytes < 1 << 16:
            raise UserError(f"engine.service.max_answer_bytes must be >= 65536, got {self.max_answer_bytes}")
        if self.max_retries < 0:
            raise UserError(f"engine.service.max_retries must be >= 0, got {self.max_retries}")


def _checked(url: str) -> str:
    mistake = f"engine.service.url must be like http://127.0.0.1:8000, got '{url}'"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UserError(mistake) from None
    if parts.username is not None or parts.password is not None:
        raise UserError("engine.service.url must not hold a password: a key is read from MANTA_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise UserError(mistake)
    return url.rstrip("/").removesuffix("/v1")
