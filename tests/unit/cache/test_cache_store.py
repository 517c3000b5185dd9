from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema.cache import CacheKind, CacheSpec
from serve.cache.store import MemoryStore, RedisStore, build_store


def spec(**values: object) -> CacheSpec:
    return CacheSpec(**{"kind": CacheKind.memory, **values})  # type: ignore[arg-type]


async def test_an_entry_ends_after_its_time():
    now = [0.0]
    store = MemoryStore(spec(ttl_s=10.0), clock=lambda: now[0])
    await store.put("a", b"x")
    now[0] = 9.9
    assert await store.get("a") == b"x"
    now[0] = 10.1  # reading did not make it younger
    assert await store.get("a") is None
    assert store.num_bytes == 0


async def test_what_is_too_long_is_not_kept():
    store = MemoryStore(spec(max_entry_bytes=10))
    await store.put("a", b"x" * 11)
    await store.put("b", b"x" * 10)
    assert (await store.get("a"), await store.get("b")) == (None, b"x" * 10)


def test_where_it_is_kept_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    assert build_store(CacheSpec()) is None
    assert isinstance(build_store(spec()), MemoryStore)
    assert isinstance(build_store(spec(kind=CacheKind.redis)), RedisStore)
    monkeypatch.setenv("MANTA_REDIS_URL", "redis//:secret@host")
    with pytest.raises(UserError, match="MANTA_REDIS_URL must be redis://") as raised:
        build_store(spec(kind=CacheKind.redis))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"ttl_s": 0.0}, "cache.ttl_s must be > 0, got 0.0"),
        ({"ttl_s": float("nan")}, "cache.ttl_s must be > 0, got nan"),
        ({"timeout_s": float("inf")}, "cache.timeout_s must be > 0, got inf"),
        ({"max_bytes": 0}, "cache.max_bytes must be >= 1, got 0"),
        ({"max_bytes": 5, "max_entry_bytes": 6}, "cache.max_entry_bytes must be <= cache.max_bytes=5, got 6"),
        ({"url": "http://host"}, "cache.url must be redis://"),
        ({"url": "redis://"}, "cache.url must be redis://"),
        ({"url": "redis://host:99999999"}, "cache.url must be redis://"),
        ({"url": "redis://:secret@host"}, "cache.url must hold no password"),
    ],
)
def test_a_mistake_is_named(values: dict[str, object], message: str):
    with pytest.raises(UserError) as raised:
        spec(**values)
    assert str(raised.value).startswith(message)
    assert "secret" not in str(raised.value)


ACTS = st.lists(
    st.tuples(st.sampled_from("gpt"), st.sampled_from("abcdef"), st.integers(0, 400), st.floats(0, 4)), max_size=60
)


@given(ACTS, st.integers(1, 4000))
async def test_memory_is_bounded_and_the_least_recently_used_goes_first(
    acts: list[tuple[str, str, int, float]], max_bytes: int
):
    """Against a plain model: an ordered dict of (entry, end of life)."""
    now, ttl_s, each = 0.0, 5.0, 501
    store = MemoryStore(spec(max_bytes=max_bytes, max_entry_bytes=max_bytes, ttl_s=ttl_s), clock=lambda: now)
    model: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
    for act, key, length, seconds in acts:
        for old in [name for name, (_, end) in model.items() if end <= now]:
            del model[old]
        if act == "p":
            entry = b"x" * length
            await store.put(key, entry)
            if length <= max_bytes and length + each <= max_bytes:
                model.pop(key, None)
                while sum(len(kept) + each for kept, _ in model.values()) + length + each > max_bytes:
                    model.popitem(last=False)
                model[key] = (entry, now + ttl_s)
        elif act == "g":
            assert await store.get(key) == model.get(key, (None, 0))[0]
            if key in model:
                model.move_to_end(key)
        else:
            now += seconds
        assert store.num_bytes <= max_bytes
