"""Positions: what takes one, in which order, who may ask, and which keys follow from it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.flow.programs import run
from tests.stage import Stage, drop_everything, turns

import holdfast
from holdfast.testing import Crashed, ManualClock

NAMESPACE = bytes(range(16))


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


named = pytest.mark.parametrize("ledger", ["sqlite-file", "postgres-empty"], indirect=True)
"""For tests that give a ledger the namespace it is made with."""


# --- keys ---------------------------------------------------------------------------------------------


async def rows(hf: holdfast.Holdfast, id: str) -> list[Any]:
    """The journal of an execution as it is stored."""
    async with hf.database.read() as tx:
        found = await tx.one("executions.get", id=id)
        assert found is not None
        return await tx.all("journal.list", execution_pk=found.pk, generation=None, after=0, most=500)


@named
async def test_uids_shapes_keys_and_arguments_have_their_published_values(stage: Stage) -> None:
    """DA-4: the vectors of §5 that a program can show."""
    keys: dict[str, str] = {}

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()), fingerprint=b"order-1")
    async def charge(what: str) -> None:
        keys[what] = holdfast.current_step().idempotency_key.hex()

    @holdfast.durable(kind="positions.agent_turn")
    async def program(prompt: str) -> None:
        context = holdfast.current()
        assert context is not None
        if context.chapter:
            await charge("chapter 1")
            return
        await charge("root")
        async with holdfast.branch("fetch"):
            await charge("branch, occurrence 0")
            await charge("branch, occurrence 1")
        holdfast.continue_as_new(prompt)

    async with holdfast.open(stage.target, namespace=NAMESPACE) as hf:
        await hf.run(program, "buy milk", id="turn-42")
        found = await hf.get("turn-42")
        assert found is not None
        assert UUID(found.uid).hex == "eddf22b39eed8031987e15df6c626718"
        journal = await rows(hf, "turn-42")
        async with hf.database.read() as tx:
            row = await tx.one("executions.get", id="turn-42")
    assert row is not None
    assert row.input_hash.hex() == "68c5e39104d4705a05ba328d77d45a33c2800cf09f70613bc3d0431bb8c1458b"
    charges = [each for each in journal if each.name == "charge"]
    assert {each.shape.hex() for each in charges} == {
        "b2139a830f89744b890c93d4c04f1aa5e3e390e077250fee3579c70e6aed21ce"
    }
    assert keys["root"] == "93e1b26a24c30fe7d52d78f50be68214a58247a3225eb55faeda0c0202309256"
    assert keys["branch, occurrence 1"] == "3549972849debfa705a33b5fba38315fdb7d4c1d792fd7c0cf8e372657a67e74"
    assert keys["chapter 1"] == "5b5cd890723ad7e40757f2d0e17517e6758ccedf4c8493e4fcfcd7b2a6d5f8e0"
    assert {each.key.hex() for each in charges} == set(keys.values())
    assert len(keys) == len(set(keys.values())) == 4


@named
def test_keys_shapes_and_positions_depend_on_the_program_alone(stage: Stage) -> None:
    """DA-4: two processes with different hash seeds, on different ledgers, in different order of completion."""
    other = stage.folder / "another.db"
    one = run("identify", stage.target, "1", PYTHONHASHSEED="1")
    two = run("identify", other, "2", PYTHONHASHSEED="4242")
    assert one == two
    assert len(one) > 12


async def test_equal_calls_differ_by_occurrence_and_by_nothing_else(stage: Stage) -> None:
    """DX-22."""
    seen: dict[str, bytes] = {}

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(to: str) -> None:
        step = holdfast.current_step()
        seen[step.position] = step.idempotency_key

    @holdfast.durable(kind="positions.sends")
    async def one() -> None:
        await send("ann")
        await send("ann")
        await send("bob")

    @holdfast.durable(kind="positions.sends.shuffled")
    async def two() -> None:
        await send("bob")
        await send("ann")
        await holdfast.now()
        await send("ann")

    async with stage.open() as hf:
        await hf.run(one, id="one")
        first = dict(seen)
        seen.clear()
        await hf.run(one, id="other")
        assert not set(first.values()) & set(seen.values())
    async with holdfast.open(stage.folder / "two.db", namespace=hf.database.namespace) as hf:
        seen.clear()
        await hf.run(two, id="one")
    assert len(set(first.values())) == 3
    assert [seen["0"], seen["1"], seen["3"]] == [first["2"], first["0"], first["1"]]


async def test_a_fingerprint_says_what_makes_two_calls_different_effects(stage: Stage) -> None:
    """DX-23."""

    class Client:
        @holdfast.step(effect=holdfast.idempotent())
        async def method(self, order: int) -> bytes:
            return holdfast.current_step().idempotency_key

    def made(**options: Any) -> Callable[..., Awaitable[bytes]]:
        @holdfast.step(effect=holdfast.idempotent(), name="s", **options)
        async def call(order: int, note: Any = None) -> bytes:
            return holdfast.current_step().idempotency_key

        return call

    async def keyed(*calls: Awaitable[bytes]) -> list[bytes]:
        return [await call for call in calls]

    @holdfast.durable(kind="positions.fingerprints")
    async def program() -> None:
        plain, by_order, fixed, none = (
            made(),
            made(fingerprint=("order",)),
            made(fingerprint=b"x"),
            made(fingerprint=None),
        )
        by_call = made(fingerprint=lambda order, note=None: str(order).encode())
        versioned = made(version="2")
        found = []
        for step in (plain, by_order, fixed, none, by_call, versioned):
            async with holdfast.branch("same"):
                found.append(await keyed(step(1), step(order=1), step(1, note="n"), step(2)))
        assert len({key for four in found for key in four}) == 24, "branches of one label differ by occurrence"
        with pytest.raises(holdfast.FingerprintError) as raised:
            await plain(1, note=object())
        assert (raised.value.step, raised.value.argument) == ("s", "note")
        await by_order(1, note=object())
        await Client().method(1)

    @holdfast.durable(kind="positions.shapes")
    async def shapes() -> None:
        for step in (made(), made(fingerprint=("order",)), made(version="2")):
            await keyed(step(1), step(1, note="n"), step(2))

    async with stage.open() as hf:
        await hf.run(program, id="e")
        await hf.run(shapes, id="f")
        shape = [row.shape for row in await rows(hf, "f")]
    assert len(set(shape[0:3])) == 3
    assert shape[3] == shape[4] != shape[5]
    assert shape[6] not in shape[:6]


# --- side by side --------------------------------------------------------------------------------------


async def test_steps_of_a_parallel_block_are_numbered_as_they_are_written(stage: Stage) -> None:
    """DA-9."""
    positions: dict[str, str] = {}
    ended: list[str] = []

    async def program(ctx: holdfast.Context) -> list[str]:
        gates = {name: asyncio.Event() for name in "abc"}

        async def op(handle: holdfast.StepHandle) -> str:
            if handle.name == "a":
                gates["b"].set()
            else:
                await gates[handle.name].wait()
            if handle.name == "b":
                gates["c"].set()
            positions[handle.name] = handle.position
            if handle.name == "a":
                while len(ended) < 2:
                    await turns()
            ended.append(handle.name)
            return handle.name * 2

        async with ctx.parallel() as p:
            results = [p.step(holdfast.StepDescriptor(name, holdfast.at_least_once()), op) for name in "abc"]
        return [await each for each in results]

    async def life() -> None:
        async with stage.open() as hf, hf.execution("e", kind="k") as ctx:
            assert await program(ctx) == ["aa", "bb", "cc"]
            drop_everything()
            await ctx.now()

    with pytest.raises(Crashed):
        await life()
    assert positions == {"a": "0.0", "b": "0.1", "c": "0.2"}
    assert ended == ["b", "c", "a"]
    async with stage.open() as hf, hf.execution("e", kind="k") as ctx:
        assert await program(ctx) == ["aa", "bb", "cc"]
        found = sorted((entry.position, entry.kind) for entry in await hf.history("e"))
    assert ended == ["b", "c", "a"]
    assert found == [("0", "parallel"), ("0.0", "step"), ("0.1", "step"), ("0.2", "step")]


async def test_sixteen_steps_under_gather_replay_each_to_its_own_call(stage: Stage) -> None:
    """DA-10."""
    rng = random.Random(16)  # noqa: S311 - an order, no secret
    delays = [rng.randrange(40) for _ in range(16)]

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        await turns(delays[number])
        stage.outside.happen("work", number)
        return number * 10

    @holdfast.durable(kind="positions.many")
    async def program() -> list[int]:
        found = await asyncio.gather(*(work(number) for number in range(16)))
        await last()
        return found

    @holdfast.step(effect=holdfast.at_least_once())
    async def last() -> None:
        stage.outside.happen("last")

    await stage.die("step.positioned", program, id="e", hit=17)
    order = [int(line.split()[1]) for line in stage.outside.lines()]
    assert sorted(order) == list(range(16)) != order
    async with stage.open() as hf:
        entries = await hf.history("e")
        assert sorted(int(entry.position) for entry in entries) == list(range(16))
        assert {entry.part for entry in entries} == {"outcome"}
        assert await hf.run(program, id="e") == [number * 10 for number in range(16)]
    assert len(stage.outside.lines()) == 17


async def test_helpers_that_call_steps_need_a_branch_each(stage: Stage) -> None:
    """DA-11."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        stage.outside.happen("work", number)
        return number

    async def helper(number: int) -> int:
        return await work(number) + await work(number + 1)

    @holdfast.durable(kind="positions.foreign")
    async def foreign() -> str:
        try:
            await asyncio.gather(helper(1), helper(10))
        except holdfast.ForeignTask as error:
            return f"{error} {error.hint}"
        return "?"

    @holdfast.durable(kind="positions.branches")
    async def branches() -> list[int]:
        found = await holdfast.gather(helper(1), helper(10))
        await work(0)
        return list(found)

    async with stage.open() as hf:
        told = await hf.run(foreign, id="f")
        assert "work" in told
        assert "holdfast.gather" in told
        assert await hf.history("f") == []
    assert stage.outside.lines() == []
    await stage.die("outcome.acked", branches, id="e", hit=5)
    assert stage.outside.count("work") == 5
    async with stage.open() as hf:
        assert await hf.run(branches, id="e") == [3, 21]
        found = sorted((entry.position, entry.name) for entry in await hf.history("e"))
    assert found == [("0", "branch"), ("0.0", "work"), ("0.1", "work"), ("1", "branch"), ("1.0", "work"),
                     ("1.1", "work"), ("2", "work")]  # fmt: skip
    assert stage.outside.count("work") == 5


