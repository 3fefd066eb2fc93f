"""Holdfast through its public API, as a user would write it, with its default settings."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from workload import CRASHED, IN_FLIGHT, Case, Job, Sample, Seen, Value, flood, quantile

import holdfast

REPLAYED = "replayed"
SEED_STEPS = 10
"""Steps of each execution in the ledgers that growth is measured on."""

seen = Seen()
latencies: list[float] = []
crashing = False


@holdfast.step(effect=holdfast.at_least_once())
async def fetch(index: int) -> Value:
    return seen.run(index)


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
async def pay(index: int) -> Value:
    return seen.run(index)


@holdfast.step(effect=holdfast.at_least_once())
async def first_live_step() -> None:
    if crashing:
        os._exit(CRASHED)


@holdfast.durable(kind="bench_plain")
async def plain(count: int) -> int:
    for index in range(count):
        seen.values.append((index, await fetch(index)))
    return count


@holdfast.durable(kind="bench_timed")
async def timed(count: int) -> int:
    for index in range(count):
        called = time.perf_counter()
        got = await fetch(index)
        latencies.append(time.perf_counter() - called)
        seen.values.append((index, got))
    return count


@holdfast.durable(kind="bench_timed_guarded")
async def timed_guarded(count: int) -> int:
    for index in range(count):
        called = time.perf_counter()
        got = await pay(index)
        latencies.append(time.perf_counter() - called)
        seen.values.append((index, got))
    return count


@holdfast.durable(kind="bench_long")
async def long(count: int) -> int:
    for index in range(count):
        seen.values.append((index, await fetch(index)))
    await first_live_step()
    return count


def _opened(job: Job, work: Callable[[holdfast.Holdfast], Awaitable[Sample]]) -> Sample:
    async def main() -> Sample:
        async with holdfast.open(job.target) as hf:
            await hf.run(plain, 3)
            return await work(hf)

    return asyncio.run(main())


def sequential(job: Job) -> Sample:
    """One execution."""

    async def work(hf: holdfast.Holdfast) -> Sample:
        with seen.timed():
            await hf.run(plain, job.sizes.steps)
        return seen.sample(job.sizes.steps)

    return _opened(job, work)


def _concurrent(job: Job, in_flight: int) -> Sample:
    async def work(hf: holdfast.Holdfast) -> Sample:
        with seen.timed():
            await flood(lambda: hf.run(plain, job.sizes.executions_steps), job.sizes.executions, in_flight)
        return seen.sample(job.sizes.executions * job.sizes.executions_steps)

    return _opened(job, work)


def concurrent32(job: Job) -> Sample:
    """Many short executions: created, run and completed."""
    return _concurrent(job, 32)


def concurrent100(job: Job) -> Sample:
    """The same, more at once."""
    return _concurrent(job, 100)


async def _steady(hf: holdfast.Holdfast, job: Job, program: Callable[[int], Awaitable[int]], rows: int) -> Sample:
    """Run 32 long executions at once; `rows` is what each step adds to the journal."""
    writer = hf.database.writer
    batches = writer.batches
    with seen.timed():
        latencies.clear()
        await flood(lambda: hf.run(program, job.sizes.steady), IN_FLIGHT, IN_FLIGHT)
    count = IN_FLIGHT * job.sizes.steady
    return seen.sample(
        count,
        batch=rows * count / (writer.batches - batches),
        p50_ms=quantile(latencies, 0.5) * 1e3,
        p99_ms=quantile(latencies, 0.99) * 1e3,
    )


def unguarded(job: Job) -> Sample:
    """32 long executions of unguarded steps, each call timed."""
    return _opened(job, lambda hf: _steady(hf, job, timed, 1))


def guarded(job: Job) -> Sample:
    """The same with an intent before each step."""
    return _opened(job, lambda hf: _steady(hf, job, timed_guarded, 2))


def saturated(job: Job) -> Sample:
    """The unguarded steps in a loop that never idles: a task that for ever computes 1 ms and yields."""

    async def compute() -> None:
        while True:
            until = time.perf_counter() + 1e-3
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    async def work(hf: holdfast.Holdfast) -> Sample:
        busy = asyncio.create_task(compute())
        try:
            return await _steady(hf, job, timed, 1)
        finally:
            busy.cancel()
            with suppress(asyncio.CancelledError):
                await busy

    return _opened(job, work)


def crash(job: Job) -> Sample:
    """Record the steps to be replayed, then die."""

    async def work(hf: holdfast.Holdfast) -> Sample:
        global crashing
        crashing = True
        await hf.run(long, job.sizes.replay, id=REPLAYED)
        raise AssertionError("survived")

    return _opened(job, work)


def replay(job: Job) -> Sample:
    """Take over the execution the dead process left and run it to its end: claim, replay, last step, completion."""

    async def work(hf: holdfast.Holdfast) -> Sample:
        with seen.timed():
            assert await hf.run(long, job.sizes.replay, id=REPLAYED) == job.sizes.replay
        return seen.sample(job.sizes.replay, replayed=True)

    return _opened(job, work)


def seed(job: Job) -> Sample:
    """Fill a small ledger."""

    async def work(hf: holdfast.Holdfast) -> Sample:
        executions = job.sizes.growth_small // SEED_STEPS
        with seen.timed():
            await flood(lambda: hf.run(plain, SEED_STEPS), executions, IN_FLIGHT)
        return seen.sample(executions * SEED_STEPS)

    return _opened(job, work)


CASES: dict[str, Case] = {
    "sequential": sequential,
    "concurrent32": concurrent32,
    "concurrent100": concurrent100,
    "unguarded": unguarded,
    "guarded": guarded,
    "saturated": saturated,
    "crash": crash,
    "replay": replay,
    "seed": seed,
}
