"""Steps: they run once, they are recorded, they are replayed."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from tests.flow.programs import Program
from tests.stage import Stage, turns

import holdfast
from holdfast.testing import Crashed, crash


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Released(BaseException):
    """Leaves a block without ending its execution."""


# --- running and replaying ------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["ended", "released", "crashed"])
async def test_a_step_runs_once_and_is_replayed_however_the_execution_was_left(stage: Stage, left: str) -> None:
    """DA-1."""

    @holdfast.step(effect=holdfast.idempotent())
    async def seven() -> int:
        stage.outside.happen("seven")
        return 7

    first: list[holdfast.StepRecord[int]] = []

    async def life() -> None:
        async with stage.open() as hf, hf.execution("e", kind="k"):
            first.append(await seven.recorded())
            if left == "released":
                raise Released
            if left == "crashed":
                with crash("outcome.acked", action="raise"):
                    await seven.recorded()

    if left == "ended":
        await life()
    else:
        with pytest.raises(Released if left == "released" else Crashed):
            await life()
    async with stage.open() as hf, hf.execution("e", kind="k"):
        again = await seven.recorded()
        entries = await hf.history("e")
        if left == "crashed":
            assert (await seven.recorded()).outcome == holdfast.Replayed(7)
    assert first[0].outcome == holdfast.Live(7)
    assert again.outcome == holdfast.Replayed(7)
    assert (first[0].value, first[0].position, first[0].attempt) == (7, "0", 1)
    assert (again.value, again.position, again.attempt) == (7, "0", 1)
    assert first[0].idempotency_key == again.idempotency_key
    assert [entry.part for entry in entries if entry.position == "0"] == ["outcome"]
    assert stage.outside.count("seven") == (2 if left == "crashed" else 1)


async def test_a_recorded_step_is_not_run_again_after_a_crash(stage: Stage) -> None:
    """DA-2."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(to: str) -> str:
        stage.outside.happen("send", to)
        return f"sent to {to}"

    @holdfast.durable(kind="steps.sends")
    async def program() -> str:
        record = await send.recorded("ann")
        await send("bob")
        return f"{type(record.outcome).__name__} {record.value}"

    await stage.die("outcome.acked", program, id="e")
    assert stage.outside.lines() == ["send ann"]
    assert await stage.run(program, id="e") == "Replayed sent to ann"
    assert stage.outside.lines() == ["send ann", "send bob"]


async def test_five_of_eight_steps_replay_and_three_run(stage: Stage) -> None:
    """DA-3."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def square(number: int) -> int:
        stage.outside.happen("square", number)
        return number * number

    @holdfast.durable(kind="steps.squares")
    async def program() -> list[list[str]]:
        records = [await square.recorded(number) for number in range(8)]
        return [[record.position, type(record.outcome).__name__, str(record.value)] for record in records]

    await stage.die("outcome.acked", program, id="e", hit=5)
    assert stage.outside.count("square") == 5
    names = ["Replayed"] * 5 + ["Live"] * 3
    assert await stage.run(program, id="e") == [[str(n), names[n], str(n * n)] for n in range(8)]
    assert stage.outside.lines() == [f"square {n}" for n in range(8)]


async def test_a_live_value_is_what_replay_gives(stage: Stage) -> None:
    """DX-24 row 8: without a declared type the live value is the decoded copy."""

    @dataclass
    class Point:
        x: int

    @holdfast.step(effect=holdfast.idempotent(), result_type=...)
    async def loose():
        return Point(1), (2, 3)

    @holdfast.step(effect=holdfast.idempotent(), result_type=tuple[Point, tuple[int, int]])
    async def typed():
        return Point(1), (2, 3)

    seen = []
    for _ in range(2):
        async with stage.open() as hf, hf.execution("e", kind="k"):
            seen.append((await loose(), await typed()))
    assert seen[0] == seen[1]
    assert seen[0][1] == (Point(1), (2, 3))
    assert seen[0][0] == [{"x": 1}, [2, 3]]


async def test_a_result_that_cannot_be_encoded_is_lost_for_good(stage: Stage) -> None:
    """DA-5."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def odd() -> object:
        stage.outside.happen("odd")
        return object()

    @holdfast.durable(kind="steps.odd")
    async def program() -> str:
        try:
            await odd()
        except holdfast.ResultUnserializable as error:
            await stop()
            return str(error)
        return "?"

    @holdfast.step(effect=holdfast.idempotent())
    async def stop() -> None:
        return None

    await stage.die("step.positioned", program, id="e", hit=2)
    async with stage.open() as hf:
        (entry,) = await hf.history("e")
        assert (entry.part, entry.outcome) == ("outcome", "no_value")
        assert "odd" in await hf.run(program, id="e")
    assert stage.outside.count("odd") == 1


