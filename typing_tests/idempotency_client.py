"""What a checker infers of `holdfast.idempotency.client`. Checked, never run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import assert_type

import httpx

import holdfast
import holdfast.sync
from holdfast.idempotency.client import (
    AsyncIdempotentTransport,
    CallInfo,
    IdempotentTransport,
    KeyJournal,
    PendingCall,
    RetryPolicy,
    call_info,
)


def a_transport_is_one_of_httpx(inner: httpx.BaseTransport, other: httpx.AsyncBaseTransport) -> None:
    """And wraps one of its own kind."""
    httpx.Client(transport=IdempotentTransport(inner, policy=RetryPolicy(deadline=timedelta(minutes=2))))
    httpx.AsyncClient(transport=AsyncIdempotentTransport(other, quoted=True))
    IdempotentTransport(other)  # type: ignore[arg-type]  # asynchronous
    AsyncIdempotentTransport(inner)  # type: ignore[arg-type]  # synchronous
    httpx.Client(transport=AsyncIdempotentTransport())  # type: ignore[arg-type]  # asynchronous
    RetryPolicy(deadline=60)  # type: ignore[arg-type]  # durations are timedeltas


def functions_of_a_program_see_requests_of_httpx() -> None:
    """A key source gives text or nothing; preparing gives nothing anybody looks at."""

    def key(request: httpx.Request) -> str | None:
        return str(request.headers["X-Order"]) if "X-Order" in request.headers else None

    async def sign(request: httpx.Request, attempt: int) -> None:
        request.headers["X-Nonce"] = str(attempt)

    AsyncIdempotentTransport(key_source=key, prepare=sign)
    IdempotentTransport(key_source=lambda request: b"key")  # type: ignore[arg-type,return-value]  # a key is text


def a_response_tells_how_it_came_about(response: httpx.Response) -> None:
    info = call_info(response)
    assert_type(info, CallInfo)
    assert_type(info.key, str | None)
    assert_type(info.attempts, int)
    assert_type(info.first_sent_at, datetime | None)


async def a_journal_lists_what_is_pending(hf: holdfast.Holdfast, client: httpx.AsyncClient) -> None:
    journal = KeyJournal(hf.database)
    for call in await journal.pending():
        assert_type(call, PendingCall)
        assert_type(call.request(client), httpx.Request)
    assert_type(await journal.settle("order-17"), bool)


def a_synchronous_program_asks_through_the_ledgers_loop(hf: holdfast.sync.Holdfast) -> None:
    journal = KeyJournal(hf.database)
    assert_type(journal.call(journal.pending()), list[PendingCall])
