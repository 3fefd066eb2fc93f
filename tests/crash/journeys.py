"""Journeys through the engine, to be crashed anywhere on their way, and what must be true when they have arrived.

A journey is driven as its user would: the same call again after every death, an operator who looks at the world
before answering. Its effects count themselves in the world outside, one line each: execution, step, argument,
attempt and key. `python -m tests.crash.journeys NAME LEDGER FOLDER ID` drives one in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.stage import Outside, Stage

import holdfast
from holdfast.testing import Crashed, crash

Drive = Callable[[holdfast.Holdfast, str], Awaitable[Any]]

_worlds: list[Outside] = []
_versions: dict[str, int] = {}


def place(world: Outside) -> None:
    """Say where effects happen from now on."""
    _worlds[:] = [world]


def world() -> Outside:
    return _worlds[0]


# --- steps --------------------------------------------------------------------------------------------


def happen(argument: object) -> holdfast.StepHandle:
    """Leave a trace of the effect that is running."""
    step = holdfast.current_step()
    world().happen(step.execution_id, step.name, argument, step.attempt, step.idempotency_key.hex())
    return step


def traces(id: str, name: str, argument: object = None) -> list[list[str]]:
    """The traces of a step's effects: execution, step, argument, attempt, key."""
    asked = [id, name] if argument is None else [id, name, str(argument)]
    return [words for words in (line.split() for line in world().lines()) if words[: len(asked)] == asked]


@holdfast.step(effect=holdfast.idempotent())
async def look(number: int) -> int:
    happen(number)
    return number + 1


@holdfast.step(effect=holdfast.at_least_once())
async def send(number: int) -> str:
    happen(number)
    return f"sent {number}"


@holdfast.step(effect=holdfast.at_least_once())
def threaded(number: int) -> int:
    happen(number)
    return number * 2


def probe(handle: holdfast.StepHandle) -> holdfast.Verdict:
    """Ask the world, by key."""
    key = handle.idempotency_key.hex()
    did = any(words[4] == key for words in traces(handle.execution_id, handle.name))
    return holdfast.happened("paid") if did else holdfast.not_happened()


POLICIES = {
    "skip": holdfast.skip("paid"),
    "fail": holdfast.fail(),
    "rerun": holdfast.rerun(),
    "rerun_with_key": holdfast.rerun_with_key(),
    "reconcile": holdfast.reconcile(probe),
}


def _payment(policy: str) -> Any:
    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=POLICIES[policy]), name=policy)
    async def pay(number: int) -> str:
        happen(number)
        return "paid"

    return pay


pay = {policy: _payment(policy) for policy in POLICIES}


@holdfast.step(effect=holdfast.at_least_once(), retry=holdfast.Retry(max_attempts=3, initial=timedelta(milliseconds=1)))
async def flaky(number: int) -> int:
    if happen(number).attempt < 3:
        raise ConnectionError(number)
    return number


@holdfast.step(
    effect=holdfast.exactly_once("custom", on_ambiguous=holdfast.rerun()),
    retry=holdfast.Retry(max_attempts=3, initial=timedelta(0)),
    name="rerun",
)
async def flaky_guarded(number: int) -> str:
    if happen(number).attempt < 2:
        raise ConnectionError(number)
    return "paid"


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()), name="fail")
async def unsure(number: int) -> str:
    if happen(number).attempt == 1:
        raise holdfast.OutcomeUnknown("the line broke")
    return "paid"


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()), name="doubtful")
async def refused(number: int) -> str:
    if holdfast.current_step().attempt == 1:
        raise holdfast.OutcomeUnknown("nothing was sent")
    happen(number)
    return "paid"


@holdfast.step(effect=holdfast.at_least_once(), raises=(LookupError,))
async def broken(number: int) -> None:
    happen(number)
    raise LookupError(number)


@holdfast.step(effect=holdfast.at_least_once())
async def saw(moment: datetime, number: float, text: str) -> bool:
    """A step whose identity is what the program saw: seeing something else is a divergence."""
    happen(0)
    return 0 <= number < 1


# --- programs -----------------------------------------------------------------------------------------


@holdfast.durable(kind="journey.steps")
async def steps() -> list[Any]:
    found: list[Any] = [await look(1), await send(2), await threaded.call(3)]
    try:
        await broken(4)
    except LookupError as error:
        found.append(error.args[0])
    return [*found, await look(1)]


@holdfast.durable(kind="journey.guarded")
async def guarded(policy: str) -> list[Any]:
    return [await send(1), await pay[policy](2), await look(3)]


@holdfast.durable(kind="journey.retries")
async def retries() -> list[Any]:
    return [await flaky(1), await flaky_guarded(2), await send(3)]


@holdfast.durable(kind="journey.diverges")
async def diverges(id: str) -> list[Any]:
    """Its second version does something else first."""
    found: list[Any] = [await send(1), await pay["reconcile"](2)]
    if _versions.get(id, 2) == 2:
        found += [await send(9)]
    return [*found, await pay["rerun_with_key"](3), await look(4)]


