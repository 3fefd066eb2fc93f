"""`hf.execution`: the caller's own block as an execution."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.flow.tamper import until
from tests.stage import Stage

import holdfast
from holdfast.testing import ManualClock


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Left(BaseException):
    """Leaves a block without ending its execution."""


async def status(hf: holdfast.Holdfast, id: str = "e") -> str:
    found = await hf.get(id)
    assert found is not None
    return found.status


def send(stage: Stage) -> Any:
    @holdfast.step(effect=holdfast.at_least_once())
    async def send(what: str) -> str:
        stage.outside.happen("send", what)
        return what

    return send


async def leave(hf: holdfast.Holdfast, error: BaseException | None, *calls: Callable[[], Any], **options: Any) -> None:
    """Open the execution `e`, make the calls, and leave with an error or without."""
    async with hf.execution("e", kind="block", **options):
        for call in calls:
            await call()
        if error is not None:
            raise error


# --- ends -----------------------------------------------------------------------------------------------


async def test_a_normal_end_completes_with_the_output_that_was_set(stage: Stage) -> None:
    """DX-6."""

    async with stage.open() as hf:
        async with hf.execution("e", kind="block") as ctx:
            ctx.set_output({"answer": 41})
            ctx.set_output({"answer": 42})
        assert await status(hf) == "completed"
        async with hf.execution("none", kind="block"):
            pass
        assert await hf.handle("e").result() == {"answer": 42}
        assert await hf.handle("none").result() is None
        assert (await hf.verify()).ok


async def test_an_exception_fails_it_and_goes_on_unchanged(stage: Stage) -> None:
    """DX-6."""
    error = ValueError("the very one")
    async with stage.open() as hf:
        with pytest.raises(ValueError, match="the very one") as raised:
            await leave(hf, error)
        assert raised.value is error
        assert await status(hf) == "failed"
        for _ in range(2):
            with pytest.raises(holdfast.ExecutionFailed) as failed:
                await leave(hf, None)
            assert (failed.value.error_type, failed.value.error_message) == ("ValueError", "the very one")


@pytest.mark.parametrize("error", [Left(), asyncio.CancelledError(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_any_other_exit_gives_it_back(stage: Stage, error: BaseException) -> None:
    """DX-6."""
    act = send(stage)
    async with stage.open() as hf:
        with pytest.raises(type(error)):
            await leave(hf, error, lambda: act("a"))
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.owner) == ("pending", None)
        await leave(hf, None, lambda: act("a"), lambda: act("b"))
        assert await status(hf) == "completed"
    assert stage.outside.lines() == ["send a", "send b"]


async def test_a_completed_execution_opens_for_reading_only(stage: Stage) -> None:
    """DX-6."""
    act = send(stage)
    async with stage.open() as hf:
        await leave(hf, None, lambda: act("a"), holdfast.now, lambda: holdfast.gather(act("b")))
        before = await hf.get("e")
        async with hf.execution("e", kind="block") as ctx:
            assert ctx.replaying
            assert (await act.recorded("a")).outcome == holdfast.Replayed("a")
            await holdfast.now()
            assert (await act.recorded("b")).outcome == holdfast.Replayed("b")
            for call in (lambda: act("c"), holdfast.now, holdfast.uuid, lambda: holdfast.branch().run(act, "d")):
                with pytest.raises(holdfast.ExecutionFinished) as raised:
                    await call()
                assert raised.value.status == "completed"
            ctx.set_output("another")
        with pytest.raises(ValueError, match="not the end"):
            await leave(hf, ValueError("not the end"), lambda: act("a"))
        assert await hf.get("e") == before
        assert await hf.handle("e").result() is None
        assert len(await hf.history("e")) == 3
    assert stage.outside.lines() == ["send a", "send b"]


async def test_a_completed_execution_still_says_when_the_program_differs(stage: Stage) -> None:
    """DX-6, DX-37: replay-only is no reason to hand out a value of another call."""
    act = send(stage)
    async with stage.open() as hf:
        await leave(hf, None, lambda: act("a"))
        with pytest.raises(holdfast.ReplayDivergence):
            await leave(hf, None, lambda: act("b"))
        assert await status(hf) == "completed"


async def test_a_poison_that_the_block_swallows_is_raised_at_its_end(stage: Stage) -> None:
    """DX-11."""
    act = send(stage)

    async def swallow() -> None:
        try:
            await act("b")
        except holdfast.ReplayDivergence:
            stage.outside.happen("swallowed")

    async with stage.open() as hf:
        with pytest.raises(Left):
            await leave(hf, Left(), lambda: act("a"))
        with pytest.raises(holdfast.ReplayDivergence):
            await leave(hf, None, swallow)
        assert await status(hf) == "aborted"
    assert stage.outside.lines() == ["send a", "swallowed"]


async def test_an_ambiguity_asks_and_the_answer_is_there_next_time(stage: Stage) -> None:
    """DX-6, DX-29."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        stage.outside.happen("pay")
        raise holdfast.OutcomeUnknown

    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision) as raised:
            await leave(hf, None, pay)
        assert raised.value.positions == ("0",)
        with pytest.raises(holdfast.NeedsDecision):
            await leave(hf, None, pay)
        await hf.decide("e", "0", holdfast.happened("slip"), by="ann")
        async with hf.execution("e", kind="block"):
            assert (await pay.recorded()).outcome == holdfast.Assumed("slip", "operator")
        assert [record.event for record in await hf.audit("e")].count("ambiguity") == 1
    assert stage.outside.count("pay") == 1


