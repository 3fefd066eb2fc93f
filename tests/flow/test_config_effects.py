"""Every setting, every error code and every crash point, each shown by what it does."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import change, is_postgres, look, until
from tests.stage import DURABLE_POINTS, Stage

import holdfast
from holdfast.core.clock import from_datetime
from holdfast.execution import errors
from holdfast.testing import Crashed, ManualClock, WriterFaults, crash
from holdfast.testing.postgres import PostgresServer


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Stop(BaseException):
    """Leaves a program whose execution is to be taken up later."""


# --- steps and programs that the cases share -----------------------------------------------------------

MONEY = holdfast.exactly_once("money", on_ambiguous=holdfast.fail())


@holdfast.step(effect=holdfast.at_least_once())
async def send(what: str) -> str:
    return what


@holdfast.step(effect=holdfast.idempotent())
async def look_up(what: str) -> str:
    return what


@holdfast.step(effect=MONEY)
async def pay(what: str) -> str:
    return what


@holdfast.step(effect=MONEY)
async def doubt(what: str) -> str:
    raise holdfast.OutcomeUnknown


@holdfast.step(effect=holdfast.at_least_once(), spill=True)
async def fetch(size: int) -> bytes:
    return b"x" * size


class Script:
    """A program that a test writes as it goes: it makes the calls that stand in `calls`."""

    def __init__(self, kind: str) -> None:
        self.calls: list[Callable[[], Awaitable[Any]]] = []

        @holdfast.durable(kind=kind)
        async def script() -> list[str]:
            return [repr(await call()) for call in self.calls]

        self.fn = script

    def become(self, *calls: Callable[[], Awaitable[Any]]) -> holdfast.Durable[..., Any]:
        self.calls = list(calls)
        return self.fn


async def stop() -> None:
    raise Stop


async def info(hf: holdfast.Holdfast, id: str = "e") -> holdfast.Execution:
    found = await hf.get(id)
    assert found is not None
    return found


async def pass_time(clock: ManualClock, milliseconds: int, steps: int = 4) -> None:
    """Let time pass, and what it wakes run."""
    for _ in range(steps):
        await clock.advance(timedelta(milliseconds=milliseconds) / steps)
        await look_on()


look_seconds = 0.05
"""How long an observer gives what it has woken."""


async def look_on() -> None:
    """Let run what can run."""
    await until(lambda: False, look_seconds, anyway=True)


# --- what a setting changes -----------------------------------------------------------------------------

Observer = Callable[[Stage, Any], Awaitable[Any]]
SETTINGS: dict[str, tuple[Observer, dict[Any, Any]]] = {}


def shows(key: str, seen: dict[Any, Any]) -> Callable[[Observer], Observer]:
    """Register what is observed under a setting's values."""

    def register(observer: Observer) -> Observer:
        SETTINGS[key] = (observer, seen)
        return observer

    return register


@shows("enabled", {True: "recorded", False: "DurabilityDisabled"})
async def enabled(stage: Stage, value: Any) -> Any:
    async with stage.open(enabled=value) as hf:
        await hf.run(Script("set.enabled").become(lambda: send("a")), id="e")
        try:
            return "recorded" if await hf.get("e") is not None else "lost"
        except holdfast.DurabilityDisabled as error:
            return type(error).__name__


@shows("ack", {"each": "a commit each", "pipelined": "a commit for many"})
async def ack(stage: Stage, value: Any) -> Any:
    async with stage.open(ack=value) as hf:
        calls = [lambda n=n: send(str(n)) for n in range(20)]
        before = hf.database.writer.batches
        await hf.run(Script("set.ack").become(*calls), id="e")
        return "a commit each" if hf.database.writer.batches - before >= 20 else "a commit for many"


@shows("carry", {"effects": 2, "all": 1})
async def carry(stage: Stage, value: Any) -> Any:
    ran = 0

    @holdfast.step(effect=holdfast.idempotent())
    async def act() -> None:
        nonlocal ran
        ran += 1

    script = Script("set.carry")
    async with stage.open(carry=value) as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(act, lambda: send("a"), stop), id="e")
        await hf.run(script.become(act, lambda: send("b")), id="e")
    return ran


@shows("shifted_effect", {"decide": "NeedsDecision", "run": "completed"})
async def shifted_effect(stage: Stage, value: Any) -> Any:
    script = Script("set.shifted")
    async with stage.open(shifted_effect=value) as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(lambda: pay("a"), stop), id="e")
        try:
            await hf.run(script.become(lambda: pay("b")), id="e")
        except holdfast.NeedsDecision as error:
            return type(error).__name__
        return (await info(hf)).status


