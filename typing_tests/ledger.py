"""What a checker infers of an open ledger: running, looking, operating. Checked, never run."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, assert_never, assert_type

import holdfast


@holdfast.durable(kind="agent_turn")
async def turn(prompt: str) -> list[int]:
    """An asynchronous durable function."""
    return [len(prompt)]


@holdfast.durable(kind="plain_turn")
def plain_turn(prompt: str) -> bytes:
    """A plain durable function."""
    return prompt.encode()


async def undecorated(prompt: str) -> int:
    """No durable function."""
    return len(prompt)


async def opening() -> None:
    """A path, text or the configured ledger; an asynchronous context manager."""
    async with holdfast.open("agent.db") as hf:
        assert_type(hf, holdfast.Holdfast)
        assert_type(hf.config, holdfast.DurableConfig)
    settings = holdfast.DurableConfig(ack="pipelined", accept_versions=("1", "2"), owner_dir=Path("owners"))
    holdfast.open(Path("agent.db"), durable=settings, clock=holdfast.SystemClock(), namespace=bytes(16), recover=True)
    holdfast.open(None)
    holdfast.open()  # type: ignore[call-arg]  # the ledger is named, if only by None
    holdfast.DurableConfig(ack="never")  # type: ignore[arg-type]  # choices are literals
    holdfast.DurableConfig(lease=3)  # type: ignore[call-arg]  # there is no such setting
    assert_type(holdfast.DurableConfig.load(), holdfast.DurableConfig)
    clock: holdfast.Clock = holdfast.SystemClock()
    assert_type(clock.now(), int)


async def running(hf: holdfast.Holdfast) -> None:
    """The output has the function's type, whichever form the call has."""
    assert_type(await hf.run(turn.bind("buy milk")), list[int])
    assert_type(await hf.run(turn.bind("buy milk"), id="turn-42", deadline=timedelta(hours=1)), list[int])
    assert_type(await hf.run(turn, "buy milk", id="turn-42", on_busy="raise", reopen=True), list[int])
    assert_type(await hf.run(plain_turn, "buy milk"), bytes)
    assert_type(await hf.run(plain_turn.bind("buy milk")), bytes)
    print(await hf.run(turn, "buy milk"))  # noqa: T201 - a context that takes any object must not confuse the checker
    whatever: object = await hf.run(turn.bind("buy milk"))
    assert whatever
    await hf.run(undecorated, "buy milk")  # type: ignore[call-overload]  # it is not durable
    await hf.run(turn.bind("buy milk"), "and bread")  # type: ignore[call-overload]  # its arguments are bound
    await hf.run(turn, "buy milk", on_divergence="ignore")  # type: ignore[call-overload]  # choices are literals

    handle = await hf.start(turn.bind("buy milk"), id="turn-43")
    assert_type(handle, holdfast.Handle[list[int]])
    assert_type(await hf.start(plain_turn, "buy milk"), holdfast.Handle[bytes])
    assert_type(handle.id, str)
    assert_type(handle.created, bool)
    assert_type(await handle.result(), list[int])
    assert_type(await handle.result(timedelta(seconds=1)), list[int])
    assert_type(await handle.info(), holdfast.Execution)
    assert_type(await handle.cancel(reason="enough"), holdfast.CancelOutcome)
    await handle.result(5)  # type: ignore[arg-type]  # durations are timedeltas
    assert_type(hf.handle("turn-43"), holdfast.Handle[Any])

    async with hf.execution("session-1", kind="session", input={"user": "ann"}) as ctx:
        assert_type(ctx, holdfast.Context)
    hf.execution("session-1")  # type: ignore[call-arg]  # the kind is missing


async def run_whatever_is_durable(hf: holdfast.Holdfast, fn: holdfast.Durable[[str], int]) -> int:
    """A durable function may be handed on under its exported type."""
    assert_type(await hf.run(fn.bind("x")), int)
    return await hf.run(fn, "x")


async def looking(hf: holdfast.Holdfast) -> None:
    """What is read."""
    found = await hf.get("turn-42")
    assert_type(found, holdfast.Execution | None)
    assert found is not None
    assert_type(found.open_decisions, tuple[str, ...])
    assert_type(found.created_at, datetime)
    assert_type(found.finished_at, datetime | None)
    page = await hf.list(status="running", limit=10)
    assert_type(page, holdfast.Page[holdfast.Execution])
    assert_type(page.items, list[holdfast.Execution])
    assert_type(page.next, str | None)
    for entry in await hf.history("turn-42", generation=1, reveal=True):
        assert_type(entry, holdfast.Entry)
        assert_type(entry.part, Literal["opened", "attempt", "outcome"])
    for event in await hf.timeline("turn-42"):
        assert_type(event, holdfast.Event)
        assert_type(event.duration, timedelta | None)
    for difference in await hf.diff("turn-42", 1, 2):
        assert_type(difference, holdfast.Difference)
        assert_type(difference.left, holdfast.PositionShape | None)
    for record in await hf.audit():
        assert_type(record, holdfast.AuditRecord)
        assert_type(record.actor, str | None)
    report = await hf.verify()
    assert_type(report, holdfast.VerifyReport)
    for problem in report.problems:
        assert_type(problem, holdfast.Problem)


async def operating(hf: holdfast.Holdfast) -> str:
    """What operators do; what comes of cancelling is a closed union."""
    assert_type(await hf.recover(kinds=["agent_turn"]), holdfast.RecoverReport)
    assert_type(await hf.resume("turn-42", deadline=timedelta(days=1)), holdfast.Handle[Any])
    await hf.decide("turn-42", "3", holdfast.happened("paid"), by="ann", note="seen")
    await hf.decide("turn-42", "3", holdfast.abort())  # type: ignore[call-arg]  # who decides is not optional
    await hf.decide("turn-42", 3, holdfast.abort(), by="ann")  # type: ignore[arg-type]  # positions are text
    assert_type(await hf.pause("turn-42"), holdfast.CancelOutcome)
    match await hf.cancel("turn-42", reason="enough", force=True):
        case holdfast.Canceled() | holdfast.Paused() | holdfast.Requested():
            return "done or asked"
        case holdfast.AlreadyTerminal(status):
            assert_type(status, str)
            return status
        case holdfast.NotFound():
            return "nothing"
        case other:
            assert_never(other)
