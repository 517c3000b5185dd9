"""When a request gets the answer of one that is worded otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class SemanticSpec:
    """Answers to requests that differ in the wording of the last user message alone.

    Such an answer can be a wrong one: calibrate `threshold` for the embedding model and your own texts with
    scripts/bench_semantic.py.
    """

    enabled: bool = False
    """Look for similar requests where no equal one is kept."""
    url: str = "http://127.0.0.1:8001/v1/embeddings"
    """The embedding model: an OpenAI-compatible endpoint, such as that of a second `manta serve task=embed`. Its API
    key is read from the environment variable MANTA_EMBEDDING_KEY."""
    model: str = "embed"
    """What the endpoint calls the embedding model."""
    threshold: float = 0.95
    """The cosine of two texts' embeddings from which on they are taken for the same question. Each embedding model has
    its own; this one had no wrong hit in docs/benchmarks/semantic_cache.md with all-MiniLM-L6-v2 on questions, and many
    where answers copy names."""
    numbers: bool = True
    """Never take texts for the same question that hold other numbers or identifiers, or hold them in another order:
    whatever stands between two spaces and has a digit."""
    max_text_chars: int = 1000
    """A longer message is not looked up. Embedding models read no more than so many tokens, often 256 or 512: of texts
    that are longer they compare the beginnings."""
    max_entries: int = 4096
    """Requests that a replica can find again; the least recently used go first. Each takes half a kilobyte and
    4 bytes, at worst 16, for each dimension of the embedding."""
    timeout_s: float = 0.25
    """How long a request waits for its embedding before it goes on without. After three failures in a row the endpoint
    is left alone for `cache.retry_after_s`."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"cache.semantic.threshold must be in (0, 1], got {self.threshold}")
        if not 0 < self.timeout_s < float("inf"):
            raise UserError(f"cache.semantic.timeout_s must be > 0 and finite, got {self.timeout_s}")
        for key in ("max_text_chars", "max_entries"):
            if getattr(self, key) < 1:
                raise UserError(f"cache.semantic.{key} must be >= 1, got {getattr(self, key)}")
        try:
            parts = urlsplit(self.url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            has_secret = parts.username is not None or parts.password is not None
        except ValueError:  # no such port, or half an IPv6 address
            is_good = has_secret = False
        if has_secret:
            raise UserError("cache.semantic.url must hold no password: put the key into MANTA_EMBEDDING_KEY")
        if not is_good:
            raise UserError("cache.semantic.url must be http://HOST:PORT/v1/embeddings or https://...")
