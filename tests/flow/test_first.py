"""`first`: who came first is recorded, and the others are left in good order."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import until
from tests.stage import Stage

import holdfast
from holdfast.testing import ManualClock

MONEY = holdfast.exactly_once("money", on_ambiguous=holdfast.fail())


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Race:
    """Steps that end when the test says so, and count what they do."""

    def __init__(self, stage: Stage) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.begun: set[str] = set()
        outside = stage.outside

        async def run(what: str) -> str:
            outside.happen("begin", what)
            self.begun.add(what)
            try:
                if what in self.gates:
                    await self.gates[what].wait()
            except asyncio.CancelledError:
                outside.happen("cancelled", what)
                raise
            if what.startswith("bad"):
                raise ValueError(what)
            outside.happen("end", what)
            return what

        self.send = holdfast.step(effect=holdfast.at_least_once(), name="send")(run)
        self.pay = holdfast.step(effect=MONEY, name="pay")(run)

    def hold(self, *whats: str) -> None:
        self.gates = {what: asyncio.Event() for what in whats}


@pytest.fixture
def race(stage: Stage) -> Race:
    return Race(stage)


async def test_the_winner_is_recorded_and_replayed_without_the_others(stage: Stage, race: Race) -> None:
    """DX-19."""

    @holdfast.durable(kind="first.recorded")
    async def program() -> tuple[int, str]:
        winner = await holdfast.first(race.send("slow"), race.send("quick"))
        await race.send("after")
        await race.send("the end")
        return winner

    race.hold("slow")
    await stage.die("outcome.acked", program, id="e", hit=2)
    assert stage.outside.lines() == [
        "begin slow",
        "begin quick",
        "end quick",
        "cancelled slow",
        "begin after",
        "end after",
    ]
    race.hold("quick")
    assert await stage.run(program, id="e") == (1, "quick")
    assert stage.outside.lines()[6:] == ["begin the end", "end the end"]


async def test_a_tie_goes_to_the_lowest_index(stage: Stage) -> None:
    """DX-19."""

    async def at_once(value: int) -> int:
        return value

    async def program() -> tuple[int, int]:
        return await holdfast.first(at_once(10), at_once(11), at_once(12))

    async with stage.open() as hf, hf.execution("e", kind="k"):
        assert await program() == (0, 10)


async def test_a_winners_error_is_raised_live_and_on_replay(stage: Stage, race: Race) -> None:
    """DX-19."""

    @holdfast.durable(kind="first.failing")
    async def program() -> str:
        try:
            await holdfast.first(race.send("slow"), race.send("bad"))
        except holdfast.StepFailed as error:
            await race.send("after")
            await race.send("the end")
            return f"{error.position} {error.error_message}"
        return "?"

    race.hold("slow")
    await stage.die("outcome.acked", program, id="e", hit=2)
    assert await stage.run(program, id="e") == "1 bad"
    assert stage.outside.count("begin", "bad") == 1
    assert stage.outside.count("begin", "slow") == 1


async def test_a_losing_guarded_effect_ends_before_anything_goes_on(stage: Stage, race: Race) -> None:
    """DX-19: losing branches are cancelled once their exactly_once effects in flight have ended."""

    async def buyer() -> str:
        await race.pay("rent")
        return str(await race.pay("more"))

    async def quick() -> str:
        await until(lambda: "rent" in race.begun)
        return "quick"

    @holdfast.durable(kind="first.guarded")
    async def program() -> tuple[int, str]:
        winner = await holdfast.first(buyer(), quick())
        stage.outside.happen("decided")
        return winner

    race.hold("rent")
    async with stage.open() as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until(lambda: "rent" in race.begun)
        await until(task.done, 0.1, anyway=True)
        assert not task.done()
        race.gates["rent"].set()
        assert await asyncio.wait_for(task, 5) == (1, "quick")
        payments = [entry for entry in await hf.history("e") if entry.name == "pay"]
        assert [(entry.part, entry.outcome) for entry in payments] == [("opened", None), ("outcome", "value")]
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["begin rent", "end rent", "decided"]


async def test_a_loser_that_waits_for_a_retry_is_abandoned(stage: Stage) -> None:
    """DX-19: losing waits are abandoned."""
    clock = ManualClock()
    hour = holdfast.Retry(max_attempts=5, initial=timedelta(hours=1), maximum=timedelta(hours=1))

    @holdfast.step(effect=MONEY, retry=hour)
    async def failing() -> str:
        stage.outside.happen("try")
        raise ValueError

    async def quick() -> str:
        await until(lambda: stage.outside.count("try"))
        return "quick"

    @holdfast.durable(kind="first.retrying")
    async def program() -> tuple[int, str]:
        return await holdfast.first(failing(), quick())

    async with stage.open(clock=clock) as hf:
        assert await asyncio.wait_for(hf.run(program, id="e"), 5) == (1, "quick")
        found = await hf.get("e")
        assert found is not None
        assert found.status == "completed"
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["try"]


@pytest.mark.parametrize("loser", ["now", "uuid", "patched", "random"])
async def test_a_recorded_value_may_lose_without_harm(stage: Stage, race: Race, loser: str) -> None:
    """DX-19: only what belongs to a loser is stopped."""
    calls = {
        "now": holdfast.now, "uuid": holdfast.uuid, "random": holdfast.random, "patched": lambda: holdfast.patched("x"),
    }  # fmt: skip

    async def at_once() -> str:
        return "at once"

    async with stage.open() as hf:
        async with hf.execution("e", kind="k"):
            await holdfast.first(at_once(), calls[loser]())
            await holdfast.first(calls[loser](), at_once())
            assert await race.pay("afterwards") == "afterwards"
        found = await hf.get("e")
        assert found is not None
        assert found.status == "completed"
    assert stage.outside.lines() == ["begin afterwards", "end afterwards"]


async def test_losers_are_no_divergence_on_replay(stage: Stage, race: Race) -> None:
    """DX-18: branches that were cancelled are not tail-checked."""

    async def long(name: str) -> str:
        for number in range(3):
            await race.send(f"{name} {number}")
        return name

    @holdfast.durable(kind="first.tail")
    async def program() -> list[Any]:
        first = await holdfast.first(long("a"), long("b"))
        second = await holdfast.first(race.send("c"), long("d"))
        await race.send("after")
        await race.send("the end")
        return [len(first[1]), len(second[1])]

    race.hold("b 2", "d 1")
    await stage.die("finish.queued", program, id="e")
    async with stage.open() as hf:
        assert await hf.run(program, id="e", on_divergence="raise") == [1, 1]
        assert (await hf.verify()).ok


async def test_first_of_one_and_of_none(stage: Stage, race: Race) -> None:
    async with stage.open() as hf, hf.execution("e", kind="k"):
        assert await holdfast.first(race.send("only")) == (0, "only")
        with pytest.raises((holdfast.ConfigError, ValueError)):
            await holdfast.first()


async def test_a_cancelled_call_does_not_disturb_the_replay_of_others(stage: Stage, race: Race) -> None:
    """DX-50: a segment being read belongs to nobody who may be cancelled."""

    async def walk(name: str, length: int) -> str:
        for number in range(length):
            await race.send(f"{name} {number}")
        return name

    @holdfast.durable(kind="first.replaying")
    async def program() -> list[Any]:
        winners = [await holdfast.first(walk(f"{n} short", 3), walk(f"{n} long", 9)) for n in range(6)]
        done = await holdfast.gather(*(walk(f"last {each}", 8) for each in range(3)))
        await race.send("end")
        await race.send("the end")
        return [*(winner for _, winner in winners), *done]

    async with stage.open(ack="pipelined") as hf:
        expected = await hf.run(program, id="whole")
    for point, hit in (("outcome.acked", 20), ("outcome.acked", 50), ("finish.queued", 1)):
        id = f"cut at {point} {hit}"
        await stage.die(point, program, id=id, hit=hit)
        for _ in range(3):
            assert await stage.run(program, id=id, segment_rows=2) == expected