@shows("ack_timeout_ms", {500: "refused", 5000: "waiting"})
async def ack_timeout_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    async with stage.open(clock=clock, ack_timeout_ms=value) as hf:

        async def stall() -> None:
            WriterFaults(hf).stall()

        task = asyncio.ensure_future(hf.run(Script("set.timeout").become(lambda: send("a"), stall, lambda: pay("b"))))
        await until(lambda: hf.database.writer.faults.stalled)
        await pass_time(clock, 1000)
        refused = task.done()
        WriterFaults(hf).resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        with contextlib.suppress(holdfast.JournalUnavailable):
            await task
    return "refused" if refused else "waiting"


async def batches(stage: Stage, **config: Any) -> int:
    """How many commits 40 outcomes of 1 kB take that all wait already."""

    async def together() -> None:
        await send("first")
        WriterFaults(hf).stall()
        await holdfast.gather(*(send(f"{number} " + "x" * 1000) for number in range(40)))

    async with stage.open(**config) as hf:
        task = asyncio.ensure_future(hf.run(Script("set.batch").become(together), id="e"))
        await until(lambda: hf.database.writer.faults.stalled and hf.database.writer.pending_items >= 40)
        before = hf.database.writer.batches
        WriterFaults(hf).resume()
        await task
        return hf.database.writer.batches - before


@shows("batch_items_max", {10: True, 512: False})
async def batch_items_max(stage: Stage, value: Any) -> Any:
    return await batches(stage, batch_items_max=value) >= 4


@shows("batch_bytes_max", {10_000: True, 8 << 20: False})
async def batch_bytes_max(stage: Stage, value: Any) -> Any:
    return await batches(stage, batch_bytes_max=value) >= 4


async def queued(stage: Stage, **config: Any) -> tuple[int, int]:
    """How many appends, and bytes, are taken in while nothing commits."""
    ran = 0

    @holdfast.step(effect=holdfast.at_least_once())
    async def act(number: int) -> str:
        nonlocal ran
        ran += 1
        return "x" * 1000

    async def together() -> None:
        await act(-1)
        WriterFaults(hf).stall()
        await holdfast.gather(*(act(number) for number in range(40)))

    async with stage.open(**config) as hf:
        task = asyncio.ensure_future(hf.run(Script("set.queue").become(together), id="e"))
        await until(lambda: ran == 41)
        await look_on()
        writer = hf.database.writer
        pending = writer.pending_items, writer.pending_bytes
        WriterFaults(hf).resume()
        await task
    return pending


@shows("queue_items_max", {10: (True, True), 4096: (False, True)})
async def queue_items_max(stage: Stage, value: Any) -> Any:
    items, _ = await queued(stage, queue_items_max=value)
    return items <= 10, items <= 4096


@shows("queue_bytes_max", {20_000: True, 64 << 20: False})
async def queue_bytes_max(stage: Stage, value: Any) -> Any:
    return (await queued(stage, queue_bytes_max=value))[1] <= 20_000


@shows("payload_bytes_max", {1000: "more than 1000", 1 << 20: "ok"})
async def payload_bytes_max(stage: Stage, value: Any) -> Any:
    async def large() -> str:
        try:
            await send("x" * 5000)
        except holdfast.ResultTooLarge as error:
            return f"more than {error.maximum}"
        return "ok"

    async with stage.open(payload_bytes_max=value) as hf:
        (seen,) = await hf.run(Script("set.payload").become(large), id="e")
    return seen.strip("'")


@shows("spill_bytes_max", {1_500_000: "more than 1500000", 64 << 20: "ok"})
async def spill_bytes_max(stage: Stage, value: Any) -> Any:
    async def large() -> str:
        try:
            await fetch(2_000_000)
        except holdfast.ResultTooLarge as error:
            return f"more than {error.maximum}"
        return "ok"

    async with stage.open(spill_bytes_max=value) as hf:
        (seen,) = await hf.run(Script("set.spill").become(large), id="e")
    return seen.strip("'")


@shows("steps_live_max", {4: ("aborted", "step_cap", 4), 5: ("completed", None, 5)})
async def steps_live_max(stage: Stage, value: Any) -> Any:
    """DA-80: nothing can be folded yet, so the cap is hard."""
    async with stage.open(steps_live_max=value) as hf:
        script = Script("set.cap").become(*[lambda: send("a")] * 5)
        with contextlib.nullcontext() if value == 5 else pytest.raises(holdfast.StepCapExceeded, match="4 positions"):
            await hf.run(script, id="e")
        with contextlib.nullcontext() if value == 5 else pytest.raises(holdfast.ExecutionAborted, match="step_cap"):
            await hf.run(script, id="e")
        found = await info(hf)
        assert (await hf.verify()).ok
        return found.status, found.reason, found.positions_count


@shows("fold_at_percent", {60: [False, False, True, True], 85: [False, False, False, True]})
async def fold_at_percent(stage: Stage, value: Any) -> Any:
    seen: list[bool] = []

    async def note() -> None:
        await send("a")
        context = holdfast.current()
        assert context is not None
        seen.append(context.should_continue)

    async with stage.open(steps_live_max=5, fold_at_percent=value) as hf:
        await hf.run(Script("set.fold").become(note, note, note, note), id="e")
    return seen


