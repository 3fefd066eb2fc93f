"""What a program does with captured conversations: one object over one ledger.

    async with Archive(hf.database) as archive:
        stored = await archive.ingest(Call("anthropic", request, response))

Started, it makes turns of what is taken in, by whomever; otherwise `derive` does so when asked. What can be asked of it
is in `asking`, what operators do in `repairing`.

Invariants:
    - Whoever asks sees only rows of its principal's org.
    - What is acknowledged is on disk.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from blake3 import blake3

from holdfast.sessions import archive, identity
from holdfast.sessions.archive import Known
from holdfast.sessions.asking import permit
from holdfast.sessions.config import SessionsConfig
from holdfast.sessions.deriver import CHANNEL, Deriver, DeriveReport, channel_of
from holdfast.sessions.errors import SessionError
from holdfast.sessions.ingest import Ingest
from holdfast.sessions.packer import Packer
from holdfast.sessions.prices import is_known, source
from holdfast.sessions.repairing import Repairing
from holdfast.sessions.sealing import check_keys, stand_before
from holdfast.sessions.secret import installation_secret, secret_file
from holdfast.sessions.values import LOCAL, Call, Duplicate, Principal, Refused, Stored

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.core.keyring import KeyRing
    from holdfast.sessions.pricing import PriceSource
    from holdfast.store.database import Database

__all__ = ["Archive"]

T = TypeVar("T")

_CURSORS = "holdfast 2026 sessions: cursors of lists"

LOOK_S = 0.05
"""How often is looked whether another process has derived an event that a caller waits for."""


class Archive(Repairing):
    """Captured conversations in one ledger. Belongs to the event loop of its database."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        config: SessionsConfig | None = None,
        prices: PriceSource | None = None,
        ring: KeyRing | None = None,
    ) -> None:
        """Make one; nothing runs before `start`.

        Args:
            database: The open ledger, `hf.database`; its owner closes it.
            clock: The time; None: the ledger's.
            config: Settings; None: the defaults.
            prices: Who is asked what a call costs; None: as the settings say.
            ring: The ledger's keys, where the settings say that it is sealed; None: those of the environment.

        Raises:
            ConfigError: The rate cards cannot be read, or there are no keys and there should be.
        """
        self.config = SessionsConfig() if config is None else config
        self._database = database = stand_before(database, self.config.encryption, os.environ, ring)
        self._clock = database.clock if clock is None else clock
        # Whoever can read this has read the ledger: a cursor is no secret, it is only not to be made up.
        self._cursor_key = blake3(database.namespace, derive_key_context=_CURSORS).digest()
        self._priced = prices is not None or is_known(self.config)
        self._prices = source(self.config) if prices is None else prices
        self._deriver = Deriver(database, clock=self._clock, config=self.config, prices=self._prices)
        self._packer = Packer(database, clock=self._clock, config=self.config)

    # --- opening and closing ---

    async def start(self) -> None:
        """Make turns of events as they come, and pack what lies there, from now on. Harmless when done before.

        Raises:
            ConfigError: The installation's secret cannot be read or made; or the ledger needs a key that is not there.
            StoreError: The ledger cannot be used.
        """
        self._ingest  # noqa: B018 - what cannot be read is better known now
        await check_keys(self._database)
        await self._deriver.start()
        self._packer.start()

    async def stop(self) -> None:
        """Make no more turns; what was taken in stays and is seen to later. Harmless when done before."""
        await self._packer.stop()
        await self._deriver.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- taking calls in ---

    @functools.cached_property
    def _ingest(self) -> Ingest:
        path = secret_file(self._database, self.config.secret_file, os.environ)
        secret = installation_secret(self._database, path)
        return Ingest(self._database, clock=self._clock, config=self.config, secret=secret)

    async def ingest(
        self, call: Call, *, wait: timedelta | None = None, principal: Principal = LOCAL
    ) -> Stored | Duplicate | Refused:
        """Store a call; return when it is on disk.

        Args:
            call: The call; given again, with its capture id or with equal content, it changes nothing.
            wait: How long to wait for its turn besides.
            principal: Who gives it.
        """
        try:
            permit(principal, "ingest")
            return await self._derived(await self._announced(self._ingest.call(call, principal)), wait, principal)
        except SessionError as error:
            return _refused(error)

    async def ingest_many(
        self, calls: Sequence[Call], *, principal: Principal = LOCAL
    ) -> list[Stored | Duplicate | Refused]:
        """Store calls that share a commit; one that is refused leaves the others alone."""
        try:
            permit(principal, "ingest")
        except SessionError as error:
            return [_refused(error)] * len(calls)
        found = await self._announced(self._ingest.calls(calls, principal), len(calls))
        return [_refused(each) if isinstance(each, SessionError) else each for each in found]

    async def receive(
        self, data: bytes, *, header: str = "", wait: timedelta | None = None, principal: Principal = LOCAL
    ) -> Stored | Duplicate:
        """Store a call that was posted.

        Args:
            data: Its JSON, without content coding.
            header: The `Idempotency-Key` header; empty where there was none.
            wait: How long to wait for its turn besides.
            principal: Who posted it.

        Raises:
            SessionError: It breaks a rule, conflicts with another, or cannot be stored now.
        """
        permit(principal, "ingest")
        taking = self._ingest.body(data, principal, header=header)
        del data  # as long as it is referenced here it stays in memory
        taken = await self._announced(taking)
        return await self._derived(taken, wait, principal)

    async def receive_many(
        self, parts: Sequence[bytes], *, principal: Principal = LOCAL
    ) -> list[Stored | Duplicate | SessionError]:
        """Store the elements of a batch, which share a commit; one that is refused leaves the others alone.

        Raises:
            Forbidden: The principal may not store calls.
        """
        permit(principal, "ingest")
        return await self._announced(self._ingest.bodies(parts, principal), len(parts))

    async def _announced(self, taking: Awaitable[T], count: int = 1) -> T:
        """Wait until calls are on disk, and say that they are; meanwhile the deriver gives way."""
        self._deriver.coming += count
        try:
            taken = await taking
        finally:
            self._deriver.coming -= count
        self._database.wake(CHANNEL)
        return taken

    async def _derived(
        self, taken: Stored | Duplicate, wait: timedelta | None, principal: Principal
    ) -> Stored | Duplicate:
        """Wait for a call's turn, at most so long, and answer with what is known by then."""
        if wait is None or isinstance(taken, Duplicate):
            return taken
        event_id = identity.parse_id("cap", taken.event_id)
        assert event_id is not None
        if not self._deriver.running:
            await self._deriver.one(principal.org_id, event_id)
        deadline = self._clock.monotonic() + wait.total_seconds()
        while True:
            async with self._database.read() as tx:
                known = await archive.event_state(tx, principal.org_id, event_id)
            left = deadline - self._clock.monotonic()
            if known is None or known.state != "pending" or left <= 0:
                return taken if known is None else _answer(taken, known)
            await self._database.wait(channel_of(event_id), min(left, LOOK_S))

    # --- making turns ---

    async def derive(self, *, limit: int = 256) -> DeriveReport:
        """Make turns of events that wait, at most so many, in the order they came.

        Raises:
            StoreError: The ledger cannot be reached; what was derived stays so.
        """
        return await self._deriver.derive(limit=limit)


def _answer(taken: Stored, known: Known) -> Stored:
    """Return the answer to a new call with what is known of it by now."""
    turn, session = known.turn_id, known.session_id
    unread = known.state in ("unparsed", "refused")
    return replace(
        taken,
        turn_id=taken.turn_id if turn is None else identity.shown_id("turn", turn),
        session_id=None if session is None else identity.shown_id("ses", session),
        state="stored_unparsed" if unread else taken.state,
        reason=known.reason if unread else taken.reason,
        derived=known.state == "derived",
    )


def _refused(error: SessionError) -> Refused:
    return Refused(error.bare_code, getattr(error, "field", ""), str(error))
