"""Requests of mode A, each killed somewhere with SIGKILL, and each made again by a process that knows nothing of it.

`python -m tests.crash.units KIND TARGET FIRST COUNT` kills at random for some seeds; without the last two it kills at
every named point and every boundary to the database. Each round says in a line of JSON what was left after the kill.
A process that died is a child forked from this one, which itself opens nothing; the next child judges it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from tests.crash.torture import child, end
from tests.flow.units import HORIZON_SECONDS, HORIZON_TRIES, RULE, Counter, Shop, counter, opened

from holdfast.core import points
from holdfast.idempotency import current, outbox
from holdfast.idempotency.unit import UnitOfWork

OUTCOMES = ("stored", "refused", "released", "unkept")
STATUS = {"stored": 201, "refused": 422, "released": 503, "unkept": 201}
POINTS = (
    "unit.claimed", "handler.entered", "handler.returned", "keys.settled", "unit.settled", "unit.committed",
    "response.started", "response.sent",
)  # fmt: skip
PATIENCE_SECONDS = 60
RULED = replace(RULE, lock_timeout=timedelta(seconds=20))
"""A server may take a moment to notice that a killed process's transaction is over."""


@dataclass(frozen=True)
class Fate:
    """Where a process dies: at a named point, at its n-th boundary to the database, or some time after it began."""

    point: str = ""
    boundary: int = 0
    seconds: float = 0.0