# --- executions -------------------------------------------------------------------------------------


async def test_a_completed_execution_answers_from_the_record_or_conflicts(stage: Stage) -> None:
    """DA-6."""

    @holdfast.durable(kind="steps.greet")
    async def greet(name: str, *, loud: bool = False) -> str:
        stage.outside.happen("greet")
        return name.upper() if loud else name

    @holdfast.durable(kind="steps.greet.other")
    async def other(name: str) -> str:
        return name

    assert await stage.run(greet, "ann", id="e") == "ann"
    async with stage.open() as hf:
        assert await hf.run(greet, "ann", id="e") == "ann"
        assert await hf.run(greet, name="ann", id="e") == "ann"
        assert await hf.run(greet.bind("ann"), id="e") == "ann"
        before = await hf.get("e")
        for call, field in [(greet.bind("bob"), "input"), (greet.bind("ann", loud=True), "input"),
                            (other.bind("ann"), "kind")]:  # fmt: skip
            for attempt in (hf.run, hf.start):
                with pytest.raises(holdfast.ExecutionConflict) as raised:
                    await attempt(call, id="e")
                assert (raised.value.execution_id, raised.value.field) == ("e", field)
        with pytest.raises(holdfast.ExecutionConflict):
            async with hf.execution("e", kind="steps.greet.other"):
                pass
        with pytest.raises(holdfast.ExecutionConflict):
            async with hf.execution("e", kind="steps.greet", input={"name": "bob"}):
                pass
        assert await hf.get("e") == before
    assert stage.outside.count("greet") == 1


