"""Make turns of what was taken in, again and again.

    load → read, hash, price → locks, fence → fold → commit → say so

A few events share a transaction, which saves most of what a commit costs. As soon as anything is wrong with one of
them nothing is kept of that transaction, and each is derived in one of its own.

Calls that come in go first: while there are some the transactions here are shorter, and the more there are the longer
are the pauses between them. A turn may come a little later; a caller is held up.

An event is found because somebody said so, or by looking now and then. Any number of processes may derive one ledger:
whoever comes second finds the fence gone and stops. What an event says is computed before the transaction, in a
thread where it is large.

Invariants:
    - All that follows from an event commits together, or nothing does.
    - A transaction of several events is short: others wait for their turn to write.
    - An event that fails delays no other: it comes back later, and after its last attempt it is set aside.
    - While the ledger cannot be reached nothing counts as an attempt.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from holdfast.core import points, trace
from holdfast.core.errors import Busy, Closed, ConfigError, Conflict, StoreError, Unavailable
from holdfast.core.ids import uuid7_bytes
from holdfast.core.loops import Loop, Tasks
from holdfast.sessions import archive, derivation, machine
from holdfast.sessions.archive import Due, Folded, Loaded, Lost, Outcome, Terms, Unparsed, Widen
from holdfast.sessions.archive.attributions import load_overlays
from holdfast.sessions.derivation import Derived, RawEvent
from holdfast.sessions.errors import SessionError
from holdfast.sessions.ingest import OFF_LOOP_BYTES
from holdfast.sessions.machine import Dead
from holdfast.sessions.metrics import METRICS, provider_label
from holdfast.sessions.overlays import NONE, Overlays, attributed
from holdfast.sessions.registry import parsers, reading_version
from holdfast.sessions.values import Cost

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.config import SessionsConfig
    from holdfast.sessions.pricing import PriceSource
    from holdfast.store.database import Database

__all__ = ["CHANNEL", "DeriveReport", "Deriver", "channel_of", "terms_of"]

CHANNEL: Final = "sessions.pending"
"""Somebody has taken an event in."""

COLLISIONS_MAX: Final = 8
"""How often a transaction that met another one is run again before that counts as a failure."""

PAUSE_S: Final = 0.01
"""The first pause after a collision; twice as long after each further one, and up to half of it more or less."""

PASS_MAX: Final = 256
"""Events of one round: few enough to notice soon what came in meanwhile."""

GROUP_MAX: Final = 16
"""Events that may share a transaction: what a commit costs is a few percent then."""

GROUP_BYTES: Final = 256 * 1024
"""Weight of the bodies of such events together: they are in memory at once, read."""

GROUP_S: Final = 0.02
"""After so long a transaction takes no further event: other processes wait for it."""

SHORT_S: Final = 0.005
"""The same while calls are taken in here."""

GIVE_WAY_S: Final = 0.001
"""How long the deriver pauses for each call that comes in: about what it takes to take one."""

GIVE_WAY_MAX_S: Final = 0.1
"""How long it pauses at most, so that it comes forward however many calls come in."""

MEASURE_S: Final = 5.0
"""How old the figures may be: they are counted, and there may be many events to count."""

ORGS_MAX: Final = 4096
"""Orgs whose attributions are remembered: many more than an installation has."""

log = logging.getLogger("holdfast.sessions")

points.register("sessions.deriving", "sessions.derived", "sessions.folding", "sessions.committed")


@dataclass(frozen=True, slots=True)
class DeriveReport:
    """What a pass of the deriver did.

    Attributes:
        derived: Events that are turns now, or part of one.
        unparsed: Events that nobody here can read.
        refused: Events of deleted sessions, whose bodies were dropped.
        dead: Events that were tried as often as they may be.
        pending: Events that are left, with those whose time has not come.
    """

    derived: int = 0
    unparsed: int = 0
    refused: int = 0
    dead: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class _Read:
    """An event whose bodies have been read: what they say, and what it costs."""

    loaded: Loaded
    derived: Derived
    quote: Cost | None


def channel_of(event_id: bytes) -> str:
    """Return the channel on which is said that an event was derived."""
    return f"sessions.derived:{event_id.hex()}"


class Deriver:
    """Derives the events of one ledger. Belongs to the event loop of its database.

    Attributes:
        coming: How many calls are being taken in here, to which it gives way.
        running: Whether it derives by itself.
        terms: What the derivation depends on besides its events.
    """

    def __init__(self, database: Database, *, clock: Clock, config: SessionsConfig, prices: PriceSource) -> None:
        """Make one; nothing runs before `start`.

        Args:
            database: The open ledger.
            clock: The ledger's time.
            config: Settings.
            prices: Who is asked what a call costs.
        """
        self._database = database
        self._clock = clock
        self._config = config
        self._prices = prices
        self._parsers = parsers()
        self.terms = terms_of(config)
        self._loop = Loop("holdfast sessions derive", self._round, 0, clock)
        self._taken: set[bytes] = set()
        self._overlays: dict[UUID, Overlays] = {}
        self._measured_at = -MEASURE_S
        self._busy = False
        self.coming = 0
        self.running = False

    # --- the loop ---

    async def start(self) -> None:
        """Derive events as they come from now on; put back what may be read by now. Harmless when done before."""
        if self.running or not self._config.derive.workers:
            return
        async with self._database.write() as tx:
            await archive.replay(tx, None, states=("unparsed",), version=self.terms.version)
        self.running = True
        self._loop.start()

    async def stop(self) -> None:
        """Derive no more; an event that is being written is written or not at all. Harmless when done before."""
        self.running = False
        await self._loop.stop()

    async def _round(self) -> None:
        counts = await self._pass(PASS_MAX)
        rests, self._busy = self._busy and not counts, bool(counts)
        if rests or self._clock.monotonic() - self._measured_at >= MEASURE_S:
            await self.measure()
        if not counts:
            await self._database.wait(CHANNEL, self._config.derive.poll_ms / 1000)

    async def derive(self, *, limit: int = PASS_MAX) -> DeriveReport:
        """Derive events that are due, in the order they came, and return what became of them.

        Raises:
            StoreError: The ledger cannot be reached; what was derived stays so.
        """
        return await self.report(await self._pass(limit))

    async def report(self, counts: dict[str, int]) -> DeriveReport:
        """Return what was counted, with what is left."""
        counts.pop("retry", None)
        return DeriveReport(**counts, pending=await self.measure())

    async def _pass(self, limit: int) -> dict[str, int]:
        await self._clock.sleep(0)  # who asks again and again must not keep from their end those that are under way
        async with self._database.read() as tx:
            due = await archive.list_pending(tx, now=self._clock.now(), limit=limit)
        return await self._run([each for each in due if each.event_id not in self._taken])

    async def one(self, org: UUID, event_id: bytes) -> None:
        """Derive one event now, if it waits.

        Raises:
            StoreError: The ledger cannot be reached.
        """
        await self._event(org, event_id, {})

    async def again(self, org: UUID, event_id: bytes, counts: dict[str, int]) -> set[bytes]:
        """Derive one event, whether it waits or was derived before, and count what became of it.

        Returns:
            The session it is in now.

        Raises:
            StoreError: The ledger cannot be reached.
        """
        await self._event(org, event_id, counts, again=True)
        async with self._database.read() as tx:
            known = await archive.event_state(tx, org, event_id)
        return set() if known is None or known.session_id is None else {known.session_id}

    async def measure(self) -> int:
        """Tell the metrics what waits and what does not; return how many events wait."""
        self._measured_at = self._clock.monotonic()
        async with self._database.read() as tx:
            states = {each.state: each for each in await archive.count_states(tx, None)}
        waiting = states.get("pending")
        METRICS.pending.set(waiting.count if waiting else 0)
        METRICS.derive_lag.set(max(0, self._clock.now() - waiting.oldest) / 1_000_000 if waiting else 0)
        METRICS.dead.set(states["dead"].count if "dead" in states else 0)
        METRICS.unparsed.set(states["unparsed"].count if "unparsed" in states else 0)
        return waiting.count if waiting else 0

    async def _run(self, due: Sequence[Due]) -> dict[str, int]:
        """Derive events, those of one session one after the other."""
        counts: dict[str, int] = {}
        lines = deque(_lines(due))

        async def work() -> None:
            while lines:
                some = list(lines.popleft())
                while lines and len(some) < GROUP_MAX:
                    some += lines.popleft()
                for group in _groups(some):
                    await self._held(group, counts)
                    await self._clock.sleep(min(self.coming * GIVE_WAY_S, GIVE_WAY_MAX_S))

        workers = max(1, min(self._config.derive.workers, len(lines)))
        if workers == 1:
            await work()
            return counts
        tasks = Tasks()
        try:
            running = [tasks.spawn(work(), "holdfast sessions derive worker") for _ in range(workers)]
            await asyncio.gather(*running)
        finally:
            await tasks.stop()
        return counts

    async def _held(self, group: Sequence[Due], counts: dict[str, int]) -> None:
        ids = [each.event_id for each in group]
        self._taken.update(ids)
        try:
            left = await self._together(group[0].org, ids, counts) if len(ids) > 1 else ids
            for event_id in left:
                await self._event(group[0].org, event_id, counts)
        finally:
            self._taken.difference_update(ids)

    # --- events that share transactions ---

    async def _together(self, org: UUID, ids: Sequence[bytes], counts: dict[str, int]) -> list[bytes]:
        """Derive events in transactions that they share; return those that are left to be derived alone."""
        done = 0
        lost: list[bytes] = []
        try:
            with trace.span("holdfast.sessions.derive"):
                read = await self._all_read(org, ids)
                while done < len(read):
                    for each, result in zip(read[done:], await self._fold(read[done:]), strict=False):
                        done += 1
                        if result:
                            self._say(each.loaded.event_id, result, counts)
                        else:
                            lost.append(each.loaded.event_id)
        except (Unavailable, Closed, ConfigError):
            raise
        except Exception as error:  # noqa: BLE001 - whose it is shows when each is derived alone
            log.debug("events are derived one by one: %s", type(error).__qualname__)
            return list(ids)  # those that are done do not wait any more
        return lost

    async def _all_read(self, org: UUID, ids: Sequence[bytes]) -> list[_Read]:
        """Return what events say, as far as they wait."""
        overlays = await self._overlays_of(org)
        async with self._database.read() as tx:
            found = [await archive.load(tx, org, event_id) for event_id in ids]
        read = []
        for each in found:
            if each and each.state == "pending":
                read.append(await self._understand([each], overlays))
                await self._clock.sleep(0)  # none of this waits for anything, and there are requests to be read
        return read

    def _say(self, event_id: bytes, result: str, counts: dict[str, int]) -> None:
        """Count what became of an event, and wake who waits for it."""
        counts[result] = counts.get(result, 0) + 1
        METRICS.derived.add(1, result)
        self._database.wake(channel_of(event_id))

    # --- one event ---

    async def _event(self, org: UUID, event_id: bytes, counts: dict[str, int], *, again: bool = False) -> None:
        overlays = await self._overlays_of(org)
        async with self._database.read() as tx:
            loaded = await archive.load(tx, org, event_id)
        if loaded is None or loaded.state == "refused" or (loaded.state != "pending" and not again):
            return
        try:
            with trace.span("holdfast.sessions.derive"):
                held = [loaded]
                loaded = _bare(loaded)
                read = await self._understand(held, overlays)
                result = await self._patiently(read)
        except (Unavailable, Closed, ConfigError):  # a key that is missing is nothing that the event did
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's and must not hold up others
            result = await self._failed(loaded, error)
        if result:
            self._say(event_id, result, counts)
        elif await self._overlays_of(org, anew=True) != overlays:
            await self._event(org, event_id, counts, again=again)  # something was attributed after the event was read

    async def _overlays_of(self, org: UUID, *, anew: bool = False) -> Overlays:
        """Return the attributions of an org as they were when last looked; who is behind them finds the fence gone."""
        if anew or org not in self._overlays:
            async with self._database.read() as tx:
                found = await load_overlays(tx, org)
            if len(self._overlays) >= ORGS_MAX:
                self._overlays.clear()
            self._overlays[org] = found
        return self._overlays[org]

    async def _understand(self, held: list[Loaded], overlays: Overlays) -> _Read:
        """Read the one event of a list, which is emptied: stored bodies are let go of as soon as they are unpacked."""
        loaded = _bare(held[0])

        def read() -> _Read:
            derived = archive.packed(self._said(held.pop().raw(), overlays))
            quote = None if derived.query is None else self._prices.quote(derived.query)
            return _Read(loaded, derived, quote)

        size = sum(0 if body is None else body.size for body in (held[0].request, held[0].response))
        return await asyncio.to_thread(read) if size > OFF_LOOP_BYTES else read()

    async def _patiently(self, read: _Read) -> str:
        """Fold an event in; run the transaction again when it met another one."""
        pause = PAUSE_S
        for tries in range(1, COLLISIONS_MAX + 1):
            try:
                return (await self._fold([read]))[0]
            except (Busy, Conflict):
                if tries == COLLISIONS_MAX:
                    raise
            await self._clock.sleep(pause * (0.5 + random.random()))  # noqa: S311 - spreads load, guards nothing
            pause *= 2
        raise AssertionError  # pragma: no cover - the last round has returned or raised

    async def _fold(self, batch: Sequence[_Read]) -> list[str]:
        """Fold events of one org in, in one transaction: all of them, or the first few where that takes long."""
        org = batch[0].loaded.org
        held = frozenset[bytes]().union(*(archive.locks_of(each.loaded, each.derived) for each in batch))
        while True:
            found: list[Outcome] = []
            try:
                async with self._database.write() as tx:
                    began, now = self._clock.monotonic(), self._clock.now()
                    await archive.hold(tx, org, held)
                    for each in batch:
                        if found:
                            if self._clock.monotonic() - began > (SHORT_S if self.coming else GROUP_S):
                                break
                            await self._clock.sleep(0)  # as above
                        found.append(
                            await archive.derive(
                                tx,
                                each.loaded,
                                each.derived,
                                quote=each.quote,
                                mint=self.mint,
                                now=now,
                                terms=self.terms,
                                held=held,
                            )
                        )
                    if points.armed:
                        points.reach("sessions.derived")
            except Widen as more:
                held |= more.keys
                continue
            if points.armed:
                points.reach("sessions.committed")
            return [_result(each, outcome) for each, outcome in zip(batch, found, strict=False)]

    def read(self, loaded: Loaded, overlays: Overlays = NONE) -> Derived:
        """Say what an event says by itself, put where the attributions say. It takes a while for large bodies."""
        return self._said(loaded.raw(), overlays)

    def _said(self, event: RawEvent, overlays: Overlays) -> Derived:
        event = attributed(event, overlays.active)
        return replace(derivation.derive(event, parsers=self._parsers, rules=self._config.rules), stamp=overlays.stamp)

    def mint(self) -> bytes:
        """Make an id that sorts by time."""
        return uuid7_bytes(self._clock.now())

    async def _failed(self, loaded: Loaded, error: Exception) -> str:
        derive = self._config.derive
        outcome = machine.after_failure(
            loaded.attempts,
            attempts_max=derive.attempts_max,
            backoff_us=derive.backoff_ms * 1000,
            now=self._clock.now(),
        )
        # Messages of others may quote what was captured; ours name keys only.
        shown = str(error) if isinstance(error, SessionError | StoreError) else type(error).__qualname__
        log.warning("event %s could not be derived: %s", loaded.event_id.hex(), shown)
        async with self._database.write() as tx:
            if loaded.state != "pending":  # its turn stays as it was; what is wrong is found as for any other event
                await archive.replay(tx, loaded.org, [loaded.event_id])
                return "retry"
            await archive.fail(tx, loaded.org, loaded.event_id, outcome=outcome, error=shown)
        return "dead" if isinstance(outcome, Dead) else "retry"


def terms_of(config: SessionsConfig) -> Terms:
    """Return what the derivation depends on besides its events."""
    window = config.window_us
    version = reading_version(parsers())
    return Terms(version=version, continuation=window is not None, continuation_us=window or 0)


def _lines(due: Iterable[Due]) -> Iterable[list[Due]]:
    """Put the events of one session in one line, in the order they came."""
    lines: dict[tuple[UUID, bytes], list[Due]] = {}
    for each in due:
        lines.setdefault((each.org, each.group_key), []).append(each)
    return lines.values()


def _bare(loaded: Loaded) -> Loaded:
    """Return an event without what takes room."""
    return replace(loaded, told=b"", request=None, response=None)


def _groups(due: Sequence[Due]) -> Iterable[list[Due]]:
    """Cut a list into those that share transactions: of one org, few, and light."""
    group: list[Due] = []
    size = 0
    for each in due:
        size += each.size
        if group and (len(group) == GROUP_MAX or size > GROUP_BYTES or each.org != group[0].org):
            yield group
            group, size = [], each.size
        group.append(each)
    if group:
        yield group


def _result(read: _Read, outcome: Outcome) -> str:
    """Return what became of an event, in a word; none where somebody else has derived it."""
    match outcome:
        case Folded():
            _count_turn(read.derived, read.quote)
            return "derived"
        case Unparsed():
            return "unparsed"
        case Lost():
            return ""
        case _:
            return "refused"


def _count_turn(derived: Derived, quote: Cost | None) -> None:
    evidence = derived.evidence
    if evidence is None:
        return
    METRICS.turns.add(1, provider_label(evidence.provider), evidence.says.status)
    if evidence.says.usage is None:
        METRICS.unmeasured.add(1)
    if derived.query is not None and (quote is None or quote.usd is None):
        METRICS.unpriced.add(1)
