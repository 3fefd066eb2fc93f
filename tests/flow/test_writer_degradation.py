"""The journal under pressure: full, slow, failing, dead, closing; and how much of it replay keeps in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import change, counter, held, is_postgres, look, until
from tests.stage import Stage

import holdfast
from holdfast.testing import ManualClock, WriterFaults


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Stop(BaseException):
    """Leaves a program whose execution is to be taken up later."""


class Works:
    """Steps of each class, which count what they do."""

    def __init__(self, stage: Stage) -> None:
        outside = stage.outside
        self.during: Callable[[], object] = lambda: None

        @holdfast.step(effect=holdfast.idempotent())
        async def read(what: str) -> str:
            outside.happen("read", what)
            return what

        @holdfast.step(effect=holdfast.at_least_once())
        async def send(what: str) -> str:
            outside.happen("send", what)
            return what

        @holdfast.step(effect=holdfast.exactly_once("cost_bearing"))
        async def ask(what: str) -> str:
            outside.happen("ask", what)
            return what

        @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
        async def pay(what: str) -> str:
            outside.happen("pay", what)
            self.during()
            return what

        self.read, self.send, self.ask, self.pay = read, send, ask, pay


@pytest.fixture
def works(stage: Stage) -> Works:
    return Works(stage)


async def pass_time(clock: ManualClock, task: asyncio.Task[Any], step: timedelta, most: int = 50) -> timedelta:
    """Move the clock until a task is done, at most so often; return how far."""
    for number in range(most):
        if task.done():
            return step * number
        await clock.advance(step)
        await until(task.done, 0.03, anyway=True)
    assert task.done(), "it did not end in time"
    return step * most


# --- a stalled writer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["money", "destructive", "security", "custom"])
async def test_a_guarded_effect_is_refused_when_the_writer_stalls(stage: Stage, works: Works, kind: str) -> None:
    """DA-41: after `ack_timeout_ms` and at most a tenth more."""
    clock = ManualClock()
    stalled = True

    @holdfast.step(effect=holdfast.exactly_once(kind, on_ambiguous=holdfast.fail()))
    async def act() -> str:
        stage.outside.happen("act")
        return "done"

    @holdfast.durable(kind="stalling")
    async def program() -> str:
        await works.read("a")
        if stalled:
            faults.stall()
        return await act()

    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:
        faults = WriterFaults(hf)
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: faults._faults.stalled and hf.database.writer.pending_items)
        await clock.advance(timedelta(milliseconds=990))
        await until(task.done, 0.1, anyway=True)
        assert not task.done()
        await pass_time(clock, task, timedelta(milliseconds=22), 6)
        with pytest.raises(holdfast.JournalUnavailable) as raised:
            await task
        assert raised.value.retry_after > 0
        assert raised.value.code == "durable.journal_unavailable"
        assert stage.outside.count("act") == 0
        faults.resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        stalled = False
        assert await hf.run(program, id="e") == "done"
        found = await hf.get("e")
        assert found is not None
        assert not found.degraded
        assert (await hf.verify("e")).ok
    assert stage.outside.lines() == ["read a", "act"]


async def test_nothing_goes_on_after_a_refusal_even_if_the_program_swallows_it(stage: Stage, works: Works) -> None:
    """DX-11."""
    clock = ManualClock()
    stalled = True

    @holdfast.durable(kind="stalling.stubborn")
    async def program() -> str:
        await works.read("a")
        if stalled:
            faults.stall()
        for what in ("b", "c"):
            try:
                await works.pay(what)
            except holdfast.JournalUnavailable:
                continue
        try:
            await works.read("d")
        except holdfast.JournalUnavailable:
            return "swallowed"
        return "done"

    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:
        faults = WriterFaults(hf)
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: faults._faults.stalled)
        await pass_time(clock, task, timedelta(milliseconds=100))
        with pytest.raises(holdfast.JournalUnavailable):
            await task
        faults.resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        stalled = False
        assert await hf.run(program, id="e") == "done"
    assert stage.outside.lines() == ["read a", "pay b", "pay c", "read d"]


async def test_an_intent_that_lands_after_its_refusal_is_an_ambiguity(stage: Stage, works: Works) -> None:
    """DX-47: the commit was under way when the caller gave up."""

    @holdfast.durable(kind="late.intent")
    async def program() -> str:
        await works.read("a")
        begun.set()
        await go.wait()
        return await works.pay("rent")

    async with stage.open(ack_timeout_ms=300) as hf:
        begun, go = asyncio.Event(), asyncio.Event()
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await begun.wait()
        async with held(stage.target):
            go.set()
            with pytest.raises(holdfast.JournalUnavailable):
                await task
        await hf.database.writer.drained()
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e")
        await hf.decide("e", "1", holdfast.not_happened(), by="ann")
        assert await hf.run(program, id="e") == "rent"
        assert (await hf.verify("e")).ok
    assert stage.outside.count("pay") == 1


async def test_the_outcome_of_a_guarded_effect_is_kept_until_the_writer_is_back(stage: Stage, works: Works) -> None:
    """DX-48: the step raises, and its outcome lands later all the same."""
    clock = ManualClock()

    @holdfast.durable(kind="late.outcome")
    async def program() -> str:
        return await works.pay("rent")

    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:
        faults = WriterFaults(hf)
        works.during = faults.stall
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: faults._faults.stalled)
        await pass_time(clock, task, timedelta(milliseconds=100))
        with pytest.raises(holdfast.JournalUnavailable):
            await task
        faults.resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        works.during = lambda: None
        assert await hf.run(program, id="e") == "rent"
    assert stage.outside.count("pay") == 1


async def test_a_crash_before_a_kept_outcome_lands_leaves_the_ambiguity(stage: Stage, works: Works) -> None:
    """DX-48."""
    clock = ManualClock()

    @holdfast.durable(kind="late.outcome.lost")
    async def program() -> str:
        return await works.pay("rent")

    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:
        works.during = WriterFaults(hf).stall
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: hf.database.writer.faults.stalled)
        await pass_time(clock, task, timedelta(milliseconds=100))
        with pytest.raises(holdfast.JournalUnavailable):
            await task
        hf._crash()
        hf.database.abandon()
    works.during = lambda: None
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e")
    assert stage.outside.count("pay") == 1


# --- an outage ------------------------------------------------------------------------------------------


async def test_steps_go_on_without_the_journal_where_their_class_allows_it(
    stage: Stage, works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    """DA-43."""
    clock = ManualClock()
    outage = True
    reached: list[str] = []

    @holdfast.durable(kind="outage")
    async def program() -> list[str]:
        values = [await works.send("before")]
        if outage:
            faults.stall()
        values.append(await works.read("a"))
        reached.append("read")
        values.append(await works.send("b"))
        values.append(await works.ask("c"))
        reached.append("ask")
        values.append(await works.pay("d"))
        return values

    before = counter("degraded_steps_total")
    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:
        faults = WriterFaults(hf)
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: faults._faults.stalled)
        passed = await pass_time(clock, task, timedelta(milliseconds=50))
        with pytest.raises(holdfast.JournalUnavailable):
            await task
        # Only the first call waits its timeout out; the others know.
        assert passed <= timedelta(milliseconds=1150)
        assert reached == ["read", "ask"]
        assert stage.outside.lines() == ["send before", "read a", "send b", "ask c"]
        assert counter("degraded_steps_total") >= before + 3
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert sum("without its journal" in warning for warning in warnings) >= 3
        outage = False
        faults.resume()
        await hf.database.writer.drained()
        entries = await hf.history("e")
        assert [entry.position for entry in entries if entry.part == "outcome"] == ["0", "1", "2", "3"]
        assert await hf.run(program, id="e") == ["before", "a", "b", "c", "d"]
        found = await hf.get("e")
        assert found is not None
        assert found.degraded
        assert "degraded" in [record.event for record in await hf.audit("e")]
        assert (await hf.verify("e")).ok
    assert stage.outside.lines() == ["send before", "read a", "send b", "ask c", "pay d"]
    async with stage.open() as hf:
        found = await hf.get("e")
        assert found is not None
        assert found.degraded


async def test_kept_outcomes_have_a_limit(stage: Stage, works: Works) -> None:
    """DX-48: once they exceed `queue_bytes_max`, everything is refused."""
    clock = ManualClock()
    outage = True
    count = 0

    @holdfast.durable(kind="outage.long")
    async def program() -> int:
        nonlocal count
        await works.read("a")
        if outage:
            faults.stall()
        for number in range(100):
            await works.read(f"{number} " + "x" * 1000)
            count += 1
        return count

    async with stage.open(clock=clock, ack_timeout_ms=1000, queue_bytes_max=20_000) as hf:
        faults = WriterFaults(hf)
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: faults._faults.stalled)
        await pass_time(clock, task, timedelta(milliseconds=500), 8)
        with pytest.raises(holdfast.JournalUnavailable):
            await task
        assert 5 <= count <= 20
        assert hf.database.writer.pending_bytes <= 20_000
        outage = False
        faults.resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        count = 0
        assert await hf.run(program, id="e") == 100
        positions = [int(entry.position) for entry in await hf.history("e")]
        assert positions == list(range(101)), "in order and without a hole"


@pytest.mark.parametrize("fault", ["fail_next", "die", "lost acknowledgement"])
async def test_a_failing_writer_is_restarted_and_nothing_is_lost(stage: Stage, works: Works, fault: str) -> None:
    """DX-49."""
    restarts = counter("writer_restarts_total")

    @holdfast.durable(kind="restarting")
    async def program() -> list[str]:
        values = [await works.pay("a")]
        faults = WriterFaults(hf)
        if fault == "fail_next":
            faults.fail_next(2)
        elif fault == "die":
            faults.die()
        else:
            faults._faults.die(after_commit=True)
        values += await holdfast.gather(works.send("b"), works.pay("c"), works.read("d"))
        return values

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == ["a", "b", "c", "d"]
        found = await hf.get("e")
        assert found is not None
        assert (found.degraded, found.entries_count) == (False, 6)
        assert (await hf.verify("e")).ok
    assert counter("writer_restarts_total") > restarts
    assert sorted(stage.outside.lines()) == ["pay a", "pay c", "read d", "send b"]


# --- room -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(hf: holdfast.Holdfast) -> AsyncIterator[list[tuple[int, int]]]:
    """Look at the writer's queue in every turn of the loop."""
    seen: list[tuple[int, int]] = []
    writer, over = hf.database.writer, False

    def note() -> None:
        seen.append((writer.pending_items, writer.pending_bytes))
        if not over:
            asyncio.get_running_loop().call_soon(note)

    note()
    try:
        yield seen
    finally:
        over = True