@pytest.mark.parametrize("status", ["failed", "needs_decision", "running", "canceled"])
async def test_another_input_conflicts_in_every_status(stage: Stage, status: str) -> None:
    """DX-3."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> None:
        if status == "needs_decision":
            raise holdfast.OutcomeUnknown

    @holdfast.durable(kind="steps.end")
    async def program(number: int) -> None:
        await pay()
        raise ValueError

    if status in ("running", "canceled"):
        await stage.die("intent.acked", program, 1, id="e")
    else:
        with pytest.raises((holdfast.ExecutionFailed, holdfast.NeedsDecision)):
            await stage.run(program, 1, id="e")
    async with stage.open() as hf:
        if status == "canceled":
            assert await hf.cancel("e") == holdfast.Canceled()
        before = await hf.get("e")
        assert before is not None
        assert before.status == status
        with pytest.raises(holdfast.ExecutionConflict):
            await hf.run(program, 2, id="e")
        assert await hf.get("e") == before


async def test_two_processes_with_two_tasks_each_share_one_run(stage: Stage) -> None:
    """DA-7."""
    gate = stage.folder / "gate"
    programs = [Program("meet", stage.target, stage.outside.path, gate) for _ in range(2)]
    with programs[0] as one, programs[1] as two:
        assert [await one.hear(), await two.hear()] == ["ready", "ready"]
        one.say()
        two.say()
        assert [await one.hear(), await two.hear()] == ["asked", "asked"]
        gate.touch()
        answers = [one.finish(), two.finish()]
    assert answers == [["['met', 'met']"], ["['met', 'met']"]]
    assert stage.outside.lines() == ["body", "step"]
    async with stage.open() as hf:
        found = await hf.get("meeting")
    assert found is not None
    assert (found.status, found.fence) == ("completed", 1)


async def test_a_plain_function_runs_in_a_thread_and_knows_its_step(stage: Stage) -> None:
    """DA-8."""

    @holdfast.step(effect=holdfast.at_least_once())
    def look(path: str) -> tuple[int, str, str, int]:
        step = holdfast.current_step()
        stage.outside.happen("look")
        return threading.get_ident(), step.name, step.position, step.attempt

    @holdfast.durable(kind="steps.looks")
    async def program() -> tuple[int, str, str, int]:
        with pytest.raises(holdfast.OutsideExecution, match="call"):
            look("/")
        return await look.call("/")

    await stage.die("finish.queued", program, id="e")
    thread, *handle = await stage.run(program, id="e")
    assert handle == ["look", "0", 1]
    assert thread != threading.get_ident()
    assert stage.outside.count("look") == 1


async def test_a_plain_program_calls_its_steps_bare(stage: Stage) -> None:
    """§22: a plain durable function has its own thread."""

    @holdfast.step(effect=holdfast.at_least_once())
    def work(number: int) -> int:
        stage.outside.happen("work", number)
        return number * 2

    @holdfast.durable(kind="steps.plain")
    def program(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return work(number) + work(number + 1)

    await stage.die("outcome.acked", program, 1, id="e")
    assert await stage.run(program, 1, id="e") == 6
    assert stage.outside.lines() == ["work 1", "work 2"]


async def test_outside_an_execution_steps_are_functions_and_other_calls_refuse() -> None:
    """DX-9."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay(cents: int) -> int:
        return cents

    @holdfast.step(effect=holdfast.idempotent())
    def look(number: int) -> int:
        return number

    @holdfast.durable(kind="steps.outside")
    async def program(number: int) -> int:
        return await pay(number)

    assert await pay(3) == 3
    assert look(4) == 4
    assert await look.call(5) == 5
    assert await program(6) == 6
    assert holdfast.current() is None
    for call in (holdfast.now, holdfast.random, holdfast.uuid, holdfast.branch, holdfast.current_step,
                 lambda: holdfast.patched("x"), pay.recorded):  # fmt: skip
        with pytest.raises(holdfast.OutsideExecution):
            call()


@pytest.mark.parametrize(
    ("id", "error"),
    [
        pytest.param("x" * 256, holdfast.LimitError, id="too long"),
        pytest.param("é" * 128, holdfast.LimitError, id="too long in UTF-8"),
        pytest.param("a\nb", holdfast.ConfigError, id="a line feed"),
        pytest.param("a\x7f", holdfast.ConfigError, id="a control character"),
        pytest.param("", holdfast.ConfigError, id="nothing"),
        pytest.param("\ud800", holdfast.ConfigError, id="half a character"),
    ],
)
async def test_an_id_that_cannot_be_is_refused(stage: Stage, id: str, error: type[Exception]) -> None:
    """DX-1."""

    @holdfast.durable(kind="steps.ids")
    async def program() -> None:
        return None

    async with stage.open() as hf:
        for call in (hf.run, hf.start):
            with pytest.raises(error):
                await call(program, id=id)
        with pytest.raises(error):
            async with hf.execution(id, kind="steps.ids"):
                pass
        assert (await hf.list()).items == []


async def test_ids_are_compared_byte_by_byte(stage: Stage) -> None:
    """DX-1."""

    @holdfast.durable(kind="steps.ids.equal")
    async def program(number: int) -> int:
        return number

    ids = ["é", "e\u0301", "É", "e", "E", "é ", "é" * 127, "%65", "a/b"]
    async with stage.open() as hf:
        for number, id in enumerate(ids):
            assert await hf.run(program, number, id=id) == number
        assert {each.id for each in (await hf.list()).items} == set(ids)
        minted = await hf.start(program, 1)
        assert UUID(minted.id).version == 7
        assert (await minted.info()).uid == minted.id


