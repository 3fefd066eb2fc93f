"""Failures: recorded, replayed as themselves, tried again, re-armed."""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.stage import Stage, drop_everything, turns

import holdfast
from holdfast.testing import Crashed, ManualClock, crash


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class CardDeclined(Exception):
    """What a payment raises that the program knows."""


class Insolvent(CardDeclined):
    """A special case of it."""


class Stubborn(Exception):
    """An exception whose arguments are not what it was called with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, object())


# --- retries -----------------------------------------------------------------------------------------


async def test_a_retry_waits_out_the_rest_of_its_delay_after_a_crash(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DA-30."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    clock = ManualClock()

    @holdfast.step(
        effect=holdfast.at_least_once(),
        retry=holdfast.Retry(max_attempts=3, initial=timedelta(seconds=20), maximum=timedelta(minutes=1)),
    )
    async def fetch() -> str:
        step = holdfast.current_step()
        stage.outside.happen("fetch", step.attempt, step.idempotency_key.hex())
        if step.attempt < 3:
            raise ConnectionError("refused")
        return f"fetched at attempt {step.attempt}"

    @holdfast.durable(kind="failures.fetches")
    async def program() -> str:
        return await fetch()

    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until_waiting(hf, fence=1, attempts=1)
        await clock.advance(timedelta(seconds=10))
        await until_waiting(hf, fence=1, attempts=2)
        await clock.advance(timedelta(seconds=14))
        drop_everything()
        with pytest.raises(Crashed):
            await task
    assert stage.outside.count("fetch") == 2
    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        await until_waiting(hf, fence=2, attempts=2)
        await clock.advance(timedelta(seconds=5.9))
        await turns(100)
        assert stage.outside.count("fetch") == 2
        await clock.advance(timedelta(seconds=0.2))
        assert await task == "fetched at attempt 3"
        entries = [(entry.part, entry.attempt, entry.outcome) for entry in await hf.history("e")]
    assert entries == [("attempt", 1, "failed"), ("attempt", 2, "failed"), ("outcome", 3, "value")]
    assert len({line.split()[2] for line in stage.outside.lines()}) == 1


async def until_waiting(hf: holdfast.Holdfast, *, fence: int, attempts: int) -> None:
    """Return when the owner of this fence has recorded so many attempts and waits for the next."""
    while True:
        await turns()
        found = await hf.get("e")
        if found is not None and (found.status, found.waiting_on, found.fence) == ("waiting", "retry", fence):
            entries = await hf.history("e")
            if len(entries) == attempts and all(entry.at <= found.updated_at for entry in entries):
                return


async def test_each_guarded_attempt_has_its_own_intent(stage: Stage) -> None:
    """DX-33: and a crash between two attempts repeats none."""

    @holdfast.step(
        effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()),
        retry=holdfast.Retry(max_attempts=3, initial=timedelta(0)),
    )
    async def pay() -> int:
        attempt = holdfast.current_step().attempt
        stage.outside.happen("pay", attempt)
        if attempt < 3:
            raise ConnectionError("refused")
        return attempt

    @holdfast.durable(kind="failures.retries.money")
    async def program() -> int:
        return await pay()

    await stage.die("outcome.acked", program, id="e", hit=2)
    assert await stage.run(program, id="e") == 3
    async with stage.open() as hf:
        entries = [(entry.part, entry.attempt) for entry in await hf.history("e")]
        assert (await hf.verify()).ok
    assert entries == [("opened", 1), ("attempt", 1), ("opened", 2), ("attempt", 2), ("opened", 3), ("outcome", 3)]
    assert stage.outside.lines() == ["pay 1", "pay 2", "pay 3"]


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_retry_counts_the_attempts_before_a_crash(stage: Stage, guarded: bool) -> None:
    """DX-33."""
    effect = holdfast.exactly_once("money", on_ambiguous=holdfast.fail()) if guarded else holdfast.at_least_once()

    @holdfast.step(effect=effect, retry=holdfast.Retry(max_attempts=3, initial=timedelta(0)))
    async def fetch() -> None:
        stage.outside.happen("fetch", holdfast.current_step().attempt)
        raise ConnectionError("refused")

    @holdfast.durable(kind="failures.budget")
    async def program() -> int:
        try:
            await fetch()
        except holdfast.StepFailed as error:
            return error.attempts
        return 0

    await stage.die("outcome.acked", program, id="e", hit=2)
    assert await stage.run(program, id="e") == 3
    assert stage.outside.lines() == ["fetch 1", "fetch 2", "fetch 3"]


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({"retry_on": (ConnectionError,)}, 4),
        ({"retry_on": (ValueError,)}, 1),
        ({"give_up_on": (ConnectionError,)}, 1),
        ({"give_up_on": (ConnectionError,), "retry_on": (ConnectionError,)}, 1),
        ({"max_attempts": 1}, 1),
    ],
)
async def test_a_retry_tries_what_is_worth_trying(stage: Stage, options: dict[str, Any], attempts: int) -> None:
    """DX-33."""
    retry = holdfast.Retry(**{"max_attempts": 4, "initial": timedelta(0), **options})

    @holdfast.step(effect=holdfast.idempotent(), retry=retry)
    async def fetch() -> None:
        stage.outside.happen("fetch")
        raise ConnectionRefusedError("no")

    @holdfast.durable(kind="failures.tries")
    async def program() -> list[Any]:
        try:
            await fetch()
        except holdfast.StepFailed as error:
            return [error.position, error.error_type, error.error_message, error.attempts]
        return []

    for _ in range(2):
        assert await stage.run(program, id="e") == ["0", "ConnectionRefusedError", "no", attempts]
    assert stage.outside.count("fetch") == attempts


async def test_delays_grow_and_are_capped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """DX-33: uniform(0, min(maximum, initial·factorⁿ⁻¹))."""
    monkeypatch.setattr(random, "random", lambda: 1 - 2**-53)
    clock = ManualClock()
    retry = holdfast.Retry(max_attempts=6, initial=timedelta(seconds=1), factor=3.0, maximum=timedelta(seconds=20))

    @holdfast.step(effect=holdfast.idempotent(), retry=retry)
    async def fetch() -> None:
        stage.outside.happen("fetch")
        raise ConnectionError

    @holdfast.durable(kind="failures.delays")
    async def program() -> None:
        await fetch()

    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        for attempts, delay in enumerate([1, 3, 9, 20, 20], 1):
            await until_waiting(hf, fence=1, attempts=attempts)
            await clock.advance(timedelta(seconds=delay - 0.01))
            await turns(100)
            assert stage.outside.count("fetch") == attempts
            await clock.advance(timedelta(seconds=0.02))
        with pytest.raises(holdfast.ExecutionFailed):
            await task
    assert stage.outside.count("fetch") == 6


# --- what the program sees -----------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["idempotent", "exactly_once"])
async def test_a_listed_exception_is_itself_live_and_on_replay(stage: Stage, effect: str) -> None:
    """DA-31."""
    classes = {
        "idempotent": holdfast.idempotent(),
        "exactly_once": holdfast.exactly_once("money", on_ambiguous=holdfast.fail()),
    }
    seen: list[list[Any]] = []

    @holdfast.step(effect=classes[effect], raises=(CardDeclined,))
    async def pay(how: str) -> None:
        stage.outside.happen("pay", how)
        if how == "listed":
            raise CardDeclined("no credit", 402, b"\x00")
        if how == "derived":
            raise Insolvent("nothing left")
        raise LookupError("no such card", 404)

    @holdfast.step(effect=classes[effect], raises=(Stubborn,))
    async def odd() -> None:
        stage.outside.happen("odd")
        raise Stubborn("because")

    @holdfast.step(effect=holdfast.idempotent())
    async def last() -> None:
        return None

    @holdfast.durable(kind="failures.declines")
    async def program() -> None:
        found: list[Any] = []
        for call in (lambda: pay("listed"), lambda: pay("derived"), lambda: pay("unlisted"), odd):
            try:
                await call()
            except CardDeclined as error:
                found.append((type(error), error.args))
            except holdfast.StepFailed as error:
                found.append((error.position, error.error_type, error.error_message, error.attempts))
        seen.append(found)
        await last()

    await stage.die("step.positioned", program, id="e", hit=5)
    await stage.run(program, id="e")
    assert seen[0] == seen[1]
    assert seen[0][:3] == [
        (CardDeclined, ("no credit", 402, b"\x00")),
        (Insolvent, ("nothing left",)),
        ("2", "LookupError", "('no such card', 404)", 1),
    ]
    assert seen[0][3][:2] == ("3", f"{__name__}.Stubborn")
    assert len(stage.outside.lines()) == 4


async def test_a_step_failure_has_its_cause_only_live(stage: Stage) -> None:
    """DX-32."""
    causes: list[BaseException | None] = []

    @holdfast.step(effect=holdfast.idempotent())
    async def work(fails: bool) -> None:
        if fails:
            raise LookupError

    @holdfast.durable(kind="failures.causes")
    async def program() -> None:
        try:
            await work(True)
        except holdfast.StepFailed as error:
            causes.append(error.__cause__)
        await work(False)

    await stage.die("outcome.acked", program, id="e", hit=2)
    await stage.run(program, id="e")
    assert isinstance(causes[0], LookupError)
    assert causes[1] is None


async def test_a_durable_function_may_list_what_run_raises_as_itself(stage: Stage) -> None:
    """The house's own addition to DX-5: `@durable(raises=…)`."""

    @holdfast.step(effect=holdfast.idempotent(), raises=(CardDeclined,))
    async def pay() -> None:
        raise CardDeclined("no credit")

    @holdfast.durable(kind="failures.declines.itself", raises=(CardDeclined,))
    async def program(listed: bool) -> None:
        if not listed:
            raise LookupError("x")
        await pay()

    async with stage.open() as hf:
        for _ in range(2):
            with pytest.raises(CardDeclined, match="no credit"):
                await hf.run(program, True, id="listed")
            with pytest.raises(holdfast.ExecutionFailed) as raised:
                await hf.run(program, False, id="unlisted")
            assert (raised.value.error_type, raised.value.error_message) == ("LookupError", "x")
        with pytest.raises(CardDeclined):
            await hf.handle("listed").result()


