"""Where no equal request is kept: the answer of one that is worded otherwise, or else the app's own.

Its headers say so: ``x-manta-cache: similar``, and ``x-manta-cache-similarity`` with the cosine of both texts. A client
that wants none sends ``x-manta-cache-match: exact``; its own answers are given to no other wording either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from conf.schema.cache import CacheSpec
from serve.cache.embedder import Embedder
from serve.cache.index import Index, Vector
from serve.cache.key import Question
from serve.cache.likeness import Likeness, likeness
from serve.middleware.answer import ASGIApp, Receive, Scope, Send, answer

SAYS, SIMILARITY = b"x-manta-cache", b"x-manta-cache-similarity"

_NUM_TRIES = 4
"""Of near requests, whose answers may be gone."""

Kept = Callable[[Question], Awaitable[tuple[bytes, bytes] | None]]
"""Gives a kept answer's body and type."""


class Similar:
    """What a replica knows of the wording of kept requests. It holds their vectors and keys, no text."""

    def __init__(self, app: ASGIApp, spec: CacheSpec, fingerprint: str, kept: Kept) -> None:
        """Takes what computes, the configuration, the service's fingerprint and where answers are."""
        self.app, self.spec, self._fingerprint, self.kept = app, spec, fingerprint, kept
        self.embedder = Embedder(spec)
        self.index = Index(spec.semantic.max_entries)

    def search(self, asked: Question, body: bytes, tenant: str | None) -> Search | None:
        """Returns what answers a request that has no equal; null where only an equal one has its answer."""
        alike = likeness(asked.route, body, self.spec.semantic, fingerprint=self._fingerprint, tenant=tenant)
        return None if alike is None else Search(self, asked, alike)


class Search:
    """Pure ASGI, for one request."""

    def __init__(self, similar: Similar, asked: Question, alike: Likeness) -> None:
        self._similar, self._asked, self._alike = similar, asked, alike
        self._vector: Vector | None = None
        self.is_found = False
        """Whether the answer was another request's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets the app compute."""
        own = self._similar
        self._vector = await own.embedder.embed(self._alike.text)
        near: list[tuple[str, float]] = []
        if self._vector is not None:
            near = own.index.near(self._alike.group, self._vector, own.spec.semantic.threshold, _NUM_TRIES)
        for key, cosine in near:
            kept = await own.kept(replace(self._asked, key=key))
            if kept is None:
                own.index.remove(self._alike.group, key)
                continue
            own.index.use(self._alike.group, key)
            self.is_found = True
            body, kind = kept
            said = [(SAYS.decode(), "similar"), (SIMILARITY.decode(), f"{cosine:.4f}")]
            await answer(send, 200, body, [("content-type", kind.decode()), *said])
            return
        await own.app(scope, receive, send)

    def remember(self) -> None:
        """To be called once the answer is kept: others may get it from now on."""
        if self._vector is not None:
            self._similar.index.add(self._alike.group, self._asked.key, self._vector)
