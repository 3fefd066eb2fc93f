"""Changed programs: what is noticed, what the next generation keeps, chapters and patches."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import change, counter, is_postgres, look, until
from tests.stage import Stage

import holdfast
from holdfast.testing import Crashed, ManualClock, crash


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Released(BaseException):
    """Leaves a block without ending its execution."""


class Shop:
    """A program that can be changed between two runs: a list of calls, each `(step, argument)`."""

    def __init__(self, stage: Stage) -> None:
        outside = stage.outside

        @holdfast.step(effect=holdfast.idempotent())
        async def look(what: str) -> str:
            outside.happen("look", what)
            return f"looked at {what}"

        @holdfast.step(effect=holdfast.at_least_once())
        async def send(what: str) -> str:
            outside.happen("send", what)
            return f"sent {what}"

        @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
        async def pay(what: str) -> str:
            outside.happen("pay", what)
            return f"paid {what}"

        @holdfast.step(effect=holdfast.exactly_once("cost_bearing"))
        async def buy(what: str) -> str:
            outside.happen("buy", what)
            return f"bought {what}"

        self.steps = {"look": look, "send": send, "pay": pay, "buy": buy}
        self.program: list[tuple[str, str]] = []
        self.outcomes: list[str] = []

        @holdfast.durable(kind="shop.changing")
        async def shop() -> list[str]:
            self.outcomes = []
            values = []
            for name, what in self.program:
                if name == "crash":
                    with crash("step.positioned", action="raise"):
                        await look("nothing")
                elif name == "now":
                    values.append(str(await holdfast.now()))
                elif name == "raise":
                    raise ValueError(what)
                else:
                    record = await self.steps[name].recorded(what)
                    self.outcomes.append(type(record.outcome).__name__)
                    values.append(record.value)
            return values

        self.fn = shop

    async def die_after(self, stage: Stage, *program: tuple[str, str], **config: Any) -> None:
        """Run these calls in a process that dies when they are done."""
        self.program = [*program, ("crash", "")]
        async with stage.open(**config) as hf:
            with pytest.raises(Crashed):
                await hf.run(self.fn, id="e")

    def become(self, *program: tuple[str, str]) -> None:
        self.program = list(program)


@pytest.fixture
def shop(stage: Stage) -> Shop:
    return Shop(stage)


# --- divergence under raise -------------------------------------------------------------------------


async def test_another_fingerprint_at_a_recorded_position_is_a_divergence(stage: Stage, shop: Shop) -> None:
    """DA-33."""
    await shop.die_after(stage, ("send", "a"), ("send", "b"))
    shop.become(("send", "a"), ("send", "c"))
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence) as raised:
            await hf.run(shop.fn, id="e", on_divergence="raise")
        found = await hf.get("e")
        with pytest.raises(holdfast.ExecutionAborted) as aborted:
            await hf.run(shop.fn, id="e", on_divergence="raise")
    error = raised.value
    assert (error.code, error.execution_id, error.generation, error.position) == (
        "durable.replay_divergence", "e", 1, "1",
    )  # fmt: skip
    assert error.stored is not None
    assert error.asked is not None
    assert error.stored[:3] == error.asked[:3] == ("step", "send", "at_least_once")
    assert error.stored.shape != error.asked.shape
    assert error.stored.shape in error.report
    assert error.asked.shape in error.report
    assert found is not None
    assert (found.status, found.reason, found.generation) == ("aborted", "divergence", 1)
    assert aborted.value.reason == "divergence"
    assert shop.outcomes == ["Replayed"]
    assert stage.outside.lines() == ["send a", "send b"]


async def test_a_block_raises_divergence_by_itself(stage: Stage) -> None:
    """DA-33, DX-38: `raise` is what `execution` does."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(what: str) -> str:
        stage.outside.happen("send", what)
        return what

    async with stage.open() as hf:
        with suppress(Released):
            async with hf.execution("e", kind="k"):
                await send("a")
                raise Released
        with pytest.raises(holdfast.ReplayDivergence):
            async with hf.execution("e", kind="k"):
                await send("b")
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.reason) == ("aborted", "divergence")
        async with hf.execution("e", kind="k", reopen=True) as ctx:
            assert ctx.generation == 2
            assert (await send.recorded("a")).outcome == holdfast.Replayed("a")
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.generation) == ("completed", 2)
    assert stage.outside.lines() == ["send a"]


