"""Effects in doubt: what a crash leaves behind, and what each policy makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ask, command
from tests.flow.programs import run
from tests.flow.tamper import until
from tests.stage import Outside, Stage, turns

import holdfast
from holdfast.testing import Crashed, ManualClock, WriterFaults, crash

MONEY = "money"


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Service:
    """A payment service that deduplicates by idempotency key, as far as it is given one."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    def pay(self, cents: int, key: bytes) -> str:
        applied = self.outside.count("applied", key.hex())
        self.outside.happen("call", key.hex())
        if not applied:
            self.outside.happen("applied", key.hex(), cents)
        return f"paid {cents}"


def program_of(stage: Stage, policy: holdfast.Policy | None, kind: Any = MONEY, **options: Any) -> Any:
    """A durable function around one payment; it returns value, outcome, attempt and position of it."""
    service = Service(stage.outside)

    @holdfast.step(effect=holdfast.exactly_once(kind, on_ambiguous=policy), **options)
    async def pay(cents: int) -> str:
        step = holdfast.current_step()
        stage.outside.happen("pay", step.attempt)
        return service.pay(cents, step.idempotency_key)

    @holdfast.durable(kind="exactly_once.pays")
    async def program(cents: int) -> list[Any]:
        record = await pay.recorded(cents)
        outcome = record.outcome
        by = outcome.by if isinstance(outcome, holdfast.Assumed) else ""
        assert outcome.value == record.value
        return [type(outcome).__name__, by, record.value, record.attempt, record.position]

    return program


async def ambiguities(hf: holdfast.Holdfast, id: str = "e") -> list[holdfast.AuditRecord]:
    return [record for record in await hf.audit(id) if record.event == "ambiguity"]


async def status(hf: holdfast.Holdfast, id: str = "e") -> str:
    found = await hf.get(id)
    assert found is not None
    return found.status


# --- where the crash falls -------------------------------------------------------------------------


POLICIES: dict[str, Callable[[Stage], holdfast.Policy]] = {
    "skip": lambda stage: holdfast.skip("paid 3"),
    "fail": lambda stage: holdfast.fail(),
    "rerun": lambda stage: holdfast.rerun(),
    "rerun_with_key": lambda stage: holdfast.rerun_with_key(),
    "reconcile": lambda stage: holdfast.reconcile(
        lambda handle: (
            holdfast.happened("paid 3")
            if stage.outside.count("applied", handle.idempotency_key.hex())
            else holdfast.not_happened()
        )
    ),
}