async def test_a_call_may_be_awaited_elsewhere_but_not_made_there(stage: Stage) -> None:
    """DX-15: `asyncio.wait_for` makes a task of its own on Python 3.11."""

    @holdfast.step(effect=holdfast.idempotent())
    async def work(number: int) -> int:
        return number

    async def helper() -> int:
        return await work(2)

    @holdfast.durable(kind="positions.elsewhere")
    async def program() -> list[Any]:
        found: list[Any] = [await asyncio.wait_for(work(1), 60)]
        try:
            found.append(await asyncio.get_running_loop().create_task(helper()))
        except holdfast.ForeignTask as error:
            found.append("asyncio.timeout" in error.hint)
        async with asyncio.timeout(60):
            return [*found, await helper()]

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == [1, True, 2]
        assert [entry.position for entry in await hf.history("e")] == ["0", "1"]


async def test_gather_settles_all_and_raises_the_error_of_the_lowest_index(stage: Stage) -> None:
    """DX-14."""

    @holdfast.step(effect=holdfast.idempotent(), raises=(ValueError,))
    async def work(number: int, pause: int) -> int:
        await turns(pause)
        stage.outside.happen("work", number)
        if number % 2:
            raise ValueError(number)
        return number

    @holdfast.durable(kind="positions.errors")
    async def program() -> list[str]:
        with pytest.raises(ValueError, match="1"):
            await holdfast.gather(work(0, 9), work(1, 6), work(2, 3), work(3, 0))
        found = await holdfast.gather(work(0, 0), work(1, 0), return_exceptions=True)
        return [repr(each) for each in found]

    assert await stage.run(program, id="e") == ["0", "ValueError(1)"]
    assert sorted(stage.outside.lines()[:4]) == [f"work {n}" for n in range(4)]
    assert await stage.run(program, id="e") == ["0", "ValueError(1)"]