async def test_the_live_failure_of_an_execution_has_its_cause_and_names_its_steps(stage: Stage) -> None:
    """DX-5."""

    @holdfast.step(effect=holdfast.idempotent())
    async def work(number: int) -> None:
        raise LookupError(number)

    @holdfast.durable(kind="failures.tree")
    async def program() -> None:
        errors = await holdfast.gather(work(0), work(1), return_exceptions=True)
        try:
            await work(2)
        except holdfast.StepFailed as error:
            raise ExceptionGroup("all", [each for each in errors if isinstance(each, Exception)]) from error

    async with stage.open() as hf:
        with pytest.raises(holdfast.ExecutionFailed) as raised:
            await hf.run(program, id="e")
        assert isinstance(raised.value.__cause__, ExceptionGroup)
        assert set(raised.value.positions) == {"0", "1", "2"}
        with pytest.raises(holdfast.ExecutionFailed) as again:
            await hf.run(program, id="e")
        assert again.value.__cause__ is None
        assert again.value.positions == raised.value.positions
        assert str(again.value) == str(raised.value)


@pytest.mark.parametrize(("setting", "message"), [("full", "key sk-ant-REDACTME-000000000000000000"), ("none", "")])
async def test_a_failure_message_is_recorded_as_far_as_the_settings_let_it(
    stage: Stage, setting: Any, message: str
) -> None:
    """DX-31."""

    @holdfast.step(effect=holdfast.idempotent())
    async def work() -> None:
        raise LookupError("key sk-ant-REDACTME-000000000000000000")

    @holdfast.durable(kind="failures.messages")
    async def program() -> str:
        try:
            await work()
        except holdfast.StepFailed as error:
            return error.error_message
        return "?"

    assert await stage.run(program, id="e", failure_message=setting) == message
    short = await stage.run(program, id="f", failure_message_chars_max=5)
    assert short == "key s"


