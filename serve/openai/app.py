"""The routes: one for conversations, one for prompts, and what a tokenizer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.onnx.engine import OnnxEngine, Piece
from serve.engine.protocol import Completion, Request
from serve.middleware.answer import Refused, error_body, error_event
from serve.middleware.body import left
from serve.openai.asked import Asked, Reader
from serve.openai.said import DONE, Form


class Left(Exception):
    """The client has gone."""


class OpenAiApp:
    """Answers with an engine."""

    def __init__(self, engine: OnnxEngine, reader: Reader, name: str) -> None:
        """Args: the engine, what makes requests of bodies, and the model's name."""
        self._engine, self._reader, self._name = engine, reader, name

    def build(self) -> Starlette:
        """Returns the ASGI app."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]
        return Starlette(routes=routes)

    async def _models(self, request: HttpRequest) -> Response:
        card = {"id": self._name, "object": "model", "created": 0, "owned_by": "manta"}
        return _json({"object": "list", "data": [card]})

    async def _chat(self, request: HttpRequest) -> Response:
        return await self._answer(request, is_chat=True)

    async def _completion(self, request: HttpRequest) -> Response:
        return await self._answer(request, is_chat=False)

    async def _answer(self, http: HttpRequest, is_chat: bool) -> Response:
        form = Form(id=f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}", model=self._name, is_chat=is_chat)
        try:
            raw = await http.body()
            # a long conversation takes a while to tokenize, and other streams go on meanwhile
            asked = await asyncio.to_thread(self._reader.chat if is_chat else self._reader.completion, raw, form.id)
            if asked.body.is_stream:
                return await self._streamed(http, asked, form)
            completions = await _unless_left(http, asyncio.gather(*map(self._whole, asked.requests)))
        except Refused as refused:
            body = refused.body
            return Response(body, refused.status, media_type="application/json")
        except RequestRejected as error:
            return Response(
                error_body(error.message, "invalid_request_error", error.error), 400, media_type="application/json"
            )
        except EngineDead:
            body = error_body("The engine answers nothing any more.", "server_error", "engine_dead")
            return Response(body, 500, media_type="application/json")
        except Left:
            return Response(status_code=499)
        return _json(form.whole(completions))

    async def _whole(self, request: Request) -> Completion:
        return await self._engine.answer(request)

    async def _streamed(self, http: HttpRequest, asked: Asked, form: Form) -> Response:
        """A stream whose first piece has come: what cannot be answered is said by the status."""
        pieces = self._pieces(asked.requests)
        first = await anext(pieces)
        return StreamingResponse(self._events(http, asked, form, first, pieces), media_type="text/event-stream")

    async def _pieces(self, requests: list[Request]) -> AsyncIterator[tuple[int, Piece | Completion]]:
        """The pieces of all prompts' answers as they come, with the number of the prompt."""
        heard: asyncio.Queue[tuple[int, Piece | Completion] | BaseException] = asyncio.Queue()

        async def listen(number: int, request: Request) -> None:
            try:
                async for piece in self._engine.stream(request):
                    heard.put_nowait((number, piece))
            except Exception as error:
                heard.put_nowait(error)

        tasks = [asyncio.ensure_future(listen(number, request)) for number, request in enumerate(requests)]
        left = len(tasks)
        try:
            while left:
                piece = await heard.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= isinstance(piece[1], Completion)
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _events(
        self,
        http: HttpRequest,
        asked: Asked,
        form: Form,
        first: tuple[int, Piece | Completion],
        rest: AsyncIterator[tuple[int, Piece | Completion]],
    ) -> AsyncIterator[bytes]:
        sampling = asked.requests[0].sampling
        opened: set[int] = set()
        offsets: dict[int, int] = {}
        prompt = completion = 0
        try:
            async for number, piece in _chain(first, rest):
                if isinstance(piece, Completion):
                    prompt += piece.prompt_tokens
                    completion += piece.completion_tokens
                    continue
                index = number * sampling.n + piece.index
                if form.is_chat and index not in opened:
                    opened.add(index)
                    yield form.opening(index)
                places = None if sampling.logprobs is None else piece.places
                if piece.text or piece.finish_reason or places:
                    yield form.piece(index, piece.text, places, offsets.get(index, 0), piece.finish_reason)
                offsets[index] = offsets.get(index, 0) + len(piece.text)
        except (EngineDead, RequestRejected):
            yield error_event("The request failed.", "server_error", "internal_error")
            return
        finally:
            await rest.aclose()  # type: ignore[attr-defined]
        if asked.body.has_usage:
            yield form.used(prompt, completion)
        # for `reported_usage`: the limits count tokens whether the client asks for them or not
        told = SimpleNamespace(prompt_tokens=prompt, completion_tokens=completion)
        http.scope.setdefault("state", {})["request_metadata"] = SimpleNamespace(final_usage_info=told)
        yield DONE


async def _chain(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


async def _unless_left(http: HttpRequest, answer: Awaitable[Any]) -> Any:
    """Awaits an answer while the client is there.

    Raises:
        Left: when it goes first; the answer is cancelled.
    """
    answered = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(left(http.receive))
    try:
        await asyncio.wait({answered, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise Left
        return answered.result()
    finally:
        leaving.cancel()
        answered.cancel()
        await asyncio.gather(leaving, answered, return_exceptions=True)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