async def test_gather_opens_branches_only_for_what_is_no_durable_call(stage: Stage) -> None:
    """DX-14: a branch and a race have their position already."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        return number

    async def helper(number: int) -> int:
        return await work(number)

    async def calls_nothing() -> int:
        return 6

    @holdfast.durable(kind="positions.durable.arguments")
    async def program() -> list[Any]:
        found = await holdfast.gather(
            holdfast.branch("a").run(helper, 1), holdfast.first(work(2), work(3)), holdfast.random(), work(4),
            helper(5), calls_nothing(),
        )  # fmt: skip
        return [found[0], list(found[1]), found[3:]]

    await stage.die("finish.queued", program, id="e")
    async with stage.open() as hf:
        assert await hf.run(program, id="e") == [1, [0, 2], [4, 5, 6]]
        found = {(entry.position, entry.kind, entry.name) for entry in await hf.history("e")}
    assert sorted(found) == [
        ("0", "branch", "a"), ("0.0", "step", "work"), ("1", "step", "work"), ("2", "step", "work"), ("3", "first", ""),
        ("4", "random", ""), ("5", "step", "work"), ("6", "branch", "branch"), ("6.0", "step", "work"),
        ("7", "branch", "branch"),
    ]  # fmt: skip


async def test_a_task_group_takes_durable_calls(stage: Stage) -> None:
    """DX-13."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        await turns(10 - number)
        stage.outside.happen("work")
        return number

    @holdfast.durable(kind="positions.group")
    async def program() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(number)) for number in range(5)]
        return [task.result() for task in tasks]

    await stage.die("finish.queued", program, id="e")
    assert await stage.run(program, id="e") == list(range(5))
    assert stage.outside.count("work") == 5