@shows("segment_rows", {2: True, 256: False})
async def segment_rows(stage: Stage, value: Any) -> Any:
    async def note() -> int:
        context = holdfast.current()
        assert context is not None
        return context.segments_read

    script = Script("set.segment")
    calls = [lambda: send("a")] * 10
    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(*calls, stop), id="e")
    async with stage.open(segment_rows=value) as hf:
        return int((await hf.run(script.become(*calls, note), id="e"))[-1]) > 3


@shows("generations_max", {2: "aborted", 3: "completed"})
async def generations_max(stage: Stage, value: Any) -> Any:
    script = Script("set.generations")
    async with stage.open(generations_max=value) as hf:
        for what in "ab":
            with pytest.raises(Stop):
                await hf.run(script.become(lambda what=what: send(what), stop), id="e")
        with contextlib.suppress(holdfast.ReplayDivergence):
            await hf.run(script.become(lambda: send("c")), id="e")
        return (await info(hf)).status


@shows("ambiguous_attempts_max", {0: 1, 1: 2, 3: 4})
async def ambiguous_attempts_max(stage: Stage, value: Any) -> Any:
    attempts = 0

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun()))
    async def act() -> None:
        nonlocal attempts
        attempts += 1
        raise holdfast.OutcomeUnknown

    async with stage.open(ambiguous_attempts_max=value) as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(Script("set.reruns").become(act), id="e")
    return attempts


@shows("poll_ms", {100: True, 60_000: False})
async def poll_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    script = Script("set.poll")
    async with stage.open(clock=clock, poll_ms=value) as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(stop), id="e")
        task = asyncio.ensure_future(hf.handle("e").result())
        await look_on()
        # Nobody gives a hint of this.
        await change(stage.target, "UPDATE durable_executions SET status = 'canceled', finished_at = 1")
        await pass_time(clock, 1000)
        noticed = task.done()
        task.cancel()
        await asyncio.wait([task])
    return noticed


@shows("probe_timeout_ms", {500: True, 60_000: False})
async def probe_timeout_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    probing = asyncio.Event()

    async def probe(handle: holdfast.StepHandle) -> holdfast.Verdict:
        probing.set()
        await asyncio.Event().wait()
        return holdfast.unknown()

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.reconcile(probe)))
    async def act() -> None:
        raise holdfast.OutcomeUnknown

    async with stage.open(clock=clock, probe_timeout_ms=value, drain_ms=0) as hf:
        task = asyncio.ensure_future(hf.run(Script("set.probe").become(act), id="e"))
        await probing.wait()
        await pass_time(clock, 1000)
        gave_up = task.done()
        task.cancel()
        await asyncio.wait([task])
    return gave_up


@shows("cancel_grace_ms", {500: True, 60_000: False})
async def cancel_grace_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    running = asyncio.Event()

    @holdfast.step(effect=MONEY)
    async def stuck() -> None:
        running.set()
        await asyncio.Event().wait()

    async with stage.open(clock=clock, cancel_grace_ms=value, drain_ms=0) as hf:
        task = asyncio.ensure_future(hf.run(Script("set.grace").become(stuck), id="e"))
        await running.wait()
        assert await hf.cancel("e") == holdfast.Requested()
        await pass_time(clock, 3000)
        canceled = (await info(hf)).status == "canceled"
        await hf.cancel("e", force=True)
        task.cancel()
        await asyncio.wait([task])
    return canceled


@shows("drain_ms", {500: True, 60_000: False})
async def drain_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    running, release = asyncio.Event(), asyncio.Event()

    @holdfast.step(effect=MONEY)
    async def stuck() -> None:
        running.set()
        await release.wait()

    hf = await stage.open(clock=clock, drain_ms=value).open()
    await hf.start(Script("set.drain").become(stuck), id="e")
    await running.wait()
    closing = asyncio.ensure_future(hf.close())
    await until(lambda: hf.closing)
    await pass_time(clock, 2000)
    await until(closing.done, 1.5, anyway=value == 60_000)
    closed = closing.done()
    release.set()
    await asyncio.wait_for(closing, 10)
    return closed


@shows("lease_ms", {30_000: 30, 90_000: 90})
async def lease_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    async with stage.open(clock=clock, lease_ms=value) as hf:
        await hf.run(Script("set.lease").become(), id="e")
        ((until_,),) = await look(stage.target, "SELECT lease_until FROM holdfast_owners")
    return (until_ - clock.now()) / 1_000_000


@shows("renew_ms", {1000: True, 10_000: False})
async def renew_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    async with stage.open(clock=clock, renew_ms=value) as hf:
        await hf.run(Script("set.renew").become(), id="e")
        ((before,),) = await look(stage.target, "SELECT lease_until FROM holdfast_owners")
        await pass_time(clock, 3000)
        ((after,),) = await look(stage.target, "SELECT lease_until FROM holdfast_owners")
    return after > before