# --- failures of guarded effects -------------------------------------------------------------------------


async def test_a_failed_guarded_effect_is_no_ambiguity_and_resume_tries_again(stage: Stage) -> None:
    """DA-32."""

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay() -> str:
        attempt = holdfast.current_step().attempt
        stage.outside.happen("pay", attempt)
        if attempt == 1:
            raise CardDeclined("no credit")
        return f"paid at attempt {attempt}"

    @holdfast.durable(kind="failures.pays.late")
    async def program() -> str:
        return await pay()

    await stage.die("outcome.acked", program, id="e")
    async with stage.open() as hf:
        for _ in range(2):
            with pytest.raises(holdfast.ExecutionFailed) as raised:
                await hf.run(program, id="e")
            assert raised.value.positions == ("0",)
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.open_decisions) == ("failed", ())
        assert stage.outside.count("pay") == 1
        handle = await hf.resume("e")
        assert (await handle.info()).status == "pending"
        assert await hf.run(program, id="e") == "paid at attempt 2"
        assert not [record for record in await hf.audit("e") if record.event == "ambiguity"]
        assert (await hf.verify()).ok
    assert stage.outside.lines() == ["pay 1", "pay 2"]


async def test_resume_rearms_what_ended_the_execution_and_nothing_else(stage: Stage) -> None:
    """DX-36: a failure that the program handled stays recorded."""
    broken = {"a", "b", "c"}

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def work(name: str) -> str:
        stage.outside.happen("work", name)
        if name in broken:
            raise LookupError(name)
        return name

    @holdfast.step(effect=holdfast.at_least_once())
    async def lose(size: int) -> bytes:
        stage.outside.happen("lose")
        return b"x" * (size if broken else 3)

    @holdfast.step(effect=holdfast.exactly_once("custom", on_ambiguous=holdfast.fail()))
    async def lose_guarded(size: int) -> bytes:
        stage.outside.happen("lose guarded")
        return b"x" * (size if broken else 3)

    async def tried(call: Any) -> str:
        try:
            return str(await call)
        except (holdfast.StepFailed, holdfast.ResultLost) as error:
            return type(error).__name__

    @holdfast.durable(kind="failures.rearms")
    async def program() -> list[str]:
        found = [await tried(work("a")), await tried(lose(2000)), await tried(lose_guarded(2000))]
        return [*found, await work("b"), await work("d")]

    settings = {"payload_bytes_max": 1000}
    async with stage.open(**settings) as hf:
        with pytest.raises(holdfast.ExecutionFailed):
            await hf.run(program, id="e")
        broken.clear()
        assert await hf.run(program, id="e", reopen=True) == [
            "StepFailed", "b'xxx'", "ResultTooLarge", "b", "d"
        ]  # fmt: skip
        assert (await hf.verify()).ok
    counts = {name: stage.outside.count(name) for name in ("work a", "work b", "work d", "lose guarded")}
    assert counts == {"work a": 1, "work b": 2, "work d": 1, "lose guarded": 1}


