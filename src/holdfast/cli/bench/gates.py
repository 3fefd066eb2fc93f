"""What the HTTP middleware promises about its cost, measured, and whether it is kept.

Everything runs in one process, without a socket, against applications that are called in the same way.

Invariants:
    - A figure is a ratio to something measured in the same minute, or a count; never an absolute time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from blake3 import blake3

from holdfast.cli.bench.apps import BODY, Caller, fastapi_app, guard_of, starlette_app
from holdfast.cli.bench.trials import Sizes, latencies, longest_stall, rate, rounds
from holdfast.core.clock import SystemClock
from holdfast.core.loops import spawn
from holdfast.idempotency import Completed, Idempotency, keys
from holdfast.idempotency.sealing import seal_outcome
from holdfast.store import open_database
from holdfast.store.database import Database, Statements

__all__ = ["Gate", "guarded", "measure", "raw_statements", "show"]

_STALL_SECONDS_MAX = 0.01
_LARGE = b"x" * 2 * 1024 * 1024
_FEW_CHUNKS, _MANY_CHUNKS = 8_192, 65_536


@dataclass(frozen=True, slots=True)
class Gate:
    """One promise.

    Attributes:
        what: What was measured.
        store: On which store; empty where it makes no difference.
        figure: What was found.
        limit: What was promised.
        at_least: Whether the figure may not be smaller, else not larger, than the limit.
    """

    what: str
    store: str
    figure: float
    limit: float
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


async def measure(sizes: Sizes, postgres: str | None) -> list[Gate]:
    """Measure every promise; on PostgreSQL where there is one."""
    gates: list[Gate] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        path = str(Path(folder) / "keys.db")
        gates += await sequential_on(":memory:", sizes)
        gates += await _replays("file", path, sizes)
        gates += await crowd_on(path, sizes)
        gates += await _stalls(sizes)
        gates += await _chunks()
        gates.append(await _growth("memory", ":memory:", ":memory:", sizes))
        gates.append(await _growth("file", f"{path}.few", f"{path}.many", sizes))
        gates.append(await _pruning("file", f"{path}.prune", sizes))
        if postgres is not None:
            gates += await _statements(postgres)
            gates.append(await _growth("postgres", postgres, postgres, sizes))
    return gates


@asynccontextmanager
async def guarded(target: Any, **rule: Any) -> AsyncIterator[Idempotency]:
    """A guard that has been started."""
    guard = guard_of(target, **rule)
    await guard.start()
    try:
        yield guard
    finally:
        await guard.stop()


async def sequential_on(target: str, sizes: Sizes) -> list[Gate]:
    """Measure what one request costs, alone, against the bare applications."""
    async with guarded(target) as guard, guarded(target) as other:
        plain, typed = Caller(starlette_app(), guard), Caller(fastapi_app(), other)
        bare, bare_typed = Caller(starlette_app()), Caller(fastapi_app())
        await plain.again()
        found = await rounds(
            {
                "bare": bare.keyless, "bare typed": bare_typed.keyless, "keyless": plain.keyless,
                "first": plain.first, "first typed": typed.first, "replay": plain.again,
            },
            sizes,
        )  # fmt: skip
    return [
        Gate("keyless request over the bare Starlette application", "", found["keyless"] / found["bare"], 1.1),
        Gate("first run over the bare Starlette application", "memory", found["first"] / found["bare"], 4.0),
        Gate("first run over the bare FastAPI application", "memory", found["first typed"] / found["bare typed"], 2.5),
        Gate("replay over first run", "memory", found["replay"] / found["first"], 0.6),
    ]


async def _replays(store: str, target: str, sizes: Sizes) -> list[Gate]:
    async with guarded(target) as guard:
        caller = Caller(starlette_app(), guard)
        await caller.again()
        found = await rounds({"first": caller.first, "replay": caller.again}, sizes)
    return [Gate("replay over first run", store, found["replay"] / found["first"], 0.6)]


async def crowd_on(target: str, sizes: Sizes) -> list[Gate]:
    """Measure first runs with 64 in flight against the bare statements."""
    async with guarded(target) as guard:
        caller, database = Caller(starlette_app(), guard), guard.database
        raw, ours, per_commit = [], [], []
        bare = raw_statements(database)
        for _ in range(3):
            raw.append(await rate(bare, sizes.crowd))
            before = database.writer.batches, database.writer.appends
            ours.append(await rate(caller.first, sizes.crowd))
            batches, appends = database.writer.batches - before[0], database.writer.appends - before[1]
            per_commit.append(appends / max(batches, 1))
    return [
        Gate("first runs over bare group commit, 64 in flight", "file", max(ours) / max(raw), 0.3, at_least=True),
        Gate("statements in a commit, 64 in flight", "file", max(per_commit), 16.0, at_least=True),
    ]


def raw_statements(database: Database) -> Callable[[], Awaitable[object]]:
    """The two statements of a first run, without request, guard or application."""
    numbers = itertools.count()
    tx, clock = Statements(database), database.clock
    outcome = Completed(201, [(b"content-type", b"application/json")], BODY[:60])

    async def once() -> None:
        number, now = next(numbers), clock.now()
        name = blake3(number.to_bytes(8, "big")).digest(16)  # as scattered as a real key's
        claim = keys.Claim(
            key_ids=(name,), scope_ids=(name,), record_id=name, fingerprint=name * 2, claim_id=name,
            owner="", method="POST", route="/pay",
        )  # fmt: skip
        decision: Any = await keys.claim(
            tx, claim, lease_until=now + 30_000_000, expires_at=now + 86_400_000_000, now=now,
            new=database.dialect == "sqlite",
        )  # fmt: skip
        sealed = seal_outcome(outcome, key_id=name, record_id=name)
        await keys.settle(tx, name, decision.fence, sealed, expires_at=now + 86_400_000_000, now=now)

    return once


async def _statements(url: str) -> list[Gate]:
    counted = _Counted(await open_database(url, clock=SystemClock()))
    try:
        async with guarded(counted) as guard:
            caller = Caller(starlette_app(), guard)
            await caller.again()
            counted.statements = 0
            await caller.first()
            first, counted.statements = counted.statements, 0
            await caller.again()
            replay = counted.statements
    finally:
        await counted.inner.close()
    return [
        Gate("statements of a first run", "postgres", first, 2),
        Gate("statements of a replay", "postgres", replay, 1),
    ]


class _Counted:
    """A database that counts the statements sent to it; a transaction counts as many more."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner
        self.statements = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "write"):
            self.statements += 3
        return getattr(self.inner, name)

    async def submit(self, statement: str, /, **params: object) -> Any:
        self.statements += 1
        return await self.inner.submit(statement, **params)


