"""Who may come in, and how much of what they send is read."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class AccessSpec:
    """API keys and limits. Everything that a client sends is bounded before an engine sees it."""

    keys_file: str | None = None
    """The file that manta keys writes; null is keys.json under $MANTA_HOME, else under $XDG_CONFIG_HOME/manta. It is
    read on every node that has a replica, again when it changes. MANTA_API_KEYS=KEY,KEY in the environment works beside
    it or instead, and is read at the start only."""
    open: bool = False
    """Let in everybody, key or none. Only where deployment.host is a loopback address."""
    requests_per_min: int | None = None
    """Requests that a key may send in a minute, where it has no limit of its own; null is without limit. What
    other replicas have let in counts too, as of a quarter of a second ago."""
    tokens_per_min: int | None = None
    """Tokens in and out that a key may use in a minute, where it has no limit of its own; null is without limit."""
    max_concurrent: int | None = None
    """Requests of a key that may be under way at once, where it has no limit of its own; null is without limit."""
    max_header_bytes: int = 32 << 10
    """Names and values of a request's headers together."""
    max_body_bytes: int = 4 << 20
    """Of a request's body; what is longer is not read to its end."""
    body_timeout_s: float = 30.0
    """Within this the whole body must have arrived."""
    max_json_depth: int = 64
    """Lists and objects inside each other in a body."""
    max_tokens: int | None = None
    """Tokens that a request may ask of one answer; one that names no number is given this one, and then its prompt and
    this many tokens must fit the model's context. Null leaves it to the context."""
    max_sequences: int = 2048
    """Prompts of one request times the answers to each."""

    def __post_init__(self) -> None:
        for key in ("requests_per_min", "tokens_per_min", "max_concurrent", "max_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"access.{key} must be >= 1 or null, got {value}")
        for key in ("max_header_bytes", "max_body_bytes", "max_json_depth", "max_sequences"):
            if getattr(self, key) < 1:
                raise UserError(f"access.{key} must be >= 1, got {getattr(self, key)}")
        if not 0 < self.body_timeout_s < float("inf"):
            raise UserError(f"access.body_timeout_s must be > 0, got {self.body_timeout_s}")

    def check(self, host: str) -> None:
        """Checks what needs the composed values.

        Args:
            host: where the service listens, deployment.host.

        Raises:
            UserError: when everybody is let in at an address that others reach.
        """
        if self.open and not is_loopback(host):
            raise UserError(
                f"access.open=true needs deployment.host to be a loopback address (127.0.0.1, ::1, localhost), "
                f"got '{host}'; for other addresses make a key: manta keys add NAME"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``; a name other than localhost is not looked up, and does not count."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