@shows("owner_dir", {"one": (1, 0), "other": (0, 1)})
async def owner_dir(stage: Stage, value: Any) -> Any:
    async with stage.open(owner_dir=stage.folder / value) as hf:
        await hf.run(Script("set.owners").become(), id="e")
        paths = [stage.folder / name for name in ("one", "other")]
        return tuple(len(os.listdir(path)) if path.exists() else 0 for path in paths)


@shows("recover_every_ms", {500: True, 60_000: False})
async def recover_every_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    script = Script("set.recover")
    async with stage.open(clock=clock) as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(stop), id="e")
        await hf.pause("e")
    script.become()
    async with stage.open(clock=clock, recover=True, recover_every_ms=value) as hf:
        await until(lambda: False, 0.1, anyway=True)
        assert (await info(hf)).waiting_on == "paused"
        await hf.resume("e")
        await pass_time(clock, 2000)
        return (await info(hf)).status == "completed"


@shows("stalled_recoveries_max", {1: 2, 3: 4})
async def stalled_recoveries_max(stage: Stage, value: Any) -> Any:
    script = Script("set.stalled")
    for died in range(1, 10):
        try:
            async with stage.open(stalled_recoveries_max=value) as hf:
                with crash("step.looked_up", action="raise"):
                    await hf.run(script.become(lambda: send("a")), id="e")
        except Crashed:
            continue
        except holdfast.ExecutionAborted:
            return died - 1
    return None


@shows("orphan_after_ms", {0: "pending", 60_000: "aborted", 86_400_000: "pending"})
async def orphan_after_ms(stage: Stage, value: Any) -> Any:
    clock = ManualClock()
    with pytest.raises(Stop):
        async with stage.open(clock=clock) as hf, hf.execution("e", kind="set.unknown"):
            raise Stop
    clock.advance(timedelta(hours=1))
    async with stage.open(clock=clock, recover=True, orphan_after_ms=value) as hf:
        await pass_time(clock, 10_000)
        return (await info(hf)).status


@shows("failure_message", {"full": "password=abc x", "redacted": "password=[redacted] x", "none": ""})
async def failure_message(stage: Stage, value: Any) -> Any:
    async def fail() -> None:
        raise ValueError("password=abc x")

    async with stage.open(failure_message=value) as hf:
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(Script("set.message").become(fail), id="e")
    return raised.value.error_message


@shows("failure_message_chars_max", {0: 0, 10: 10, 2000: 50})
async def failure_message_chars_max(stage: Stage, value: Any) -> Any:
    async def fail() -> None:
        raise ValueError("x" * 50)

    async with stage.open(failure_message_chars_max=value) as hf:
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(Script("set.chars").become(fail), id="e")
    return len(raised.value.error_message)


@shows("code_version", {None: (None, None), "7": ("7", "7")})
async def code_version(stage: Stage, value: Any) -> Any:
    async with stage.open(code_version=value) as hf:
        await hf.run(Script("set.version").become(), id="e")
        ((generation,),) = await look(stage.target, "SELECT code_version FROM durable_generations")
        return (await info(hf)).code_version, generation


@shows("accept_versions", {(): ("e",), ("1", "2"): ("e",), ("2",): ()})
async def accept_versions(stage: Stage, value: Any) -> Any:
    script = Script("set.accept")
    async with stage.open(code_version="1") as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(stop), id="e")
    script.become()
    async with stage.open(code_version="2", accept_versions=value) as hf:
        return (await hf.recover()).resumed


@shows("allow_unsafe_storage", {})
async def allow_unsafe_storage(stage: Stage, value: Any) -> Any:
    """Needs a server that does not flush: `test_a_server_that_does_not_flush_is_refused_unless_allowed`."""


