"""A durable program and the guarded service it calls, both killed at random until the program is through.

`python -m tests.crash.pairs KIND SERVICE CALLER FOLDER FIRST COUNT` does so for some seeds and says `seed deaths` for
each. Both are forks of this process, which opens nothing itself and keeps the service's socket: a call that comes while
nobody serves waits. The service is of mode `transaction`; each step of the program calls it under the step's own key.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from tests.crash.services import serve
from tests.crash.torture import PATIENCE_SECONDS, child, end
from tests.flow.exchanges import config
from tests.flow.units import World, opened
from tests.stage import Stage

import holdfast
from holdfast.idempotency import Idempotency, IdempotencyMiddleware, RouteRule, current
from holdfast.idempotency.client import AsyncIdempotentTransport, RetryPolicy
from holdfast.idempotency.verify import verify
from holdfast.testing import crash_points

STEPS = 3
DEATHS_MAX = 8
"""So often a seed may kill; then it lets both end."""
SERVICE_POINTS = (
    "unit.claimed", "handler.entered", "handler.returned", "keys.settled", "unit.settled", "unit.committed",
    "response.started", "response.sent",
)  # fmt: skip
CALLER_POINTS = tuple(
    f"{family}.{event}"
    for family, events in {
        "intent": ("queued", "committed", "acked"),
        "effect": ("returned",),
        "outcome": ("encoded", "queued", "committed", "acked"),
        "finish": ("queued", "committed"),
    }.items()
    for event in events
)
RULE = RouteRule(mode="transaction", lock_timeout=timedelta(seconds=20))
PATIENT = RetryPolicy(
    attempts_max=1000, deadline=timedelta(seconds=PATIENCE_SECONDS), backoff=timedelta(milliseconds=10),
    backoff_max=timedelta(milliseconds=100), budget=1000.0,
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Where both work.

    Attributes:
        kind: The service's driver.
        service: Its database, which is its guard's ledger.
        caller: The program's ledger.
    """

    kind: str
    service: str
    caller: Stage
    listening: socket.socket

    async def serve(self) -> None:
        """Charge, in the unit's transaction, and say what was charged."""
        async with opened(self.kind, self.service) as world:
            guard = Idempotency(self.service, config(rule=RULE), unit=world.unit)
            await guard.start()
            await serve(IdempotencyMiddleware(charging(world), guard), self.listening)

    async def call(self, id: str) -> None:
        """Drive the program to its end."""
        async with self.caller.open(poll_ms=50) as hf, _clients(self.listening):
            await hf.run(charge_all, id, id=id)

    async def judge(self, id: str) -> None:
        """See that each step took effect once, and that its result is what the service did."""
        async with self.caller.open() as hf:
            told = await hf.run(charge_all, id, id=id)
            report = await hf.verify()
            assert report.ok, report.problems
        async with opened(self.kind, self.service) as world:
            charged = [item for item in await world.orders() if item.startswith(f"{id}/")]
            assert charged == [f"{id}/{number}" for number in range(STEPS)], charged
            assert told == charged
            guard = Idempotency(self.service, config(rule=RULE), unit=world.unit)
            async with guard:
                found = await verify(guard.database)
                assert found.ok, found.problems


def charging(world: World) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        idem = current()
        assert idem is not None
        await world.insert(idem.handle, body.decode())
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    return app


_client: list[tuple[httpx.AsyncClient, str]] = []


class _clients:
    """The program's client while the block runs."""

    def __init__(self, listening: socket.socket) -> None:
        self._url = f"http://127.0.0.1:{listening.getsockname()[1]}/charges"

    async def __aenter__(self) -> None:
        transport = AsyncIdempotentTransport(policy=PATIENT, key_source=key_of_the_step)
        self._client = httpx.AsyncClient(transport=transport, timeout=PATIENCE_SECONDS)
        _client[:] = [(self._client, self._url)]

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()


def key_of_the_step(request: httpx.Request) -> str:
    return holdfast.current_step().idempotency_key.hex()


