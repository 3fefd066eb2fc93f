"""Lives of processes that answer keyed requests, and what must be true of a key wherever one of them died.

A life is a ledger, a guard and an application; when it dies, all that it holds in memory is gone and its lock is free,
as after SIGKILL. Whoever comes after opens everything anew. Before each request the record says what must come of it:
it runs, is answered from the record, or is refused. The world keeps what handlers did and what clients were told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tests.flow.exchanges import Answer, call
from tests.flow.guards import SECRET, Line, config
from tests.stage import Stage, turns

import holdfast
from holdfast.core import points
from holdfast.core.clock import to_datetime
from holdfast.idempotency import (
    Absent,
    Completed,
    Idempotency,
    IdempotencyMiddleware,
    Principal,
    Rerun,
    RouteRule,
    State,
    current,
    errors,
    keys,
)
from holdfast.idempotency.identity import key_id
from holdfast.idempotency.machine import DecideRerun
from holdfast.idempotency.values import KeyRecord
from holdfast.idempotency.verify import verify
from holdfast.testing import ManualClock

LIFE_SECONDS_MAX = 60
WHO = Principal("user-1")
HEAD = [(b"content-type", b"text/plain")]
DAY = timedelta(hours=25)
DIED = object()
"""What becomes of a process that is crashed."""


class Broken(Exception):
    """What a handler raises."""


@dataclass(frozen=True)
class Journey:
    """What is done with one key.

    Attributes:
        acts: What a life does, each a method of `Life`.
        rule: Fields of the rule.
        settings: Of the guard.
        handler: What the application does, a method of `Life`.
        before: The point at which an earlier life dies of its first request.
    """

    acts: tuple[str, ...]
    rule: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    handler: str = "create"
    before: str = ""

    @property
    def executes(self) -> bool:
        return self.rule.get("mode") == "execution"

    @property
    def reruns(self) -> bool:
        return self.executes or self.rule.get("on_lapse") == "rerun"


@dataclass(frozen=True)
class Run:
    """A run of a handler, with what it was told of itself."""

    attempt: int
    derived: str


class World:
    """What happened outside of any process.

    Attributes:
        now: The time at which the last life ended.
        runs: Of each key.
        steps: Of each execution's steps: what they did, with which downstream key.
        told: The bodies of whole successful responses that clients got.
        fences: Every fence that a key has had.
        licences: How many further runs of a key its handler has allowed.
        deaths: How many processes have died of a key.
    """

    def __init__(self) -> None:
        self.now: int | None = None
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.steps: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.told: dict[str, set[bytes]] = defaultdict(set)
        self.fences: dict[str, set[int]] = defaultdict(set)
        self.licences: dict[str, int] = defaultdict(int)
        self.deaths: dict[str, int] = defaultdict(int)

    def hear(self, id: str, answer: Answer) -> None:
        """Note what a client got, if it got all of it."""
        if answer.ended and answer.status == 201:
            self.told[id].add(answer.body)

    def forget(self, id: str) -> None:
        """Begin anew with a key whose record has expired."""
        for memory in (self.runs, self.told, self.licences, self.deaths):
            memory.pop(id, None)


_worlds: list[World] = []


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key()))
async def pay(number: int) -> int:
    step = holdfast.current_step()
    _worlds[0].steps[step.execution_id].append((number, step.idempotency_key.hex()))
    return number


@holdfast.durable(kind="crash.paying")
async def paying() -> int:
    return sum([await pay(number) for number in (1, 2, 3)])


class Life:
    """A process that answers requests.

    Attributes:
        inner: Its database as it is, for looks that are no part of the journey.
    """

    def __init__(self, world: World, journey: Journey, hf: holdfast.Holdfast, inner: Any, database: Any) -> None:
        self.world = world
        self.journey = journey
        self.hf = hf
        self.inner = inner
        self.clock: Any = inner.clock
        self.line = Line(database)
        line: Any = self.line
        self.guard = Idempotency(line, config(**journey.settings))
        fields = dict(journey.rule)
        if journey.executes:
            fields["attach"] = self.attach
        self.rule = RouteRule(**fields)
        self.app = IdempotencyMiddleware(self.handle, self.guard, rule=self.rule)

    # --- the application

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        id = message["body"].decode()
        self.enter(id)
        await getattr(self, self.journey.handler)(id, send)

    def enter(self, id: str) -> Run:
        idem = current()
        assert idem is not None
        self.world.fences[id].add(idem.fence)
        self.world.runs[id].append(Run(idem.attempt, idem.derived_key("charge")))
        return self.world.runs[id][-1]

    async def attach(self, execution_id: str) -> Any:
        """Say what became of an execution; one that has not ended is driven on by whoever asks again."""
        found = await self.hf.get(execution_id)
        if found is None or found.status != "completed":
            return Absent()
        return Completed(201, HEAD, b"paid %d" % await self.hf.run(paying, id=execution_id))

    async def create(self, id: str, send: Any) -> None:
        await self.reply(send, 201, b"%s in run %d" % (id.encode(), len(self.world.runs[id])))

    async def reply(self, send: Any, status: int, body: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": HEAD})
        await send({"type": "http.response.body", "body": body})

    def first(self, id: str) -> bool:
        return self.world.runs[id][-1].attempt == 1

    async def busy_at_first(self, id: str, send: Any) -> None:
        if self.first(id):
            self.world.licences[id] += 1
            return await self.reply(send, 429, b"later")
        return await self.create(id, send)

    async def broken_at_first(self, id: str, send: Any) -> None:
        if self.first(id):
            self.world.licences[id] += 1
            raise Broken(id)
        await self.create(id, send)

    async def unsure_at_first(self, id: str, send: Any) -> None:
        if self.first(id):
            return await self.reply(send, 503, b"it may have been done")
        return await self.create(id, send)

    async def marked(self, id: str, send: Any) -> None:
        idem = current()
        assert idem is not None
        await idem.mark_irreversible()
        await self.create(id, send)

    async def declared(self, id: str, send: Any) -> None:
        """Set the result in a transaction of its own, and answer with something else."""
        idem = current()
        assert idem is not None
        async with self.guard.database.write() as tx:
            await idem.set_result(201, HEAD, b"declared", tx=tx)
        await self.reply(send, 201, b"declared")

    async def unkept(self, id: str, send: Any) -> None:
        idem = current()
        assert idem is not None
        idem.no_store()
        self.world.licences[id] += 1
        await self.create(id, send)

    async def long(self, id: str, send: Any) -> None:
        """Take longer than a lease."""
        async with asyncio.timeout(LIFE_SECONDS_MAX):
            for _ in range(3):  # renewals
                before = (await self.need(id)).lease_until
                while (await self.need(id)).lease_until == before:
                    if not self.line.busy:  # what the ledger does takes real time
                        self.clock.advance(timedelta(seconds=1))
                    await turns()
                    await asyncio.to_thread(lambda: None)
        await self.create(id, send)

    async def execute(self, id: str, send: Any) -> None:
        idem = current()
        assert idem is not None
        await self.reply(send, 201, b"paid %d" % await self.hf.run(paying, id=idem.execution_id))

    # --- what it knows

    async def record(self, id: str) -> KeyRecord | None:
        secret = self.journey.settings.get("secrets", [SECRET])[0]
        async with self.inner.read() as tx:
            found = await keys.get(tx, key_id(secret, WHO, id))
        if found is not None:
            self.world.fences[id].add(found.fence)
        return found

    async def need(self, id: str) -> KeyRecord:
        found = await self.record(id)
        assert found is not None
        return found

    async def due(self, id: str) -> tuple[str, int]:
        """What must come of the next request, and of which attempt: nobody who is alive holds the key."""
        record = await self.record(id)
        if record is None or (record.expires_at is not None and record.expires_at <= self.clock.now()):
            return "runs", 1
        match record.state:
            case State.RELEASED:
                return "runs", record.attempt + 1
            case State.COMPLETED:
                return "replay", record.attempt
            case State.TOMBSTONE:
                return "executed", record.attempt
            case State.RESERVED if self.journey.executes:
                ended = await self.attach(str(record.execution_id))
                return ("runs", record.attempt + 1) if ended == Absent() else ("replay", record.attempt)
            case State.RESERVED if record.on_lapse == "rerun" and not record.irreversible:
                return "runs", record.attempt + 1
        return "unknown", record.attempt

    # --- acts

    async def ask(self, id: str) -> str:
        """Make the request, and see that what comes of it is what must; return which that was."""
        kind, attempt = await self.due(id)
        runs, licences = list(self.world.runs[id]), self.world.licences[id]
        if self.journey.acts[0] == "once":
            found = await self._once(id)
        else:
            found = await self._ask(id)
        assert found[0] == kind, (found, kind, await self.record(id))
        ran = self.world.runs[id][len(runs) :]
        assert [run.attempt for run in ran] == ([attempt] if kind == "runs" else [])
        await self.record(id)
        if kind == "runs" and self.world.licences[id] == licences and found[1] == 201:
            assert (await self.need(id)).state in (State.COMPLETED, State.TOMBSTONE)
        return kind

    once = ask

    async def _ask(self, id: str) -> tuple[str, int]:
        asking = call(self.app, id, body=id.encode())
        heard: list[bool] = []  # whether all of it was out when the process died: what a dead one says reaches nobody

        def note() -> None:
            heard.append(asking.answer.ended)

        points.on_crash(note)
        try:
            answer = await asking.run()
        finally:
            if heard[0] if heard else not self.hf.crashed:
                self.world.hear(id, asking.answer)
        if answer.error is not None:
            assert isinstance(answer.error, Broken), repr(answer.error)
            return "runs", 500
        codes = {"outcome_unknown": "unknown", "executed": "executed", None: "replay" if answer.replayed else "runs"}
        return codes[answer.code], answer.status

    async def _once(self, id: str) -> tuple[str, int]:
        async def op(idem: Any) -> bytes:
            self.enter(id)
            return b"%s in run %d" % (id.encode(), len(self.world.runs[id]))

        try:
            once = await self.guard.once(id, id.encode(), op, principal=WHO, name="orders", rule=self.rule)
        except errors.OutcomeUnknown:
            return "unknown", 409
        self.world.told[id].add(once.value)
        return ("replay" if once.replayed else "runs"), 201

    async def sweep(self, id: str) -> None:
        record = await self.record(id)
        swept = await self.guard.sweep()
        due = record is not None and record.state is State.RESERVED and not self.journey.reruns
        assert swept.marked_unknown == int(due)
        if due and self.guard.config.reconcile is not None:
            assert (await self.need(id)).state is State.RELEASED

    async def decide(self, id: str) -> None:
        """Let an operator say that it did not happen."""
        record = await self.record(id)
        if record is not None and record.state is State.UNKNOWN:
            async with self.guard.database.write() as tx:
                done = await keys.force(
                    tx, record.key_id, DecideRerun(), actor="ann", reason="no charge was made", now=self.clock.now()
                )
            assert done

    async def outlive(self, id: str) -> None:
        """Wait until the record has expired."""
        self.world.forget(id)
        await self.clock.advance(DAY)

    # --- after a death

    async def finish(self, id: str) -> None:
        """Go on with a key that somebody has died of, until it has its outcome, and see that all is well."""
        report = await verify(self.inner)
        assert report.ok, report.problems
        left = await self.record(id)
        for _ in range(4):
            kind = await self.ask(id)
            if kind == "unknown":
                await self.decide(id)
            elif kind in ("replay", "executed"):
                break
        else:
            assert self.journey.handler == "unkept", kind
        await self._refuses_the_stale(id)
        runs = self.world.runs[id]
        assert len(self.world.told[id]) <= 1 or self.journey.handler == "unkept", self.world.told[id]
        assert len({run.derived for run in runs}) <= 1
        allowed = 1 + self.world.licences[id] + await self._forced(id)
        if self.journey.reruns:
            allowed += self.world.deaths[id]
        assert len(runs) <= allowed, (runs, left)
        if self.journey.executes:
            self._paid_once(str((await self.need(id)).execution_id))
        report = await verify(self.inner)
        assert report.ok, report.problems

    async def _forced(self, id: str) -> int:
        """How often somebody decided that a key may run again."""
        record = await self.record(id)
        if record is None:
            return 0
        async with self.inner.read() as tx:
            return len(await keys.trail(tx, record.record_id))

    def _paid_once(self, execution_id: str) -> None:
        paid = self.world.steps[execution_id]
        assert [number for number, _ in dict.fromkeys(paid)] == [1, 2, 3], "a step has one key for all its attempts"
        assert len(paid) <= 3 + 1, "only the step that the process died of was taken again"

    async def _refuses_the_stale(self, id: str) -> None:
        """Write under every fence that the key ever had: nothing changes."""
        record = await self.record(id)
        if record is None:
            return
        now, key, other = self.clock.now(), record.key_id, Completed(200, [], b"too late")
        later = now + 1_000_000
        for fence in self.world.fences[id]:
            current = fence == record.fence
            async with self.inner.write() as tx:
                settled = await keys.settle(tx, key, fence, other, expires_at=later, now=now)
                assert settled is (current and record.state in (State.COMPLETED, State.TOMBSTONE)), record
                if not current:
                    assert not await keys.release(tx, key, fence, expires_at=later, now=now)
                    assert not await keys.mark_unknown(tx, key, fence, "raised", now=now)
                    assert not await keys.mark_irreversible(tx, key, fence, now=now)
                    assert not await keys.renew(tx, [(key, fence)], lease_until=later, now=now)
        assert await self.record(id) == record


@contextlib.asynccontextmanager
async def opened(stage: Stage, world: World) -> AsyncIterator[holdfast.Holdfast]:
    """Open the ledger as a process that has just started."""
    clock = ManualClock(None if world.now is None else to_datetime(world.now))
    _worlds[:] = [world]
    asyncio.get_running_loop().set_exception_handler(_mourn)
    async with stage.open(clock=clock) as hf:
        try:
            yield hf
        finally:
            world.now = clock.now()


def _mourn(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), points.Crashed):  # nobody asks a dead process how its tasks have ended
        loop.default_exception_handler(context)


async def until_death(hf: holdfast.Holdfast, work: Callable[[], Any]) -> Any:
    """Do something, unless the process dies of it: then what it was doing just stops."""
    died, loop = asyncio.Event(), asyncio.get_running_loop()

    def note() -> None:
        if not loop.is_closed():  # somebody else's death, long after
            loop.call_soon_threadsafe(died.set)

    points.on_crash(note)
    doing, dying = asyncio.ensure_future(work()), asyncio.ensure_future(died.wait())
    await asyncio.wait((doing, dying), return_when=asyncio.FIRST_COMPLETED, timeout=LIFE_SECONDS_MAX)
    dying.cancel()
    if died.is_set() or hf.crashed:
        doing.cancel()
        doing.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.sleep(0)
        return DIED
    assert doing.done(), "it takes too long"
    return doing.result()


async def reconciled(record: KeyRecord) -> Rerun:
    """Say that it did not happen."""
    return Rerun()
