"""HTTP with a service: one question at a time to one answer, bounded, and whose fault it is when none comes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from conf.errors import UserError, nearest
from conf.schema.service import API_KEY, AdmissionRule, ServiceSpec
from serve.engine.service.saturation import read_page
from serve.engine.service.wire import BadAnswer, models_of, refusal_of

MAX_PAGE_BYTES = 8 << 20
"""Of /metrics and /v1/models."""
PAGE_TIMEOUT_S = 5.0
IDLE_S = 4.0
"""Idle connections are closed before servers do (uvicorn: after 5 s): a request on one that closes is lost."""


class Busy(Exception):
    """The service takes no more now, or is not there: nobody's fault, to be asked again."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        """Args: what is told, and how long it said to wait."""
        super().__init__(message)
        self.wait_s = wait_s


class Failed(Exception):
    """The service's fault: it took a request, and gave no answer to it."""


class TooLong(Exception):
    """There is an answer, and it is longer than what is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    wait_s: float | None
    """``Retry-After``."""
    is_final: bool
    """Said to be the same whenever it is asked again (``x-should-retry: false``)."""


class Client:
    """A pool of connections to one service. It follows no redirect, and reads no proxy or password from elsewhere.

    httpx walks through all of its connections at each request (httpcore 1.0, `_assign_requests_to_connections`): with
    512 of them nine tenths of a core went there, for 34 requests a second. aiohttp keeps apart those that are free.
    """

    def __init__(self, spec: ServiceSpec, api_key: str | None, connections: int) -> None:
        """Args: where the service is, the key, and how many requests there are at a time."""
        self._spec = spec
        self._headers = {"accept-encoding": "identity", "cache-control": "no-store"}  # a job shares equal rows itself
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        # one more for the metrics: they are asked for most when all others are taken
        self._connections = connections + 1
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes) -> Reply:
        """Asks.

        Raises:
            Busy: when nothing listens there.
            Failed: when the connection breaks, or the answer does not end in time.
            TooLong: see `ServiceSpec.max_answer_bytes`.
        """
        return await self._ask("POST", path, body, self._spec.request_timeout_s, self._spec.max_answer_bytes)

    async def get(self, path: str) -> Reply:
        """Fetches a page; raises what `post` raises."""
        return await self._ask("GET", path, None, PAGE_TIMEOUT_S, MAX_PAGE_BYTES)

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Begins a session where there is none: it belongs to the loop that runs."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=IDLE_S),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._spec.connect_timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float, most: int) -> Reply:
        headers = {"content-type": "application/json"} if body is not None else None
        url = f"{self._spec.url}{path}"
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().request(method, url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise Failed("the answer is compressed, though it was not to be")
                data = bytearray()
                async for chunk in answer.content.iter_any():
                    data += chunk
                    if len(data) > most:
                        raise TooLong(f"the answer has more than {most} bytes")
                return Reply(
                    status=answer.status,
                    body=bytes(data),
                    wait_s=_seconds(answer.headers.get("retry-after")),
                    is_final=answer.headers.get("x-should-retry") == "false",
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Busy(f"nothing answers there: {_said(error)}") from error
        except TimeoutError as error:
            raise Failed(f"no answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise Failed(f"the connection broke: {_said(error)}") from error


async def look(client: Client, spec: ServiceSpec, model: str) -> dict[str, int | None]:
    """Looks whether a service lets us in and has the model.

    Returns:
        Its models, with their context in tokens where it says so.

    Raises:
        Busy: when it is not there, or takes nothing on now.
        UserError: when it cannot be used, in one line.
    """
    where = f"engine.service.url={spec.url}"
    reply = await fetch(client, "/v1/models", spec)
    try:
        known = models_of(reply.body)
    except BadAnswer as error:
        raise UserError(f"{where}: {error}: it is no service with OpenAI's API") from None
    if model not in known:
        there = ", ".join(sorted(known)[:10]) or "none"
        raise UserError(
            f"{where} has no model '{model[:100]}' (there are {there[:500]}){nearest(model, known)}: set"
            " engine.service.model"
        )
    return known


async def fetch(client: Client, path: str, spec: ServiceSpec) -> Reply:
    """Fetches a page of a service; raises what `look` raises."""
    where = f"engine.service.url={spec.url}"
    try:
        reply = await client.get(path)
    except (Failed, TooLong) as error:
        raise UserError(f"{where}: {path}: {error}") from None
    if reply.status in (429, 503):
        raise Busy(f"{path} is answered with {reply.status}: it is not ready", reply.wait_s)
    if reply.status in (401, 403):
        raise UserError(f"{where} does not let us in ({reply.status}): its key is read from {API_KEY}")
    if reply.status != 200:
        _, said = refusal_of(reply.body)
        raise UserError(f"{where} answers {path} with {reply.status}{f' ({said[:200]})' if said else ''}")
    return reply


async def check_service(spec: ServiceSpec, model: str, api_key: str | None) -> None:
    """Looks at a service before a job begins.

    Args:
        spec: where it is.
        model: the name of the model there.
        api_key: the key, if any.

    Raises:
        UserError: when it is not there, or cannot be used.
    """
    client = Client(spec, api_key, connections=1)
    try:
        await look(client, spec, model)
        if spec.admission.rule is AdmissionRule.room and read_page(await metrics(client, spec), 0.0) is None:
            raise UserError(
                f"engine.service.url={spec.url}: /metrics has no figures of vLLM's: nothing says how much room there"
                " is (engine.service.admission.rule=all asks without)"
            )
    except Busy as error:
        raise UserError(f"engine.service.url={spec.url}: {error}") from None
    finally:
        await client.close()


async def metrics(client: Client, spec: ServiceSpec) -> str:
    """Returns the service's page of metrics; raises what `look` raises."""
    return (await fetch(client, "/metrics", spec)).body.decode("utf-8", "replace")


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:  # none, or a date
        return None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