async def _stalls(sizes: Sizes) -> list[Gate]:
    async with guarded(":memory:", request_bytes_max=4 * len(_LARGE)) as guard:
        caller, numbers = Caller(starlette_app(), guard), itertools.count()

        async def take() -> None:
            await caller.call(key=f"large-body-number-{next(numbers)}", path="/take", body=_LARGE)

        await take()
        stalls = [await longest_stall(take) for _ in range(sizes.rounds)]
    return [
        Gate("loop held up by a 2 MiB body, seconds", "memory", sorted(stalls)[len(stalls) // 2], _STALL_SECONDS_MAX)
    ]


async def _chunks() -> list[Gate]:
    async with guarded(":memory:", stream_after=timedelta(minutes=1)) as guard:
        caller, numbers = Caller(starlette_app(), guard), itertools.count()

        def take(count: int) -> Callable[[], Awaitable[object]]:
            async def call() -> None:
                await caller.call(key=f"chunks-number-{next(numbers):06d}", path="/chunks", query=b"count=%d" % count)

            return call

        found = await rounds({"few": take(_FEW_CHUNKS), "many": take(_MANY_CHUNKS)}, Sizes(rounds=3, calls=1))
    return [Gate("a response of 65,536 chunks over one of 8,192", "memory", found["many"] / found["few"], 10.0)]


async def _growth(store: str, few: str, many: str, sizes: Sizes) -> Gate:
    """Compare a small ledger with a large one: in the same rounds, or one after the other where they are one."""
    async with guarded(few) as small, guarded(many) as large:
        before, after = Caller(starlette_app(), small), Caller(starlette_app(), large)
        before.prefix, after.prefix = "while-there-are-few", "while-there-are-many"
        await rate(before.first, sizes.few)
        found = await rounds({"few": before.first}, sizes) if few == many else {}
        await rate(after.first, sizes.many)
        contenders = {"few": before.first, "many": after.first}
        found = await rounds(contenders, sizes) | found
    return Gate(f"first run with {sizes.many:,} records over {sizes.few}", store, found["many"] / found["few"], 1.2)


async def _pruning(store: str, target: str, sizes: Sizes) -> Gate:
    async with guarded(target, ttl=timedelta(seconds=1.1), lease=timedelta(seconds=1)) as guard:
        caller = Caller(starlette_app(), guard)
        await rate(caller.first, sizes.many)
        caller.prefix = "claims-while-idle"
        await guard.database.clock.sleep(1.5)
        idle = await latencies(caller.first, sizes.crowd)
        caller.prefix = "claims-while-pruning"
        pruning = spawn(guard.sweep(), "holdfast bench sweep")
        busy = await latencies(caller.first, sizes.crowd)
        await pruning
    return Gate("p99 of a first run while a table is pruned, over idle", store, _p99(busy) / _p99(idle), 3.0)


def _p99(times: list[float]) -> float:
    return times[int(len(times) * 0.99)]


def show(gates: list[Gate], *, as_json: bool) -> None:
    """Print what was found."""
    from rich.console import Console
    from rich.table import Table

    from holdfast.cli.render import print_json

    if as_json:
        print_json([{**asdict(gate), "kept": gate.kept} for gate in gates])
        return
    table = Table(title="HTTP idempotency: what it costs")
    for column in ("what", "store", "figure", "promise", ""):
        table.add_column(column, justify="right" if column in ("figure", "promise") else "left")
    for gate in gates:
        sign = ">=" if gate.at_least else "<="
        kept = "kept" if gate.kept else "[bold red]NOT KEPT[/]"
        table.add_row(gate.what, gate.store, f"{gate.figure:.3g}", f"{sign} {gate.limit:g}", kept)
    Console().print(table)