@pytest.mark.parametrize("how", ["reopen", "resume"])
async def test_an_execution_aborted_for_divergence_can_be_taken_up_in_a_new_generation(
    stage: Stage, shop: Shop, how: str
) -> None:
    """DX-38."""
    await shop.die_after(stage, ("send", "a"))
    shop.become(("look", "x"), ("send", "a"))
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence):
            await hf.run(shop.fn, id="e", on_divergence="raise")
        if how == "resume":
            await hf.resume("e")
        assert await hf.run(shop.fn, id="e", on_divergence="raise", reopen=how == "reopen") == [
            "looked at x", "sent a",
        ]  # fmt: skip
        found = await hf.get("e")
    assert found is not None
    assert (found.status, found.generation) == ("completed", 2)
    assert shop.outcomes == ["Live", "Replayed"]
    assert stage.outside.lines() == ["send a", "look x"]


@pytest.mark.parametrize("kind", ["step", "now", "branch", "first", "random"])
async def test_a_stored_shape_that_was_altered_never_gives_a_value(stage: Stage, kind: str) -> None:
    """DA-35."""
    got: list[Any] = []

    @holdfast.step(effect=holdfast.at_least_once())
    async def take(number: int) -> int:
        return number

    calls = {
        "step": lambda: take(1),
        "now": holdfast.now,
        "branch": lambda: holdfast.branch("b").run(take, 2),
        "first": lambda: holdfast.first(take(3)),
        "random": holdfast.random,
    }

    @holdfast.durable(kind="altered")
    async def program() -> None:
        got.append(await calls[kind]())
        await take(9)

    await stage.die("outcome.acked", program, id="e", hit=2 if kind in ("step", "branch", "first") else 1)
    assert len(got) == 1
    zero = "decode(repeat('00', 32), 'hex')" if is_postgres(stage.target) else "zeroblob(32)"
    await change(stage.target, f"UPDATE durable_journal SET shape = {zero} WHERE kind = '{kind}'")  # noqa: S608 - ours
    got.clear()
    async with stage.open() as hf:
        with pytest.raises((holdfast.ReplayDivergence, holdfast.IntegrityError)):
            await hf.run(program, id="e", on_divergence="raise")
    assert got == []


async def test_a_step_replaced_by_another_call_is_a_divergence(stage: Stage, shop: Shop) -> None:
    """DA-36."""
    await shop.die_after(stage, ("send", "a"))
    shop.become(("now", ""))
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence) as raised:
            await hf.run(shop.fn, id="e", on_divergence="raise")
    error = raised.value
    assert error.stored is not None
    assert error.asked is not None
    assert (error.stored.kind, error.asked.kind) == ("step", "now")
    assert "send" in error.report


async def test_a_last_step_removed_is_a_divergence_at_the_end(stage: Stage, shop: Shop) -> None:
    """DA-36."""
    await shop.die_after(stage, ("send", "a"), ("send", "b"))
    shop.become(("send", "a"))
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence) as raised:
            await hf.run(shop.fn, id="e", on_divergence="raise")
        found = await hf.get("e")
    assert (raised.value.position, raised.value.asked) == ("1", None)
    assert raised.value.stored is not None
    assert raised.value.stored.name == "send"
    assert found is not None
    assert found.status == "aborted"


async def test_a_call_removed_from_a_branch_is_a_divergence_there(stage: Stage) -> None:
    """DX-18."""
    numbers = [1, 2]

    @holdfast.step(effect=holdfast.at_least_once())
    async def take(number: int) -> int:
        return number

    async def part() -> list[int]:
        return [await take(number) for number in numbers]

    @holdfast.durable(kind="branching")
    async def program() -> list[list[int]]:
        done = await holdfast.gather(part(), part())
        await take(99)
        return list(done)

    await stage.die("outcome.acked", program, id="e", hit=5)
    numbers.pop()
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence) as raised:
            await hf.run(program, id="e", on_divergence="raise")
    assert (raised.value.position, raised.value.asked) == ("0.1", None)


