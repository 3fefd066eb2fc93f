"""Take calls in: read, redacted, on disk, and only then acknowledged.

    read → name → fingerprint → redact → pack → accept → say so

Everything up to `accept` is computed, off the event loop where a call is large. Calls that come together share a
commit. What a call means is found out later, by the deriver; here it is only looked whether anybody could read it.

Invariants:
    - What is acknowledged is on disk; what could not be stored is an error, never an acknowledgement.
    - A retry changes nothing, and is answered with the ids of the first.
    - Nothing of a call is kept before the rules of redaction have seen it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from holdfast.core import points, trace
from holdfast.core.errors import Closed, StoreError, Unavailable
from holdfast.core.ids import uuid7_bytes
from holdfast.sessions import archive, identity, instants, intake, jcs, machine, providers, redaction
from holdfast.sessions.archive import Body, Event, Known
from holdfast.sessions.codings import CodingError, decode
from holdfast.sessions.errors import (
    CaptureConflict,
    DiskFull,
    NumberRange,
    PastRetention,
    SessionDeleted,
    SessionError,
    Stopping,
    StoreUnavailable,
)
from holdfast.sessions.identity import shown_id
from holdfast.sessions.intake import Sent
from holdfast.sessions.machine import Conflict, Gone, Proceed, Replay
from holdfast.sessions.metrics import METRICS, rule_label
from holdfast.sessions.registry import parsers
from holdfast.sessions.sealing import check_keys
from holdfast.sessions.values import Call, Duplicate, Envelope, Principal, Stored

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.config import SessionsConfig
    from holdfast.store.database import Database

__all__ = ["OFF_LOOP_BYTES", "Ingest", "Offered", "store_error"]

OFF_LOOP_BYTES: Final = 256 * 1024
"""What is larger is read, packed and hashed in a thread: on the loop it would hold up everybody for milliseconds."""

points.register("sessions.accepting", "sessions.accepted")


class Offered(msgspec.Struct, frozen=True):
    """A call that is ready to be stored.

    Attributes:
        unread: Why nobody here will make a turn of it; empty where somebody may.
    """

    event: Event
    unread: str
    found: tuple[tuple[str, int], ...]


class Ingest:
    """Takes calls into one ledger. Belongs to the event loop of its database."""

    def __init__(self, database: Database, *, clock: Clock, config: SessionsConfig, secret: bytes) -> None:
        """Make one.

        Args:
            database: The open ledger.
            clock: The ledger's time.
            config: Settings.
            secret: The installation's.
        """
        self._database = database
        self._clock = clock
        self._config = config
        self._secret = secret
        self._rules = config.redact.compiled()
        self._checked = False

    async def call(self, call: Call, principal: Principal) -> Stored | Duplicate:
        """Take a program's call.

        Raises:
            SessionError: It breaks a rule, conflicts with another, or could not be stored.
        """
        size = len(call.request or b"") + len(call.response or b"")
        org = principal.org_id
        return await self._take(lambda: self._offered(intake.sent_of(call, org=org), "", principal), size, call.source)

    async def body(self, data: bytes, principal: Principal, *, header: str = "") -> Stored | Duplicate:
        """Take a call that was posted, its body without content coding.

        Args:
            data: The body.
            principal: Who posted it.
            header: The `Idempotency-Key` header; empty where there was none.

        Raises:
            SessionError: As `call`.
        """
        depth, org = self._config.json_depth_max, principal.org_id
        size, held = len(data), [data]
        del data  # a large body is let go of as soon as it is read

        def prepare() -> Offered:
            return self._offered(intake.single(held.pop(), org=org, depth_max=depth), header, principal)

        return await self._take(prepare, size, "wire")

    async def bodies(self, parts: Sequence[bytes], principal: Principal) -> list[Stored | Duplicate | SessionError]:
        """Take the elements of a batch, each as `body`; one that fails leaves the others alone."""
        return list(await asyncio.gather(*(self._either(self.body(part, principal)) for part in parts)))

    async def calls(self, calls: Sequence[Call], principal: Principal) -> list[Stored | Duplicate | SessionError]:
        """Take several calls of a program, each as `call`; one that fails leaves the others alone."""
        return list(await asyncio.gather(*(self._either(self.call(call, principal)) for call in calls)))

    async def _either(self, taking: Awaitable[Stored | Duplicate]) -> Stored | Duplicate | SessionError:
        try:
            return await taking
        except SessionError as error:
            return error

    # --- one call ---

    async def _take(self, prepare: Callable[[], Offered], size: int, source: str) -> Stored | Duplicate:
        try:
            offered = await asyncio.to_thread(prepare) if size > OFF_LOOP_BYTES else prepare()
            for rule, count in offered.found:
                METRICS.redactions.add(count, rule_label(rule))
            answer = await self._accept(offered)
        except SessionError as error:
            METRICS.events.add(1, source, "refused")
            METRICS.rejected.add(1, error.bare_code)
            raise
        if isinstance(answer, Duplicate):
            METRICS.events.add(1, source, "duplicate")
            return answer
        METRICS.events.add(1, source, "accepted")
        for reason in _dropped(offered.event):
            METRICS.dropped.add(1, reason)
        return answer

    async def _accept(self, offered: Offered) -> Stored | Duplicate:
        event = offered.event
        if points.armed:
            points.reach("sessions.accepting")
        began = self._clock.monotonic()
        try:
            if not self._checked:  # nothing is stored in the clear beside what is sealed
                await check_keys(self._database)
                self._checked = True
            with trace.span("holdfast.sessions.accept"):
                decision = await archive.accept(self._database, event)
            METRICS.commit_seconds.observe(self._clock.monotonic() - began)
            if points.armed:
                points.reach("sessions.accepted")
            match decision:
                case Proceed():
                    return _stored(event.event_id, offered.unread)
                case Replay(event_id):
                    return await self._known(event.org, event_id)
                case Conflict():
                    raise CaptureConflict(event.capture_id)
                case Gone():
                    raise SessionDeleted(
                        "the session was deleted, and takes no more calls",
                        "use another session id, or let an admin undelete the key",
                    )
        except StoreError as error:
            raise store_error(error) from error

    async def _known(self, org: UUID, event_id: bytes) -> Duplicate:
        async with self._database.read() as tx:
            known = await archive.event_state(tx, org, event_id)
        return duplicate(event_id, known)

    # --- before it is stored ---

    def _offered(self, sent: Sent, header: str, principal: Principal) -> Offered:
        org = principal.org_id
        capture_id, content_keyed = intake.capture_id(sent, header, org=org)
        request, response, written = sent.call.request, sent.call.response, jcs.write(sent.told)
        fingerprint = identity.fingerprint(self._secret, sent.told, request, response, written=written)
        # A retry may come by another way: who speaks for whom is not in the fingerprint.
        if (spoken := intake.spoken_for(sent, principal.auth_subject)) is not sent:
            written = jcs.write(spoken.told)
        kept = redaction.kept(spoken, self._rules, self._secret, org=org, written=written)
        call, flags = kept.sent.call, set(kept.sent.flags)
        now = self._clock.now()
        told_at = None if call.captured_at is None else instants.micros(call.captured_at)
        captured_at, suspect = machine.captured_time(told_at, received_at=now)
        if machine.past_retention(captured_at, retention_us=self._config.retention.us, now=now):
            raise PastRetention("the call was captured before what is kept begins", "see retention.days")
        flags |= {"content_keyed"} if content_keyed else set()
        flags |= {"clock_suspect"} if suspect else set()
        session = call.session or Envelope()
        unread = _unread(call)  # before bodies are packed: both take room
        event = Event(
            org=org,
            event_id=uuid7_bytes(now),
            capture_id=capture_id,
            source=call.source,
            provider=call.provider,
            fingerprint=fingerprint,
            captured_at=captured_at,
            received_at=now,
            told=kept.told,
            request=_body(call.request, call.request_encoding, call.request_type),
            response=_body(call.response, call.response_encoding, call.response_type),
            harness_id=session.harness_id,
            harness_session_id=session.harness_session_id,
            thread=call.thread_id,
            access_key_id=principal.access_key_id,
            caller=identity.caller(self._secret, principal.access_key_id),
            fidelity=_fidelity(call),
            flags=frozenset(flags),
        )
        return Offered(event, unread, tuple(kept.counts.items()))


def _body(data: bytes | None, encoding: str, content_type: str) -> Body | None:
    return None if data is None else archive.body_of(data, encoding=encoding, content_type=content_type)


def _fidelity(call: Call) -> str:
    if call.capture == "metadata":
        return "metadata"
    return "reduced" if call.response is None and call.reduced is not None else "raw"


def _dropped(event: Event) -> list[str]:
    """Return why bodies of a call are not kept."""
    reasons = ["policy"] if event.fidelity == "metadata" else []
    return [*reasons, "redaction"] if redaction.DROPPED in event.flags else reasons


def _unread(call: Call) -> str:
    """Return why nobody here will make a turn of a call: its request alone decides."""
    try:
        request = call.request and decode(call.request, call.request_encoding).data
    except CodingError as error:
        return error.fault
    try:
        facts = providers.parse(call.provider, request, None, endpoint=call.endpoint, providers=parsers())
    except NumberRange:
        return "number_range"
    return facts.unparsed


def _stored(event_id: bytes, unread: str) -> Stored:
    return Stored(
        shown_id("cap", event_id),
        shown_id("turn", event_id),
        None,
        "stored_unparsed" if unread else "accepted",
        unread,
        derived=False,
    )


def duplicate(event_id: bytes, known: Known | None) -> Duplicate:
    """Return the answer to a retry, with the ids that the first has by now."""
    turn = None if known is None else known.turn_id
    session = None if known is None else known.session_id
    return Duplicate(
        shown_id("cap", event_id),
        shown_id("turn", turn or event_id),
        None if session is None else shown_id("ses", session),
    )


def store_error(error: StoreError) -> SessionError:
    """Return what a caller is told when the ledger could not do it."""
    if isinstance(error, Closed):
        return Stopping("the ledger is being closed", "send it again, to whoever takes over")
    after = error.retry_after if isinstance(error, Unavailable) else 1.0
    if type(error.__cause__).__name__ in ("FullError", "DiskFullError"):
        return DiskFull("there is no room for another call", "free some space, then send it again", retry_after=after)
    return StoreUnavailable("the ledger cannot be written just now", "send it again", retry_after=after)