@pytest.mark.parametrize("limits", [{"queue_bytes_max": 20_000}, {"queue_items_max": 7}], ids=["bytes", "items"])
@pytest.mark.parametrize("ack", ["each", "pipelined"])
async def test_a_full_queue_makes_callers_wait_and_loses_nothing(
    stage: Stage, works: Works, limits: dict[str, int], ack: str
) -> None:
    """DA-42."""

    @holdfast.durable(kind="crowding")
    async def program() -> int:
        return len(await holdfast.gather(*(works.send(f"{number} " + "x" * 2000) for number in range(60))))

    async with stage.open(ack=ack, **limits) as hf:
        async with watched(hf) as seen:
            assert await hf.run(program, id="e") == 60
        assert len(await hf.history("e")) == 60
    assert max(items for items, _ in seen) <= limits.get("queue_items_max", 4096)
    assert max(size for _, size in seen) <= limits.get("queue_bytes_max", 1 << 26)
    assert len(stage.outside.lines()) == 60


async def test_callers_wait_in_line_while_nothing_commits(stage: Stage, works: Works) -> None:
    """DA-42: with a stalled writer the queue fills to its limit and not beyond."""
    stalled = False

    @holdfast.durable(kind="crowding.stalled")
    async def program() -> int:
        nonlocal stalled
        await works.read("a")
        faults.stall()
        stalled = True
        return len(await holdfast.gather(*(works.send(f"{number} " + "x" * 2000) for number in range(40))))

    async with stage.open(queue_bytes_max=20_000) as hf:
        faults = WriterFaults(hf)
        async with watched(hf) as seen:
            task = asyncio.ensure_future(hf.run(program, id="e"))
            await until(lambda: len(stage.outside.lines()) == 41)
            assert hf.database.writer.pending_bytes > 15_000
            faults.resume()
            assert await task == 40
        assert len(await hf.history("e")) == 41
    assert max(size for _, size in seen) <= 20_000