@holdfast.durable(kind="journey.parallel")
async def parallel() -> list[Any]:
    context = holdfast.current()
    assert context is not None

    async def op(handle: holdfast.StepHandle) -> str:
        world().happen(handle.execution_id, handle.name, 0, handle.attempt, handle.idempotency_key.hex())
        return "paid"

    effects = {
        "send": holdfast.at_least_once(),
        "reconcile": holdfast.exactly_once("money", on_ambiguous=POLICIES["reconcile"]),
        "skip": holdfast.exactly_once("cost_bearing", on_ambiguous=POLICIES["skip"]),
        "fail": holdfast.exactly_once("money", on_ambiguous=POLICIES["fail"]),
    }
    async with context.parallel("all") as p:
        futures = [p.step(holdfast.StepDescriptor(name, effect), op) for name, effect in effects.items()]
    return [await each for each in futures] + [await look(1)]


@holdfast.durable(kind="journey.gathers")
async def gathers() -> list[Any]:
    async def helper(number: int) -> list[Any]:
        return [await send(number), await pay["rerun_with_key"](number)]

    found = await holdfast.gather(helper(1), helper(2), look(3))
    both = await asyncio.gather(look(4), pay["skip"](5))
    async with holdfast.branch("last"):
        return [*found, list(both), await send(6)]


@holdfast.durable(kind="journey.races")
async def races() -> Any:
    async def helper(number: int) -> int:
        await asyncio.sleep(0)
        return await look(number)

    first, _ = await holdfast.first(look(1), helper(5))
    return [first in (0, 1), await send(2)]


@holdfast.durable(kind="journey.decided")
async def decisions() -> list[Any]:
    return [await send(1), await unsure(2), await refused(3), await look(4)]


@holdfast.durable(kind="journey.values")
async def values() -> list[Any]:
    moment, number, text = await holdfast.now(), await holdfast.random(), str(await holdfast.uuid())
    fine = [await saw(moment, number, text), await holdfast.patched("change")]
    return [*fine, await saw(moment, number, text), await holdfast.now() >= moment]


@holdfast.durable(kind="journey.chapters")
async def chapters(number: int) -> list[Any]:
    paid = [await pay["reconcile"](7), await send(number)]
    if number < 2:
        holdfast.continue_as_new(number + 1)
    return paid


# --- journeys -----------------------------------------------------------------------------------------


async def arrive(hf: holdfast.Holdfast, call: holdfast.Call[Any], id: str) -> Any:
    """Run an execution to its end; where it asks, be an operator who looks at the world first."""
    while True:
        try:
            return await hf.run(call, id=id)
        except holdfast.NeedsDecision as asked:
            for position in asked.positions:
                await answer(hf, id, position)


async def answer(hf: holdfast.Holdfast, id: str, position: str) -> None:
    """Decide about an effect by what can be seen of it."""
    entry = next(each for each in await hf.history(id) if each.position == position and each.name)
    did = any(words[4].startswith(entry.key_prefix or "?") for words in traces(id, entry.name))
    verdict = holdfast.happened("paid") if did else holdfast.not_happened()
    with contextlib.suppress(holdfast.NoDecisionOpen):  # else it was decided in an earlier life
        await hf.decide(id, position, verdict, by="operator")


@dataclass(frozen=True)
class Journey:
    """One way through the engine.

    Attributes:
        drive: Goes it, or what is left of it.
        effects: Which effects take place on the way: step, argument, and how often at least.
        before: Where an earlier life died, and at which pass; None: there was none.
        version: Of the program that earlier life ran.
        generations: How many passes an uninterrupted one has.
        config: The settings it needs.
    """

    drive: Drive
    effects: tuple[tuple[str, int], ...]
    before: tuple[str, int] | None = None
    version: int = 2
    generations: int = 1
    config: dict[str, Any] = field(default_factory=dict)


def _calling(call: holdfast.Call[Any]) -> Drive:
    async def drive(hf: holdfast.Holdfast, id: str) -> Any:
        return await arrive(hf, call, id)

    return drive


async def _drive_divergence(hf: holdfast.Holdfast, id: str) -> Any:
    return await arrive(hf, diverges.bind(id), id)


async def live_before(hf: holdfast.Holdfast, journey: Journey, id: str) -> None:
    """Be the earlier life of a journey, in the ledger of a process that dies of it."""
    assert journey.before is not None
    point, hit = journey.before
    _versions[id] = journey.version
    with crash(point, hit, "raise"), pytest.raises(Crashed):
        await journey.drive(hf, id)
    del _versions[id]


async def _drive_block(hf: holdfast.Holdfast, id: str) -> Any:
    async with hf.execution(id, kind="journey.block", on_divergence="restart") as context:
        found = [await send(1), await pay["reconcile"](2), await pay["rerun"](3)]
        context.set_output(found)
    return found


_GUARDED = (("send", 1), ("look", 3))