@holdfast.step(
    effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key()),
    # The transport tries again until an answer begins; one that breaks off in its body is the step's to ask for again.
    retry=holdfast.Retry(max_attempts=20, initial=timedelta(milliseconds=10)),
)
async def charge(item: str) -> str:
    client, url = _client[0]
    response = await client.post(url, content=item.encode())
    assert response.status_code == 201, response.text
    return response.text


@holdfast.durable(kind="crash.pairs.charging")
async def charge_all(id: str) -> list[str]:
    return [await charge(f"{id}/{number}") for number in range(STEPS)]


class Keeper:
    """Starts both, kills both, and starts them again."""

    def __init__(self, pair: Pair, rng: random.Random, life_seconds: float) -> None:
        self.pair = pair
        self.rng = rng
        self.life_seconds = life_seconds
        self.deaths: Counter[str] = Counter()
        self._living: dict[int, str] = {}
        self._due: dict[int, float] = {}

    def drive(self, id: str) -> None:
        """Kill until the program is through."""
        works: dict[str, Callable[[], Any]] = {"service": self.pair.serve, "caller": lambda: self.pair.call(id)}
        try:
            for who, work in works.items():
                self._start(who, work)
            while True:
                pid, code = self._ended()
                who = self._living.pop(pid)
                self._due.pop(pid, None)
                if who == "caller" and code == 0:
                    return
                if code != -signal.SIGKILL:
                    raise SystemExit(f"{id}: the {who} ended with {code} after {self.deaths}")
                self.deaths[who] += 1
                self._start(who, works[who])
        finally:
            for pid in self._living:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _start(self, who: str, work: Callable[[], Any]) -> None:
        """Start one with a fate: a named point, a moment, or none."""
        point, hit, seconds = "", 1, 0.0
        if self.deaths.total() < DEATHS_MAX:
            match self.rng.choice(("point", "moment", "none") if self.deaths[who] else ("point", "moment")):
                case "point":
                    point = self.rng.choice(SERVICE_POINTS if who == "service" else CALLER_POINTS)
                    hit = self.rng.choice((1, 1, 2, 3))
                case "moment":
                    seconds = self.rng.random() * self.life_seconds
        pid = child(work, point=point, hit=hit)
        self._living[pid] = who
        if seconds:
            self._due[pid] = time.monotonic() + seconds

    def _ended(self) -> tuple[int, int]:
        """Wait until one has ended, and kill whose time has come."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                return pid, os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if now > until:
                raise SystemExit("nobody ends")
            for late in [pid for pid, due in self._due.items() if due <= now]:
                del self._due[late]
                os.kill(late, signal.SIGKILL)
            signal.sigtimedwait([signal.SIGCHLD], max(0.0, min([until, *self._due.values()]) - now))


def torture(pair: Pair, seed: int, life_seconds: float) -> int:
    """Kill as the seed says; return how many deaths that were."""
    keeper = Keeper(pair, random.Random(seed), life_seconds)  # noqa: S311 - a plan, no secret
    id = f"seed-{seed}"
    keeper.drive(id)
    while signal.sigtimedwait([signal.SIGCHLD], 0) is not None:
        pass
    code = end(child(lambda: pair.judge(id)), PATIENCE_SECONDS)
    if code != 0:
        raise SystemExit(f"seed {seed}: the judge ended with {code} after {keeper.deaths}")
    return keeper.deaths.total()


def main(kind: str, service: str, caller: str, folder: str, first: str, count: str) -> None:
    """Torture some seeds, once it is known how long a life takes."""
    assert {*SERVICE_POINTS, *CALLER_POINTS} <= set(crash_points())
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    pair = Pair(kind, service, Stage(caller, Path(folder)), socket.create_server(("127.0.0.1", 0)))
    life_seconds = 0.0
    for name in ("first", "second"):
        calm = Keeper(pair, random.Random(0), 0.0)  # noqa: S311 - nothing is random here
        calm.deaths["nobody"] = DEATHS_MAX
        began = time.monotonic()
        calm.drive(name)
        life_seconds = time.monotonic() - began
    for seed in range(int(first), int(first) + int(count)):
        print(json.dumps([seed, torture(pair, seed, life_seconds)]), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