KEYS = [field.name for field in dataclasses.fields(holdfast.DurableConfig)]
CASES = [(key, value) for key in KEYS for value in SETTINGS.get(key, (None, {"not shown": None}))[1]]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value}" for key, value in CASES])
async def test_every_setting_changes_what_can_be_observed(
    request: pytest.FixtureRequest, stage: Stage, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DA-90: each key of §16."""
    observer, seen = SETTINGS[key]
    if await observer(stage, value) == seen[value]:
        return
    # A short look suffices where the machine is idle. Where it is not, a long one on a fresh ledger decides.
    monkeypatch.setattr(sys.modules[__name__], "look_seconds", 2.0)
    again = stage.folder / "again"
    again.mkdir()
    make_target = request.getfixturevalue("make_target")
    target = make_target("postgres") if is_postgres(stage.target) else str(again / "ledger.db")
    assert await observer(Stage(target, again), value) == seen[value]


def test_no_setting_is_forgotten() -> None:
    """DA-90."""
    assert set(SETTINGS) == set(KEYS)
    for key, (_, seen) in SETTINGS.items():
        outcomes = {repr(each) for each in seen.values()}
        assert len(outcomes) > 1 or key == "allow_unsafe_storage", f"{key} shows nothing"


async def test_a_server_that_does_not_flush_is_refused_unless_allowed(tmp_path: Path) -> None:
    """§1, `allow_unsafe_storage`."""
    with PostgresServer(settings={"fsync": "off"}) as unsafe:
        stage = Stage(unsafe.fresh_schema(), tmp_path)
        with pytest.raises(holdfast.ConfigError, match="fsync") as raised:
            await stage.open().open()
        assert raised.value.code == "config.unsafe_storage"
        async with stage.open(allow_unsafe_storage=True) as hf:
            assert await hf.run(Script("set.unsafe").become(lambda: send("a")), id="e") == ["'a'"]


# --- without a ledger -----------------------------------------------------------------------------------


def tale(*, decorated: bool) -> tuple[Any, list[str]]:
    """A program with steps of every sort, decorated or not, and what it says."""
    said: list[str] = []

    def as_step(**options: Any) -> Callable[[Any], Any]:
        return holdfast.step(**options) if decorated else lambda fn: fn

    def as_durable(**options: Any) -> Callable[[Any], Any]:
        return holdfast.durable(**options) if decorated else lambda fn: fn

    @as_step(effect=holdfast.at_least_once(), retry=holdfast.Retry(max_attempts=3))
    async def add(a: int, b: int = 2) -> int:
        said.append(f"add {a} {b}")
        return a + b

    @as_step(effect=MONEY)
    async def spend(cents: int) -> object:
        said.append(f"spend {cents}")
        return object

    @as_step(effect=holdfast.idempotent())
    def plain(text: str) -> str:
        said.append(text)
        return text.upper()

    @as_step(effect=holdfast.idempotent())
    async def fail() -> None:
        raise LookupError("as it is")

    @as_durable(kind="tale")
    async def program(start: int, *, step: int = 3) -> list[Any]:
        value = await add(start, step)
        thing = await spend(value)
        try:
            await fail()
        except LookupError as error:
            said.append(f"{type(error).__name__} {error}")
        return [value, thing is object, plain("a"), await asyncio.gather(add(1), add(2))]

    return program, said


@pytest.mark.parametrize("ledger", ["sqlite-file", "postgres-empty"], indirect=True)
async def test_without_durability_a_program_is_what_it_is_without_decorators(stage: Stage) -> None:
    """DA-89, DX-8: byte for byte, and no file appears."""
    plain, heard = tale(decorated=False)
    expected = await plain(4, step=5)
    program, said = tale(decorated=True)
    async with stage.open(enabled=False) as hf:
        assert await hf.run(program, 4, step=5, id="e") == expected
        assert await hf.run(program, 4, step=5, id="e") == expected, "nothing is recorded"
    assert said == heard * 2
    assert list(stage.folder.rglob("*")) == []
    if is_postgres(stage.target):
        assert await look(stage.target, "SELECT 1 FROM pg_tables WHERE schemaname = current_schema()") == []


async def test_without_durability_durable_calls_do_what_they_are_called_after(stage: Stage) -> None:
    """DX-8."""
    described = holdfast.StepDescriptor("add", holdfast.at_least_once())

    async def double(number: int) -> int:
        return 2 * number

    @holdfast.durable(kind="tale.calls")
    async def program() -> list[Any]:
        before = await holdfast.now()
        assert 0 <= await holdfast.random() < 1
        assert (await holdfast.uuid()).version == 4
        assert await holdfast.patched("x")
        async with holdfast.branch("b"):
            inner = await double(3)
        assert before <= await holdfast.now()
        return [
            await holdfast.gather(double(1), double(2)), await holdfast.branch().run(double, 4), inner,
            await holdfast.first(double(5)),
        ]  # fmt: skip

    async with stage.open(enabled=False) as hf:
        assert await hf.run(program, id="e") == [[2, 4], 8, 6, (0, 10)]
        async with hf.execution("e", kind="k") as ctx:
            assert await ctx.step(described, lambda handle: handle.attempt) == 1
            record = await ctx.step_recorded(described, lambda handle: 7)
            assert record.outcome == holdfast.Live(7)
            async with ctx.parallel() as parallel:
                future = parallel.step(described, lambda handle: 8)
            assert await future == 8
            ctx.set_output(1)
    assert list(stage.folder.rglob("*")) == []


async def test_without_durability_what_needs_a_ledger_says_so(stage: Stage) -> None:
    """DX-8."""
    async with stage.open(enabled=False) as hf:
        fn = Script("tale.disabled").become()
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: hf.start(fn), lambda: hf.get("e"), hf.list, lambda: hf.history("e"), lambda: hf.timeline("e"),
            lambda: hf.diff("e", 1, 2), hf.audit, hf.verify, lambda: hf.resume("e"), lambda: hf.cancel("e"),
            lambda: hf.pause("e"), hf.recover, lambda: hf.decide("e", "0", holdfast.abort(), by="ann"),
            hf.handle("e").info, hf.handle("e").result,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(holdfast.DurabilityDisabled):
                await call()


# --- error codes ----------------------------------------------------------------------------------------

Raiser = Callable[[Stage], Awaitable[BaseException]]
RAISED: dict[type[BaseException], Raiser] = {}


def raises(kind: type[BaseException]) -> Callable[[Raiser], Raiser]:
    """Register how an error comes about."""

    def register(raiser: Raiser) -> Raiser:
        RAISED[kind] = raiser
        return raiser

    return register


async def caught(call: Awaitable[Any], kind: type[BaseException]) -> BaseException:
    with pytest.raises(kind) as raised:
        await call
    return raised.value


@raises(errors.ExecutionConflict)
async def conflict(stage: Stage) -> BaseException:
    @holdfast.durable(kind="err.conflict")
    async def fn(number: int) -> int:
        return number

    async with stage.open() as hf:
        await hf.run(fn, 1, id="e")
        return await caught(hf.run(fn, 2, id="e"), errors.ExecutionConflict)


@raises(errors.ExecutionBusy)
async def busy(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(Script("err.busy").become(stop), id="e")
        await hf.pause("e")
        return await caught(opened(hf, "err.busy"), errors.ExecutionBusy)


async def opened(hf: holdfast.Holdfast, kind: str) -> None:
    async with hf.execution("e", kind=kind):
        pass


@raises(errors.UnknownExecution)
async def unknown_execution(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        return await caught(hf.resume("nobody"), errors.UnknownExecution)


@raises(errors.UnknownKind)
async def unknown_kind(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        with pytest.raises(Stop):
            async with hf.execution("e", kind="err.nobody_registers_this"):
                raise Stop
        return await caught(hf.recover(kinds=["err.nobody_registers_this"]), errors.UnknownKind)


@raises(errors.ExecutionFailed)
async def execution_failed(stage: Stage) -> BaseException:
    async def fail() -> None:
        raise ValueError("why")

    async with stage.open() as hf:
        error = await caught(hf.run(Script("err.failed").become(fail), id="e"), errors.ExecutionFailed)
        assert isinstance(error, errors.ExecutionFailed)
        assert (error.error_type, error.error_message, error.positions) == ("ValueError", "why", ())
        return error


@raises(errors.ExecutionAborted)
async def execution_aborted(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(Script("err.aborted").become(lambda: doubt("a")), id="e")
        await hf.decide("e", "0", holdfast.abort(), by="ann")
        error = await caught(hf.handle("e").result(), errors.ExecutionAborted)
        assert isinstance(error, errors.ExecutionAborted)
        assert error.reason == "decision"
        return error


@raises(errors.ExecutionCanceled)
async def execution_canceled(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(Script("err.canceled").become(stop), id="e")
        await hf.cancel("e", reason="why")
        return await caught(hf.handle("e").result(), errors.ExecutionCanceled)


@raises(errors.ExecutionFinished)
async def execution_finished(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        await hf.run(Script("err.finished").become(), id="e")
        error = await caught(hf.resume("e"), errors.ExecutionFinished)
        assert isinstance(error, errors.ExecutionFinished)
        assert error.status == "completed"
        return error


@raises(errors.DeadlineExceeded)
async def deadline_exceeded(stage: Stage) -> BaseException:
    clock = ManualClock()

    async def wait() -> None:
        clock.advance(timedelta(hours=1))

    async with stage.open(clock=clock) as hf:
        script = Script("err.deadline").become(wait, lambda: send("a"))
        failed = await caught(hf.run(script, id="e", deadline=timedelta(minutes=1)), errors.ExecutionFailed)
        assert isinstance(failed.__cause__, errors.DeadlineExceeded)
        found = await info(hf)
        assert failed.__cause__.deadline_at == found.deadline_at
        assert from_datetime(failed.__cause__.deadline_at) == clock.now() - 59 * 60_000_000
        return failed.__cause__


@raises(errors.NeedsDecision)
async def needs_decision(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        error = await caught(hf.run(Script("err.decision").become(lambda: doubt("a")), id="e"), errors.NeedsDecision)
        assert isinstance(error, errors.NeedsDecision)
        assert (error.execution_id, error.positions) == ("e", ("0",))
        return error


@raises(errors.NoDecisionOpen)
async def no_decision_open(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        await hf.run(Script("err.no_decision").become(), id="e")
        return await caught(hf.decide("e", "0", holdfast.abort(), by="ann"), errors.NoDecisionOpen)


@raises(errors.AmbiguityPolicyRequired)
async def policy_required(stage: Stage) -> BaseException:
    with pytest.raises(errors.AmbiguityPolicyRequired) as raised:
        holdfast.StepDescriptor("charge", holdfast.exactly_once("money"))
    assert raised.value.step == "charge"
    return raised.value


@raises(errors.ReplayDivergence)
async def replay_divergence(stage: Stage) -> BaseException:
    script = Script("err.divergence")
    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(lambda: send("a"), stop), id="e")
        call = hf.run(script.become(lambda: send("b")), id="e", on_divergence="raise")
        return await caught(call, errors.ReplayDivergence)


@raises(errors.ForeignTask)
async def foreign_task(stage: Stage) -> BaseException:
    async def elsewhere() -> None:
        await send("a")

    async def foreign() -> None:
        await asyncio.ensure_future(elsewhere())

    async with stage.open() as hf:
        failed = await caught(hf.run(Script("err.foreign").become(foreign), id="e"), errors.ExecutionFailed)
        assert failed.__cause__ is not None
        return failed.__cause__


@raises(errors.NestedEffect)
async def nested_effect(stage: Stage) -> BaseException:
    async with stage.open() as hf:
        nested = Script("err.nested").become(lambda: hf.run(Script("err.nested2").become()))
        failed = await caught(hf.run(nested, id="e"), errors.ExecutionFailed)
        assert failed.__cause__ is not None
        return failed.__cause__


@raises(errors.OutsideExecution)
async def outside_execution(stage: Stage) -> BaseException:
    with pytest.raises(errors.OutsideExecution) as raised:
        holdfast.now()
    return raised.value


@raises(errors.FingerprintError)
async def fingerprint(stage: Stage) -> BaseException:
    async def call() -> None:
        await send(object())

    async with stage.open() as hf:
        failed = await caught(hf.run(Script("err.fingerprint").become(call), id="e"), errors.ExecutionFailed)
        assert isinstance(failed.__cause__, errors.FingerprintError)
        assert (failed.__cause__.step, failed.__cause__.argument) == ("send", "what")
        return failed.__cause__


@raises(errors.StepCapExceeded)
async def step_cap(stage: Stage) -> BaseException:
    async with stage.open(steps_live_max=1) as hf:
        script = Script("err.cap").become(lambda: send("a"), lambda: send("b"))
        return await caught(hf.run(script, id="e"), errors.StepCapExceeded)


@raises(errors.DurabilityDisabled)
async def disabled(stage: Stage) -> BaseException:
    async with stage.open(enabled=False) as hf:
        return await caught(hf.get("e"), errors.DurabilityDisabled)


@raises(errors.StepFailed)
async def step_failed(stage: Stage) -> BaseException:
    @holdfast.step(effect=holdfast.at_least_once(), retry=holdfast.Retry(max_attempts=2, initial=timedelta(0)))
    async def fail() -> None:
        raise ValueError("why")

    async with stage.open() as hf:
        failed = await caught(hf.run(Script("err.step").become(fail), id="e"), errors.ExecutionFailed)
        error = failed.__cause__
        assert isinstance(error, errors.StepFailed)
        assert (error.position, error.error_type, error.error_message, error.attempts) == ("0", "ValueError", "why", 2)
        return error


@raises(errors.ResultTooLarge)
async def result_too_large(stage: Stage) -> BaseException:
    async with stage.open(payload_bytes_max=100) as hf:
        failed = await caught(
            hf.run(Script("err.large").become(lambda: send("x" * 200)), id="e"), errors.ExecutionFailed
        )
        error = failed.__cause__
        assert isinstance(error, errors.ResultTooLarge)
        assert error.maximum == 100
        assert error.size > 200
        return error


@raises(errors.ResultUnserializable)
async def result_unserializable(stage: Stage) -> BaseException:
    @holdfast.step(effect=holdfast.at_least_once())
    async def odd() -> object:
        return object()

    async with stage.open() as hf:
        failed = await caught(hf.run(Script("err.odd").become(odd), id="e"), errors.ExecutionFailed)
        assert failed.__cause__ is not None
        return failed.__cause__


@raises(errors.JournalUnavailable)
async def journal_unavailable(stage: Stage) -> BaseException:
    clock = ManualClock()
    async with stage.open(clock=clock, ack_timeout_ms=1000) as hf:

        async def stall() -> None:
            WriterFaults(hf).stall()

        script = Script("err.journal").become(lambda: send("a"), stall, lambda: pay("b"))
        task = asyncio.ensure_future(hf.run(script, id="e"))
        await until(lambda: hf.database.writer.faults.stalled)
        await pass_time(clock, 2000)
        error = await caught(task, errors.JournalUnavailable)
        WriterFaults(hf).resume()
        await until(lambda: hf.database.writer.pending_items == 0)
        return error


@raises(errors.IntegrityError)
async def integrity(stage: Stage) -> BaseException:
    script = Script("err.integrity")
    async with stage.open() as hf:
        with pytest.raises(Stop):
            await hf.run(script.become(lambda: fetch(3 << 20), stop), id="e")
    await change(stage.target, "DELETE FROM durable_blobs WHERE part = 1")
    async with stage.open() as hf:
        error = await caught(hf.run(script.become(lambda: fetch(3 << 20)), id="e"), errors.IntegrityError)
        found = await info(hf)
        assert (found.status, found.reason) == ("aborted", "integrity")
        with pytest.raises(holdfast.ExecutionFinished):
            await hf.resume("e")
        assert isinstance(error, errors.IntegrityError)
        assert (error.execution_id, error.table) == ("e", "durable_blobs")
        return error


RAISABLE = [
    getattr(errors, name) for name in errors.__all__ if name not in ("DurableError", "PositionShape", "ResultLost")
]


@pytest.mark.parametrize("kind", RAISABLE, ids=lambda kind: kind.code)
async def test_every_error_is_raised_with_its_code(stage: Stage, kind: type[errors.DurableError]) -> None:
    """DA-90: each code of §18."""
    error = await RAISED[kind](stage)
    assert type(error) is kind
    assert isinstance(error, holdfast.DurableError)
    assert error.code == kind.code
    assert error.code.startswith("durable.")
    assert str(error) == error.message
    assert error.message
    assert error.hint, "an error says what to do next"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert (type(again), again.code, str(again), again.hint) == (kind, error.code, str(error), error.hint)
        assert {k: v for k, v in vars(again).items() if k[0] != "_"} == {
            k: v for k, v in vars(error).items() if k[0] != "_"
        }


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in [*RAISABLE, errors.ResultLost, errors.DurableError]]
    assert len(set(codes)) == len(codes)


# --- crash points ---------------------------------------------------------------------------------------


class Journey:
    """A course that passes every crash point, and can be taken up after a crash at any of them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.old = Script("crash.old")
        self.doubted = False
        outside = stage.outside

        @holdfast.step(effect=MONEY)
        async def charge(what: str) -> str:
            outside.happen("charge", what, holdfast.current_step().idempotency_key.hex())
            if not self.doubted:
                self.doubted = True
                raise holdfast.OutcomeUnknown
            return what

        @holdfast.durable(kind="crash.new")
        async def new() -> list[str]:
            return [await send("a"), await charge("b")]

        @holdfast.durable(kind="crash.slow")
        async def slow() -> None:
            await send("c")
            await asyncio.Event().wait()

        self.new, self.slow = new, slow

    async def prepare(self) -> None:
        """Leave behind what is taken over, and has changed since."""
        await self.stage.die("outcome.acked", self.old.become(lambda: send("old")), id="old")
        self.old.become(lambda: send("changed"))

    async def go(self) -> None:
        """Pass every point."""
        async with self.stage.open(drain_ms=100) as hf:
            await hf.run(self.old.fn, id="old")
            await hf.start(self.slow, id="slow")
            await hf.cancel("slow", reason="enough")
            with contextlib.suppress(holdfast.NeedsDecision):
                await hf.run(self.new, id="new")
            await hf.decide("new", "1", holdfast.not_happened(), by="ann")
            await hf.run(self.new, id="new")

    async def finish(self) -> None:
        """Take everything up after the crash, and look whether all is in order."""
        async with self.stage.open(drain_ms=100) as hf:
            assert (await hf.verify()).problems == ()
            assert await hf.run(self.old.fn, id="old") == ["'changed'"]
            for _ in range(3):
                try:
                    assert await hf.run(self.new, id="new") == ["a", "b"]
                    break
                except holdfast.NeedsDecision as asked:
                    await hf.decide("new", asked.positions[0], holdfast.not_happened(), by="ann")
            assert (await info(hf, "new")).status == "completed"
            if await hf.get("slow") is not None:
                await hf.cancel("slow", force=True)
                assert (await info(hf, "slow")).status == "canceled"
            assert (await hf.verify()).problems == ()
        keys = {line.split()[2] for line in self.stage.outside.lines()}
        assert len(keys) == 1, "never two keys"


@pytest.mark.parametrize("point", DURABLE_POINTS)
async def test_every_crash_point_can_be_hit_and_harms_nothing(stage: Stage, point: str) -> None:
    """DA-90: each crash point of §21."""
    journey = Journey(stage)
    await journey.prepare()
    with crash(point, action="raise") as armed, contextlib.suppress(Crashed, holdfast.Closed):
        await journey.go()
    assert armed.passed >= 1
    await journey.finish()


def test_crash_points_are_those_of_the_slice() -> None:
    """§21, without those of sections that do not exist yet."""
    assert set(DURABLE_POINTS) == {
        "claim.updated", "step.positioned", "step.looked_up", "intent.queued", "intent.committed", "intent.acked",
        "effect.returned", "outcome.encoded", "outcome.queued", "outcome.committed", "outcome.acked", "batch.begun",
        "batch.inserted", "batch.committed", "ambiguity.audited", "decision.committed", "generation.opened",
        "cancel.requested", "finish.queued", "finish.committed", "lock.created", "lock.locked",
    }  # fmt: skip