# (calls, applications at a deduplicating boundary) after the resume; the first table of §1.
COUNTS: dict[str, dict[str, tuple[int, int]]] = {
    "step.looked_up": dict.fromkeys(POLICIES, (1, 1)),
    "intent.acked": {"skip": (0, 0), "fail": (0, 0), "reconcile": (1, 1), "rerun": (1, 1), "rerun_with_key": (1, 1)},
    "effect.returned": {"skip": (1, 1), "fail": (1, 1), "reconcile": (1, 1), "rerun": (2, 1), "rerun_with_key": (2, 1)},
    "outcome.acked": dict.fromkeys(POLICIES, (1, 1)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("point", COUNTS)
async def test_the_effect_takes_place_as_often_as_promised(stage: Stage, point: str, policy: str) -> None:
    """The first table of §1, and DA-14: a crash before the intent is durable, and the step runs."""
    program = program_of(stage, POLICIES[policy](stage))
    await stage.die(point, program, 3, id="e")
    async with stage.open() as hf:
        if policy == "fail" and point in ("intent.acked", "effect.returned"):
            with pytest.raises(holdfast.NeedsDecision):
                await hf.run(program, 3, id="e")
        else:
            assert (await hf.run(program, 3, id="e"))[2] == "paid 3"
        assert (stage.outside.count("call"), stage.outside.count("applied")) == COUNTS[point][policy]
        assert (await hf.verify("e")).ok
        assert len(await ambiguities(hf)) == (point in ("intent.acked", "effect.returned"))


async def test_a_crash_after_the_intent_asks_an_operator(stage: Stage) -> None:
    """DA-15."""
    program = program_of(stage, holdfast.fail())
    await stage.die("intent.acked", program, 3, id="e")
    async with stage.open() as hf:
        for _ in range(3):
            with pytest.raises(holdfast.NeedsDecision) as raised:
                await hf.run(program, 3, id="e")
            assert (raised.value.execution_id, raised.value.positions) == ("e", ("0",))
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.owner, found.open_decisions) == ("needs_decision", None, ("0",))
        assert [(entry.part, entry.attempt) for entry in await hf.history("e")] == [("opened", 1)]
        assert len(await ambiguities(hf)) == 1, "waiting again is no new ambiguity"
    assert stage.outside.lines() == []


async def test_a_rerun_with_key_is_one_application_at_a_boundary_that_deduplicates(stage: Stage) -> None:
    """DA-16."""
    program = program_of(stage, holdfast.rerun_with_key(), "cost_bearing")
    await stage.die("effect.returned", program, 3, id="e")
    assert await stage.run(program, 3, id="e") == ["Live", "", "paid 3", 2, "0"]
    calls = [line.split()[1] for line in stage.outside.lines() if line.startswith("call")]
    assert len(calls) == 2
    assert len(set(calls)) == 1
    assert stage.outside.count("applied") == 1


async def test_a_rerun_accepts_a_second_application(stage: Stage) -> None:
    """DA-17."""
    program = program_of(stage, holdfast.rerun())
    await stage.die("effect.returned", program, 3, id="e")
    async with stage.open() as hf:
        assert await hf.run(program, 3, id="e") == ["Live", "", "paid 3", 2, "0"]
        (record,) = await ambiguities(hf)
        assert record.policy == "rerun"
        entries = [(entry.part, entry.attempt, entry.outcome) for entry in await hf.history("e")]
    assert entries == [("opened", 1, None), ("opened", 2, None), ("outcome", 2, "value")]
    assert stage.outside.count("pay") == 2


async def test_a_skip_assumes_its_value_for_ever(stage: Stage) -> None:
    """DA-18."""
    program = program_of(stage, holdfast.skip("n/a"))
    await stage.die("effect.returned", program, 3, id="e")
    await stage.die("finish.queued", program, 3, id="e")
    for _ in range(2):
        assert await stage.run(program, 3, id="e") == ["Assumed", "policy", "n/a", 1, "0"]
    async with stage.open() as hf:
        (record,) = await ambiguities(hf)
        assert record.policy == "skip"
        async with hf.execution("e", kind="exactly_once.pays"):
            assert await status(hf) == "completed"
    assert stage.outside.count("pay") == 1


@pytest.mark.parametrize("policy", ["rerun", "fail", "skip"])
@pytest.mark.parametrize("point", ["intent.queued", "intent.committed"])
async def test_a_crash_around_the_intent_leaves_the_step_fresh_or_ambiguous(
    stage: Stage, point: str, policy: str
) -> None:
    """DA-19."""
    program = program_of(stage, POLICIES[policy](stage))
    await stage.die(point, program, 3, id="e")
    assert stage.outside.lines() == []
    async with stage.open() as hf:
        before = [(entry.part, entry.attempt, entry.outcome) for entry in await hf.history("e")]
        assert before in ([], [("opened", 1, None)])
        try:
            _, _, value, attempt, _ = await hf.run(program, 3, id="e")
        except holdfast.NeedsDecision:
            assert (policy, len(before)) == ("fail", 1)
        else:
            assert value == "paid 3"
            assert attempt == (2 if before and policy == "rerun" else 1)
        assert len({entry.key_prefix for entry in await hf.history("e")}) == 1
        assert len(await ambiguities(hf)) == len(before)
        assert (await hf.verify("e")).ok
    keys = {line.split()[1] for line in stage.outside.lines() if line.startswith("call")}
    assert len(keys) <= 1


# --- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["batch.inserted", "batch.committed"])
async def test_a_batch_is_wholly_there_or_wholly_absent(stage: Stage, point: str) -> None:
    """DA-20: with a real SIGKILL, and 256 entries in the batch."""
    environment = {"HOLDFAST_TESTING": "1", "HOLDFAST_TEST_CRASH": f"{point}:2"}
    assert run("crowd", stage.target, "256", "e", code=-9, **environment) == ["opened"]
    async with stage.open() as hf:
        assert len(await hf.history("e")) == (0 if point == "batch.inserted" else 256)
        assert (await hf.verify()).ok
    if not stage.target.startswith("postgresql:"):
        connection = sqlite3.connect(stage.target)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
    assert run("crowd", stage.target, "256", "e")[1] == "256"
    assert run("crowd", stage.target, "256", "f") == ["opened", "256", "3"], "a beginning, 256 entries, an end"


async def test_pipelined_outcomes_are_on_disk_before_a_guarded_effect_begins(stage: Stage) -> None:
    """DA-21."""
    seen: list[list[tuple[str, str, str]]] = []

    @holdfast.step(effect=holdfast.idempotent())
    async def read(number: int) -> int:
        return number

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay() -> None:
        shown = await asyncio.to_thread(command, "executions", "show", "e", "--json", "--db", stage.target)
        journal = shown.json["journal"]
        seen.append([(entry["position"], entry["name"], entry["part"]) for entry in journal])

    @holdfast.durable(kind="exactly_once.pipelined")
    async def program() -> None:
        for number in range(5):
            await read(number)
        await pay()

    await stage.run(program, id="e", ack="pipelined")
    assert seen == [[*((str(n), "read", "outcome") for n in range(5)), ("5", "pay", "opened")]]


@pytest.mark.parametrize("ack", ["each", "pipelined"])
@pytest.mark.parametrize("point", ["finish.queued", "finish.committed"])
async def test_a_completed_execution_has_every_position_its_output_came_from(
    stage: Stage, point: str, ack: str
) -> None:
    """DA-22."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def read(number: int) -> int:
        stage.outside.happen("read", number)
        return number

    @holdfast.durable(kind="exactly_once.sums")
    async def program() -> int:
        return sum([await read(number) for number in range(10)])

    await stage.die(point, program, id="e", ack=ack)
    async with stage.open(ack=ack) as hf:
        entries = await hf.history("e")
        if await status(hf) == "completed":
            assert [entry.position for entry in entries] == [str(n) for n in range(10)]
        else:
            assert point == "finish.queued"
            assert [entry.position for entry in entries] == [str(n) for n in range(len(entries))]
        assert await hf.run(program, id="e") == 45
        assert [entry.position for entry in await hf.history("e")] == [str(n) for n in range(10)]
        assert (await hf.verify()).ok
    assert stage.outside.count("read") <= 20


async def test_a_log_cut_at_any_frame_leaves_prefixes_of_what_was_acknowledged(tmp_path: Path) -> None:
    """DA-23: SQLite's own log, cut as an ill-fated disk would."""
    stage = Stage(str(tmp_path / "ledger.db"), tmp_path)
    acked: dict[str, list[str]] = {"a": [], "b": []}
    async with stage.open():
        pass

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay(id: str, number: int) -> int:
        return number

    @holdfast.durable(kind="exactly_once.logs")
    async def program(id: str) -> None:
        for number in range(4):
            await pay(id, number)
            acked[id].append(str(number))

    async with stage.open() as hf:
        await asyncio.gather(*(hf.run(program, id, id=id) for id in acked))
        log = Log(tmp_path)
    assert acked == {id: [str(n) for n in range(4)] for id in acked}
    assert log.frames > 20
    lengths = set()
    expected = [(str(n), part) for n in range(4) for part in ("opened", "outcome")]
    for frame in range(log.frames + 1):
        async with log.cut(frame).open() as hf:
            assert (await hf.verify()).ok
            for found in (await hf.list()).items:
                entries = await hf.history(found.id)
                assert [(entry.position, entry.part) for entry in entries] == expected[: len(entries)]
                assert (found.status == "completed") <= (len(entries) == 8)
                lengths.add(len(entries))
    assert lengths >= {1, 2, 3, 4, 5, 6, 7, 8}


class Log:
    """A ledger's file and log as they are now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = (folder / "ledger.db").read_bytes()
        self.log = (folder / "ledger.db-wal").read_bytes()
        (page_bytes,) = struct.unpack_from(">I", self.log, 8)
        self.frame_bytes = page_bytes + 24
        self.frames = (len(self.log) - 32) // self.frame_bytes

    def cut(self, frame: int) -> Stage:
        """Put both down elsewhere, the log cut after so many frames."""
        folder = self.folder / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "ledger.db").write_bytes(self.file)
        (folder / "ledger.db-wal").write_bytes(self.log[: 32 + frame * self.frame_bytes])
        return Stage(str(folder / "ledger.db"), folder)


# --- probes ------------------------------------------------------------------------------------------


class Unclear(Exception):
    """What a probe raises that cannot tell."""


ANSWERS = ["happened", "not_happened", "unknown", "raises", "nonsense", "unfit"]


@pytest.mark.parametrize(("answer", "plain"), [*((each, plain) for each in ANSWERS for plain in (True, False)),
                                               ("late", False)])  # fmt: skip
async def test_a_probe_is_asked_before_anything_else(stage: Stage, answer: str, plain: bool) -> None:
    """DA-25."""
    clock = ManualClock()
    handles: list[tuple[str, str, int, bytes]] = []

    def verdict(handle: holdfast.StepHandle) -> Any:
        handles.append((handle.execution_id, handle.position, handle.attempt, handle.idempotency_key))
        match answer:
            case "happened":
                return holdfast.happened(5)
            case "not_happened":
                return holdfast.not_happened()
            case "unknown":
                return holdfast.unknown()
            case "nonsense":
                return 5
            case "unfit":
                return holdfast.happened("five")
        raise Unclear

    async def slow_verdict(handle: holdfast.StepHandle) -> Any:
        if answer == "late":
            clock.advance(timedelta(seconds=31))
            await asyncio.sleep(0)
            await clock.sleep(3600)
        return verdict(handle)

    @holdfast.step(
        effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.reconcile(verdict if plain else slow_verdict))
    )
    async def pay() -> int:
        stage.outside.happen("pay", holdfast.current_step().attempt, holdfast.current_step().idempotency_key.hex())
        return 4

    @holdfast.durable(kind="exactly_once.probes")
    async def program() -> list[Any]:
        record = await pay.recorded()
        return [type(record.outcome).__name__, getattr(record.outcome, "by", ""), record.value, record.attempt]

    await stage.die("effect.returned", program, id="e", clock=clock)
    async with stage.open(clock=clock) as hf:
        if answer == "happened":
            assert await hf.run(program, id="e") == ["Assumed", "probe", 5, 1]
        elif answer == "not_happened":
            assert await hf.run(program, id="e") == ["Live", "", 4, 2]
        else:
            with pytest.raises(holdfast.NeedsDecision):
                await hf.run(program, id="e")
            assert await status(hf) == "needs_decision"
        (record,) = await ambiguities(hf)
        assert record.policy == "reconcile"
    keys = {line.split()[2] for line in stage.outside.lines()}
    assert len(keys) == 1
    if answer != "late":
        assert [(*handle[:3], handle[3].hex()) for handle in handles] == [("e", "0", 1, keys.pop())]
    assert stage.outside.count("pay") == (2 if answer == "not_happened" else 1)


# --- operators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["--happened", "--not-happened", "--abort"])
def test_an_operator_decides_by_command_line(stage: Stage, decision: str) -> None:
    """DA-26."""
    program = program_of(stage, holdfast.fail())

    async def doubt() -> None:
        await stage.die("effect.returned", program, 3, id="e")
        with pytest.raises(holdfast.NeedsDecision):
            await stage.run(program, 3, id="e")

    async def look() -> None:
        async with stage.open() as hf:
            (record,) = [record for record in await hf.audit("e") if record.event == "decision"]
            assert (record.actor, record.position) == ("ann", "0")
            if decision == "--abort":
                assert await status(hf) == "aborted"
                with pytest.raises(holdfast.ExecutionAborted) as raised:
                    await hf.run(program, 3, id="e")
                assert raised.value.reason == "decision"
            else:
                expected = {"--happened": ["Assumed", "operator", "ok", 1, "0"],
                            "--not-happened": ["Live", "", "paid 3", 2, "0"]}[decision]  # fmt: skip
                assert await hf.run(program, 3, id="e") == expected
                assert await hf.run(program, 3, id="e") == expected
            assert (await hf.verify()).ok

    asyncio.run(doubt())
    value = ['"ok"'] if decision == "--happened" else []
    arguments = ["executions", "decide", "e", "0", decision, *value, "--by", "ann", "--note", "asked the bank"]
    assert ask(*arguments, "--db", stage.target).code == 0
    asyncio.run(look())
    calls = [line.split()[1] for line in stage.outside.lines() if line.startswith("call")]
    assert len(calls) == (2 if decision == "--not-happened" else 1)
    assert len(set(calls)) == 1


async def test_the_first_decision_stands(stage: Stage) -> None:
    """DX-29."""
    program = program_of(stage, holdfast.fail())
    await stage.die("effect.returned", program, 3, id="e")
    async with stage.open() as hf:
        with pytest.raises(holdfast.NoDecisionOpen):
            await hf.decide("e", "0", holdfast.abort(), by="ann")
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, 3, id="e")
        with pytest.raises(holdfast.UnknownExecution):
            await hf.decide("f", "0", holdfast.abort(), by="ann")
        for decision, by in ((holdfast.unknown(), "ann"), (holdfast.abort(), "")):
            with pytest.raises(holdfast.ConfigError):
                await hf.decide("e", "0", decision, by=by)
        await hf.decide("e", "0", holdfast.happened("ok"), by="ann", note="called")
        for decision in (holdfast.abort(), holdfast.happened("other"), holdfast.not_happened()):
            with pytest.raises(holdfast.NoDecisionOpen):
                await hf.decide("e", "0", decision, by="bob")
        assert await status(hf) == "pending"
        assert await hf.run(program, 3, id="e") == ["Assumed", "operator", "ok", 1, "0"]
        with pytest.raises(holdfast.NoDecisionOpen):
            await hf.decide("e", "0", holdfast.abort(), by="bob")
        assert [(record.actor, record.policy) for record in await hf.audit("e") if record.event == "decision"] == [
            ("ann", "happened")
        ]


async def test_a_decided_value_that_does_not_fit_is_asked_for_again(stage: Stage) -> None:
    """DX-29."""
    program = program_of(stage, holdfast.fail())
    await stage.die("effect.returned", program, 3, id="e")
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, 3, id="e")
        await hf.decide("e", "0", holdfast.happened([1, 2]), by="ann")
        with pytest.raises(holdfast.NeedsDecision) as raised:
            await hf.run(program, 3, id="e")
        assert raised.value.positions == ("0",)
        await hf.decide("e", "0", holdfast.happened("ok"), by="ann")
        assert await hf.run(program, 3, id="e") == ["Assumed", "operator", "ok", 1, "0"]
        assert (await hf.verify()).ok
    assert stage.outside.count("pay") == 1


async def test_all_open_decisions_must_be_taken(stage: Stage) -> None:
    """§3: needs_decision becomes pending when every open decision is taken."""

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay(number: int) -> int:
        stage.outside.happen("pay", number)
        return number

    @holdfast.durable(kind="exactly_once.pays.two")
    async def program() -> list[int]:
        return list(await asyncio.gather(pay(1), pay(2)))

    await stage.die("effect.returned", program, id="e", hit=2)
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision) as raised:
            await hf.run(program, id="e")
        open_ = raised.value.positions
        assert set(open_) <= {"0", "1"}
        for position in open_:
            assert await status(hf) == "needs_decision"
            await hf.decide("e", position, holdfast.happened(int(position) + 1), by="ann")
        assert await status(hf) == "pending"
        if len(open_) == 1:
            with pytest.raises(holdfast.NeedsDecision) as raised:
                await hf.run(program, id="e")
            (position,) = raised.value.positions
            await hf.decide("e", position, holdfast.happened(int(position) + 1), by="ann")
        assert await hf.run(program, id="e") == [1, 2]
        assert (await hf.verify()).ok
    assert sorted(stage.outside.lines()) == ["pay 1", "pay 2"]


# --- doubt without a crash -----------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [holdfast.OutcomeUnknown, TimeoutError])
async def test_no_except_clause_lets_an_execution_in_doubt_complete(stage: Stage, raised: type[Exception]) -> None:
    """DA-27."""
    caught: list[BaseException] = []

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        stage.outside.happen("pay")
        raise raised("no answer")

    @holdfast.step(effect=holdfast.idempotent())
    async def other() -> str:
        stage.outside.happen("other")
        return "other"

    @holdfast.durable(kind="exactly_once.swallows")
    async def program() -> str:
        for call in (pay, other, holdfast.now, pay):
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - that is what the program does
                caught.append(error)
        return "completed?"

    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e")
        assert await status(hf) == "needs_decision"
    assert [type(error) for error in caught] == [holdfast.NeedsDecision] * 4
    assert stage.outside.lines() == ["pay"]


async def test_a_step_that_overruns_its_timeout_is_in_doubt(stage: Stage) -> None:
    """DX-26."""
    clock = ManualClock()

    def stepped(kind: Any, policy: holdfast.Policy) -> Any:
        @holdfast.step(
            effect=holdfast.exactly_once(kind, on_ambiguous=policy), timeout=timedelta(seconds=5), name="slow"
        )
        async def slow() -> str:
            attempt = holdfast.current_step().attempt
            stage.outside.happen("slow", attempt)
            if attempt == 1:
                clock.advance(timedelta(seconds=6))
                await clock.sleep(3600)
            return "done"

        return slow

    @holdfast.step(effect=holdfast.at_least_once(), timeout=timedelta(seconds=5))
    async def unguarded() -> str:
        clock.advance(timedelta(seconds=6))
        await clock.sleep(3600)
        return "done"

    @holdfast.durable(kind="exactly_once.slow")
    async def program() -> list[Any]:
        record = await stepped("custom", holdfast.rerun()).recorded()
        assumed = await stepped("cost_bearing", holdfast.skip("late"))()
        try:
            await unguarded()
        except holdfast.StepFailed as error:
            return [record.attempt, record.value, assumed, error.error_type]
        return []

    async with stage.open(clock=clock) as hf:
        assert await hf.run(program, id="e") == [2, "done", "late", "TimeoutError"]
        assert [record.policy for record in await ambiguities(hf)] == ["rerun", "skip"]
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["slow 1", "slow 2", "slow 1"]


@pytest.mark.parametrize("policy", ["skip", "rerun", "reconcile", "fail"])
async def test_an_effect_given_up_by_the_program_is_settled_before_it_goes_on(stage: Stage, policy: str) -> None:
    """DX-27."""
    begun = asyncio.Event()

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=POLICIES[policy](stage)))
    async def pay() -> str:
        stage.outside.happen("pay")
        begun.set()
        await asyncio.get_running_loop().create_future()
        return "paid"

    @holdfast.step(effect=holdfast.idempotent())
    async def other() -> str:
        stage.outside.happen("other")
        return "other"

    @holdfast.durable(kind="exactly_once.gives.up")
    async def program(end: bool) -> str:
        begun.clear()
        call = asyncio.ensure_future(pay())
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return "end" if end else await other()

    async with stage.open() as hf:
        for end in (False, True):
            id = str(end)
            if policy == "skip":
                assert await hf.run(program, end, id=id) == ("end" if end else "other")
                outcomes = [entry.outcome for entry in await hf.history(id) if entry.position == "0"]
                assert outcomes == [None, "assumed"]
            else:
                with pytest.raises(holdfast.NeedsDecision):
                    await hf.run(program, end, id=id)
                assert await status(hf, id) == "needs_decision"
            assert len(await ambiguities(hf, id)) == 1
        assert (await hf.verify()).ok
    assert stage.outside.count("pay") == 2
    assert stage.outside.count("other") == (policy == "skip")


@pytest.mark.parametrize("policy", ["rerun", "rerun_with_key", "reconcile"])
async def test_reruns_of_a_key_come_to_an_end(stage: Stage, policy: str) -> None:
    """DX-28."""
    program = program_of(stage, POLICIES[policy](stage) if policy != "reconcile" else holdfast.reconcile(never))
    for _ in range(3):
        await stage.die("effect.returned", program, 3, id="e", ambiguous_attempts_max=2)
    async with stage.open(ambiguous_attempts_max=2) as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, 3, id="e")
        records = await ambiguities(hf)
        assert [record.policy for record in records] == [policy] * 3
        await hf.decide("e", "0", holdfast.not_happened(), by="ann")
        assert await hf.run(program, 3, id="e") == ["Live", "", "paid 3", 4, "0"]
    assert stage.outside.count("pay") == 4


def never(handle: holdfast.StepHandle) -> holdfast.Verdict:
    """A probe that always says: it did not happen."""
    return holdfast.not_happened()


@pytest.mark.parametrize("kind", ["money", "cost_bearing"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_nothing_acts_on_an_ambiguity_whose_audit_cannot_be_written(stage: Stage, policy: str, kind: str) -> None:
    """DX-28: not even what may go on without its journal."""
    program = program_of(stage, POLICIES[policy](stage) if policy != "reconcile" else holdfast.reconcile(never), kind)
    await stage.die("effect.returned", program, 3, id="e")
    async with stage.open(ack_timeout_ms=100) as hf:
        faults = WriterFaults(hf)
        faults.stall()
        with pytest.raises(holdfast.JournalUnavailable):
            await hf.run(program, 3, id="e")
        assert stage.outside.count("pay") == 1
        faults.resume()
        await until(lambda: hf.database.writer.pending_items == 0)
    async with stage.open() as hf:
        try:
            assert (await hf.run(program, 3, id="e"))[2] == "paid 3"
        except holdfast.NeedsDecision:
            assert policy == "fail"
        assert stage.outside.count("pay") <= 1 + len(await ambiguities(hf))
        assert (await hf.verify()).ok


@pytest.mark.parametrize("policy", ["skip", "fail"])
async def test_an_execution_does_not_fail_over_an_open_intent(stage: Stage, policy: str) -> None:
    """DX-27."""
    begun = asyncio.Event()

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=POLICIES[policy](stage)))
    async def pay() -> str:
        begun.set()
        await asyncio.get_running_loop().create_future()
        return "paid"

    @holdfast.durable(kind="exactly_once.fails.over")
    async def program() -> None:
        call = asyncio.ensure_future(pay())
        await begun.wait()
        call.cancel()
        await asyncio.wait([call])
        raise LookupError("of its own")

    async with stage.open() as hf:
        expected: Any = holdfast.ExecutionFailed if policy == "skip" else holdfast.NeedsDecision
        with pytest.raises(expected):
            await hf.run(program, id="e")
        assert await status(hf) == ("failed" if policy == "skip" else "needs_decision")
        assert (await hf.verify()).ok


@pytest.mark.parametrize("program_turns", [0, 1, 2])
async def test_no_execution_completes_over_an_intent_on_its_way(stage: Stage, program_turns: int) -> None:
    """DX-27: the program returns while a guarded step of its is between its call and its effect."""
    left: list[asyncio.Future[str]] = []

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.rerun()))
    async def pay() -> str:
        stage.outside.happen("pay")
        return "paid"

    @holdfast.durable(kind="exactly_once.leaves")
    async def program() -> str:
        left.append(asyncio.ensure_future(pay()))
        await turns(program_turns)
        return "left"

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "left"
        await asyncio.wait(left)
        entries = [entry.part for entry in await hf.history("e")]
        if left[0].exception() is None:
            assert entries == ["opened", "outcome"]
            assert stage.outside.lines() == ["pay"]
        else:
            assert type(left[0].exception()) is holdfast.ExecutionFinished
            assert entries == []
            assert stage.outside.lines() == []
        assert (await hf.verify()).ok


async def test_a_guarded_effect_left_behind_ends_before_the_execution(stage: Stage) -> None:
    """DX-5."""
    left: list[asyncio.Future[str]] = []
    begun = asyncio.Event()

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        begun.set()
        await turns(200)
        stage.outside.happen("pay")
        return "paid"

    @holdfast.durable(kind="exactly_once.leaves.running")
    async def program() -> str:
        left.append(asyncio.ensure_future(pay()))
        await begun.wait()
        return "left"

    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "left"
        assert stage.outside.lines() == ["pay"]
        assert [(entry.part, entry.outcome) for entry in await hf.history("e")] == [
            ("opened", None),
            ("outcome", "value"),
        ]
        await asyncio.wait(left)


@pytest.mark.parametrize("policy", ["skip", "rerun", "reconcile", "fail"])
async def test_a_loser_in_doubt_is_settled_as_its_policy_says(stage: Stage, policy: str) -> None:
    """DX-19 and DX-27: `first` gave the call up, so it is as if the program had."""
    go = asyncio.Event()

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=POLICIES[policy](stage)))
    async def pay() -> str:
        stage.outside.happen("pay")
        await go.wait()
        return "paid 3"

    @holdfast.step(effect=holdfast.at_least_once())
    async def quick() -> str:
        while not stage.outside.count("pay"):
            await turns(1)
        return "quick"

    @holdfast.step(effect=holdfast.at_least_once())
    async def sibling() -> str:
        while True:  # until the race is on disk but for its end
            await turns(10)
            entries = {(entry.position, entry.part) for entry in await hf.history("e")}
            if ("0.1", "outcome") in entries:
                return "sibling"

    async def racing() -> list[Any]:
        return list(await holdfast.first(pay(), quick()))

    async def beside() -> str:
        return await sibling()

    @holdfast.durable(kind="exactly_once.loses")
    async def program() -> list[Any]:
        return list(await holdfast.gather(racing(), beside()))

    async with stage.open() as hf:
        with crash("outcome.acked", 2, "raise"), pytest.raises(Crashed):
            await hf.run(program, id="e")
    go.set()
    async with stage.open() as hf:
        recorded = {(entry.position, entry.part) for entry in await hf.history("e")}
        assert recorded >= {("0.0", "opened"), ("0.2", "outcome"), ("1.0", "outcome")}
        assert ("0.0", "outcome") not in recorded
        if policy == "skip":
            assert await hf.run(program, id="e") == [[1, "quick"], "sibling"]
            assert [entry.outcome for entry in await hf.history("e") if entry.position == "0.0"] == [None, "assumed"]
        else:
            with pytest.raises(holdfast.NeedsDecision) as raised:
                await hf.run(program, id="e")
            await hf.decide("e", *raised.value.positions, holdfast.happened("paid 3"), by="ann")
            assert await hf.run(program, id="e") == [[1, "quick"], "sibling"]
        assert len(await ambiguities(hf)) == 1
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["pay"]


async def test_an_effect_that_never_knows_its_fate_comes_to_an_end(stage: Stage) -> None:
    """DX-28: without any crash."""

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.rerun()))
    async def pay() -> str:
        stage.outside.happen("pay")
        raise holdfast.OutcomeUnknown

    @holdfast.durable(kind="exactly_once.never.knows")
    async def program() -> str:
        return await pay()

    async with stage.open(ambiguous_attempts_max=3) as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, id="e")
        assert len(await ambiguities(hf)) == 4
        assert (await hf.verify()).ok
    assert stage.outside.count("pay") == 4


async def test_a_step_says_which_errors_leave_its_fate_unknown(stage: Stage) -> None:
    """DX-26."""

    def pays(*unknown_on: type[Exception]) -> Any:
        effect = holdfast.exactly_once(MONEY, on_ambiguous=holdfast.skip("assumed"), unknown_on=unknown_on)

        @holdfast.step(effect=effect)
        async def pay(error: str) -> str:
            raise {"timeout": TimeoutError, "lookup": KeyError}[error]

        return pay

    @holdfast.durable(kind="exactly_once.unknown.on")
    async def program() -> list[str]:
        found = []
        for call in (pays()("timeout"), pays(LookupError)("timeout"), pays(LookupError)("lookup")):
            try:
                found.append(await call)
            except holdfast.StepFailed as error:
                found.append(error.error_type)
        return found

    assert await stage.run(program, id="e") == ["TimeoutError", "TimeoutError", "assumed"]


async def test_what_stops_the_process_in_an_effect_records_nothing(stage: Stage) -> None:
    """DX-27."""

    class Stop(BaseException):
        """As KeyboardInterrupt or SystemExit, which would stop the test too."""

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.rerun()))
    async def pay() -> str:
        stage.outside.happen("pay")
        if stage.outside.count("pay") == 1:
            raise Stop
        return "paid"

    @holdfast.durable(kind="exactly_once.stops")
    async def program() -> str:
        return await pay()

    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(program, id="e")
        assert await status(hf) == "pending"
        assert [(entry.part, entry.attempt) for entry in await hf.history("e")] == [("opened", 1)]
        assert await hf.run(program, id="e") == "paid"
        assert len(await ambiguities(hf)) == 1
        assert (await hf.verify()).ok


async def test_steps_in_flight_end_before_an_execution_waits_for_a_decision(stage: Stage) -> None:
    """§3: needs_decision, in-flight steps drained."""

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        raise holdfast.OutcomeUnknown

    @holdfast.step(effect=holdfast.at_least_once())
    async def slow() -> str:
        await turns(300)
        stage.outside.happen("slow")
        return "slow"

    @holdfast.durable(kind="exactly_once.drains")
    async def program() -> list[str]:
        return list(await asyncio.gather(slow(), pay()))

    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision) as raised:
            await hf.run(program, id="e")
        assert raised.value.positions == ("1",)
        assert ("0", "value") in [(entry.position, entry.outcome) for entry in await hf.history("e")]
        await hf.decide("e", "1", holdfast.happened("paid"), by="ann")
        assert await hf.run(program, id="e") == ["slow", "paid"]
    assert stage.outside.lines() == ["slow"]


async def test_the_policy_of_todays_program_counts(stage: Stage) -> None:
    """DX-25, DX-21."""
    policies = [holdfast.fail(), holdfast.rerun()]

    @holdfast.durable(kind="exactly_once.changes")
    async def program() -> str:
        @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=policies[0]))
        async def pay() -> str:
            stage.outside.happen("pay")
            return "paid"

        return await pay()

    await stage.die("effect.returned", program, id="e")
    del policies[0]
    async with stage.open() as hf:
        assert await hf.run(program, id="e") == "paid"
        assert [record.policy for record in await ambiguities(hf)] == ["rerun"]
        assert [record.event for record in await hf.audit("e")].count("advisory_change") == 1
        found = await hf.get("e")
        assert found is not None
        assert found.generation == 1
    assert stage.outside.count("pay") == 2


async def test_an_operator_may_give_a_lost_value(stage: Stage) -> None:
    """DX-29: a no_value position also takes happened."""

    @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        stage.outside.happen("pay")
        return "x" * 5000

    @holdfast.durable(kind="exactly_once.lost")
    async def program() -> str:
        return await pay()

    async with stage.open(payload_bytes_max=1000) as hf:
        for _ in range(2):
            with pytest.raises(holdfast.ExecutionFailed):
                await hf.run(program, id="e", reopen=True)
        for decision in (holdfast.not_happened(), holdfast.abort()):
            with pytest.raises(holdfast.NoDecisionOpen):
                await hf.decide("e", "0", decision, by="ann")
        await hf.decide("e", "0", holdfast.happened("short"), by="ann")
        await hf.resume("e")
        assert await hf.run(program, id="e") == "short"
        assert (await hf.verify()).ok
    assert stage.outside.count("pay") == 1


# --- policies and audit --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["destructive", "security", "money", "custom"])
def test_what_must_not_happen_twice_needs_a_policy(kind: Any) -> None:
    """DA-28."""
    with pytest.raises(holdfast.AmbiguityPolicyRequired, match="wire") as raised:

        @holdfast.step(effect=holdfast.exactly_once(kind), name="wire")
        async def transfer() -> None: ...

    assert raised.value.step == "wire"
    with pytest.raises(holdfast.AmbiguityPolicyRequired, match="wire") as raised:
        holdfast.StepDescriptor("wire", holdfast.exactly_once(kind))
    assert raised.value.step == "wire"


async def test_a_paid_call_without_a_policy_is_skipped(stage: Stage) -> None:
    """DA-28."""
    program = program_of(stage, None, "cost_bearing")
    await stage.die("effect.returned", program, 3, id="e")
    assert await stage.run(program, 3, id="e") == ["Assumed", "policy", None, 1, "0"]
    assert stage.outside.count("pay") == 1


def test_a_substitute_must_fit_the_declared_type() -> None:
    """DX-25."""
    with pytest.raises(holdfast.ConfigError, match="wire"):

        @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.skip("three")), name="wire")
        async def transfer() -> int: ...

    with pytest.raises(holdfast.ConfigError, match="wire"):
        holdfast.StepDescriptor(
            "wire", holdfast.exactly_once("money", on_ambiguous=holdfast.skip("three")), result_type=int
        )
    holdfast.StepDescriptor("wire", holdfast.exactly_once("money", on_ambiguous=holdfast.skip()), result_type=int)


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_audit_of_an_ambiguity_names_everything_but_the_payload(
    stage: Stage, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """DA-29."""
    clock = ManualClock()
    program = program_of(stage, POLICIES[policy](stage))
    await stage.die("effect.returned", program, 3, id="e", clock=clock)
    clock.advance(timedelta(hours=1))
    async with stage.open(clock=clock) as hf:
        try:
            await hf.run(program, 3, id="e")
        except holdfast.NeedsDecision:
            assert policy == "fail"
        (record,) = await ambiguities(hf)
    key = next(line.split()[1] for line in stage.outside.lines() if line.startswith("call"))
    assert (record.execution_id, record.position, record.effect) == ("e", "0", "exactly_once")
    assert (record.policy, record.key_prefix) == (policy, key[:16])
    assert (record.at - hf_start()).total_seconds() == 3600
    written = repr(record) + "\n".join(each.getMessage() for each in caplog.records)
    assert "paid 3" not in written
    assert key not in written
    logged = [each for each in caplog.records if each.name == "holdfast.durable.audit" and each.levelname == "WARNING"]
    assert any("ambiguity" in each.getMessage() for each in logged)
    json.dumps(record.detail)


def hf_start() -> Any:
    """Where a manual clock begins."""
    from holdfast.core.clock import to_datetime

    return to_datetime(ManualClock().now())


async def test_a_key_that_nobody_read_is_audited(stage: Stage) -> None:
    """§6: rerun_with_key without reading the key."""

    def paying(*, reads: bool) -> Any:
        @holdfast.step(effect=holdfast.exactly_once(MONEY, on_ambiguous=holdfast.rerun_with_key()))
        async def pay() -> bytes | None:
            return holdfast.current_step().idempotency_key if reads else None

        return pay

    @holdfast.durable(kind="exactly_once.keys.unread")
    async def program() -> None:
        await paying(reads=True)()
        await paying(reads=False)()

    async with stage.open() as hf:
        await hf.run(program, id="e")
        unused = [record.position for record in await hf.audit("e") if record.event == "key_unused"]
    assert unused == ["1"]


@pytest.mark.parametrize("point", ["ambiguity.audited", "intent.queued", "intent.committed", "outcome.queued"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_nothing_acts_on_an_ambiguity_before_its_audit_is_on_disk(stage: Stage, policy: str, point: str) -> None:
    """DX-28."""
    program = program_of(stage, POLICIES[policy](stage))
    await stage.die("effect.returned", program, 3, id="e")
    async with stage.open() as hf:
        with crash(point, action="raise"), contextlib.suppress(Crashed, holdfast.NeedsDecision):
            await hf.run(program, 3, id="e")
    done = stage.outside.count("pay")
    async with stage.open() as hf:
        audited = len(await ambiguities(hf))
        assert done <= 1 + audited
        try:
            assert (await hf.run(program, 3, id="e"))[2] == "paid 3"
        except holdfast.NeedsDecision:
            assert policy == "fail"
        assert stage.outside.count("pay") <= 1 + len(await ambiguities(hf))
        assert stage.outside.count("applied") == 1
        assert (await hf.verify()).ok
