"""What a checker infers inside an execution: durable calls, branches, the context. Checked, never run."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import assert_type
from uuid import UUID

import holdfast


@holdfast.step(effect=holdfast.idempotent())
async def fetch(url: str) -> list[str]:
    """An asynchronous step."""
    return [url]


@holdfast.step(effect=holdfast.idempotent())
def count(text: str) -> int:
    """A plain step."""
    return len(text)


async def helper(number: int) -> float:
    """An ordinary function that may call steps."""
    return float(number)


async def recorded_values() -> None:
    """Time, chance and versions."""
    assert_type(await holdfast.now(), datetime)
    assert_type(await holdfast.random(), float)
    assert_type(await holdfast.uuid(), UUID)
    assert_type(await holdfast.patched("insurance"), bool)
    await holdfast.patched()  # type: ignore[call-arg]  # a patch has a name


async def gather_keeps_every_type() -> None:
    """As `asyncio.gather` does; and `asyncio.gather` takes steps as it takes coroutines."""
    assert_type(await holdfast.gather(fetch("a")), tuple[list[str]])
    assert_type(await holdfast.gather(fetch("a"), count.call("b")), tuple[list[str], int])
    assert_type(await holdfast.gather(fetch("a"), count.call("b"), helper(3)), tuple[list[str], int, float])
    assert_type(
        await holdfast.gather(fetch("a"), count.call("b"), helper(3), fetch("c"), count.call("d")),
        tuple[list[str], int, float, list[str], int],
    )
    assert_type(await holdfast.gather(*[count.call(text) for text in "abc"]), list[int])
    assert_type(
        await holdfast.gather(count.call("a"), count.call("b"), return_exceptions=True), list[int | BaseException]
    )
    assert_type(await asyncio.gather(fetch("a"), count.call("b")), tuple[list[str], int])
    hits, size = await holdfast.gather(fetch("a"), count.call("b"))
    assert_type(hits, list[str])
    assert_type(size, int)
    await holdfast.gather(fetch)  # type: ignore[call-overload]  # a step is called before it is awaited


async def first_says_which() -> None:
    """An index and one of the types."""
    assert_type(await holdfast.first(fetch("a"), count.call("b")), tuple[int, list[str] | int])
    assert_type(await holdfast.first(count.call("a"), count.call("b")), tuple[int, int])
    assert_type(await holdfast.first(*[count.call(text) for text in "abc"]), tuple[int, int])


async def branches_run_functions() -> None:
    """In a branch of their own, with their own result; and as tasks like any coroutine."""
    branch = holdfast.branch("fetch")
    assert_type(branch, holdfast.Branch)
    assert_type(await branch.run(helper, 3), float)
    async with holdfast.branch() as entered:
        assert_type(entered, holdfast.Branch)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(holdfast.branch("task").run(fetch, "a")), asyncio.Task[list[str]])
        assert_type(group.create_task(fetch("a")), asyncio.Task[list[str]])


async def continue_as_new_does_not_return(month: int) -> int:
    """What comes after it is never reached."""
    if month < 12:
        holdfast.continue_as_new(month + 1)
    return month


async def op(handle: holdfast.StepHandle) -> str:
    """An asynchronous operation."""
    return handle.name


def plain_op(handle: holdfast.StepHandle) -> int:
    """A plain operation."""
    return handle.attempt


async def a_context_runs_described_steps() -> None:
    """Async and plain operations alike, by their own result."""
    ctx = holdfast.current()
    assert_type(ctx, holdfast.Context | None)
    assert ctx is not None
    assert_type(ctx.id, str)
    assert_type(ctx.uid, bytes)
    assert_type(ctx.generation, int)
    assert_type(ctx.replaying, bool)
    assert_type(ctx.should_continue, bool)
    tool = holdfast.StepDescriptor("tool", holdfast.idempotent())
    assert_type(await ctx.step(tool, op), str)
    assert_type(await ctx.step(tool, plain_op), int)
    assert_type(await ctx.step(tool, lambda handle: handle.position), str)
    assert_type(await ctx.step_recorded(tool, op), holdfast.StepRecord[str])
    assert_type(await ctx.step_recorded(tool, plain_op), holdfast.StepRecord[int])
    async with ctx.parallel("tools") as tools:
        assert_type(tools, holdfast.Parallel)
        assert_type(tools.step(tool, op), asyncio.Future[str])
        assert_type(tools.step(tool, plain_op), asyncio.Future[int])
    assert_type(await ctx.now(), datetime)
    assert_type(await ctx.random(), float)
    assert_type(await ctx.uuid(), UUID)
    assert_type(await ctx.patched("insurance"), bool)
    assert_type(ctx.branch("fetch"), holdfast.Branch)
    assert_type(await ctx.gather(fetch("a"), count.call("b"), helper(3)), tuple[list[str], int, float])
    assert_type(await ctx.gather(*[count.call(text) for text in "abc"]), list[int])
    assert_type(await ctx.gather(count.call("a"), return_exceptions=True), list[int | BaseException])
    assert_type(await ctx.first(fetch("a"), count.call("b")), tuple[int, list[str] | int])
    assert_type(await ctx.first(*[count.call(text) for text in "abc"]), tuple[int, int])
    ctx.set_output({"any": "thing"})
    await ctx.step("tool", op)  # type: ignore[call-overload]  # a step is described by a descriptor
    await ctx.step(tool, helper)  # type: ignore[arg-type]  # an operation takes the step's handle
