from __future__ import annotations

import asyncio

import msgspec

from serve.catalogue import Catalogue, Entry, Follower

SMALL = Entry(name="org/small", parent=None, key="small", max_model_len=8)


def catalogue(*more: Entry) -> Catalogue:
    first = Entry(name="big", parent=None, key="", max_model_len=8)
    return Catalogue(entries=[first, *more], created=1, is_open=True, max_body_bytes=9, body_timeout_s=1.0)


def test_it_is_the_same_after_its_way_through_the_store():
    told = catalogue(SMALL)
    heard = msgspec.json.decode(msgspec.json.encode(told), type=Catalogue)
    assert heard == told
    assert (heard.keys, heard.prefixes) == (["small"], {"org/small": "/_model/small"})


async def test_a_follower_learns_of_a_change_and_forgets_nothing_when_it_cannot_read():
    found: list[Catalogue | None] = [catalogue(), None, catalogue(SMALL)]
    read = asyncio.Semaphore(1)

    async def read_next() -> Catalogue | None:
        await read.acquire()
        return found.pop(0)

    know = Follower(read_next, period_s=0)
    first = await know()
    assert first is not None
    assert first.keys == []
    for keys in ([], ["small"]):
        left = len(found)
        read.release()
        while len(found) == left:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        known = await know()
        assert known is not None
        assert known.keys == keys