async def test_one_value_larger_than_the_queue_still_passes(stage: Stage, works: Works) -> None:
    @holdfast.durable(kind="crowding.large")
    async def program() -> int:
        values = await holdfast.gather(works.send("x" * 50_000), works.send("y" * 50_000), works.send("z"))
        return sum(len(value) for value in values)

    async with stage.open(queue_bytes_max=20_000, batch_bytes_max=10_000) as hf:
        assert await asyncio.wait_for(hf.run(program, id="e"), 10) == 100_001


# --- poison ---------------------------------------------------------------------------------------------

BAD = {
    "sqlite": [
        "CREATE TRIGGER poison BEFORE INSERT ON durable_journal WHEN NEW.name = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'poison'); END"
    ],
    "postgres": [
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.name = 'bad' THEN RAISE check_violation USING MESSAGE = 'poison'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER poison BEFORE INSERT ON durable_journal FOR EACH ROW EXECUTE FUNCTION poison()",
    ],
}


@pytest.mark.parametrize("spread", ["one execution", "many executions"])
async def test_one_bad_item_fails_alone(stage: Stage, works: Works, spread: str) -> None:
    """DA-44: the database refuses one row of a hundred."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def bad(what: str) -> str:
        stage.outside.happen("bad")
        return what

    @holdfast.durable(kind="poison.many")
    async def single(number: int) -> str:
        return await (bad if number == 50 else works.send)(str(number))

    @holdfast.durable(kind="poison.one")
    async def together() -> list[str]:
        done = await holdfast.gather(
            *((bad if number == 50 else works.send)(str(number)) for number in range(100)), return_exceptions=True
        )
        return [type(each).__name__ if isinstance(each, BaseException) else "ok" for each in done]

    async with stage.open() as hf:
        await hf.run(single, 0, id="first")
        await change(stage.target, *BAD["postgres" if is_postgres(stage.target) else "sqlite"])
        if spread == "one execution":
            kinds = await hf.run(together, id="e")
            assert sum(kind == "ok" for kind in kinds) == 99
            assert kinds[50] != "ok"
        else:
            ends = await asyncio.gather(
                *(hf.run(single, number, id=f"e{number}") for number in range(100)), return_exceptions=True
            )
            assert [number for number, end in enumerate(ends) if end != str(number)] == [50]
            assert isinstance(ends[50], holdfast.HoldfastError)
        ((stored,),) = await look(stage.target, "SELECT count(*) FROM durable_journal WHERE name = 'send'")
        assert stored == 100
    assert stage.outside.count("send") == 100


# --- closing --------------------------------------------------------------------------------------------


async def test_close_makes_everything_accepted_durable(stage: Stage) -> None:
    """DA-45."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def note(number: int) -> int:
        return number

    @holdfast.durable(kind="closing")
    async def program() -> None:
        await note(0)
        faults.stall()
        for number in range(1, 1001):
            await note(number)
        done.set()
        await asyncio.Event().wait()

    hf = await stage.open(ack="pipelined", drain_ms=100).open()
    done = asyncio.Event()
    faults = WriterFaults(hf)
    handle = await hf.start(program, id="e")
    await asyncio.wait_for(done.wait(), 20)
    assert hf.database.writer.pending_items >= 1000
    faults.resume()
    await hf.close()
    ((stored,),) = await look(stage.target, "SELECT count(*) FROM durable_journal")
    assert stored == 1001
    assert handle.id == "e"
    async with stage.open() as hf:
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.owner, found.positions_count) == ("pending", None, 1001)