async def test_an_output_that_cannot_be_recorded_fails_the_execution(stage: Stage) -> None:
    """DX-5."""
    async with stage.open(payload_bytes_max=1000) as hf:
        for id, value in (("object", object()), ("large", "x" * 2000)):
            with pytest.raises((holdfast.CodecError, holdfast.LimitError)):
                async with hf.execution(id, kind="block") as ctx:
                    ctx.set_output(value)
            assert await status(hf, id) == "failed"


# --- who may open it ------------------------------------------------------------------------------------


async def test_kind_is_compared_and_input_when_given(stage: Stage) -> None:
    """DX-3."""
    async with stage.open() as hf:
        with pytest.raises(Left):
            await leave(hf, Left(), input={"a": 1})
        for options, field in (({"input": {"a": 2}}, "input"), ({"input": None}, "input")):
            with pytest.raises(holdfast.ExecutionConflict) as raised:
                await leave(hf, None, **options)
            assert raised.value.field == field
        with pytest.raises(holdfast.ExecutionConflict) as raised:
            async with hf.execution("e", kind="other"):
                pass
        assert raised.value.field == "kind"
        await leave(hf, None, input={"a": 1})
        await leave(hf, None)
        with pytest.raises(holdfast.ExecutionConflict):
            await leave(hf, None, input={"a": 2})


async def test_one_block_at_a_time(stage: Stage) -> None:
    """§2."""

    @holdfast.durable(kind="block.shared")
    async def fn() -> None:
        return None

    async with stage.open() as hf:
        async with hf.execution("e", kind="block.shared"):

            async def elsewhere() -> None:
                with pytest.raises(holdfast.ExecutionBusy) as raised:
                    async with hf.execution("e", kind="block.shared"):
                        pass
                assert raised.value.execution_id == "e"
                with pytest.raises(holdfast.ExecutionBusy):
                    await hf.run(fn, id="e", on_busy="raise")

            await asyncio.get_running_loop().create_task(elsewhere(), context=contextvars.Context())
            assert await status(hf) == "running"
        assert await status(hf) == "completed"


async def test_a_failed_or_aborted_execution_opens_again_on_demand(stage: Stage) -> None:
    """§2: `reopen`."""
    act = send(stage)
    async with stage.open() as hf:
        with pytest.raises(ValueError, match="first"):
            await leave(hf, ValueError("first"), lambda: act("a"))
        with pytest.raises(holdfast.ExecutionFailed):
            await leave(hf, None)
        await leave(hf, None, lambda: act("a"), lambda: act("b"), reopen=True)
        assert await status(hf) == "completed"
        found = await hf.get("e")
        assert found is not None
        assert found.generation == 1
    assert stage.outside.lines() == ["send a", "send b"]