# --- results that are lost ---------------------------------------------------------------------------------


async def test_a_result_that_is_too_large_is_lost_or_spilled(stage: Stage) -> None:
    """DX-34."""

    def sized(*, spill: bool) -> Any:
        @holdfast.step(effect=holdfast.at_least_once(), spill=spill, name="spilled" if spill else "kept")
        async def make(size: int) -> bytes:
            stage.outside.happen("make", size)
            return bytes(index % 251 for index in range(size))

        return make

    @holdfast.step(effect=holdfast.idempotent())
    async def last() -> None:
        return None

    seen: list[Any] = []

    @holdfast.durable(kind="failures.sizes")
    async def program() -> None:
        found: list[Any] = []
        for call, size in ((sized(spill=False), 100), (sized(spill=False), 5000), (sized(spill=True), 5000),
                           (sized(spill=True), 50_000)):  # fmt: skip
            try:
                found.append(await call(size))
            except holdfast.ResultTooLarge as error:
                found.append((error.size > size, error.maximum))
        seen.append(found)
        await last()

    settings = {"payload_bytes_max": 1000, "spill_bytes_max": 10_000}
    async with stage.open(**settings) as hf:
        with crash("step.positioned", 5, "raise"), pytest.raises(Crashed):
            await hf.run(program, id="e")
    async with stage.open(**settings) as hf:
        await hf.run(program, id="e")
        assert (await hf.verify()).ok
    assert seen[0] == seen[1]
    assert [len(seen[0][0]), seen[0][1], len(seen[0][2]), seen[0][3]] == [100, (True, 1000), 5000, (True, 10_000)]
    assert len(stage.outside.lines()) == 4