async def test_close_is_idempotent_and_refuses_what_comes_after(stage: Stage, works: Works) -> None:
    """DX-62."""

    @holdfast.durable(kind="closed")
    async def program() -> str:
        return await works.send("a")

    hf = await stage.open().open()
    await hf.run(program, id="e")
    await hf.close()
    await hf.close()
    for call in (lambda: hf.run(program, id="e"), lambda: hf.get("e"), lambda: hf.start(program), hf.list, hf.recover):
        with pytest.raises(holdfast.Closed) as raised:
            await call()
        assert raised.value.code == "store.closed"
    await hf.open()
    assert await hf.run(program, id="e") == "a"
    await hf.close()


async def test_close_while_the_journal_is_gone_ends_all_the_same(stage: Stage, works: Works) -> None:
    """A process that ends must end; what could not be committed is said to be lost."""

    @holdfast.durable(kind="closing.stalled")
    async def program() -> str:
        await works.send("a")
        faults.stall()
        return await works.send("b")

    hf = await stage.open(ack_timeout_ms=200, drain_ms=100).open()
    faults = WriterFaults(hf)
    task = asyncio.ensure_future(hf.run(program, id="e"))
    await until(lambda: stage.outside.count("send") == 2)
    with pytest.raises(holdfast.StoreError):
        await asyncio.wait_for(hf.close(), 10)
    (end,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(end, BaseException)
    assert await stage.run(program_again(works), id="e") == "b"
    assert stage.outside.lines() == ["send a", "send b", "send b"]


def program_again(works: Works) -> Any:
    """The program of the test above in a process whose journal works."""

    @holdfast.durable(kind="closing.stalled.again")
    async def again() -> str:
        await works.send("a")
        return await works.send("b")

    again.kind = "closing.stalled"
    return again


# --- how many commits -----------------------------------------------------------------------------------


async def test_commits_are_shared_and_as_few_as_promised(stage: Stage, works: Works) -> None:
    """DA-46, relaxed: counted instead of timed."""

    @holdfast.durable(kind="counting")
    async def program(number: int, *, guarded: bool) -> None:
        for each in range(5):
            await (works.pay if guarded else works.send)(f"{number} {each}")

    async with stage.open() as hf:
        writer = hf.database.writer
        await hf.run(program, 0, guarded=False, id="warm")
        before = writer.batches
        await hf.run(program, 1, guarded=False, id="one")
        assert writer.batches - before <= 7, "one commit a step, one to create, one to end"
        before = writer.batches
        await hf.run(program, 2, guarded=True, id="two")
        assert writer.batches - before <= 12, "two commits a guarded step, one to create, one to end"
        before = writer.batches
        await asyncio.gather(*(hf.run(program, number, guarded=False, id=f"e{number}") for number in range(32)))
        assert writer.batches - before <= 32 * 7 / 4, "executions side by side share commits"


# --- replay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [256, 1, 7])
async def test_replay_gives_every_value_and_keeps_two_segments_at_most(stage: Stage, rows: int) -> None:
    """DA-47, `segment_rows`."""
    amount = 5000 if rows == 256 else 50
    most = 0

    @holdfast.step(effect=holdfast.at_least_once())
    async def square(number: int) -> int:
        if replaying:
            stage.outside.happen("ran")
        return number * number

    @holdfast.durable(kind="replaying")
    async def program() -> int:
        nonlocal most
        context = holdfast.current()
        assert context is not None
        for number in range(amount):
            assert await square(number) == number * number
            if replaying:
                most = max(most, len(context.root.entries))
        if not replaying:
            raise Stop
        return context.segments_read

    replaying = False
    async with stage.open(ack="pipelined") as hf:
        with pytest.raises(Stop):
            await hf.run(program, id="e")
    replaying = True
    async with stage.open(segment_rows=rows) as hf:
        segments = await hf.run(program, id="e")
        found = await hf.get("e")
    assert found is not None
    assert (found.generation, found.entries_count) == (1, amount)
    assert most <= 2 * rows
    # The last index of a full segment is read again with the next, since it may be cut.
    assert segments <= amount / max(rows - 1, 1) + 2
    assert stage.outside.lines() == []


async def test_calls_and_branches_at_once_read_each_segment_once(stage: Stage) -> None:
    """DA-47."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def square(number: int) -> int:
        return number * number

    async def part(first: int) -> int:
        return sum([await square(first + each) for each in range(100)])

    @holdfast.durable(kind="replaying.wide")
    async def program() -> tuple[int, int]:
        context = holdfast.current()
        assert context is not None
        flat = await holdfast.gather(*(square(number) for number in range(200)))
        deep = await holdfast.gather(*(part(1000 * number) for number in range(8)))
        read = context.segments_read
        if not replaying:
            raise Stop
        return sum(flat) + sum(deep), read

    replaying = False
    expected = sum(n * n for n in range(200)) + sum((1000 * b + n) ** 2 for b in range(8) for n in range(100))
    async with stage.open(ack="pipelined") as hf:
        with pytest.raises(Stop):
            await hf.run(program, id="e")
    replaying = True
    async with stage.open(segment_rows=50) as hf:
        total, read = await hf.run(program, id="e")
    assert total == expected
    flat_segments, deep_segments = 200 / 49 + 2, 100 / 49 + 2
    assert read <= flat_segments + 8 * deep_segments