def test_a_kind_names_one_function() -> None:
    """DX-2."""

    async def program() -> None:
        return None

    for kind in ("", "A", "1a", "a b", "a" * 65, "ä", "a\n"):
        with pytest.raises((holdfast.ConfigError, holdfast.LimitError)):
            holdfast.durable(kind=kind)(program)
    holdfast.durable(kind="steps.kind")(program)
    holdfast.durable(kind="steps.kind")(program)
    with pytest.raises(holdfast.ConfigError, match=r"steps\.kind"):

        @holdfast.durable(kind="steps.kind")
        async def other() -> None: ...

    with pytest.raises(holdfast.ConfigError, match="deadline"):

        @holdfast.durable(kind="steps.options")
        async def keyword_only(*, deadline: int) -> None: ...


async def test_a_parameter_named_like_an_option_is_passed_by_position(stage: Stage) -> None:
    """DX-2."""

    @holdfast.durable(kind="steps.named.like.options")
    async def program(id: str, deadline: int) -> str:
        return f"{id} {deadline}"

    async with stage.open() as hf:
        assert await hf.run(program, "a", 5, id="e") == "a 5"
        assert await hf.run(program.bind(id="a", deadline=5), id="e") == "a 5"


# --- blocks -----------------------------------------------------------------------------------------


async def test_a_block_completes_fails_or_gives_its_execution_back(stage: Stage) -> None:
    """DX-6."""

    @holdfast.step(effect=holdfast.idempotent())
    async def note(word: str) -> str:
        return word

    async with stage.open() as hf:
        async with hf.execution("ends", kind="k") as ctx:
            assert (ctx.id, ctx.kind, ctx.generation, ctx.chapter) == ("ends", "k", 1, 0)
            await note("a")
            ctx.set_output({"done": True})
        async with hf.execution("ends", kind="k") as ctx:
            assert ctx.replaying
            assert await note("a") == "a"
            with pytest.raises(holdfast.ExecutionFinished):
                await note("b")
        with pytest.raises(KeyError, match="lost"):
            async with hf.execution("fails", kind="k"):
                raise KeyError("lost")
        with pytest.raises(holdfast.ExecutionFailed, match="lost"):
            async with hf.execution("fails", kind="k"):
                pass
        with pytest.raises(Released):
            async with hf.execution("rests", kind="k"):
                raise Released
        found = {each.id: each.status for each in (await hf.list()).items}
    assert found == {"ends": "completed", "fails": "failed", "rests": "pending"}


async def test_the_first_end_stands_and_waits_for_effects_in_flight(stage: Stage) -> None:
    """DX-5."""
    begun = asyncio.Event()

    @holdfast.step(effect=holdfast.at_least_once())
    async def slow() -> int:
        begun.set()
        await turns()
        stage.outside.happen("slow")
        return 1

    @holdfast.durable(kind="steps.hasty")
    async def program() -> str:
        task = asyncio.ensure_future(slow())
        await begun.wait()
        assert not task.done()
        return "hasty"

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "hasty"
        assert stage.outside.count("slow") == 1
        assert [entry.outcome for entry in await hf.history("e")] == ["value"]
        assert (await hf.verify("e")).ok


async def test_cancelling_one_of_two_callers_leaves_the_other_and_the_last_one_gives_up(stage: Stage) -> None:
    """DX-4."""
    begun, go = asyncio.Event(), asyncio.Event()

    @holdfast.step(effect=holdfast.at_least_once())
    async def wait() -> str:
        begun.set()
        await go.wait()
        return "waited"

    @holdfast.durable(kind="steps.waits")
    async def program() -> str:
        return await wait()

    async with stage.open() as hf:
        one, two = (asyncio.ensure_future(hf.run(program, id="e")) for _ in range(2))
        await begun.wait()
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        go.set()
        assert await two == "waited"
        begun.clear()
        go.clear()
        last = asyncio.ensure_future(hf.run(program, id="f"))
        await begun.wait()
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        found = await hf.get("f")
        assert found is not None
        assert (found.status, found.owner) == ("pending", None)
        begun.clear()
        handle = await hf.start(program, id="g")
        await begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await hf.run(program, id="g")
        go.set()
        assert await handle.result() == "waited"
