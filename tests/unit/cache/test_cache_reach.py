from __future__ import annotations

import socket

import pytest

from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.semantic import SemanticSpec
from serve.cache.reach import unreached


def said_of(
    kind: CacheKind = CacheKind.memory, url: str = "http://127.0.0.1:1/v1/embeddings", **more: bool
) -> list[str]:
    return list(unreached(CacheSpec(kind=kind, semantic=SemanticSpec(url=url, **more))))


def test_what_is_not_used_is_not_looked_for():
    assert said_of() == said_of(CacheKind.off) == []


def test_an_embedding_model_that_is_not_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/embeddings"
        assert said_of(url=url, enabled=True) == []
    (line,) = said_of(url=f"{url}?key=secret", enabled=True)
    assert line.startswith(f"cache.semantic.url={url.removesuffix('/v1/embeddings')} does not answer here (Connection")
    assert "secret" not in line


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0", "rediss://:secret@127.0.0.1:1/0"])
def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("MANTA_REDIS_URL", url)
    (line,) = said_of(CacheKind.redis)
    assert "secret" not in line
    assert "does not answer here (ConnectionError)" in line