async def test_a_parallel_block_reports_the_errors_nobody_awaited(stage: Stage) -> None:
    """§22: the exit awaits all, cancels none, raises an ExceptionGroup of errors nobody awaited."""

    async def op(handle: holdfast.StepHandle) -> int:
        await turns(3)
        stage.outside.happen(handle.name)
        if handle.name != "good":
            raise LookupError(handle.name)
        return 1

    def described(name: str) -> holdfast.StepDescriptor:
        return holdfast.StepDescriptor(name, holdfast.at_least_once(), raises=(LookupError,))

    async def block(ctx: holdfast.Context) -> None:
        async with ctx.parallel("block") as p:
            looked_at = p.step(described("seen"), op)
            p.step(described("bad"), op)
            good = p.step(described("good"), op)
            assert await good == 1
            with pytest.raises(LookupError, match="seen"):
                await looked_at

    for _ in range(2):
        async with stage.open() as hf, hf.execution("e", kind="k") as ctx:
            with pytest.raises(ExceptionGroup) as raised:
                await block(ctx)
            assert [str(error) for error in raised.value.exceptions] == ["bad"]
    assert sorted(stage.outside.lines()) == ["bad", "good", "seen"]


async def test_a_failed_call_keeps_its_index_and_one_never_awaited_leaves_a_gap(stage: Stage) -> None:
    """DX-13."""

    @holdfast.step(effect=holdfast.at_least_once(), raises=(LookupError,))
    async def work(number: int) -> int:
        if number == 0:
            raise LookupError
        return number

    @holdfast.durable(kind="positions.gaps")
    async def program() -> int:
        with pytest.raises(LookupError):
            await work(0)
        left = work(1)
        left.close()
        found = await work(2)
        await work(3)
        return found

    await stage.die("step.positioned", program, id="e", hit=4)
    async with stage.open() as hf:
        assert await hf.run(program, id="e") == 2
        assert [entry.position for entry in await hf.history("e")] == ["0", "2", "3"]
        found = await hf.get("e")
    assert found is not None
    assert (found.status, found.generation, found.positions_count) == ("completed", 1, 3)


