"""Record what a program saw of time and chance, and which version of itself it is.

Invariants:
    - What the program saw it sees again on every resume; random values in every generation too.
    - `now` never decreases within an execution.
"""

from __future__ import annotations

import random as _random
from collections.abc import Coroutine
from datetime import datetime
from types import CodeType
from typing import TypeVar
from uuid import UUID

from holdfast.core.clock import SystemClock, to_datetime
from holdfast.core.codec import decode, encode
from holdfast.execution import journal, keys
from holdfast.execution.context import current_scope
from holdfast.execution.doubt import settle_abandoned
from holdfast.execution.effects import check_name
from holdfast.execution.errors import ExecutionFinished
from holdfast.execution.machine import OUTCOME, PATCH, Record, describe
from holdfast.execution.scope import TRUE, Scope

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

_FRAMED = {kind: keys.what(kind, "", "") for kind in ("now", "random", "uuid", "first")}
_SHAPES = {kind: keys.shape(framed, b"") for kind, framed in _FRAMED.items()}

# --- values that are recorded ---------------------------------------------------------------------


class Asked:
    """One durable call that is not a step, from its call expression on."""

    __slots__ = ("framed", "index", "kind", "name", "occurrence", "scope", "shape")

    def __init__(self, scope: Scope, kind: str, name: str = "") -> None:
        self.scope = scope
        self.kind = kind
        self.name = name
        self.framed = _FRAMED[kind] if not name else keys.what(kind, name, "")
        self.shape = _SHAPES[kind] if not name else keys.shape(self.framed, b"")
        self.index, self.occurrence = scope.take(kind, name, self.shape)

    def key(self) -> bytes:
        return keys.key(self.scope.key_prefix, self.framed, b"", self.occurrence)

    async def look(self) -> list[Record]:
        """Return the records at the position, checked for shape."""
        run, scope = self.scope.run, self.scope
        run.check()
        if run.abandoned:
            await settle_abandoned(run)
        found = scope.entries.pop(self.index, None)
        if found is None and not scope.exhausted:
            found = await scope.find(self.index)
        records: list[Record] = [] if found is None else found if type(found) is list else [found]
        for record in records:
            if record.shape != self.shape or record.kind != self.kind:
                asked = describe(self.kind, self.name, None, self.shape)
                run.diverge(keys.position(scope.path, self.index), record, asked)
        if not records and run.replay_only:
            raise ExecutionFinished(
                f"execution {run.id!r} has completed: position {keys.position(scope.path, self.index)} is not recorded",
                "start another execution under another id",
                status="completed",
            )
        return records

    def ride(self, part: int, *, key: bytes | None = None, payload: bytes | None = None, at: int | None = None,
             carried_from: int | None = None) -> None:  # fmt: skip
        """Let a row of the position travel with the next append."""
        run = self.scope.run
        outcome = "value" if part == OUTCOME else None
        statement, row = journal.entry(
            run.guard, run.generation, run.clock.now() if at is None else at, self.scope.path, self.index, part, 0,
            self.kind, self.name, self.shape, key=key, outcome=outcome, payload=payload, carried_from=carried_from,
        )  # fmt: skip
        run.ride(statement, row, 256)


async def _now(asked: Asked) -> datetime:
    run = asked.scope.run
    records = await asked.look()
    if records:
        value = int(decode(records[-1].payload or b""))
    else:
        key = asked.key()
        known = run.past.earlier.get(key) if run.past is not None else None
        carried_from = None
        if known is not None and known.outcome is not None:
            async with run.database.read() as tx:
                row = await tx.one("journal.row", seq=known.outcome.seq)
            assert row is not None
            value, carried_from = int(decode(row.payload)), row.seq
        else:
            value = max(run.last_now, run.clock.now())
        asked.ride(OUTCOME, key=key, payload=encode(value), at=value, carried_from=carried_from)
        await run.flush_riders()
    run.last_now = max(run.last_now, value)
    return to_datetime(value)


async def _drawn(asked: Asked) -> bytes:
    key = asked.key()
    if not await asked.look():
        asked.ride(OUTCOME, key=key)
        await asked.scope.run.flush_riders()
    return key


async def _random_float(asked: Asked) -> float:
    return keys.random_float(asked.scope.run.seed, await _drawn(asked))


async def _random_uuid(asked: Asked) -> UUID:
    return keys.random_uuid(asked.scope.run.seed, await _drawn(asked))


async def _patched(scope: Scope, name: str, counter: int) -> bool:
    run = scope.run
    run.check()
    if not scope.exhausted and scope.next_idx == journal.IDX_MIN:
        await scope.find(journal.IDX_MIN)
    if scope.patches is None:
        scope.patches = {}
    if name in scope.patches:
        return scope.patches[name]
    answer = await scope.ahead_of(counter) is None
    scope.patches[name] = answer
    if not run.replay_only:
        scope.patched_count += 1
        statement, row = journal.entry(
            run.guard, run.generation, run.clock.now(), scope.path, -scope.patched_count, PATCH, 0,
            "patch", name, keys.shape(keys.what("patch", name, ""), b""),
            outcome="value", payload=TRUE if answer else encode(False),  # noqa: FBT003 - the value itself
        )  # fmt: skip
        run.ride(statement, row, 256)
        await run.flush_riders()
    return answer


def _recorded(what: str, kind: str, scope: Scope | None) -> Asked | None:
    scope = scope or current_scope(what)
    return None if scope is None else Asked(scope, kind)


async def _ready(value: T) -> T:
    return value


def now() -> Coroutine[object, object, datetime]:
    """Return the current time, recorded: aware UTC, and never decreasing within an execution."""
    asked = _recorded("now()", "now", None)
    return _now(asked) if asked is not None else _ready(to_datetime(SystemClock().now()))


def random() -> Coroutine[object, object, float]:
    """Return a float in [0, 1) with 53 bits, the same on every resume and in every generation."""
    asked = _recorded("random()", "random", None)
    return _random_float(asked) if asked is not None else _ready(_random.random())  # noqa: S311 - no secret


def uuid() -> Coroutine[object, object, UUID]:
    """Return a version 4 UUID, the same on every resume and in every generation."""
    asked = _recorded("uuid()", "uuid", None)
    if asked is not None:
        return _random_uuid(asked)
    return _ready(UUID(int=_random.getrandbits(128), version=4))


def patched(name: str) -> Coroutine[object, object, bool]:
    """Say whether this execution runs the program with the change called `name`.

    True for an execution that comes here for the first time, False for one whose journal was made
    before the change. The answer is recorded and does not change within a generation.
    """
    check_name(name, "patch")
    scope = current_scope("patched()")
    if scope is None:
        return _ready(True)  # noqa: FBT003 - the answer itself
    scope.own("patched", name)
    return _patched(scope, name, scope.counter)


def value_codes() -> tuple[CodeType, ...]:
    """The coroutines that calls of this module are, to be told from others."""
    return tuple(fn.__code__ for fn in (_now, _random_float, _random_uuid, _patched, _ready))
