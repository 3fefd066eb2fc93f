"""Calls of the sessions contract, taken and folded in through the records."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
from tests.unit.sessions_data import FIXTURES, recorded

from holdfast.core.clock import SystemClock
from holdfast.sessions import archive, headers, instants, intake, jcs
from holdfast.sessions.archive import rows, scans
from holdfast.sessions.derivation import Derived, RawEvent, derive
from holdfast.sessions.machine import Proceed
from holdfast.sessions.pricing import CardSource, cards
from holdfast.sessions.values import Call, Envelope, Source, Upstream
from holdfast.store import StoreSettings
from holdfast.store.database import Database
from holdfast.store.sqlite import open_sqlite

ORG = UUID(int=7)
TERMS = archive.Terms()


_numbers = itertools.count(1)


def mint() -> bytes:
    """An id that nobody else gets."""
    return (0x5E << 120 | next(_numbers)).to_bytes(16, "big")


@functools.cache
def rates() -> CardSource:
    """What the recorded session's model costs."""
    return CardSource(cards(json.loads((FIXTURES / "rates" / "sonnet-4-6.json").read_bytes())))


def event(call: Call, capture_id: str, at: int, *, org: UUID = ORG, **more: Any) -> archive.Event:
    """A call as the ingest hands it to the records."""
    sent = intake.sent_of(call, org=org)
    session = sent.call.session
    told = jcs.write(dict(sent.told))
    return archive.Event(
        org=org,
        event_id=hashlib.sha256(capture_id.encode() + org.bytes).digest()[:16],
        capture_id=capture_id,
        source=call.source,
        provider=call.provider,
        fingerprint=hashlib.sha256(told + (call.request or b"") + (call.response or b"")).digest(),
        captured_at=at,
        received_at=at,
        told=told,
        request=None if call.request is None else archive.body_of(call.request, encoding=call.request_encoding),
        response=None
        if call.response is None
        else archive.body_of(call.response, encoding=call.response_encoding, content_type=call.response_type),
        harness_id=session.harness_id if session else "",
        harness_session_id=session.harness_session_id if session else "",
        thread=call.thread_id,
        **more,
    )


@functools.cache
def recording() -> tuple[archive.Event, ...]:
    """Each recorded call as a wire event."""
    found = []
    for call in recorded():
        who = headers.identity(call.headers, trusted=False)
        [folder] = FIXTURES.glob(f"recordings/*/{call.expected['call']}")
        sent, ended = (instants.parse(call.meta[name]) for name in ("ts_request", "ts_complete"))
        assert sent is not None
        assert ended is not None
        made = Call(
            "anthropic",
            call.request,
            (folder / "response.sse").read_bytes(),
            endpoint="/v1/messages",
            response_type=call.meta["content_type"],
            response_encoding=call.meta["content_encoding"],
            started_at=instants.moment(sent),
            ended_at=instants.moment(ended),
            session=who.envelope,
            thread_id=who.thread_id,
            upstream=Upstream(200, request_id=call.expected["request_id"]),
        )
        found.append(event(made, call.expected["call"], sent))
    return tuple(found)


async def take(database: Database, events: Iterable[archive.Event]) -> None:
    """Accept events, in their order."""
    for each in events:
        assert isinstance(await archive.accept(database, each), Proceed)


@functools.cache
def read(told: bytes, capture_id: str, at: int, request: bytes | None, response: bytes | None, org: UUID) -> Derived:
    """What an event says; each is read once, whatever order it comes in."""
    call = intake.reread(jcs.read(told), request, response, org=org)
    return derive(RawEvent(seq=0, event_id=b"", org=org, capture_id=capture_id, captured_at=at, call=call))


def said(loaded: archive.Loaded) -> Derived:
    """What an event of the ledger says."""
    bodies = [None if body is None else body.data() for body in (loaded.request, loaded.response)]
    found = read(rows.unpack(loaded.told), loaded.capture_id, loaded.captured_at, *bodies, loaded.org)
    if found.evidence is None:
        return found
    own = msgspec.structs.replace(found.evidence, seq=loaded.seq, event_id=loaded.event_id)
    return dataclasses.replace(found, evidence=own)


async def fold(
    database: Database,
    event_id: bytes,
    *,
    org: UUID = ORG,
    read: Callable[[archive.Loaded], Derived] = said,
) -> archive.Outcome:
    """Fold one event in, as a worker does."""
    async with database.read() as tx:
        loaded = await archive.load(tx, org, event_id)
    assert loaded is not None
    derived = read(loaded)
    quote = None if derived.query is None else rates().quote(derived.query)
    return await archive.settle(database, loaded, derived, quote=quote, mint=mint, terms=TERMS)


