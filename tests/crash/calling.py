"""A program that makes one named call and prints what came of it; started again, it makes the same call again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httpx

import holdfast
import holdfast.sync
from holdfast.idempotency.client import (
    AsyncIdempotentTransport,
    IdempotentTransport,
    KeyJournal,
    call_info,
)

CALL: dict[str, Any] = {"json": {"cents": 478}, "extensions": {"holdfast.call": "charge-1"}}


def headers() -> dict[str, str]:
    return {"X-Pid": str(os.getpid()), "Authorization": "Bearer fresh"}


def outcome(response: httpx.Response) -> str:
    info = call_info(response)
    return json.dumps({"status": response.status_code, "body": response.json(), "key": info.key})


async def call_later(target: str, url: str) -> str:
    async with holdfast.open(target) as hf:
        transport = AsyncIdempotentTransport(journal=KeyJournal(hf.database))
        async with httpx.AsyncClient(transport=transport, headers=headers()) as client:
            return outcome(await client.post(url, **CALL))


def call(target: str, url: str) -> str:
    with holdfast.sync.open(target) as hf:
        transport = IdempotentTransport(journal=KeyJournal(hf.database))
        with httpx.Client(transport=transport, headers=headers()) as client:
            return outcome(client.post(url, **CALL))


if __name__ == "__main__":
    kind, target, url = sys.argv[1:]
    print(call(target, url) if kind == "sync" else asyncio.run(call_later(target, url)))  # noqa: T201 - how it answers