async def test_reopening_runs_the_failures_that_ended_it_again(stage: Stage) -> None:
    """DX-36: those named by its end, not those that were handled."""
    working = False

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay(what: str) -> str:
        stage.outside.happen("pay", what, holdfast.current_step().attempt)
        if not working:
            raise ValueError(what)
        return what

    async def handled() -> None:
        with pytest.raises(holdfast.StepFailed):
            await pay("handled")

    async with stage.open() as hf:
        with pytest.raises(holdfast.StepFailed):
            await leave(hf, None, handled, lambda: pay("fatal"))
        working = True
        with pytest.raises(holdfast.ExecutionFailed) as failed:
            await leave(hf, None)
        assert failed.value.positions == ("1",)
        await leave(hf, None, handled, lambda: pay("fatal"), reopen=True)
        assert await status(hf) == "completed"
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["pay handled 1", "pay fatal 1", "pay fatal 2"]


async def test_a_deadline_is_for_a_new_block(stage: Stage) -> None:
    """DX-61."""
    clock = ManualClock()
    act = send(stage)

    async def wait() -> None:
        clock.advance(timedelta(hours=2))

    async with stage.open(clock=clock) as hf:
        with pytest.raises(holdfast.DeadlineExceeded):
            await leave(hf, None, lambda: act("a"), wait, lambda: act("b"), deadline=timedelta(hours=1))
        assert await status(hf) == "failed"
    assert stage.outside.lines() == ["send a"]


async def test_blocks_do_not_nest(stage: Stage) -> None:
    """DX-16."""
    async with stage.open() as hf, hf.execution("e", kind="block"):
        with pytest.raises(holdfast.NestedEffect):
            async with hf.execution("f", kind="block"):
                pass
        assert await hf.get("f") is None


# --- the context ----------------------------------------------------------------------------------------


async def test_the_context_knows_itself(stage: Stage) -> None:
    """§22."""
    async with stage.open(steps_live_max=10, fold_at_percent=50) as hf:
        async with hf.execution("e", kind="block") as ctx:
            assert holdfast.current() is ctx
            assert (ctx.id, ctx.kind, ctx.generation, ctx.chapter) == ("e", "block", 1, 0)
            assert (ctx.replaying, ctx.degraded, ctx.should_continue) == (False, False, False)
            found = await hf.get("e")
            assert found is not None
            assert found.uid == str(UUID(bytes=ctx.uid))
            for _ in range(5):
                await holdfast.now()
            assert ctx.should_continue, "from the soft limit on"
        assert holdfast.current() is None


async def test_the_context_has_every_durable_call(stage: Stage) -> None:
    """§22: module functions act on the current one, Context has the same methods."""
    describe = holdfast.StepDescriptor("add", holdfast.at_least_once(), fingerprint=b"1", result_type=int)

    async def program(ctx: holdfast.Context, seen: list[Any]) -> None:
        async def one(handle: holdfast.StepHandle) -> int:
            stage.outside.happen("one")
            return 1

        def two(handle: holdfast.StepHandle) -> int:
            stage.outside.happen("two")
            assert holdfast.current_step() is handle
            return 2

        seen.append(await ctx.step(describe, one))
        record = await ctx.step_recorded(describe, two)
        seen.append((record.position, record.value, record.attempt))
        async with ctx.parallel() as parallel:
            futures = [parallel.step(describe, one), parallel.step(describe, two)]
        seen.append([await future for future in futures])
        seen.append(await ctx.gather(ctx.step(describe, one), ctx.step(describe, two)))
        seen.append(await ctx.first(ctx.step(describe, one)))
        async with ctx.branch("b"):
            seen.append(await ctx.step(describe, one))
        seen.append((await ctx.now(), await ctx.random(), await ctx.uuid(), await ctx.patched("p")))

    runs: list[list[Any]] = [[], []]
    async with stage.open() as hf:
        with pytest.raises(Left):  # noqa: PT012 - the block is what raises
            async with hf.execution("e", kind="block") as ctx:
                await program(ctx, runs[0])
                raise Left
        async with hf.execution("e", kind="block") as ctx:
            await program(ctx, runs[1])
        assert (await hf.verify()).ok
    assert runs[0] == runs[1]
    assert runs[0][:3] == [1, ("1", 2, 1), [1, 2]]
    assert len(stage.outside.lines()) == 8


