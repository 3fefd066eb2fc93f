"""Secrets are rotated in four steps while requests keep coming, by two processes that are always one step apart."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.flow.exchanges import Answer, ask
from tests.flow.guards import config

from holdfast.idempotency import Idempotency, IdempotencyMiddleware
from holdfast.idempotency.verify import verify
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

OLD, NEW = b"o" * 32, b"n" * 32
STEPS = ([OLD], [OLD, NEW], [NEW, OLD], [NEW])
KEYS_AT_ONCE = 6


class Process:
    """A process that is started again with other secrets."""

    def __init__(self, store: LocalStore, clock: ManualClock, load: Load) -> None:
        self.store = store
        self.clock = clock
        self.load = load
        self.app: Any = None
        self._open = AsyncExitStack()

    async def start(self, secrets: list[bytes]) -> None:
        """End what runs, and begin anew."""
        await self._open.aclose()
        database = await self._open.enter_async_context(self.store.opened(clock=self.clock))
        guard = Idempotency(database, config(secrets=secrets))
        await guard.start()
        self._open.push_async_callback(guard.stop, timedelta(0))
        self.app = IdempotencyMiddleware(self.load.handle, guard)

    async def stop(self) -> None:
        await self._open.aclose()


class Load:
    """Clients that ask every process for every key, old and new.

    Attributes:
        runs: Of each key.
        answers: What each key was first answered with.
        kept: Keys that are to be replayed.
    """

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.answers: dict[str, bytes] = {}
        self.kept: list[str] = []
        self.processes: list[Process] = []
        self._names = 0

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        key = (await receive())["body"].decode()
        self.runs[key] += 1
        await asyncio.to_thread(lambda: None)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"run %d" % sum(self.runs.values())})

    async def fresh(self) -> None:
        """Ask both processes at once for keys nobody has used."""
        names = [f"a-key-of-the-load-{self._names + number}" for number in range(KEYS_AT_ONCE)]
        self._names += KEYS_AT_ONCE
        await asyncio.gather(*(self._until_answered(process, key) for process in self.processes for key in names))
        self.kept += names

    async def replay(self) -> None:
        """Ask both processes for all that was answered before."""
        kept = list(self.kept)
        found = await asyncio.gather(
            *(self._until_answered(process, key) for process in self.processes for key in kept)
        )
        assert all(answer.replayed for answer in found)

    async def _until_answered(self, process: Process, key: str) -> Answer:
        async with asyncio.timeout(30):
            while True:
                answer = await ask(process.app, key, body=key.encode())
                assert answer.error is None, repr(answer.error)
                if answer.status == 201:
                    break
                assert answer.code in ("in_flight", "store_unavailable"), answer.code
                await asyncio.to_thread(lambda: None)
        assert self.answers.setdefault(key, answer.body) == answer.body
        return answer


async def test_secrets_are_rotated_under_load(ledger: str, tmp_path: Path) -> None:
    """HA-18."""
    clock, load = ManualClock(), Load()
    load.processes = [Process(LocalStore(ledger, tmp_path / "owners"), clock, load) for _ in range(2)]
    one, other = load.processes
    await asyncio.gather(one.start(STEPS[0]), other.start(STEPS[0]))
    await load.fresh()
    for step in (1, 2, 3):
        if step == 3:  # the keys that only the old secret names must have expired
            clock.advance(timedelta(hours=13))
            load.kept.clear()
            await load.fresh()
            clock.advance(timedelta(hours=12))
        for process in (one, other):
            await asyncio.gather(process.start(STEPS[step]), load.fresh(), load.replay())
            await asyncio.gather(load.fresh(), load.replay())
    assert set(load.runs.values()) == {1}
    assert len(load.runs) == KEYS_AT_ONCE * 14
    async with LocalStore(ledger, tmp_path / "owners").opened(clock=clock) as database:
        report = await verify(database)
        assert report.ok, report.problems
    await asyncio.gather(one.stop(), other.stop())