JOURNEYS: dict[str, Journey] = {
    "steps": Journey(_calling(steps.bind()), (("look", 1), ("send", 2), ("threaded", 3), ("broken", 4))),
    **{
        f"guarded by {policy}": Journey(_calling(guarded.bind(policy)), (*_GUARDED, (policy, 2)))
        for policy in POLICIES
    },
    "retries": Journey(_calling(retries.bind()), (("flaky", 1), ("rerun", 2), ("send", 3))),
    "divergence": Journey(
        _drive_divergence, (("send", 1), ("reconcile", 2), ("send", 9), ("rerun_with_key", 3), ("look", 4)),
        before=("outcome.acked", 3), version=1, generations=2,
    ),
    "parallel": Journey(
        _calling(parallel.bind()), (("send", 0), ("reconcile", 0), ("skip", 0), ("fail", 0), ("look", 1))
    ),
    "gather": Journey(
        _calling(gathers.bind()),
        (("send", 1), ("send", 2), ("rerun_with_key", 1), ("rerun_with_key", 2), ("look", 3), ("look", 4),
         ("skip", 5), ("send", 6)),
    ),
    "first": Journey(_calling(races.bind()), (("send", 2),)),
    "decisions": Journey(_calling(decisions.bind()), (("send", 1), ("fail", 2), ("doubtful", 3), ("look", 4))),
    "takeover": Journey(
        _calling(guarded.bind("rerun_with_key")), (*_GUARDED, ("rerun_with_key", 2)),
        before=("effect.returned", 2),
    ),
    "decision after takeover": Journey(
        _calling(guarded.bind("fail")), (*_GUARDED, ("fail", 2)), before=("effect.returned", 2)
    ),
    "values": Journey(_calling(values.bind()), (("saw", 0),)),
    "chapters": Journey(_calling(chapters.bind(1)), (("send", 1), ("send", 2)), generations=2),
    "block": Journey(_drive_block, (("send", 1), ("reconcile", 2), ("rerun", 3))),
    "pipelined": Journey(
        _calling(guarded.bind("reconcile")), (*_GUARDED, ("reconcile", 2)),
        config={"ack": "pipelined"},
    ),
}  # fmt: skip


# --- what must be true at the end -----------------------------------------------------------------------


async def inspect(hf: holdfast.Holdfast, journey: Journey, id: str, *, deaths: int) -> None:
    """Check one finished execution: the ledger against itself, and the world against the promise.

    Raises:
        AssertionError: Something happened too often, or not at all.
    """
    found = await hf.get(id)
    assert found is not None
    assert (found.status, found.owner, found.open_decisions) == ("completed", None, ())
    assert journey.generations == found.generation
    report = await hf.verify(id)
    assert report.ok, report.problems
    entries = await hf.history(id)
    outcomes = Counter((each.generation, each.position) for each in entries if each.part == "outcome")
    assert not [place for place, count in outcomes.items() if count > 1]
    reruns = Counter(record.key_prefix for record in await hf.audit(id) if record.event in ("ambiguity", "decision"))
    done: dict[tuple[str, int], list[list[str]]] = {}
    for words in (line.split() for line in world().lines()):
        if words[0] == id:
            done.setdefault((words[1], int(words[2])), []).append(words)
    for effect in journey.effects:
        assert effect in done or effect[0] == "skip", f"{effect} never took place"
    for effect, times in done.items():
        _judge(effect, times, deaths=deaths, reruns=reruns, generations=journey.generations)


def _judge(
    effect: tuple[str, int], times: list[list[str]], *, deaths: int, reruns: Counter[str | None], generations: int
) -> None:
    """Hold the traces of one effect against what its policy promises."""
    keys = {words[4] for words in times}
    known = sum(reruns[key[:16]] for key in keys)
    match effect[0]:
        case "skip" | "fail" | "doubtful":
            assert len(times) == 1, f"{effect} took place {len(times)} times"
        case "reconcile":
            assert len(times) == len(keys), f"{effect} was applied twice: {times}"
            assert len(keys) == (generations if effect[1] == 7 else 1)
        case "rerun" | "rerun_with_key":
            failures = 1 if effect == ("rerun", 2) and len(times) > 1 and times[0][3] == "1" else 0
            assert len(times) <= 1 + known + failures, f"{effect} took place {len(times)} times, {known} audited"
            assert len(keys) == 1
        case "flaky":
            assert 3 <= len(times) <= 3 + deaths
        case _:  # idempotent or at least once; equal calls of one program count together
            assert len(times) <= 2 * (1 + deaths) * generations, f"{effect} took place {len(times)} times"


async def _main(name: str, target: str, folder: str, id: str) -> None:
    stage = Stage(target, Path(folder))
    place(stage.outside)
    journey = JOURNEYS[name]
    async with stage.open(**journey.config) as hf:
        print(json.dumps(await journey.drive(hf, id)))  # noqa: T201 - its standard output is how a program answers


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