async def test_a_program_that_raises_is_not_checked_for_its_tail(stage: Stage, shop: Shop) -> None:
    """DX-18."""
    await shop.die_after(stage, ("send", "a"), ("send", "b"))
    shop.become(("send", "a"), ("raise", "enough"))
    async with stage.open() as hf:
        with pytest.raises(holdfast.ExecutionFailed, match="enough"):
            await hf.run(shop.fn, id="e", on_divergence="raise")
        assert [record.event for record in await hf.audit("e")].count("early_failure") == 1
        found = await hf.get("e")
    assert found is not None
    assert found.status == "failed"


async def test_nothing_is_done_after_a_divergence_even_if_the_program_swallows_it(stage: Stage, shop: Shop) -> None:
    """DX-11."""
    changed = False

    @holdfast.durable(kind="stubborn")
    async def program() -> str:
        for what in ("b", "c") if changed else ("a", "x"):
            try:
                await shop.steps["send"](what)
            except holdfast.ReplayDivergence:
                continue
        return "done"

    await stage.die("outcome.acked", program, id="e", hit=1)
    changed = True
    async with stage.open() as hf:
        with pytest.raises(holdfast.ReplayDivergence):
            await hf.run(program, id="e", on_divergence="raise")
        found = await hf.get("e")
    assert found is not None
    assert (found.status, found.reason) == ("aborted", "divergence")
    assert stage.outside.lines() == ["send a"]


# --- the next generation ------------------------------------------------------------------------------


async def test_a_divergence_under_restart_opens_a_generation_that_records_completely(stage: Stage, shop: Shop) -> None:
    """DA-34."""
    await shop.die_after(stage, ("look", "a"), ("send", "b"), ("send", "c"))
    shop.become(("look", "a"), ("send", "x"), ("send", "c"))
    before = counter("divergences_total")
    async with stage.open() as hf:
        assert await hf.run(shop.fn, id="e") == ["looked at a", "sent x", "sent c"]
        assert counter("divergences_total") == before + 1
        left = await hf.history("e", generation=1)
        right = await hf.history("e", generation=2)
        differences = await hf.diff("e", 1, 2)
        audit = [record for record in await hf.audit("e") if record.event == "divergence"]
        timeline = await hf.timeline("e")
        assert (await hf.verify("e")).ok
    assert [(entry.position, entry.name) for entry in left] == [("0", "look"), ("1", "send"), ("2", "send")]
    assert [(entry.position, entry.name) for entry in right] == [("0", "look"), ("1", "send"), ("2", "send")]
    assert [difference.change for difference in differences] == ["same", "changed", "same"]
    assert differences[1].left != differences[1].right
    assert [record.position for record in audit] == ["1"]
    reports = await look(stage.target, "SELECT closed_as, report FROM durable_generations ORDER BY generation")
    assert reports[0][0] == "diverged"
    assert "send" in reports[0][1]
    assert reports[1][1] is None
    assert [event.generation for event in timeline if event.event == "generation"] == [2]
    # Idempotent ran again, the carried class only where its key is new.
    assert stage.outside.lines() == ["look a", "send b", "send c", "look a", "send x"]
    assert shop.outcomes == ["Live", "Live", "Replayed"]


async def test_carry_all_carries_idempotent_outcomes_too(stage: Stage, shop: Shop) -> None:
    await shop.die_after(stage, ("look", "a"), ("look", "b"))
    shop.become(("send", "x"), ("look", "a"), ("look", "b"))
    async with stage.open(carry="all") as hf:
        await hf.run(shop.fn, id="e")
        carried = [entry for entry in await hf.history("e", generation=2) if entry.carried_from is not None]
    assert [entry.position for entry in carried] == ["1", "2"]
    assert shop.outcomes == ["Live", "Replayed", "Replayed"]
    assert stage.outside.lines() == ["look a", "look b", "send x"]


async def test_a_committed_payment_is_carried_past_a_step_inserted_before_it(stage: Stage, shop: Shop) -> None:
    """DA-37."""
    await shop.die_after(stage, ("pay", "rent"))
    shop.become(("look", "first"), ("pay", "rent"))
    async with stage.open() as hf:
        assert await hf.run(shop.fn, id="e") == ["looked at first", "paid rent"]
        found = await hf.get("e")
        (old,) = [each for each in await hf.history("e", generation=1) if each.part == "outcome"]
        (new,) = [each for each in await hf.history("e", generation=2) if each.name == "pay"]
        assert (await hf.verify("e")).ok
    assert shop.outcomes == ["Live", "Replayed"]
    assert found is not None
    assert found.generation == 2
    assert (new.position, new.carried_from, new.key_prefix, new.attempt) == ("1", old.seq, old.key_prefix, 1)
    assert stage.outside.count("pay") == 1