async def test_parallel_raises_what_nobody_looked_at(stage: Stage) -> None:
    """§22: exit awaits all, cancels none, raises an ExceptionGroup of errors nobody awaited."""
    step = holdfast.StepDescriptor("act", holdfast.at_least_once(), raises=(ValueError,))

    def op(name: str) -> Callable[[holdfast.StepHandle], Any]:
        async def act(handle: holdfast.StepHandle) -> str:
            await asyncio.sleep(0)
            stage.outside.happen(name)
            if name.startswith("bad"):
                raise ValueError(name)
            return name

        return act

    async with stage.open() as hf, hf.execution("e", kind="block") as ctx:
        with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 - the block is what raises
            async with ctx.parallel() as parallel:
                parallel.step(step, op("good"))
                parallel.step(step, op("bad 1"))
                seen = parallel.step(step, op("bad 2"))
                with pytest.raises(ValueError, match="bad 2"):
                    await seen
                parallel.step(step, op("good 2"))
        assert [str(error) for error in raised.value.exceptions] == ["bad 1"]
    assert sorted(stage.outside.lines()) == ["bad 1", "bad 2", "good", "good 2"]


async def test_durable_calls_after_the_block_are_refused(stage: Stage) -> None:
    """§2: outside an execution."""
    act = send(stage)
    async with stage.open() as hf:
        async with hf.execution("e", kind="block") as ctx:
            late = act("late")
            coroutine = holdfast.now()
        for call in (late, coroutine):
            with pytest.raises(holdfast.ExecutionFinished):
                await call
        with pytest.raises(holdfast.ExecutionFinished):
            await ctx.now()
        with pytest.raises(holdfast.OutsideExecution):
            await holdfast.now()
        assert await act("ordinary") == "ordinary", "outside, a step is its function"
    assert stage.outside.lines() == ["send ordinary"]


async def test_a_gap_of_a_call_never_awaited_is_no_divergence(stage: Stage) -> None:
    """DX-13."""
    act = send(stage)

    async def program() -> None:
        never = act("never")
        never.close()
        await act("a")

    async with stage.open() as hf:
        with pytest.raises(Left):
            await leave(hf, Left(), program)
        await leave(hf, None, program)
        assert [entry.position for entry in await hf.history("e")] == ["1"]
        assert (await hf.verify()).ok


# --- threads and timeouts -------------------------------------------------------------------------------


async def test_the_late_result_of_a_thread_is_discarded_and_audited(stage: Stage) -> None:
    """DX-26."""
    clock = ManualClock()
    running, release = threading.Event(), threading.Event()

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun()), timeout=timedelta(seconds=1))
    def slow() -> str:
        attempt = holdfast.current_step().attempt
        stage.outside.happen("begin", attempt)
        if attempt == 1:
            running.set()
            assert release.wait(10)
        stage.outside.happen("end", attempt)
        return f"attempt {attempt}"

    async with stage.open(clock=clock) as hf:

        async def block() -> holdfast.StepRecord[str]:
            async with hf.execution("e", kind="block"):
                return await slow.recorded()

        task = asyncio.ensure_future(block())
        await until(running.is_set)
        await clock.advance(timedelta(seconds=2))
        await until(lambda: False, 0.05, anyway=True)
        # The thread cannot be stopped: until it ends, no second attempt begins.
        assert stage.outside.lines() == ["begin 1"]
        release.set()
        record = await asyncio.wait_for(task, 5)
        assert (record.value, record.attempt) == ("attempt 2", 2)
        for _ in range(100):
            if "late_result" in [record.event for record in await hf.audit("e")]:
                break
            await until(lambda: False, 0.01, anyway=True)
        (late,) = [record for record in await hf.audit("e") if record.event == "late_result"]
        assert (late.position, late.effect) == ("0", "exactly_once")
        outcomes = [entry for entry in await hf.history("e") if entry.part == "outcome"]
        assert [entry.attempt for entry in outcomes] == [2]
    assert stage.outside.lines() == ["begin 1", "end 1", "begin 2", "end 2"]


