"""Asks a service of many clients: python asking.py URL REQUESTS CLIENTS; a line of JSON for each answer as it comes."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx


async def main(url: str, requests: int, clients: int) -> None:
    left = iter(range(requests))

    async def ask(client: httpx.AsyncClient) -> None:
        for number in left:
            body = {"messages": [{"role": "user", "content": str(number)}], "wait_s": 0.5}
            try:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                found = {"status": answer.status_code, "pid": answer.json().get("pid"), "text": answer.text[:200]}
            except (httpx.HTTPError, ValueError) as error:
                found = {"status": 0, "pid": None, "text": repr(error)}
            print(json.dumps(found), flush=True)

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
