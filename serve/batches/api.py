"""/v1/files and /v1/batches as OpenAI's clients ask for them.

Who asks stands in ``scope["manta"]["owner"]``: nobody sees what is another's, nor whether it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from conf.schema.batches import BatchesSpec
from serve.batches.ask import MAX_FILES, MAX_PAGE, PURPOSES, asked_batch
from serve.batches.records import ENDED, Kind, Object
from serve.batches.shelf import Shelf, batch_object
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, error_body
from serve.middleware.body import CLOSE, FORM, FORM_BYTES, too_large
from serve.middleware.header import media_type

MAX_FILENAME = 255


class BatchApi:
    """The handlers. What touches a disk runs in threads."""

    def __init__(self, shelf: Shelf, spec: BatchesSpec, now: Callable[[], float] = time.time) -> None:
        """Args: where all is kept, its limits, and seconds since 1970."""
        self._shelf, self._records, self._spec, self._now = shelf, shelf.records, spec, now

    def app(self) -> ASGIApp:
        """Returns the routes as an app."""
        routes = [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files", self._files),
            Route("/v1/files/{id}", self._file),
            Route("/v1/files/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self._content),
            Route("/v1/batches", self._create, methods=["POST"]),
            Route("/v1/batches", self._batches),
            Route("/v1/batches/{id}", self._batch),
            Route("/v1/batches/{id}/cancel", self._cancel, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={Refused: _refused, HTTPException: _http})  # type: ignore[return-value]

    async def _upload(self, request: Request) -> Response:
        spec = self._spec
        if media_type(request.scope["headers"]) != FORM:
            raise Refused(415, "A file is sent as multipart/form-data.", code="unsupported_media_type")
        bounded = Request(request.scope, _bounded(request.receive, spec.max_file_bytes + FORM_BYTES))
        try:
            async with asyncio.timeout(spec.max_upload_s), bounded.form(max_files=1, max_fields=8) as form:
                sent, purpose = form.get("file"), form.get("purpose")
                if not isinstance(sent, UploadFile):
                    raise Refused(400, "The form has no file.", code="invalid_value")
                if purpose not in PURPOSES:
                    raise Refused(400, f"purpose must be {', '.join(PURPOSES)}.", code="invalid_value")
                if (sent.size or 0) > spec.max_file_bytes:
                    raise too_large(spec.max_file_bytes)
                size, name = sent.size or 0, (sent.filename or "file")[:MAX_FILENAME]
                if not name.isprintable():
                    raise Refused(400, "The file's name must be printable.", code="invalid_value")

                def limit(_: int, used: int) -> None:
                    if used + size > spec.max_bytes_per_key:
                        said = f"The files of an API key may have {spec.max_bytes_per_key} bytes: delete some."
                        raise Refused(413, said, code="no_room")

                value = await asyncio.to_thread(self._shelf.put, _owner(request), sent.file, name, str(purpose), limit)
        except TimeoutError:
            said = f"The file did not arrive within {spec.max_upload_s:g} s."
            raise Refused(408, said, code="request_timeout", headers=CLOSE) from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        except (MultiPartException, HTTPException):
            raise Refused(400, "The form cannot be read.", code="invalid_form", headers=CLOSE) from None
        return JSONResponse(value)

    async def _files(self, request: Request) -> Response:
        return await self._page(request, Kind.file)

    async def _file(self, request: Request) -> Response:
        return JSONResponse(await self._found(request, Kind.file))

    async def _delete(self, request: Request) -> Response:
        name = request.path_params["id"]
        if not await asyncio.to_thread(self._shelf.drop, _owner(request), name):
            raise _absent(Kind.file)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        value = await self._found(request, Kind.file)
        path = self._shelf.content(value["id"])
        if not path.exists():
            raise _absent(Kind.file)
        # a type that no browser runs
        return FileResponse(path, media_type="application/octet-stream", headers={"x-content-type-options": "nosniff"})

    async def _create(self, request: Request) -> Response:
        asked, window_s = asked_batch(request.scope["manta"].get("body"), self._spec)
        owner = _owner(request)

        def limit(num_open: int, _: int) -> None:
            if num_open >= self._spec.max_open_per_key:
                said = f"An API key may have {self._spec.max_open_per_key} batches that are not at their end."
                raise Refused(429, said, "rate_limit_error", "too_many_batches", [("retry-after", "60")])

        def create() -> Object:
            source = self._records.get(Kind.file, owner, asked["input_file_id"])
            if source is None or source["purpose"] != "batch":
                raise Refused(400, "input_file_id names no file of purpose batch.", code="invalid_value")
            value = batch_object(asked, int(self._now()), window_s)
            self._records.add(Kind.batch, owner, value, limit)
            return value

        return JSONResponse(await asyncio.to_thread(create))

    async def _batches(self, request: Request) -> Response:
        return await self._page(request, Kind.batch)

    async def _batch(self, request: Request) -> Response:
        return JSONResponse(await self._found(request, Kind.batch))

    async def _cancel(self, request: Request) -> Response:
        name = (await self._found(request, Kind.batch))["id"]

        def cancel(batch: Object) -> Object | None:
            if batch["status"] in ("cancelling", *ENDED):
                return None
            return {**batch, "status": "cancelling", "cancelling_at": int(self._now())}

        return JSONResponse(await asyncio.to_thread(self._records.change, name, cancel))

    async def _found(self, request: Request, kind: Kind) -> Object:
        value = await asyncio.to_thread(self._records.get, kind, _owner(request), request.path_params["id"])
        if value is None:
            raise _absent(kind)
        return value

    async def _page(self, request: Request, kind: Kind) -> Response:
        query = request.query_params
        limit = query.get("limit", "20")
        most = MAX_FILES if kind is Kind.file else MAX_PAGE
        if not limit.isdecimal() or len(limit) > 5 or not 1 <= int(limit) <= most:
            raise Refused(400, f"limit must be a whole number from 1 to {most}.", code="invalid_value", param="limit")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Refused(400, "order must be asc or desc.", code="invalid_value")
        label = query.get("purpose", "") if kind is Kind.file else ""
        try:
            found, has_more = await asyncio.to_thread(
                self._records.page, kind, _owner(request), int(limit), query.get("after"), order == "asc", label
            )
        except KeyError:
            raise Refused(400, "after names no object.", code="invalid_value") from None
        ends = [found[0]["id"], found[-1]["id"]] if found else [None, None]
        return JSONResponse(
            {"object": "list", "data": found, "first_id": ends[0], "last_id": ends[1], "has_more": has_more}
        )


def _owner(request: Request) -> str:
    return request.scope["manta"]["owner"]


def _absent(kind: Kind) -> Refused:
    return Refused(404, f"There is no such {kind.value}.", kind="not_found_error", code=f"{kind.value}_not_found")


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Returns a ``receive`` that refuses what is longer."""
    num_bytes = 0

    async def read() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise too_large(max_bytes)
        return message

    return read


async def _refused(_: Request, refused: Any) -> Response:
    headers = {"content-type": "application/json", **dict(refused.headers)}
    return Response(refused.body, refused.status, headers)


async def _http(_: Request, error: Any) -> Response:
    named = {404: "not_found", 405: "method_not_allowed"}
    body = error_body(
        "The request cannot be answered.", "invalid_request_error", named.get(error.status_code, "refused")
    )
    return Response(body, error.status_code, {"content-type": "application/json", **(error.headers or {})})