async def test_a_step_that_overruns_its_timeout_fails_or_is_in_doubt(stage: Stage) -> None:
    """DX-26: a failure for the lesser classes, an ambiguity for `exactly_once`."""
    clock = ManualClock()

    async def stuck(handle: holdfast.StepHandle) -> None:
        stage.outside.happen(handle.name)
        begun.set()
        await asyncio.Event().wait()

    lesser = holdfast.StepDescriptor("lesser", holdfast.at_least_once(), timeout=timedelta(seconds=1))
    guarded = holdfast.StepDescriptor(
        "guarded", holdfast.exactly_once("money", on_ambiguous=holdfast.skip("gone")), timeout=timedelta(seconds=1)
    )
    async with stage.open(clock=clock) as hf:

        async def block() -> Any:
            async with hf.execution("e", kind="block") as ctx:
                with pytest.raises(holdfast.StepFailed) as raised:
                    await ctx.step(lesser, stuck)
                assert raised.value.error_type == "TimeoutError"
                begun.clear()
                return await ctx.step_recorded(guarded, stuck)

        begun = asyncio.Event()
        task = asyncio.ensure_future(block())
        for name in ("lesser", "guarded"):
            await until(lambda name=name: stage.outside.count(name))
            await clock.advance(timedelta(seconds=2))
        record = await asyncio.wait_for(task, 5)
        assert record.outcome == holdfast.Assumed("gone", "policy")
    assert stage.outside.lines() == ["lesser", "guarded"]


async def test_a_programs_own_timeout_leaves_an_ambiguity_that_its_policy_resolves(stage: Stage) -> None:
    """DX-27."""

    def step(policy: Any, name: str) -> Any:
        @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=policy), name=name)
        async def stuck() -> str:
            stage.outside.happen(name)
            begun.set()
            await asyncio.Event().wait()
            return "never"

        return stuck

    async def give_up(call: Any) -> None:
        begun.clear()
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(cancel_when_begun, task)
        with pytest.raises(asyncio.CancelledError):
            await call()
        task.uncancel()

    def cancel_when_begun(task: asyncio.Task[Any]) -> None:
        if begun.is_set():
            task.cancel()
        else:
            asyncio.get_running_loop().call_soon(cancel_when_begun, task)

    act = send(stage)
    begun = asyncio.Event()
    async with stage.open() as hf:
        await leave(hf, None, lambda: give_up(step(holdfast.skip("none"), "skipped")), lambda: act("a"))
        outcomes = [(entry.name, entry.outcome) for entry in await hf.history("e") if entry.part == "outcome"]
        assert sorted(outcomes) == [("send", "value"), ("skipped", "assumed")]

        with pytest.raises(holdfast.NeedsDecision):
            async with hf.execution("f", kind="block"):
                await give_up(step(holdfast.rerun(), "asked"))
        assert await status(hf, "f") == "needs_decision"
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["skipped", "send a", "asked"]


# --- spilled values ---------------------------------------------------------------------------------------


async def test_a_large_value_is_spilled_and_comes_back(stage: Stage) -> None:
    """DX-34, `spill_bytes_max`."""

    def step(*, spill: bool) -> Any:
        @holdfast.step(effect=holdfast.at_least_once(), spill=spill, name="fetch")
        async def fetch(size: int) -> bytes:
            stage.outside.happen("fetch", size)
            return bytes(range(256)) * (size // 256)

        return fetch

    spilling, strict = step(spill=True), step(spill=False)
    large, larger = 3 << 20, 5 << 20
    values: list[bytes] = []

    async def fetch() -> None:
        values.append(await spilling(large))

    async def too_large() -> None:
        for call, maximum in ((lambda: spilling(larger), 4 << 20), (lambda: strict(2 << 20), 1 << 20)):
            with pytest.raises(holdfast.ResultTooLarge) as raised:
                await call()
            assert raised.value.maximum == maximum
            assert raised.value.size > maximum

    async with stage.open(spill_bytes_max=4 << 20) as hf:
        with pytest.raises(Left):
            await leave(hf, Left(), fetch, too_large)
        await leave(hf, None, fetch, too_large)
        assert (await hf.verify()).ok
        revealed = [entry.payload for entry in await hf.history("e", reveal=True) if entry.outcome == "value"]
    assert values[0] == values[1] == revealed[0]
    assert len(values[0]) == large
    assert stage.outside.lines() == [f"fetch {large}", f"fetch {larger}", f"fetch {2 << 20}"]