async def test_what_was_carried_is_replayed_after_another_crash_and_carried_again(stage: Stage, shop: Shop) -> None:
    """DX-39."""
    await shop.die_after(stage, ("pay", "rent"))
    await shop.die_after(stage, ("look", "first"), ("pay", "rent"))
    await shop.die_after(stage, ("look", "first"), ("pay", "rent"))
    shop.become(("look", "second"), ("look", "first"), ("pay", "rent"))
    async with stage.open() as hf:
        assert (await hf.run(shop.fn, id="e"))[-1] == "paid rent"
        found = await hf.get("e")
        assert found is not None
        assert found.generation == 3
        assert (await hf.verify("e")).ok
    assert stage.outside.count("pay") == 1


async def test_a_failure_is_not_carried_and_its_attempts_count(stage: Stage, shop: Shop) -> None:
    """§6 row 4: only value, assumed and no_value are taken over."""
    attempts: list[int] = []

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        attempts.append(holdfast.current_step().attempt)
        if len(attempts) == 1:
            raise ValueError("declined")
        return "paid"

    changed = False

    @holdfast.durable(kind="failing")
    async def program() -> str:
        if changed:
            await shop.steps["look"]("x")
        try:
            return await pay()
        except holdfast.StepFailed:
            await shop.steps["look"]("y")
            return "gave up"

    await stage.die("step.positioned", program, id="e", hit=2)
    changed = True
    assert await stage.run(program, id="e") == "paid"
    assert attempts == [1, 2]


async def test_a_lost_result_is_carried_as_lost(stage: Stage, shop: Shop) -> None:
    """§6 row 4."""
    changed = False

    @holdfast.step(effect=holdfast.at_least_once())
    async def odd() -> object:
        stage.outside.happen("odd")
        return object()

    @holdfast.durable(kind="odd.shifted")
    async def program() -> str:
        if changed:
            await shop.steps["look"]("x")
        try:
            await odd()
        except holdfast.ResultUnserializable:
            await shop.steps["look"]("y")
            return "lost"
        return "?"

    await stage.die("step.positioned", program, id="e", hit=2)
    changed = True
    assert await stage.run(program, id="e") == "lost"
    assert stage.outside.count("odd") == 1


async def test_an_ambiguity_of_an_earlier_generation_is_still_one(stage: Stage, shop: Shop) -> None:
    """DX-39."""
    shop.become(("look", "a"), ("pay", "rent"))
    await stage.die("effect.returned", shop.fn, id="e", hit=2)
    shop.become(("look", "b"), ("pay", "rent"))
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision) as raised:
            await hf.run(shop.fn, id="e")
        assert raised.value.positions == ("1",)
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.generation, found.open_decisions) == ("needs_decision", 2, ("1",))
        await hf.decide("e", "1", holdfast.happened("by hand"), by="ann")
        assert await hf.run(shop.fn, id="e") == ["looked at b", "by hand"]
        assert (await hf.verify("e")).ok
    assert stage.outside.count("pay") == 1


async def test_too_many_generations_abort(stage: Stage, shop: Shop) -> None:
    """DX-38, `generations_max`."""
    await shop.die_after(stage, ("send", "0"))
    for number in range(1, 3):
        await shop.die_after(stage, ("send", str(number)))
    shop.become(("send", "last"))
    async with stage.open(generations_max=3) as hf:
        found = await hf.get("e")
        assert found is not None
        assert found.generation == 3
        with pytest.raises(holdfast.ReplayDivergence):
            await hf.run(shop.fn, id="e")
        found = await hf.get("e")
    assert found is not None
    assert (found.status, found.reason, found.generation) == ("aborted", "divergence", 3)


async def test_a_crash_while_a_generation_opens_leaves_the_old_or_the_new_one(stage: Stage, shop: Shop) -> None:
    await shop.die_after(stage, ("pay", "rent"), ("send", "a"))
    shop.become(("pay", "rent"), ("send", "b"))
    await stage.die("generation.opened", shop.fn, id="e")
    async with stage.open() as hf:
        found = await hf.get("e")
        assert found is not None
        assert found.generation == 2
        assert await hf.run(shop.fn, id="e") == ["paid rent", "sent b"]
        assert (await hf.verify("e")).ok
    assert stage.outside.lines() == ["pay rent", "send a", "send b"]