async def test_the_contender_that_settled_first_wins_on_every_replay(stage: Stage) -> None:
    """DX-19."""
    slow = "a"

    @holdfast.step(effect=holdfast.at_least_once())
    async def race(name: str) -> str:
        await turns(30 if name == slow else 1)
        stage.outside.happen("race", name)
        return name

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay(name: str) -> str:
        await turns(20)
        stage.outside.happen("paid", name)
        return name

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun()))
    async def end() -> None:
        pass

    async def both(name: str) -> str:
        return await race(name) + await race(name + name)

    @holdfast.durable(kind="positions.races")
    async def program() -> list[Any]:
        found = [
            await holdfast.first(race("a"), race("b")),
            await holdfast.first(race("c"), race("c")),
            await holdfast.first(both("a"), both("b")),
            await holdfast.first(pay("ann"), race("b")),
        ]
        await end()
        return [list(each) for each in found]

    expected = [[1, "b"], [0, "c"], [1, "bbb"], [1, "b"]]
    assert await stage.run(program, id="first") == expected
    await stage.die("intent.acked", program, id="e", hit=2)  # the first is the payment's
    assert stage.outside.count("paid") == 2, "an exactly_once effect in flight is not cancelled"
    slow = "b"
    assert await stage.run(program, id="e") == expected
    async with stage.open() as hf:
        assert (await hf.verify()).ok
    assert stage.outside.count("paid") == 2


# --- who may ask ---------------------------------------------------------------------------------------


