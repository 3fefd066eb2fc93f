"""Stopping executions: canceled, paused and resumed, out of time, cut off by the end of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.agents import Agent, agent, paying
from tests.flow.tamper import change, look, until
from tests.stage import Outside, Stage

import holdfast
from holdfast.testing import ManualClock


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


def folder(stage: Stage) -> str:
    return str(stage.folder)


async def status(hf: holdfast.Holdfast, id: str = "e") -> str:
    found = await hf.get(id)
    assert found is not None
    return found.status if found.waiting_on is None else f"{found.status} {found.waiting_on}"


async def events(hf: holdfast.Holdfast, id: str = "e") -> list[str]:
    return [record.event for record in await hf.audit(id)]


@holdfast.step(effect=holdfast.at_least_once())
async def trace(folder: str, *words: object) -> str:
    """Leave a trace outside."""
    line = " ".join(map(str, words))
    Outside(Path(folder) / "outside").happen(line)
    return line


class Turn:
    """A program that waits, outside any step, until it is told to go on."""

    def __init__(self, stage: Stage, kind: str) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()
        self.end: BaseException | None = None

        @holdfast.durable(kind=kind)
        async def turn() -> str:
            await trace(folder(stage), "first")
            self.reached.set()
            try:
                await self.go.wait()
                await trace(folder(stage), "second")
            except BaseException as end:
                self.end = end
                raise
            return "done"

        self.fn = turn


# --- cancel ---------------------------------------------------------------------------------------------


async def test_what_cancel_answers(stage: Stage) -> None:
    """DA-69."""
    async with stage.open(poll_ms=20) as hf:
        assert await hf.cancel("nobody") == holdfast.NotFound()
        with Agent("run", stage, "agent", "owned", 2, 0, poll_ms=20) as other:
            assert [await other.hear(), await other.hear()] == ["open", "after 0"]
            assert await hf.cancel("owned", reason="enough") == holdfast.Requested()
            assert await hf.cancel("owned") == holdfast.Requested()
            found = await hf.get("owned")
            assert found is not None
            assert (found.status, found.request) == ("running", "cancel")
            other.say()
            assert other.finish() == ["ExecutionCanceled durable.execution_canceled"]
        assert await status(hf, "owned") == "canceled"
        assert await hf.cancel("owned") == holdfast.AlreadyTerminal("canceled")
        with pytest.raises(holdfast.ExecutionCanceled) as raised:
            await hf.run(agent, folder(stage), 2, 0, id="owned")
        assert raised.value.reason == "enough"
        assert (await events(hf, "owned")).count("cancel") == 1
        assert (await hf.verify()).ok
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="left")
    async with stage.open() as hf:
        assert await hf.cancel("left") == holdfast.Canceled()
        assert await hf.cancel("left") == holdfast.AlreadyTerminal("canceled")
        assert (await events(hf, "left")).count("cancel") == 1
        assert (await hf.verify()).ok
    assert stage.outside.count("work 0") == 2


async def test_a_canceled_execution_stays_canceled(stage: Stage) -> None:
    """DA-68."""
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="e")
    async with stage.open() as hf:
        await hf.cancel("e", reason="no")
        calls: list[Callable[[], Any]] = [
            lambda: hf.run(agent, folder(stage), 2, 9, id="e"),
            lambda: hf.run(agent, folder(stage), 2, 9, id="e", reopen=True),
            lambda: hf.run(agent, folder(stage), 2, 9, id="e", on_busy="raise"),
            lambda: started(hf, agent, folder(stage), 2, 9),
            hf.handle("e").result,
            lambda: opened(hf),
        ]
        for call in calls:
            with pytest.raises(holdfast.ExecutionCanceled) as raised:
                await call()
            assert raised.value.reason == "no"
        with pytest.raises(holdfast.ExecutionFinished) as finished:
            await hf.resume("e")
        assert finished.value.status == "canceled"
        report = await hf.recover()
        assert (report.resumed, report.live_count) == ((), 0)
        assert await hf.pause("e") == holdfast.AlreadyTerminal("canceled")
        assert await status(hf) == "canceled"
    assert stage.outside.lines() == ["work 0"]


async def started(hf: holdfast.Holdfast, fn: Any, *args: Any) -> None:
    await (await hf.start(fn, *args, id="e")).result()


async def opened(hf: holdfast.Holdfast) -> None:
    async with hf.execution("e", kind="agent"):
        raise AssertionError("it opened")


async def test_cancel_is_seen_at_the_next_durable_call(stage: Stage) -> None:
    """DX-59, DX-11: whatever the program makes of it."""
    seen: list[type[BaseException]] = []

    @holdfast.durable(kind="canceled.stubborn")
    async def program() -> str:
        await trace(folder(stage), "a")
        reached.set()
        await go.wait()
        for _ in range(3):
            try:
                await trace(folder(stage), "b")
            except Exception as error:  # noqa: BLE001 - the stubborn program of the test
                seen.append(type(error))
        return "finished anyway"

    async with stage.open() as hf:
        reached, go = asyncio.Event(), asyncio.Event()
        handle = await hf.start(program, id="e")
        await reached.wait()
        assert await handle.cancel(reason="now") == holdfast.Requested()
        go.set()
        with pytest.raises(holdfast.ExecutionCanceled, match="now"):
            await handle.result()
        assert await status(hf) == "canceled"
        assert [entry.position for entry in await hf.history("e")] == ["0"]
    assert set(seen) == {holdfast.ExecutionCanceled}
    assert stage.outside.lines() == ["a"]


async def test_cancel_ends_a_wait_at_once(stage: Stage) -> None:
    """DX-59: seen in every wait."""

    hourly = holdfast.Retry(max_attempts=9, initial=timedelta(hours=1), maximum=timedelta(hours=1))

    @holdfast.step(effect=holdfast.at_least_once(), retry=hourly)
    async def failing() -> None:
        stage.outside.happen("try")
        raise ValueError

    @holdfast.durable(kind="canceled.waiting")
    async def program() -> None:
        await failing()

    clock = ManualClock()
    async with stage.open(clock=clock) as hf:
        handle = await hf.start(program, id="e")
        await until(lambda: hf.flights["e"].run is not None and hf.flights["e"].run.waiting)
        await hf.database.writer.drained()
        assert await status(hf) == "waiting retry"
        await hf.cancel("e")
        with pytest.raises(holdfast.ExecutionCanceled):
            await asyncio.wait_for(handle.result(), 5)
        assert await status(hf) == "canceled"
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["try"]


async def test_cancel_from_another_process_reaches_a_wait(stage: Stage) -> None:
    """DX-59: by way of the ledger, at each look."""
    async with stage.open() as hf:
        with Agent("run", stage, "agent.dawdling", "e", poll_ms=20) as other:
            assert [await other.hear(), await other.hear()] == ["open", "in the effect"]
            assert await hf.cancel("e") == holdfast.Requested()
            # Its effect is of a class that may be cancelled, and it never gets its line.
            assert await other.hear() == "ExecutionCanceled durable.execution_canceled"
        assert await status(hf) == "canceled"
    assert stage.outside.lines() == ["dawdle"]


@pytest.mark.parametrize("guarded", [True, False])
async def test_a_guarded_effect_runs_to_its_end_and_others_are_cancelled(stage: Stage, guarded: bool) -> None:
    """§6: cancel while it runs."""
    effect = holdfast.exactly_once("money", on_ambiguous=holdfast.fail()) if guarded else holdfast.idempotent()

    @holdfast.step(effect=effect)
    async def act() -> str:
        running.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            stage.outside.happen("cancelled")
            raise
        stage.outside.happen("ended")
        return "done"

    @holdfast.durable(kind="canceled.running")
    async def program() -> str:
        await act()
        return await trace(folder(stage), "after")

    async with stage.open() as hf:
        running, release = asyncio.Event(), asyncio.Event()
        handle = await hf.start(program, id="e")
        await running.wait()
        await hf.cancel("e")
        if guarded:
            await until(lambda: False, 0.05, anyway=True)
            assert stage.outside.lines() == []
            release.set()
        with pytest.raises(holdfast.ExecutionCanceled):
            await asyncio.wait_for(handle.result(), 5)
        assert await status(hf) == "canceled"
        parts = [(entry.part, entry.outcome) for entry in await hf.history("e")]
        assert parts == ([("opened", None), ("outcome", "value")] if guarded else [])
    assert stage.outside.lines() == (["ended"] if guarded else ["cancelled"])


async def test_after_its_grace_a_stopped_owner_is_not_waited_for(stage: Stage) -> None:
    """DX-59, `cancel_grace_ms`."""
    clock = ManualClock()
    with Agent("run", stage, "agent.paying", "e", poll_ms=20) as other:
        assert [await other.hear(), await other.hear()] == ["open", "in the payment"]
        other.freeze()
        async with stage.open(clock=clock, cancel_grace_ms=5000) as hf:
            assert await hf.cancel("e") == holdfast.Requested()
            clock.advance(timedelta(milliseconds=4900))
            assert await hf.cancel("e") == holdfast.Requested()
            clock.advance(timedelta(milliseconds=200))
            assert await hf.cancel("e") == holdfast.Canceled()
            assert await status(hf) == "canceled"
        other.thaw()
        other.say()
        assert other.finish() == ["ExecutionCanceled durable.execution_canceled"]
    async with stage.open() as hf:
        assert [entry.part for entry in await hf.history("e")] == ["opened"]
        assert "late_result" in await events(hf)
        assert (await hf.verify()).ok


async def test_an_owner_that_lets_the_grace_pass_cancels_its_own_effect(stage: Stage) -> None:
    """DX-59, §6: a guarded effect runs to its end within `cancel_grace_ms`, not for ever."""
    clock = ManualClock()

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def stuck() -> None:
        running.set()
        await asyncio.Event().wait()

    @holdfast.durable(kind="canceled.stuck")
    async def program() -> None:
        await stuck()

    async with stage.open(clock=clock, cancel_grace_ms=5000, poll_ms=500, drain_ms=500) as hf:
        running = asyncio.Event()
        handle = await hf.start(program, id="e")
        await running.wait()
        await hf.cancel("e")
        task = asyncio.ensure_future(handle.result())
        for _ in range(8):
            await clock.advance(timedelta(milliseconds=500))
            await until(task.done, 0.03, anyway=True)
        assert not task.done()
        for _ in range(10):
            await clock.advance(timedelta(milliseconds=500))
            await until(task.done, 0.1, anyway=True)
        with pytest.raises(holdfast.ExecutionCanceled):
            await asyncio.wait_for(task, 5)
        assert await status(hf) == "canceled"


async def test_cancel_by_force_does_not_ask(stage: Stage) -> None:
    """DX-59."""
    async with stage.open() as hf:
        with Agent("run", stage, "agent", "e", 3, 0, poll_ms=20) as other:
            assert [await other.hear(), await other.hear()] == ["open", "after 0"]
            assert await hf.cancel("e", force=True, reason="at once") == holdfast.Canceled()
            assert await status(hf) == "canceled"
            other.say()
            assert other.finish() == ["ExecutionCanceled durable.execution_canceled"]
        found = await hf.get("e")
        assert found is not None
        assert (found.owner, found.reason) == (None, "at once")
        assert (await hf.verify()).ok
    assert stage.outside.lines()[0] == "work 0"


async def test_cancel_closes_open_decisions(stage: Stage) -> None:
    """DX-59."""
    await stage.die("effect.returned", paying, folder(stage), id="e")
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(paying, folder(stage), id="e")
        assert await hf.cancel("e") == holdfast.Canceled()
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.open_decisions) == ("canceled", ())
        with pytest.raises(holdfast.NoDecisionOpen):
            await hf.decide("e", "0", holdfast.happened("x"), by="ann")
        assert (await hf.verify()).ok


async def test_a_block_sees_its_cancellation(stage: Stage) -> None:
    """DX-59, DX-6."""
    async with stage.open() as hf:

        async def block() -> None:
            async with hf.execution("e", kind="k"):
                await trace(folder(stage), "a")
                assert await hf.cancel("e") == holdfast.Requested()
                await trace(folder(stage), "b")

        with pytest.raises(holdfast.ExecutionCanceled):
            await block()
        assert await status(hf) == "canceled"
    assert stage.outside.lines() == ["a"]


@pytest.mark.parametrize("word", ["cancel", "pause"])
async def test_a_request_made_while_the_owner_leaves_is_not_lost(stage: Stage, word: str) -> None:
    """DX-59, DX-60: `Requested` is a promise."""
    turn = Turn(stage, "canceled.leaving")
    hf = await stage.open(poll_ms=60_000).open()
    await hf.start(turn.fn, id="e")
    await turn.reached.wait()
    at = holdfast.SystemClock().now()
    # As another process writes it; this one has not seen it when it closes.
    await change(stage.target, f"UPDATE durable_executions SET request = '{word}:now', request_at = {at}")  # noqa: S608 - ours
    await hf.close()
    async with stage.open(poll_ms=20) as hf:
        if word == "cancel":
            with pytest.raises(holdfast.ExecutionCanceled):
                await asyncio.wait_for(hf.run(turn.fn, id="e"), 5)
            assert await status(hf) == "canceled"
        else:
            assert (await hf.recover()).resumed == ()
            assert await status(hf) == "waiting paused"
    assert stage.outside.lines() == ["first"]


async def test_cancelling_the_task_of_run_gives_the_execution_back(stage: Stage) -> None:
    """§3: its task is cancelled from outside; DX-4: the last caller decides."""
    turn = Turn(stage, "canceled.task")
    async with stage.open() as hf:
        one = asyncio.ensure_future(hf.run(turn.fn, id="e"))
        two = asyncio.ensure_future(hf.run(turn.fn, id="e"))
        await turn.reached.wait()
        one.cancel()
        await asyncio.wait([one])
        assert one.cancelled()
        assert turn.end is None
        two.cancel()
        await asyncio.wait([two])
        assert isinstance(turn.end, asyncio.CancelledError)
        assert await status(hf) == "pending"
        turn.go.set()
        assert await hf.run(turn.fn, id="e") == "done"
    assert stage.outside.lines() == ["first", "second"]


# --- pause ----------------------------------------------------------------------------------------------


async def test_a_paused_execution_is_claimed_by_nobody_until_it_is_resumed(stage: Stage) -> None:
    """DA-72: pause after step 3 of 5, a restart, then steps 4 and 5."""

    with Agent("run", stage, "agent", "e", 5, 2, poll_ms=20) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 2"]
        async with stage.open() as hf:
            assert await hf.pause("e") == holdfast.Requested()
            assert await hf.pause("e") == holdfast.Requested()
            other.say()
            for _ in range(500):
                if await status(hf) == "waiting paused":
                    break
                await until(lambda: False, 0.01, anyway=True)
            found = await hf.get("e")
            assert found is not None
            assert (found.status, found.waiting_on, found.owner, found.request) == ("waiting", "paused", None, None)
        other.kill()
    async with stage.open(poll_ms=20) as hf:
        assert (await hf.recover()).resumed == ()
        with pytest.raises(holdfast.ExecutionBusy) as raised:
            await hf.run(agent, folder(stage), 5, 2, id="e", on_busy="raise")
        assert (raised.value.host, raised.value.pid) == ("", 0)
        with pytest.raises(holdfast.ExecutionBusy):
            await opened(hf)
        task = asyncio.ensure_future(hf.run(agent, folder(stage), 5, 2, id="e"))
        await until(task.done, 0.1, anyway=True)
        assert not task.done()
        assert stage.outside.count("work") in (3, 4), "the fourth may have been begun when the request was heard"
        await hf.resume("e")
        assert await asyncio.wait_for(task, 5) == [0, 1, 2, 3, 4]
        assert {"pause", "resume"} <= set(await events(hf))
        assert (await hf.verify()).ok
    assert stage.outside.lines() == [f"work {number}" for number in range(5)]


async def test_pause_answers_like_cancel(stage: Stage) -> None:
    """DX-60."""
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="e")
    async with stage.open() as hf:
        assert await hf.pause("nobody") == holdfast.NotFound()
        assert await hf.pause("e") == holdfast.Paused()
        assert await hf.pause("e") == holdfast.Paused()
        assert (await events(hf)).count("pause") == 1
        assert await hf.cancel("e") == holdfast.Canceled()
        await hf.run(agent, folder(stage), 1, 9, id="done")
        assert await hf.pause("done") == holdfast.AlreadyTerminal("completed")
        assert (await hf.verify()).ok


async def test_a_run_in_this_process_rests_and_goes_on_by_itself(stage: Stage) -> None:
    """DX-60: whoever waits for the result keeps waiting."""
    clock = ManualClock()
    turn = Turn(stage, "paused.here")
    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(turn.fn, id="e"))
        await turn.reached.wait()
        assert await hf.pause("e") == holdfast.Requested()
        turn.go.set()
        await until(lambda: turn.end is not None)
        assert not isinstance(turn.end, Exception)
        for _ in range(200):
            if await status(hf) == "waiting paused":
                break
            await until(lambda: False, 0.01, anyway=True)
        assert await status(hf) == "waiting paused"
        assert not task.done()
        await hf.resume("e")
        await clock.advance(timedelta(seconds=2))
        assert await asyncio.wait_for(task, 5) == "done"
    assert stage.outside.lines() == ["first", "second"]


async def test_steps_in_flight_end_before_a_pause(stage: Stage) -> None:
    """DX-60."""

    @holdfast.step(effect=holdfast.idempotent())
    async def act() -> str:
        running.set()
        await release.wait()
        stage.outside.happen("ended")
        return "done"

    @holdfast.durable(kind="paused.running")
    async def program() -> str:
        await act()
        return await trace(folder(stage), "after")

    async with stage.open(poll_ms=20) as hf:
        running, release = asyncio.Event(), asyncio.Event()
        await hf.start(program, id="e")
        await running.wait()
        assert await hf.pause("e") == holdfast.Requested()
        await until(lambda: False, 0.05, anyway=True)
        assert await status(hf) == "running"
        release.set()
        for _ in range(200):
            if await status(hf) == "waiting paused":
                break
            await until(lambda: False, 0.01, anyway=True)
        assert [entry.outcome for entry in await hf.history("e")] == ["value"]
        await hf.resume("e")
        assert await hf.run(program, id="e") == "after"
    assert stage.outside.lines() == ["ended", "after"]


async def test_a_pause_can_be_taken_back_before_it_is_heard(stage: Stage) -> None:
    with Agent("run", stage, "agent", "e", 3, 0, poll_ms=60_000) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 0"]
        async with stage.open() as hf:
            assert await hf.pause("e") == holdfast.Requested()
            await hf.resume("e")
            found = await hf.get("e")
            assert found is not None
            assert found.request is None
            other.say()
            assert other.finish() == ["done [0, 1, 2]"]


async def test_an_execution_that_needs_a_decision_can_be_paused_and_still_needs_it(stage: Stage) -> None:
    """§3: pause, of what has not ended and nobody owns."""
    await stage.die("effect.returned", paying, folder(stage), id="e")
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(paying, folder(stage), id="e")
        assert await hf.pause("e") == holdfast.Paused()
        assert (await hf.verify()).problems == ()
        await hf.resume("e")
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(paying, folder(stage), id="e")
        assert (await events(hf)).count("ambiguity") == 1
        await hf.decide("e", "0", holdfast.happened("paid"), by="ann")
        assert await hf.run(paying, folder(stage), id="e") == "paid"
        assert (await hf.verify()).problems == ()


# --- deadline -------------------------------------------------------------------------------------------


class Slow:
    """A program whose steps take time, and one that retries hourly."""

    def __init__(self, stage: Stage, clock: ManualClock) -> None:
        hourly = holdfast.Retry(max_attempts=1000, initial=timedelta(hours=1), factor=1, maximum=timedelta(hours=1))
        self.tries = 0

        @holdfast.step(effect=holdfast.at_least_once())
        async def hour(number: int) -> None:
            stage.outside.happen("hour", number)
            clock.advance(timedelta(hours=1))

        @holdfast.step(effect=holdfast.at_least_once(), retry=hourly)
        async def failing() -> None:
            stage.outside.happen("try")
            self.tries += 1
            raise ValueError

        @holdfast.durable(kind="slow.steps")
        async def steps() -> str:
            for number in range(10):
                await hour(number)
            return "done"

        @holdfast.durable(kind="slow.retries")
        async def retries() -> str:
            await failing()
            return "done"

        self.steps, self.retries = steps, retries


async def test_a_deadline_is_seen_at_durable_calls(stage: Stage) -> None:
    """DX-61."""
    clock = ManualClock()
    slow = Slow(stage, clock)
    async with stage.open(clock=clock) as hf:
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(slow.steps, id="e", deadline=timedelta(minutes=150))
        assert isinstance(raised.value.__cause__, holdfast.DeadlineExceeded)
        assert raised.value.error_type == "holdfast.DeadlineExceeded"
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.reason) == ("failed", "deadline")
        assert found.deadline_at is not None
        assert found.deadline_at - found.created_at == timedelta(minutes=150)
        assert raised.value.__cause__.deadline_at == found.deadline_at
        with pytest.raises(holdfast.ExecutionFailed) as again:
            await hf.run(slow.steps, id="e")
        assert again.value.error_type == "holdfast.DeadlineExceeded"
        assert str(again.value) == str(raised.value)
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["hour 0", "hour 1", "hour 2"]


async def test_a_deadline_passes_during_a_wait(stage: Stage) -> None:
    """DA-73."""
    clock = ManualClock()
    slow = Slow(stage, clock)
    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(slow.retries, id="e", deadline=timedelta(minutes=150)))
        await until(lambda: slow.tries)
        for _ in range(14):
            await clock.advance(timedelta(minutes=10))
            await until(task.done, 0.02, anyway=True)
        assert not task.done()
        await clock.advance(timedelta(minutes=11))
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await asyncio.wait_for(task, 5)
        assert isinstance(raised.value.__cause__, holdfast.DeadlineExceeded)
        assert await status(hf) == "failed"


async def test_a_deadline_passes_while_no_process_is_alive(stage: Stage) -> None:
    """DA-73: the next opener that recovers ends it."""
    clock = ManualClock()
    slow = Slow(stage, clock)
    hf = await stage.open(clock=clock).open()
    await hf.start(slow.retries, id="e", deadline=timedelta(hours=5))
    await until(lambda: slow.tries)
    await hf.close()
    clock.advance(timedelta(hours=6))
    tries = slow.tries
    async with stage.open(clock=clock, recover=True) as hf:
        for _ in range(100):
            if await status(hf) == "failed":
                break
            await clock.advance(timedelta(seconds=5))
            await until(lambda: False, 0.02, anyway=True)
        assert await status(hf) == "failed"
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(slow.retries, id="e")
        assert raised.value.error_type == "holdfast.DeadlineExceeded"
        assert (await hf.verify()).ok
    assert slow.tries == tries


async def test_a_claim_after_the_deadline_runs_nothing(stage: Stage) -> None:
    """DX-61."""
    clock = ManualClock()
    slow = Slow(stage, clock)
    hf = await stage.open(clock=clock).open()
    await hf.start(slow.retries, id="e", deadline=timedelta(hours=5))
    await until(lambda: slow.tries)
    await hf.close()
    clock.advance(timedelta(hours=6))
    tries = slow.tries
    async with stage.open(clock=clock) as hf:
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(slow.retries, id="e")
        assert raised.value.error_type == "holdfast.DeadlineExceeded"
    assert slow.tries == tries


async def test_a_deadline_does_not_apply_while_a_decision_is_open(stage: Stage) -> None:
    """DX-61."""
    clock = ManualClock()

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> None:
        raise holdfast.OutcomeUnknown

    @holdfast.durable(kind="slow.doubtful")
    async def program() -> str:
        await pay()
        return "done"

    async with stage.open(clock=clock, recover=True) as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e", deadline=timedelta(hours=1))
        clock.advance(timedelta(hours=2))
        for _ in range(4):
            await clock.advance(timedelta(seconds=5))
            await until(lambda: False, 0.02, anyway=True)
        assert await status(hf) == "needs_decision"
        await hf.decide("e", "0", holdfast.happened(), by="ann")
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(program, id="e")
        assert raised.value.error_type == "holdfast.DeadlineExceeded"


async def test_an_execution_out_of_time_can_be_given_more(stage: Stage) -> None:
    """§22: `resume(id, deadline=…)`."""
    clock = ManualClock()
    slow = Slow(stage, clock)
    async with stage.open(clock=clock) as hf:
        with pytest.raises(holdfast.ExecutionFailed):
            await hf.run(slow.steps, id="e", deadline=timedelta(minutes=150))
        await hf.resume("e", deadline=timedelta(minutes=150))
        with pytest.raises(holdfast.ExecutionFailed):
            await hf.run(slow.steps, id="e")
        assert stage.outside.count("hour") == 6
        await hf.resume("e", deadline=timedelta(hours=24))
        assert await hf.run(slow.steps, id="e") == "done"
    assert stage.outside.lines() == [f"hour {number}" for number in range(10)]


async def test_a_deadline_of_an_existing_execution_is_not_changed_by_running_it(stage: Stage) -> None:
    """§22: a deadline belongs to creation."""
    clock = ManualClock()
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="e", clock=clock)
    async with stage.open(clock=clock) as hf:
        await hf.run(agent, folder(stage), 2, 9, id="e", deadline=timedelta(microseconds=1))
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.deadline_at) == ("completed", None)


# --- the end of a process -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "cancel", "pause"])
async def test_durable_calls_on_the_way_out_are_refused_and_record_nothing(stage: Stage, how: str) -> None:
    """DX-62."""
    tidied: list[str] = []

    @holdfast.durable(kind="tidying")
    async def program() -> None:
        await trace(folder(stage), "a")
        try:
            reached.set()
            await go.wait()
            await trace(folder(stage), "b")
        finally:
            try:
                await trace(folder(stage), "tidy")
            except BaseException as error:
                tidied.append(type(error).__name__)
                raise

    hf = await stage.open(poll_ms=20, drain_ms=200).open()
    reached, go = asyncio.Event(), asyncio.Event()
    handle = await hf.start(program, id="e")
    await reached.wait()
    if how == "close":
        waiting = asyncio.ensure_future(handle.result())
        await until(lambda: hf.flights["e"].waiters)
        await hf.close()
        with pytest.raises(holdfast.Closed) as raised:
            await waiting
        assert raised.value.code == "store.closed"
    else:
        await (hf.cancel("e") if how == "cancel" else hf.pause("e"))
        go.set()
        await until(lambda: tidied)
        await hf.close()
    assert tidied == ["ExecutionCanceled" if how == "cancel" else "Suspend"]
    assert stage.outside.lines() == ["a"]
    ((rows,),) = await look(stage.target, "SELECT count(*) FROM durable_journal")
    assert rows == 1
    async with stage.open() as hf:
        assert await status(hf) == {"close": "pending", "cancel": "canceled", "pause": "waiting paused"}[how]


async def test_who_waits_for_another_process_is_told_of_the_close(stage: Stage) -> None:
    """DX-62."""
    with Agent("run", stage, "agent", "e", 2, 0) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 0"]
        hf = await stage.open(poll_ms=20, drain_ms=200).open()
        one = asyncio.ensure_future(hf.run(agent, folder(stage), 2, 0, id="e"))
        two = asyncio.ensure_future(hf.handle("e").result())
        await until(lambda: False, 0.05, anyway=True)
        await asyncio.wait_for(hf.close(), 5)
        for each in (one, two):
            with pytest.raises(holdfast.Closed):
                await asyncio.wait_for(each, 2)


async def test_close_lets_effects_in_flight_end(stage: Stage) -> None:
    """`drain_ms`."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def act() -> str:
        running.set()
        await release.wait()
        stage.outside.happen("ended")
        return "done"

    @holdfast.durable(kind="closing.running")
    async def program() -> str:
        return await act()

    hf = await stage.open().open()
    running, release = asyncio.Event(), asyncio.Event()
    await hf.start(program, id="e")
    await running.wait()
    closing = asyncio.ensure_future(hf.close())
    await until(lambda: False, 0.05, anyway=True)
    assert not closing.done()
    release.set()
    await asyncio.wait_for(closing, 5)
    async with stage.open() as hf:
        assert [entry.part for entry in await hf.history("e")] == ["opened", "outcome"]
        assert await hf.run(program, id="e") == "done"
    assert stage.outside.lines() == ["ended"]


async def test_close_does_not_wait_for_ever(stage: Stage) -> None:
    """`drain_ms`: a guarded effect that did not end stays an intent."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def stuck() -> str:
        running.set()
        await asyncio.Event().wait()
        return "never"

    @holdfast.durable(kind="closing.stuck")
    async def program() -> str:
        return await stuck()

    hf = await stage.open(drain_ms=100).open()
    running = asyncio.Event()
    await hf.start(program, id="e")
    await running.wait()
    await asyncio.wait_for(hf.close(), 5)
    async with stage.open() as hf:
        assert [entry.part for entry in await hf.history("e")] == ["opened"]
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e")