async def test_steps_in_flight_are_drained_before_the_next_generation(stage: Stage) -> None:
    """DX-38."""
    changed = False
    release = asyncio.Event()
    running = asyncio.Event()

    @holdfast.step(effect=holdfast.at_least_once())
    async def slow() -> str:
        stage.outside.happen("begin")
        running.set()
        await release.wait()
        stage.outside.happen("end")
        return "slow"

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(what: str) -> str:
        if changed:
            stage.outside.happen("send", what)
        return what

    async def wait() -> str:
        return await slow()

    async def quick() -> str:
        await send("first")
        if changed:
            await running.wait()
        return await send("b" if changed else "a")

    @holdfast.durable(kind="draining")
    async def program() -> list[str]:
        if not changed:
            return [await holdfast.branch().run(quick)]
        return list(await holdfast.gather(quick(), wait()))

    await stage.die("outcome.acked", program, id="e", hit=2)
    changed = True
    async with stage.open() as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(running.is_set)
        flight = hf.flights["e"]
        await until(lambda: flight.run is not None and flight.run.halted is not None)
        release.set()
        assert await task == ["b", "slow"]
        assert (await hf.verify("e")).ok
    assert stage.outside.lines().count("begin") == stage.outside.lines().count("end")


async def test_steps_that_do_not_end_in_time_are_left_behind(stage: Stage) -> None:
    """DX-38, `drain_ms`: the next generation does not wait for ever."""
    clock = ManualClock()
    changed = False
    begun = 0
    running = asyncio.Event()

    @holdfast.step(effect=holdfast.at_least_once())
    async def stuck() -> str:
        nonlocal begun
        begun += 1
        running.set()
        if begun == 1:
            await asyncio.Event().wait()
        return "stuck"

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(what: str) -> str:
        return what

    async def wait() -> str:
        return await stuck()

    async def quick() -> str:
        await send("first")
        if changed:
            await running.wait()
        return await send("b" if changed else "a")

    @holdfast.durable(kind="draining.stuck")
    async def program() -> list[str]:
        if not changed:
            return [await holdfast.branch().run(quick)]
        return list(await holdfast.gather(quick(), wait()))

    await stage.die("outcome.acked", program, id="e", hit=2, clock=clock)
    changed = True
    async with stage.open(clock=clock, drain_ms=5000) as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: begun)
        for _ in range(8):
            await clock.advance(timedelta(seconds=1))
            await until(task.done, 0.2, anyway=True)
        await until(task.done, anyway=True)
        ended = task.done()
        task.cancel()
        (value,) = await asyncio.gather(task, return_exceptions=True)
    assert ended
    assert value == ["b", "stuck"]
    assert begun == 2


# --- shifted effects ------------------------------------------------------------------------------------


async def shifted(stage: Stage, shop: Shop, hf: holdfast.Holdfast) -> None:
    with pytest.raises(holdfast.NeedsDecision) as raised:
        await hf.run(shop.fn, id="e")
    assert raised.value.positions == ("0",)
    rows = await look(stage.target, "SELECT generation, position, reason FROM durable_decisions")
    assert rows == [(2, "0", "shifted_effect")]
    (record,) = [record for record in await hf.audit("e") if record.event == "shifted_effect"]
    assert (record.position, record.effect) == ("0", "exactly_once")
    assert stage.outside.count("pay") == 1


async def test_a_payment_under_another_key_asks_and_happened_gives_the_old_value(stage: Stage, shop: Shop) -> None:
    """DA-38."""
    await shop.die_after(stage, ("pay", "rent"))
    shop.become(("pay", "rent 2"))
    async with stage.open() as hf:
        await shifted(stage, shop, hf)
        await hf.decide("e", "0", holdfast.happened("ignored, for the record has a value"), by="ann")
        assert await hf.run(shop.fn, id="e") == ["paid rent"]
        assert shop.outcomes == ["Assumed"]
        assert (await hf.verify("e")).ok
    assert stage.outside.count("pay") == 1