async def test_effects_do_not_nest_and_executions_do_not_start_executions(stage: Stage) -> None:
    """DA-12."""
    errors: list[holdfast.NestedEffect] = []

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> None:
        stage.outside.happen("paid")

    @holdfast.step(effect=holdfast.idempotent())
    async def ordinary() -> str:
        return "ordinary"

    @holdfast.durable(kind="positions.inner")
    async def inner() -> None:
        stage.outside.happen("inner")

    async def refused(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(holdfast.NestedEffect) as raised:
            await call()
        errors.append(raised.value)

    async def opens() -> None:
        async with hf.execution("inner", kind="positions.inner"):
            pass

    @holdfast.step(effect=holdfast.at_least_once())
    async def outer() -> str:
        for call in (pay, pay.recorded, holdfast.now, holdfast.random, holdfast.uuid, holdfast.gather,
                     ordinary.recorded, lambda: holdfast.patched("x"), lambda: holdfast.branch("x").run(ordinary),
                     lambda: hf.run(inner, id="inner")):  # fmt: skip
            await refused(call)
        return await ordinary()

    @holdfast.durable(kind="positions.outer")
    async def program() -> str:
        for call in (lambda: hf.run(inner, id="inner"), lambda: hf.start(inner, id="inner"), opens):
            await refused(call)
        return await outer()

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "ordinary"
        assert [(entry.position, entry.name) for entry in await hf.history("e")] == [("0", "outer")]
        assert await hf.get("inner") is None
    assert stage.outside.lines() == []
    assert len(errors) == 13
    assert not any("child" in f"{error} {error.hint}" for error in errors), "there are no children yet"


async def test_a_nested_effect_that_nobody_catches_is_no_recorded_failure(stage: Stage) -> None:
    """DA-12: the mistake is the program's, and mending it is enough."""
    mended = False

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        stage.outside.happen("paid")
        return "paid"

    @holdfast.step(effect=holdfast.at_least_once())
    async def outer() -> str:
        return "mended" if mended else await pay()

    @holdfast.durable(kind="positions.nested")
    async def program() -> str:
        return await outer()

    async with stage.open() as hf:
        with pytest.raises(holdfast.ExecutionFailed, match="pay") as raised:
            await hf.run(program, id="e")
        assert isinstance(raised.value.__cause__, holdfast.NestedEffect)
        assert await hf.history("e") == []
        mended = True
        await hf.resume("e")
        assert await hf.run(program, id="e") == "mended"
    assert stage.outside.lines() == []


async def test_positions_have_a_depth_limit(stage: Stage) -> None:
    """§16: 16 levels."""

    @holdfast.step(effect=holdfast.idempotent())
    async def work() -> str:
        return holdfast.current_step().position

    async def deep(levels: int) -> str:
        if levels == 1:
            return await work()
        async with holdfast.branch("b"):
            return await deep(levels - 1)

    @holdfast.durable(kind="positions.deep")
    async def program(levels: int) -> str:
        return await deep(levels)

    async with stage.open() as hf:
        assert await hf.run(program, 16, id="deep") == ".".join(["0"] * 16)
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(program, 17, id="deeper")
        assert isinstance(raised.value.__cause__, holdfast.LimitError)
        assert raised.value.__cause__.maximum == 16


def test_names_fingerprints_and_retries_have_limits() -> None:
    """§16: beyond any limit a LimitError naming it, never truncation."""
    for made, maximum in (
        (lambda: holdfast.StepDescriptor("x" * 129, holdfast.idempotent()), 128),
        (lambda: holdfast.StepDescriptor("é" * 65, holdfast.idempotent()), 128),
        (lambda: holdfast.StepDescriptor("x", holdfast.idempotent(), fingerprint=bytes(64 * 1024 + 1)), 64 * 1024),
        (lambda: holdfast.Retry(max_attempts=1001), 1000),
    ):
        with pytest.raises(holdfast.LimitError) as raised:
            made()
        assert raised.value.maximum == maximum
        assert raised.value.actual > maximum
        assert raised.value.limit
    holdfast.StepDescriptor("x" * 128, holdfast.idempotent(), fingerprint=bytes(64 * 1024))
    for name in ("", "a\nb", "\ud800"):
        with pytest.raises(holdfast.ConfigError):
            holdfast.StepDescriptor(name, holdfast.idempotent())
    with pytest.raises(holdfast.ConfigError):
        holdfast.Retry(max_attempts=0)


# --- time and chance ---------------------------------------------------------------------------------


async def test_time_and_chance_are_what_they_were(stage: Stage) -> None:
    """DA-13."""
    start = datetime(2026, 5, 1, 12, tzinfo=UTC)
    clock = ManualClock(start)
    seen: list[tuple[datetime, float, UUID]] = []

    @holdfast.step(effect=holdfast.idempotent())
    async def pause() -> None:
        return None

    @holdfast.durable(kind="positions.times")
    async def program() -> datetime:
        seen.append((await holdfast.now(), await holdfast.random(), await holdfast.uuid()))
        await pause()
        await pause()
        return await holdfast.now()

    await stage.die("outcome.acked", program, id="e", hit=2, clock=clock)
    clock.set(start - timedelta(hours=1))
    further = await stage.run(program, id="e", clock=clock)
    assert seen[0] == seen[1]
    assert seen[0][0] == start
    assert further >= start
    assert further.utcoffset() == timedelta(0)
    assert 0 <= seen[0][1] < 1
    assert seen[0][2].version == 4
    async with stage.open() as hf:
        assert [entry.kind for entry in await hf.history("e")] == ["now", "random", "uuid", "step", "step", "now"]


async def test_every_generation_sees_the_same_time_and_chance(stage: Stage) -> None:
    """DX-17."""
    clock = ManualClock()
    changed = False
    seen: list[Any] = []

    @holdfast.step(effect=holdfast.idempotent())
    async def work(number: int) -> int:
        return number

    @holdfast.durable(kind="positions.generations")
    async def program() -> None:
        seen.append((await holdfast.now(), await holdfast.random(), await holdfast.uuid(), await holdfast.now()))
        await work(2 if changed else 1)
        await work(3)

    await stage.die("outcome.acked", program, id="e", hit=1, clock=clock)
    changed = True
    clock.advance(timedelta(days=1))
    async with stage.open(clock=clock) as hf:
        await hf.run(program, id="e")
        found = await hf.get("e")
    assert found is not None
    assert found.generation == 2
    assert len(seen) == 3
    assert len(set(seen)) == 1