async def told(database: Database, events: Sequence[archive.Event], *, workers: int = 1, **how: Any) -> None:
    """Accept events, in their order, and fold them in, by several workers at once."""
    await take(database, events)
    waiting = [each.event_id for each in events]

    async def work() -> None:
        while waiting:
            await fold(database, waiting.pop(0), **how)

    await asyncio.gather(*(work() for _ in range(workers)))


async def digest(database: Database, org: UUID = ORG) -> str:
    """One hash of all that was derived."""
    async with database.read() as tx:
        return await scans.projection_hash(tx, org)


@contextlib.asynccontextmanager
async def fresh() -> AsyncIterator[Database]:
    """A ledger in memory, to compare another with."""
    database = await open_sqlite(":memory:", clock=SystemClock(), settings=StoreSettings())
    yield database
    await database.close()


# --- calls made up


def ask(*messages: str, **more: Any) -> bytes:
    """A request of these messages, the user's first, in turns."""
    roles = itertools.cycle(("user", "assistant"))
    listed = [{"role": next(roles), "content": each} for each in messages]
    return json.dumps({"model": "claude-sonnet-4-6", "messages": listed, **more}).encode()


def answer(text: str, message_id: str = "m", used: tuple[int, int] = (5, 2)) -> bytes:
    """A response with this text."""
    usage = {"input_tokens": used[0], "output_tokens": used[1]}
    content = [{"type": "text", "text": text}]
    return json.dumps({"id": message_id, "content": content, "stop_reason": "end_turn", "usage": usage}).encode()


def session(session_id: str, harness_id: str = "claude", **more: Any) -> Envelope:
    """A session of a harness."""
    return Envelope(harness_id=harness_id, harness_session_id=session_id, **more)


def made_up(seed: int) -> tuple[list[archive.Event], Callable[[archive.Loaded], Derived]]:
    """Some calls that get in each other's way, and what reads them: shared sessions, parents, ids and answers."""
    rng = random.Random(seed)  # noqa: S311 - cases, not secrets
    events = []
    for number in range(rng.randint(3, 14)):
        said_so_far = [rng.choice("abc") for _ in range(2 * rng.randint(0, 2) + 1)]
        message_id = rng.choice(["m1", "m2", f"u{number}", f"v{number}"])
        tools = {"tools": [{"name": "x" * 600}]} if rng.random() < 0.3 else {}
        envelope = None
        if rng.random() < 0.6:
            parent: dict[str, str] = {}
            if rng.random() < 0.6:
                parent["parent_harness_session_id"] = rng.choice(["s1", "s2", "s3", "s4", "s5", "p9"])
                if rng.random() < 0.5:
                    parent["parent_harness_id"] = rng.choice(["claude", "codex"])
            envelope = session(
                rng.choice(["s1", "s2", "s3", "s4", "s5"]),
                rng.choice(["claude", "codex"]),
                name=rng.choice(["", "n1", "n2"]),
                auth_subject=rng.choice(["", "x", "y"]),
                harness_metadata=rng.choice([{}, {"k": number}, {"j": [number]}]),
                **parent,
            )
        call = Call(
            "anthropic",
            ask(*said_so_far, **tools),
            answer(rng.choice("abc"), message_id, (rng.randint(1, 9), rng.randint(1, 3))),
            session=envelope,
            upstream=Upstream(200, request_id=rng.choice(["", "r1", f"q{number}"])),
            tags=frozenset(rng.sample(["t1", "t2"], 1)),
        )
        events.append(event(call, f"c{number}", NOON + rng.randint(0, 20) * 1_000_000))

    def read_by(loaded: archive.Loaded) -> Derived:
        """Some of them are transcripts' and spans', which have no posted form yet."""
        found = said(loaded)
        own = random.Random(loaded.capture_id + str(seed))  # noqa: S311 - cases, not secrets
        if found.evidence is None or own.random() > 0.4:
            return found
        rank = own.choice([1, 2, 3])
        source: Source = "otlp" if rank == 1 else "transcript"
        message_id = own.choice(["", found.evidence.message_id])
        evidence = msgspec.structs.replace(found.evidence, rank=rank, source=source, message_id=message_id)
        return dataclasses.replace(found, evidence=evidence)

    return events, read_by


NOON = 1_790_000_000_000_000
"""Some instant, in microseconds."""