class Fatal:
    """A unit whose process dies at a boundary: before or after any call that reaches the database."""

    def __init__(self, unit: Any, boundary: int) -> None:
        self.unit = unit
        self.library = unit.library
        self.left = boundary

    def reach(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def reached(*values: Any, **options: Any) -> Any:
            self.reach()
            found = await call(*values, **options)
            self.reach()
            return found

        return reached

    @asynccontextmanager
    async def begin(self, **options: Any) -> AsyncIterator[UnitOfWork]:
        self.reach()
        async with self.unit.begin(**options) as work:
            self.reach()
            for name in ("savepoint", "undo", "commit", "rollback"):
                setattr(work, name, self.around(getattr(work, name)))
            work.tx = _FatalTx(work.tx, self)
            yield work
        self.reach()


class _FatalTx:
    def __init__(self, tx: Any, fatal: Fatal) -> None:
        self._tx = tx
        self.one, self.all, self.run = (fatal.around(call) for call in (tx.one, tx.all, tx.run))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


async def order(shop: Shop, outcome: str, item: str, fatal: Fatal | None) -> int:
    """What the application does: a row and an event, with the same boundaries as any call."""
    if fatal is not None:
        fatal.reach()
    await shop.order(item)
    if fatal is not None:
        fatal.reach()
    idem = current()
    if outcome == "unkept" and idem is not None:
        idem.no_store()
    return STATUS[outcome]


@dataclass(frozen=True)
class Round:
    """One request, and where its process dies of it."""

    name: str
    outcome: str
    fate: Fate = Fate()


async def live(kind: str, target: str, judged: Round | None, lived: Round | None) -> None:
    """Judge what a dead process left of its request, then make one, and die of it."""
    async with opened(kind, target) as place:
        now: tuple[Round, Fatal | None]

        async def handler(shop: Shop) -> int:
            return await order(shop, now[0].outcome, now[0].name, now[1])

        shop = Shop(place, handler)
        async with counter(shop, place, rule=RULED) as desk:
            if judged is not None:
                now = judged, None
                await judge(desk, shop, judged)
            if lived is not None:
                fatal = Fatal(place.unit, lived.fate.boundary)
                now, desk.guard.unit = (lived, fatal), fatal
                if lived.fate.point:
                    points.arm(lived.fate.point)
                await desk.ask(lived.name)


async def judge(desk: Counter, shop: Shop, dead: Round) -> None:
    """Look at what a dead process left, make its request again, and look again."""
    name, outcome = dead.name, dead.outcome
    before = await left(desk, name)
    possible = {
        "stored": [(0, 0, 0), (1, 1, 1)],
        "refused": [(0, 0, 0), (0, 0, 1)],
        "released": [(0, 0, 0)],
        "unkept": [(0, 0, 0), (1, 1, 0)],
    }[outcome]
    assert before in possible, f"{dead}: {before} was left"
    answer = await desk.ask(name)
    assert answer.error is None, repr(answer.error)
    assert answer.status == STATUS[outcome], (answer.status, answer.body)
    assert (shop.runs, answer.replayed) == ((0, True) if before[2] else (1, False)), (dead, before, shop.runs)
    after = {
        "stored": (1, 1, 1),
        "refused": (0, 0, 1),
        "released": (0, 0, 0),
        "unkept": (before[0] + 1, before[1] + 1, 0),
    }[outcome]
    assert await left(desk, name) == after, f"{dead}: {await left(desk, name)} in the end"
    print(json.dumps([name, list(before)]), flush=True)  # noqa: T201 - its answer


async def left(desk: Counter, name: str) -> tuple[int, int, int]:
    """How many orders, events and records there are of a request."""
    placed, emitted = (await desk.world.orders()).count(name), await desk.world.events()
    topics: list[str] = []
    for _ in range(HORIZON_TRIES):
        topics = [event async for event in events(desk.guard.database)]
        if len(topics) >= emitted:
            break
        await asyncio.sleep(HORIZON_SECONDS)
    return placed, topics.count(name), int(await desk.record(name) is not None)


async def events(database: Any) -> AsyncIterator[str]:
    """The payloads of all events."""
    after = None
    while page := await outbox.read(database, after=after):
        for event in page:
            yield event.payload.decode()
        after = page[-1].cursor


class Killer:
    """Lets one process after the other die, each judged by the one after it."""

    def __init__(self, kind: str, target: str) -> None:
        self.kind = kind
        self.target = target
        self.dead: Round | None = None

    def kill(self, lived: Round) -> bool:
        """Let a process meet its fate; say whether it died."""
        if lived.fate.seconds:
            self.judge()
        return self._live(lived) != 0

    def judge(self) -> None:
        """Judge the last one."""
        if self.dead is not None:
            self._live(None)

    def _live(self, lived: Round | None) -> int:
        dead, self.dead = self.dead, lived
        pid = child(lambda: live(self.kind, self.target, dead, lived))
        seconds = lived.fate.seconds if lived is not None else 0.0
        code = end(pid, seconds or PATIENCE_SECONDS)
        if code not in (0, -signal.SIGKILL) or (lived is None and code):
            raise SystemExit(f"judging {dead}, living {lived}: the process ended with {code}")
        return code


def sweep(killer: Killer) -> None:
    """Kill at every named point and, where everything is kept, at every boundary; elsewhere at some."""
    for outcome in OUTCOMES:
        for point in POINTS:
            killer.kill(Round(f"{outcome}-at-{point}-of-it", outcome, Fate(point=point)))
        boundary, step = (1, 1) if outcome == "stored" else (OUTCOMES.index(outcome), 3)
        while killer.kill(Round(f"{outcome}-at-boundary-{boundary:04}", outcome, Fate(boundary=boundary))):
            boundary += step
        assert boundary > 10, f"only {boundary} boundaries were met"


def torture(killer: Killer, seed: int, life_seconds: float) -> None:
    """Kill one request as a seed says."""
    rng = random.Random(seed)  # noqa: S311 - a plan, no secret
    outcome = rng.choice(OUTCOMES)
    at_point, at_boundary = Fate(point=rng.choice(POINTS)), Fate(boundary=rng.randrange(1, 32))
    fate = rng.choice([at_point, at_boundary, Fate(seconds=rng.random() * life_seconds)])
    killer.kill(Round(f"{outcome}-of-seed-{seed:08}", outcome, fate))


def main(kind: str, target: str, first: str = "sweep", count: str = "0") -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    killer = Killer(kind, target)
    if first == "sweep":
        sweep(killer)
    else:
        began = time.perf_counter()
        killer.kill(Round(f"a-first-life-before-{first}", "stored"))
        life_seconds = time.perf_counter() - began
        for seed in range(int(first), int(first) + int(count)):
            torture(killer, seed, life_seconds)
    killer.judge()


if __name__ == "__main__":
    main(*sys.argv[1:])