async def test_a_result_that_does_not_fit_its_declared_type_is_lost(stage: Stage) -> None:
    """DX-34."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def count() -> int:
        stage.outside.happen("count")
        return "three"  # type: ignore[return-value]  # what this is about

    @holdfast.durable(kind="failures.misfits")
    async def program() -> str:
        try:
            return str(await count())
        except holdfast.ResultUnserializable:
            return "lost"

    await stage.die("finish.queued", program, id="e")
    assert await stage.run(program, id="e") == "lost"
    assert stage.outside.count("count") == 1


async def test_an_input_over_the_limit_is_refused_before_anything_is_written(stage: Stage) -> None:
    """DX-34."""

    @holdfast.durable(kind="failures.inputs")
    async def program(words: str) -> None:
        stage.outside.happen("ran")

    async with stage.open(payload_bytes_max=1000) as hf:
        for call in (hf.run, hf.start):
            with pytest.raises(holdfast.LimitError) as raised:
                await call(program, "x" * 2000, id="e")
            assert raised.value.maximum == 1000
        assert await hf.get("e") is None
    assert stage.outside.lines() == []


async def test_an_output_that_cannot_be_recorded_fails_the_execution(stage: Stage) -> None:
    """DX-5."""

    @holdfast.durable(kind="failures.outputs")
    async def program(how: str) -> Any:
        return {"odd": object(), "huge": 1 << 80, "long": "x" * 2000}[how]

    async with stage.open(payload_bytes_max=1000) as hf:
        for how in ("odd", "huge", "long"):
            for _ in range(2):
                with pytest.raises(holdfast.ExecutionFailed):
                    await hf.run(program, how, id=how)
            found = await hf.get(how)
            assert found is not None
            assert found.status == "failed"


async def test_a_late_result_of_a_thread_is_discarded_and_audited(stage: Stage) -> None:
    """DX-26: no attempt of a key overlaps with the one before."""
    go = threading.Event()
    running: list[int] = []
    clock = ManualClock()

    @holdfast.step(effect=holdfast.exactly_once("custom", on_ambiguous=holdfast.rerun()), timeout=timedelta(seconds=1))
    def slow() -> int:
        attempt = holdfast.current_step().attempt
        running.append(attempt)
        assert len(running) == 1, "two attempts of one key at once"
        if attempt == 1:
            clock.advance(timedelta(seconds=2))
            go.wait(30)
        running.remove(attempt)
        stage.outside.happen("slow", attempt)
        return attempt

    @holdfast.durable(kind="failures.threads.late")
    async def program() -> int:
        return await slow.call()

    async with stage.open(clock=clock) as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        while not [record for record in await hf.audit("e") if record.event == "ambiguity"]:
            await turns()
        go.set()
        assert await task == 2
        while not (late := [record for record in await hf.audit("e") if record.event == "late_result"]):
            await turns()
        assert late[0].position == "0"
        entries = [(entry.part, entry.attempt) for entry in await hf.history("e")]
    assert entries == [("opened", 1), ("opened", 2), ("outcome", 2)]
    assert stage.outside.lines() == ["slow 1", "slow 2"]
