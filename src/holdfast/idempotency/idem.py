"""What a handler may say about its own request: `current()`, and the object it gives.

Invariants:
    - What is said durably (`mark_irreversible`, `set_result`) is in the ledger before the call returns, under the
      claim's fence; with a lost claim it raises `LeaseLost`, which no `except Exception` swallows.
    - What is said for later (`no_store`, `ttl`) only leaves a note for whoever settles the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from holdfast.core.errors import ConfigError, LeaseLost
from holdfast.idempotency import headers as fields
from holdfast.idempotency import outbox
from holdfast.idempotency.identity import execution_id
from holdfast.idempotency.values import Completed

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Held
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.unit import UnitOfWork
    from holdfast.idempotency.values import Mode
    from holdfast.store.database import Tx

__all__ = ["Idem", "current", "enter", "entered", "leave"]

_current: ContextVar[Idem | None] = ContextVar("holdfast.idempotency", default=None)


def current() -> Idem | None:
    """Return what speaks for the keyed request being handled here; None in any other place.

    It is there in plain functions that a framework runs in threads too.
    """
    return _current.get()


enter = _current.set
"""Makes an `Idem` `current()`; give what it returns to `leave`, in the same context."""
leave = _current.reset


class entered:
    """Make an `Idem` `current()` while the block runs."""

    __slots__ = ("_idem", "_token")

    def __init__(self, idem: Idem) -> None:
        self._idem = idem

    def __enter__(self) -> Idem:
        self._token = _current.set(self._idem)
        return self._idem

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)


class Idem:
    """A keyed request, as its handler sees it.

    Attributes:
        result: What `set_result` said.
        settled: Whether that is in the ledger already.
        discarded: Whether `no_store` was said.
        retention: What `ttl` said.
    """

    __slots__ = ("_guard", "_held", "_unit", "discarded", "result", "retention", "settled")

    def __init__(self, guard: Idempotency, held: Held, *, unit: UnitOfWork | None = None) -> None:
        self._guard = guard
        self._held = held
        self._unit = unit
        self.result: Completed | None = None
        self.settled = False
        self.discarded = False
        self.retention: timedelta | None = None

    @property
    def attempt(self) -> int:
        """1 for the first run; more: an earlier run ended without an outcome."""
        return self._held.attempt

    @property
    def fence(self) -> int:
        """Names this run's claim; it grows from claim to claim."""
        return self._held.fence

    @property
    def key_ref(self) -> str:
        """What the key is called in messages and commands: 12 hex digits."""
        return self._held.ticket.key_ref

    @property
    def mode(self) -> Mode:
        """Where claim and outcome are committed."""
        return self._held.ticket.rule.mode

    @property
    def lost(self) -> bool:
        """Whether the claim is lost: somebody else may run by now, and what is settled here may be refused."""
        return self._held.lost

    @property
    def irreversible(self) -> bool:
        """Whether `mark_irreversible` was called in this run."""
        return self._held.irreversible

    @property
    def handle(self) -> object:
        """Mode `transaction`: the unit's connection or session; None in the other modes."""
        return self._unit.handle if self._unit is not None else None

    @property
    def tx(self) -> Tx | None:
        """Mode `transaction`: the unit's transaction as Holdfast's records take it; None in the other modes."""
        return self._unit.tx if self._unit is not None else None

    @property
    def execution_id(self) -> str:
        """Mode `execution`: the id of the durable execution to start or attach to; equal over attempts and restarts."""
        return execution_id(self._held.record_id)

    async def wait_lost(self) -> None:
        """Return when the claim is lost; never, if it is not."""
        await self._held.wait_lost()

    def derived_key(self, step: str) -> str:
        """Return the idempotency key for a downstream call: 64 hex digits, equal over attempts.

        Args:
            step: Names the call within the handler.
        """
        return self._held.derived_key(step)

    def no_store(self) -> None:
        """Keep no record of the response: a retry runs. Without effect after `mark_irreversible`."""
        self.discarded = True

    def ttl(self, duration: timedelta, /) -> None:
        """Keep this outcome that long from its settlement, instead of the rule's time.

        Raises:
            ConfigError: It is not longer than nothing.
        """
        if duration <= timedelta(0):
            raise ConfigError("an outcome cannot be kept for no time", "call no_store() to keep none")
        self.retention = duration

    async def mark_irreversible(self) -> None:
        """Say that the effect that comes now cannot be taken back: without an outcome the key is unknown.

        Raises:
            LeaseLost: The claim is lost; the effect must not start.
            StoreUnavailable: It could not be written; the effect must not start.
            ConfigError: Mode `transaction`, where a mark would die with the transaction.
        """
        if self._unit is not None or self.mode == "transaction":
            raise _conflict("mark_irreversible() has no meaning in mode transaction", "the transaction is the guard")
        if not await self._guard.mark_irreversible(self._held):
            raise LeaseLost("the claim is lost; the effect must not start")

    async def set_result(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, tx: Tx | None = None
    ) -> None:
        """Say what the outcome is, whatever is sent afterwards.

        Args:
            status: 200 to 599.
            headers: In order, names and values as bytes.
            body: The whole body.
            tx: The caller's own transaction: the outcome stands when that commits. Without one it is durable on return.

        Raises:
            LeaseLost: The claim is lost, and nothing was written.
            StoreUnavailable: It could not be written.
            ConfigError: No such response can be stored.
        """
        response = Completed(status, list(headers), bytes(body))
        if not fields.storable(response.status, response.headers):
            raise ConfigError(
                f"a response of status {status} with such headers cannot be stored",
                "give a status from 200 to 599, and names and values as HTTP has them",
            )
        kept = Completed(status, fields.filter_headers(response.headers, self._held.ticket.rule), response.body)
        if self._unit is not None:
            self.result = kept  # the conductor of the unit settles it
            return
        if not await self._guard.set_result(self._held, kept, tx=tx, ttl=self.retention):
            raise LeaseLost("the claim is lost; the outcome was not written")
        self.result, self.settled = kept, tx is None

    async def emit(self, topic: str, payload: bytes) -> None:
        """Mode `transaction`: put an event into the outbox, in the transaction of the handler.

        Raises:
            ConfigError: Another mode: there would be no transaction that holds both.
        """
        if self._unit is None:
            raise _conflict("emit() needs mode transaction", "elsewhere nothing commits the event with the outcome")
        await outbox.emit(self._unit.tx, topic, payload, now=self._guard.clock.now())

    def apply(self, control: fields.Control) -> None:
        """Note what the response's control header says, except `irreversible`, which whoever reads it marks."""
        if control.no_store:
            self.discarded = True
        if control.ttl is not None:
            self.retention = control.ttl


def _conflict(message: str, hint: str) -> ConfigError:
    return ConfigError(message, hint, code="config.mode_conflict")
