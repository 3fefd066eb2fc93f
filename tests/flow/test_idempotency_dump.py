"""What a dump of the ledger tells somebody who has stolen it: no key, no principal, no header and no body (HA-16)."""

from __future__ import annotations

import base64
import os
import urllib.parse
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.flow.exchanges import SECRET, Counting, guarded

from holdfast.core.keyring import KeyRing
from holdfast.idempotency import Completed, Principal, RouteRule, State, current, errors, keys
from holdfast.idempotency.machine import DecideOutcome, ForceRelease
from holdfast.testing import ManualClock

SECRETS = tuple(f"hunter2-{where}" for where in (
    "key", "subject", "tenant", "authorization", "cookie", "accept", "query", "path", "requestbody",
    "location", "etag", "setcookie", "custom", "responsebody", "contenttype", "result", "payload", "value", "decided",
))  # fmt: skip
(KEY, SUBJECT, TENANT, AUTHORIZATION, COOKIE, ACCEPT, QUERY, PATH, BODY,
 LOCATION, ETAG, SET_COOKIE, CUSTOM, ANSWER, CONTENT_TYPE, RESULT, PAYLOAD, VALUE, DECIDED) = SECRETS  # fmt: skip
WHO = Principal(SUBJECT, TENANT)
SENT = {"authorization": f"Bearer {AUTHORIZATION}", "cookie": f"session={COOKIE}", "accept": ACCEPT}
HEAD = [
    (b"content-type", f"text/{CONTENT_TYPE}".encode()), (b"location", f"/orders/{LOCATION}".encode()),
    (b"etag", f'"{ETAG}"'.encode()), (b"set-cookie", f"session={SET_COOKIE}".encode()),
    (b"x-custom", CUSTOM.encode()),
]  # fmt: skip


def guises(text: str) -> set[bytes]:
    """A text as it may appear in a dump."""
    raw = text.encode()
    found = {raw, raw.hex().encode(), raw.hex().upper().encode(), urllib.parse.quote(text).encode()}
    for shift in range(3):  # base64 of a longer text that contains it
        coded = base64.b64encode(b"\0" * shift + raw)
        found.add(coded[(shift * 8 + 5) // 6 : -4])
    return found


def seen(dump: bytes) -> set[str]:
    """Which secrets a dump tells."""
    return {text for text in SECRETS if any(guise in dump for guise in guises(text))}


def read(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def dump(target: str, folder: Path) -> bytes:
    """Everything that is on disk; of PostgreSQL every row of every table."""
    found = read(folder)
    if target.startswith("postgres"):
        connection = await asyncpg.connect(target)
        try:
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            assert len(tables) > 4
            for (table,) in tables:
                rows = await connection.fetch(f'SELECT t::text FROM "{table}" AS t')  # noqa: S608 - our own tables
                found += b"\n".join(row[0].encode() for row in rows)
        finally:
            await connection.close()
    return found


async def application(scope: Any, receive: Any, send: Any) -> None:
    """End each key in a state of its own, as its path says."""
    await receive()
    idem = current()
    assert idem is not None
    status, state = 201, scope["path"].split("/")[1]
    if state == "declared":
        await idem.set_result(201, HEAD, RESULT.encode() * 200)
    elif state == "raised":
        raise ConnectionError(ANSWER)
    elif state in ("unknown", "decided"):
        await idem.mark_irreversible()
        status = 503
    await send({"type": "http.response.start", "status": status, "headers": HEAD})
    await send({"type": "http.response.body", "body": ANSWER.encode() * (3 if state == "short" else 3000)})


@pytest.fixture
async def told(ledger: str, tmp_path: Path) -> AsyncIterator[tuple[Any, Any]]:
    """A guard with a cipher that has met every ending, and one that has not."""
    rules = (
        RouteRule(path="/streamed/{rest:path}", stream=True),
        RouteRule(set_cookie="keep"),
    )
    settings: dict[str, Any] = {
        "principal": lambda scope: WHO, "secrets": [os.urandom(32), SECRET], "routes": rules,
        "fingerprint_headers": ("authorization", "accept"),
    }  # fmt: skip
    async with guarded(application, ledger, cipher=KeyRing((1, os.urandom(32))), **settings) as it:
        yield it, settings


STATES = ("short", "long", "streamed", "declared", "raised", "unknown", "decided")


async def live(it: Any, states: tuple[str, ...] = STATES) -> None:
    for state in states:
        path = f"/{state}/{PATH}?q={QUERY}"
        for _ in range(2):
            await it.ask(f"{KEY}-{state}", path=path, headers=SENT, body=BODY.encode() * 100)

    async def op(idem: Any) -> bytes:
        return VALUE.encode()

    for _ in range(2):
        await it.guard.once(f"{KEY}-call", PAYLOAD.encode(), op, principal=WHO, name="orders.charge")
    with pytest.raises(errors.KeyReused):
        await it.guard.once(f"{KEY}-call", b"another", op, principal=WHO, name="orders.charge")


async def force(it: Any) -> None:
    """Let an operator have his say about what is unknown."""
    database = it.guard.database
    async with database.read() as tx:
        unknown = (await keys.list(tx, state=State.UNKNOWN)).items
    assert len(unknown) == 2
    outcome = Completed(200, [(b"x-custom", DECIDED.encode())], DECIDED.encode())
    for record, action in zip(unknown, (DecideOutcome(outcome), ForceRelease()), strict=True):
        sealed = it.guard._opened.sealed(outcome, record.key_id, record.record_id)
        async with database.write() as tx:
            assert await keys.force(
                tx, record.key_id, action, actor="ann", reason="asked the bank", now=it.clock.now(), sealed=sealed
            )


async def test_a_dump_tells_neither_keys_nor_principals_nor_what_was_said(
    told: tuple[Any, Any], ledger: str, tmp_path: Path
) -> None:
    it, _ = told
    await live(it)
    await force(it)
    async with it.guard.database.read() as tx:
        states = {record.state for record in (await keys.list(tx)).items}
    assert {State.COMPLETED, State.TOMBSTONE, State.RELEASED} <= states
    assert seen(await dump(ledger, tmp_path)) == set()
    assert (
        await it.ask(f"{KEY}-long", path=f"/long/{PATH}?q={QUERY}", headers=SENT, body=BODY.encode() * 100)
    ).replayed
    await it.guard.stop(timedelta(0))
    assert seen(await dump(ledger, tmp_path)) == set(), "nor when it is closed"


async def test_without_a_cipher_only_responses_are_told(ledger: str, tmp_path: Path) -> None:
    """So the search finds what is there, and a cipher is what hides it."""
    settings: dict[str, Any] = {"principal": lambda scope: WHO}
    async with guarded(application, ledger, **settings) as it:
        await live(it, ("short",))
        assert seen(await dump(ledger, tmp_path)) == {ANSWER, LOCATION, ETAG, CONTENT_TYPE, CUSTOM, VALUE}


async def test_what_is_in_flight_tells_nothing_either(ledger: str, tmp_path: Path) -> None:
    app, found = Counting(), []

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        found.append(seen(await dump(ledger, tmp_path)))
        await app(scope, receive, send)

    settings: dict[str, Any] = {"principal": lambda scope: WHO}
    async with guarded(looking, ledger, clock=ManualClock(), **settings) as it:
        await it.ask(KEY, path=f"/{PATH}?q={QUERY}", headers=SENT, body=BODY.encode())
    assert found == [set()]