async def test_a_payment_under_another_key_runs_when_the_operator_says_it_is_new(stage: Stage, shop: Shop) -> None:
    """DX-40."""
    await shop.die_after(stage, ("pay", "rent"))
    shop.become(("pay", "rent 2"))
    async with stage.open() as hf:
        await shifted(stage, shop, hf)
        await hf.decide("e", "0", holdfast.not_happened(), by="ann")
        assert await hf.run(shop.fn, id="e") == ["paid rent 2"]
        assert "unclaimed_effects" in [record.event for record in await hf.audit("e")]
        assert (await hf.verify("e")).ok
    assert stage.outside.lines() == ["pay rent", "pay rent 2"]


async def test_a_shifted_effect_in_doubt_takes_the_operators_value(stage: Stage, shop: Shop) -> None:
    """DX-40: the value given counts when the record has none."""
    shop.become(("pay", "rent"))
    await stage.die("effect.returned", shop.fn, id="e")
    shop.become(("pay", "rent 2"))
    async with stage.open() as hf:
        await shifted(stage, shop, hf)
        await hf.decide("e", "0", holdfast.happened("seen on the account"), by="ann")
        assert await hf.run(shop.fn, id="e") == ["seen on the account"]
    assert stage.outside.count("pay") == 1


async def test_an_effect_asked_for_later_is_not_mistaken_for_a_shifted_one(stage: Stage, shop: Shop) -> None:
    """DX-40: asking happens at call time."""
    await shop.die_after(stage, ("pay", "a"), ("pay", "b"))

    calls = [("pay", "new"), ("pay", "a"), ("pay", "b")]

    @holdfast.durable(kind="shop.changing.parallel")
    async def together() -> list[str]:
        return list(await holdfast.gather(*(shop.steps[name](what) for name, what in calls)))

    shop.become(*calls)
    async with stage.open() as hf:
        # One after the other, `new` comes before anybody has asked for `a`: it looks like `a` in another place.
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(shop.fn, id="e")
        await hf.decide("e", "0", holdfast.not_happened(), by="ann")
        assert await hf.run(shop.fn, id="e") == ["paid new", "paid a", "paid b"]
    assert stage.outside.lines() == ["pay a", "pay b", "pay new"]


async def test_calls_made_together_have_all_been_asked_for(stage: Stage, shop: Shop) -> None:
    """DX-40, DX-13: keys are taken when the call is evaluated, so order of awaiting does not matter."""
    whats = ["a", "b"]

    @holdfast.durable(kind="shop.together")
    async def together() -> list[str]:
        done = await holdfast.gather(*(shop.steps["pay"](what) for what in whats))
        await shop.steps["look"]("end")
        return list(done)

    await stage.die("outcome.acked", together, id="e", hit=3)
    whats[:] = ["new", "a", "b"]
    assert await stage.run(together, id="e") == ["paid new", "paid a", "paid b"]
    assert sorted(stage.outside.lines()) == sorted(["pay a", "pay b", "look end", "pay new", "look end"])


async def test_a_cost_bearing_effect_under_another_key_runs_and_is_audited(stage: Stage, shop: Shop) -> None:
    """DX-40."""
    await shop.die_after(stage, ("buy", "answer"))
    shop.become(("buy", "another answer"))
    async with stage.open() as hf:
        assert await hf.run(shop.fn, id="e") == ["bought another answer"]
        assert [record.event for record in await hf.audit("e")].count("shifted_effect") == 1
    assert stage.outside.count("buy") == 2


async def test_shifted_effects_run_when_the_configuration_says_so(
    stage: Stage, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """DX-40, `shifted_effect="run"`: runs, with a warning and an audit record."""
    await shop.die_after(stage, ("pay", "rent"))
    shop.become(("pay", "rent 2"))
    async with stage.open(shifted_effect="run") as hf:
        assert await hf.run(shop.fn, id="e") == ["paid rent 2"]
        events = [record.event for record in await hf.audit("e")]
    assert events.count("shifted_effect") == 1
    assert any(
        record.levelno == logging.WARNING and "shifted_effect" in record.getMessage() for record in caplog.records
    )
    assert stage.outside.count("pay") == 2


async def test_effects_nobody_asked_for_again_are_audited_at_the_end(stage: Stage, shop: Shop) -> None:
    """DX-40."""
    await shop.die_after(stage, ("pay", "rent"))
    shop.become(("look", "elsewhere"))
    async with stage.open() as hf:
        await hf.run(shop.fn, id="e")
        (record,) = [record for record in await hf.audit("e") if record.event == "unclaimed_effects"]
    assert record.effect == "exactly_once"
    assert record.detail is not None
    assert record.detail["name"] == "pay"


# --- what may change ------------------------------------------------------------------------------------


async def test_policy_kind_retry_and_version_may_change(stage: Stage) -> None:
    """DX-21."""
    effects = [
        holdfast.exactly_once("money", on_ambiguous=holdfast.fail()),
        holdfast.exactly_once("destructive", on_ambiguous=holdfast.rerun()),
    ]
    fns = []
    for effect, retry in zip(effects, (holdfast.Retry(), holdfast.Retry(max_attempts=5)), strict=True):

        @holdfast.step(effect=effect, retry=retry, name="act")
        async def act() -> str:
            stage.outside.happen("act")
            return "done"

        fns.append(act)

    @holdfast.step(effect=holdfast.idempotent())
    async def end() -> None:
        return None

    @holdfast.durable(kind="advisory")
    async def program() -> str:
        value = await fns[0]()
        await end()
        return value

    await stage.die("outcome.acked", program, id="e", hit=2, code_version="1")
    fns.pop(0)
    async with stage.open(code_version="2") as hf:
        assert await hf.run(program, id="e", on_divergence="raise") == "done"
        found = await hf.get("e")
        changes = [record for record in await hf.audit("e") if record.event == "advisory_change"]
    assert found is not None
    assert (found.status, found.generation, found.code_version) == ("completed", 1, "2")
    assert [record.detail for record in changes] == [
        {"was": "1", "is": "2"},
        {"was": ["money", "fail"], "is": ["destructive", "rerun"]},
    ]
    assert stage.outside.count("act") == 1


async def test_a_version_of_a_step_is_part_of_its_identity(stage: Stage) -> None:
    """DX-23."""
    seen: list[bytes] = []

    def make(version: str | None) -> Any:
        @holdfast.step(effect=holdfast.idempotent(), name="act", version=version)
        async def act() -> None:
            seen.append(holdfast.current_step().idempotency_key)

        return act

    async with stage.open() as hf, hf.execution("e", kind="k"):
        await make(None)()
        await make("1")()
        await make("2")()
    assert len(set(seen)) == 3


# --- chapters -------------------------------------------------------------------------------------------


async def test_three_chapters_charge_three_times_and_give_the_last_output(stage: Stage) -> None:
    """DA-39."""
    keys: list[str] = []

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def charge(what: str) -> str:
        stage.outside.happen("charge")
        keys.append(holdfast.current_step().idempotency_key.hex())
        return what

    @holdfast.durable(kind="chapters")
    async def program(number: int = 1) -> str:
        context = holdfast.current()
        assert context is not None
        assert context.chapter == number - 1
        await charge("rent")
        if number < 3:
            holdfast.continue_as_new(number + 1)
        return f"chapter {number}"

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "chapter 3"
        found = await hf.get("e")
        assert found is not None
        assert (found.generation, found.chapter, found.status) == (3, 2, "completed")
        assert [[entry.position for entry in await hf.history("e", generation=n)] for n in (1, 2, 3)] == [
            ["0", "0"]
        ] * 3
        # What is compared is the first input.
        assert await hf.run(program, id="e") == "chapter 3"
        with pytest.raises(holdfast.ExecutionConflict):
            await hf.run(program, 3, id="e")
        assert (await hf.verify("e")).ok
    assert len(set(keys)) == 3
    assert stage.outside.count("charge") == 3


@pytest.mark.parametrize("point", ["generation.opened", "outcome.acked"])
async def test_a_chapter_that_was_begun_goes_on_with_its_own_input_after_a_crash(stage: Stage, point: str) -> None:
    """DX-41."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        stage.outside.happen("work", number)
        return number

    @holdfast.durable(kind="chapters.crash")
    async def program(number: int, *, note: str = "") -> list[Any]:
        done = await work(number)
        if number < 12:
            holdfast.continue_as_new(number + 1, note=f"{note}.")
        return [done, note]

    await stage.die(point, program, 10, id="e", hit=1 if point == "generation.opened" else 2)
    assert await stage.run(program, 10, id="e") == [12, ".."]
    assert stage.outside.lines() == ["work 10", "work 11", "work 12"]


async def test_pipelined_outcomes_are_durable_before_the_next_chapter(stage: Stage) -> None:
    """DX-41."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        stage.outside.happen("work", number)
        return number

    @holdfast.durable(kind="chapters.pipelined")
    async def program(number: int) -> int:
        for each in range(3):
            await work(number * 10 + each)
        if number < 2:
            holdfast.continue_as_new(number + 1)
        return number

    await stage.die("generation.opened", program, 1, id="e", ack="pipelined")
    async with stage.open() as hf:
        assert len(await hf.history("e", generation=1)) == 3
        assert await hf.run(program, 1, id="e") == 2
    assert len(stage.outside.lines()) == 6


async def test_a_divergence_stays_within_its_chapter(stage: Stage, shop: Shop) -> None:
    """DX-41: earlier chapters' effects are not carried, nor mistaken for shifted ones."""
    what = "a"

    @holdfast.durable(kind="chapters.diverging")
    async def program(number: int) -> str:
        await shop.steps["pay"]("rent")
        if number == 1:
            holdfast.continue_as_new(2)
        await shop.steps["send"](what)
        await shop.steps["look"]("end")
        return await shop.steps["send"]("z")

    await stage.die("step.positioned", program, 1, id="e", hit=5)
    what = "b"
    async with stage.open() as hf:
        assert await hf.run(program, 1, id="e") == "sent z"
        found = await hf.get("e")
        assert found is not None
        assert (found.generation, found.chapter) == (3, 1)
    assert stage.outside.count("pay") == 2


# --- patches ------------------------------------------------------------------------------------------


async def test_patched_lets_old_executions_pass_and_marks_new_ones(stage: Stage, shop: Shop) -> None:
    """DA-40."""
    new = False

    @holdfast.durable(kind="patching")
    async def program() -> list[str]:
        values = [await shop.steps["send"]("a")]
        if new and await holdfast.patched("x"):
            values.append(await shop.steps["send"]("extra"))
        values.append(await shop.steps["send"]("b"))
        await shop.steps["look"]("end")
        return values

    await stage.die("step.positioned", program, id="old", hit=3)
    new = True
    async with stage.open() as hf:
        assert await hf.run(program, id="old", on_divergence="raise") == ["sent a", "sent b"]
        assert await hf.run(program, id="new", on_divergence="raise") == ["sent a", "sent extra", "sent b"]
        for id in ("old", "new"):
            found = await hf.get(id)
            assert found is not None
            assert (found.status, found.generation) == ("completed", 1)
            assert (await hf.verify(id)).ok


@pytest.mark.parametrize("ran_ahead", [True, False])
async def test_the_answer_of_patched_does_not_change_within_a_generation(
    stage: Stage, shop: Shop, *, ran_ahead: bool
) -> None:
    """DX-20: recorded under the name, whatever else is recorded by then."""
    answers: list[bool] = []
    new = not ran_ahead

    @holdfast.durable(kind="patching.twice")
    async def program() -> None:
        await shop.steps["send"]("a")
        if new:
            answers.append(await holdfast.patched("x"))
        await shop.steps["send"]("b")
        if new:
            answers.append(await holdfast.patched("x"))
        await shop.steps["look"]("end")
        await shop.steps["look"]("end of the end")

    await stage.die("step.positioned", program, id="e", hit=3)
    new = True
    if ran_ahead:
        # Two more positions than at the time of the first crash: the answer was recorded in between.
        await stage.die("outcome.acked", program, id="e", hit=1)
    await stage.run(program, id="e")
    assert set(answers) == {not ran_ahead}


async def test_patched_is_asked_in_each_branch(stage: Stage, shop: Shop) -> None:
    """DX-20: the scope decides."""
    new = False
    answers: dict[str, bool] = {}

    async def part(name: str) -> str:
        value: str = await shop.steps["send"](name)
        if new:
            answers[name] = await holdfast.patched("x")
        return value

    @holdfast.durable(kind="patching.branches")
    async def program() -> list[str]:
        done = list(await holdfast.gather(part("a"), part("b"))) if not new else None
        if done is None:
            done = list(await holdfast.gather(part("a"), part("b")))
            done.append(await holdfast.branch("late").run(part, "c"))
        await shop.steps["look"]("end")
        return done

    async with stage.open() as hf:
        new = True
        await hf.run(program, id="e")
    assert answers == {"a": True, "b": True, "c": True}
