"""Random programs, crashed at random points, against a small model of the contract.

A program is a tree of durable calls. It runs in processes that die at random points, with the clock jumping
between them, until one gets through. What its effects did is kept outside; the model says what that may be.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from tests.flow.tamper import change, look
from tests.ledgers import Ledgers

import holdfast
from holdfast.core.clock import to_datetime
from holdfast.testing import Crashed, ManualClock, crash

# --- programs -------------------------------------------------------------------------------------------

Policy = Literal["skip", "fail", "rerun", "rerun_with_key", "reconcile"]
EffectClass = Literal["idempotent", "at_least_once", "exactly_once"]


@dataclass(frozen=True)
class Step:
    """A step whose operation fails at its first attempts, or does not know at the first whether it succeeded."""

    cls: EffectClass
    policy: Policy = "skip"
    name: str = "a"
    failures: int = 0
    attempts: int = 1
    unsure: bool = False
    plain: bool = False

    @property
    def ends_well(self) -> bool:
        return self.failures < self.attempts


@dataclass(frozen=True)
class Value:
    """A recorded value."""

    kind: Literal["now", "random", "uuid", "patched"]


@dataclass(frozen=True)
class Several:
    """Parts side by side, or one in a branch of its own, or the first of two."""

    how: Literal["gather", "branch", "first", "parallel"]
    parts: tuple[tuple[Any, ...], ...]


NAMES = st.sampled_from(["a", "b"])


@st.composite
def steps(draw: st.DrawFn) -> Step:
    cls: EffectClass = draw(st.sampled_from(["idempotent", "at_least_once", "exactly_once", "exactly_once"]))
    plain = draw(st.integers(0, 7)) == 0
    if cls != "exactly_once":
        failures, attempts = draw(st.sampled_from([(0, 1), (0, 3), (1, 3), (2, 3), (1, 1), (2, 2)]))
        return Step(cls, name=draw(NAMES), failures=failures, attempts=attempts, plain=plain)
    policy: Policy = draw(st.sampled_from(["skip", "fail", "rerun", "rerun_with_key", "reconcile"]))
    # A guarded step's attempts are used up by crashes too; these end the same way however many there are.
    failures, attempts = draw(st.sampled_from([(0, 1), (0, 2), (1, 3)]))
    unsure = failures == 0 and draw(st.booleans())
    return Step(cls, policy, draw(NAMES), failures, attempts, unsure, plain)


VALUES = st.builds(Value, st.sampled_from(["now", "random", "uuid", "patched"]))


def several(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Several]:
    lists = st.lists(parts, min_size=0, max_size=3).map(tuple)
    described = st.builds(Step, st.sampled_from(["idempotent", "at_least_once"]), name=NAMES).map(lambda step: (step,))
    return st.one_of(
        st.builds(Several, st.just("gather"), st.lists(lists, min_size=1, max_size=3).map(tuple)),
        st.builds(Several, st.just("branch"), st.tuples(lists)),
        st.builds(Several, st.just("first"), st.tuples(described, described)),
        st.builds(Several, st.just("parallel"), st.lists(described, min_size=1, max_size=4).map(tuple)),
    )


PARTS = st.recursive(st.one_of(steps(), steps(), VALUES), several, max_leaves=6)
PROGRAMS = st.lists(PARTS, min_size=1, max_size=5).map(tuple)
POINTS = st.sampled_from(
    [
        "step.positioned", "step.looked_up", "intent.queued", "intent.committed", "intent.acked", "effect.returned",
        "outcome.encoded", "outcome.queued", "outcome.committed", "outcome.acked", "batch.begun", "batch.inserted",
        "batch.committed", "ambiguity.audited", "decision.committed", "finish.queued", "finish.committed",
        "claim.updated",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Death:
    """Where a process dies, and how far the clock has moved when the next one starts."""

    point: str
    hit: int
    jump: int


DEATHS = st.lists(st.builds(Death, POINTS, st.integers(1, 6), st.integers(-7200, 7200)), max_size=4)


# --- the world ------------------------------------------------------------------------------------------


@dataclass
class Effects:
    """What one call did outside, over all processes."""

    step: Step
    keys: set[bytes] = field(default_factory=set)
    attempts: list[int] = field(default_factory=list)
    applied: int = 0
    seen: Any = None
    acked: bool = False
    after_ack: int = 0
    behind: dict[str, Any] = field(default_factory=dict)
    """Recorded values that were made before its last operation ended, so that its outcome stands behind them."""


class World:
    """What lies outside the ledger, and what programs saw of what lies inside."""

    def __init__(self) -> None:
        self.effects: dict[str, Effects] = {}
        self.values: dict[str, Any] = {}
        self.riding: dict[str, Any] = {}
        self.decisions = 0

    def of(self, place: str, step: Step) -> Effects:
        return self.effects.setdefault(place, Effects(step))

    def acknowledge(self, place: str, value: Any) -> None:
        """A step's value was given to the program, so it is on disk, with all that was recorded before it."""
        effects = self.effects[place]
        assert not effects.acked or effects.seen == value, f"{place}: {effects.seen} became {value}"
        effects.seen, effects.acked = value, True
        for earlier, ridden in effects.behind.items():
            assert self.values.setdefault(earlier, ridden) == ridden, f"{earlier} changed"
            self.riding.pop(earlier, None)
        effects.behind = {}

    def saw(self, place: str, value: Any, *, derived: bool) -> None:
        """A recorded value was given to the program; it is on disk only with the next acknowledged entry."""
        if derived or place in self.values:
            assert self.values.setdefault(place, value) == value, f"{place}: {self.values[place]} became {value}"
        else:
            self.riding[place] = value

    def restart(self) -> None:
        """What was not on disk is gone with the process."""
        self.riding.clear()
        for effects in self.effects.values():
            effects.behind = {}


class Failing(Exception):
    """A failure that the operation knows of."""


def result_of(step: Step, place: str) -> str:
    return f"{step.name} at {place}"


class Interpreter:
    """Run a tree of durable calls."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.known: dict[str, Any] = {}

    def call(self, step: Step, place: str) -> Coroutine[Any, Any, Any]:
        """Evaluate the call expression of a step."""
        effects = self.world.of(place, step)

        def operate() -> str:
            handle = holdfast.current_step()
            effects.keys.add(handle.idempotency_key)
            effects.attempts.append(handle.attempt)
            effects.after_ack += effects.acked
            effects.behind = dict(self.world.riding)
            if handle.attempt <= step.failures:
                raise Failing(str(handle.attempt))
            effects.applied += 1
            if step.unsure and handle.attempt == 1:
                raise holdfast.OutcomeUnknown
            return result_of(step, place)

        async def operate_async() -> str:
            return operate()

        retry = holdfast.Retry(max_attempts=step.attempts, initial=timedelta(seconds=2), retry_on=(Failing,))
        # Of one name and no argument: occurrences alone tell such calls apart.
        fn = holdfast.step(effect=self.effect(step, place), name=step.name, retry=retry, result_type=str)
        made = fn(operate) if step.plain else fn(operate_async)
        return made.call() if step.plain else made()

    def effect(self, step: Step, place: str) -> holdfast.Effect:
        if step.cls == "idempotent":
            return holdfast.idempotent()
        if step.cls == "at_least_once":
            return holdfast.at_least_once()

        def probe(handle: holdfast.StepHandle) -> holdfast.Verdict:
            known = self.world.effects[place].applied
            return holdfast.happened(result_of(step, place)) if known else holdfast.not_happened()

        policies: dict[str, Callable[[], holdfast.Policy]] = {
            "skip": lambda: holdfast.skip(result_of(step, place)), "fail": holdfast.fail, "rerun": holdfast.rerun,
            "rerun_with_key": holdfast.rerun_with_key, "reconcile": lambda: holdfast.reconcile(probe),
        }  # fmt: skip
        return holdfast.exactly_once("money", on_ambiguous=policies[step.policy]())

    async def step(self, step: Step, place: str) -> Any:
        try:
            value = await self.call(step, place)
        except holdfast.StepFailed as error:
            value = f"failed: {error.error_message}"
        self.world.acknowledge(place, value)
        return value

    async def value(self, value: Value, place: str) -> Any:
        match value.kind:
            case "now":
                self.world.saw(place, await holdfast.now(), derived=False)
            case "random":
                self.world.saw(place, await holdfast.random(), derived=True)
            case "uuid":
                self.world.saw(place, await holdfast.uuid(), derived=True)
            case "patched":
                assert await holdfast.patched(f"change {place}")
        return value.kind

    async def several(self, several: Several, place: str) -> Any:
        parts = [(part, f"{place}.{number}") for number, part in enumerate(several.parts)]
        match several.how:
            case "gather":
                return list(await holdfast.gather(*(self.part(*part) for part in parts)))
            case "branch":
                return await holdfast.branch().run(self.part, *parts[0])
            case "first":
                _, value = await holdfast.first(*(self.part(*part) for part in parts))
                return len(value)
        context = holdfast.current()
        assert context is not None
        async with context.parallel() as parallel:
            futures = [(self.described(parallel, part[0], where), where) for part, where in parts]
        for future, where in futures:
            self.world.acknowledge(where, await future)
        return [future.result() for future, _ in futures]

    def described(self, parallel: holdfast.Parallel, step: Step, place: str) -> asyncio.Future[str]:
        effects = self.world.of(place, step)

        async def operate(handle: holdfast.StepHandle) -> str:
            effects.keys.add(handle.idempotency_key)
            effects.attempts.append(handle.attempt)
            effects.after_ack += effects.acked
            effects.behind = dict(self.world.riding)
            effects.applied += 1
            return result_of(step, place)

        return parallel.step(holdfast.StepDescriptor(step.name, self.effect(step, place), result_type=str), operate)

    async def part(self, nodes: tuple[Any, ...], place: str) -> list[Any]:
        values = []
        for number, node in enumerate(nodes):
            where = f"{place}.{number}"
            match node:
                case Step():
                    values.append(await self.step(node, where))
                case Value():
                    values.append(await self.value(node, where))
                case Several():
                    values.append(await self.several(node, where))
        return values


def expected(nodes: tuple[Any, ...], place: str) -> list[Any]:
    """What the program returns however often it is interrupted."""
    values: list[Any] = []
    for number, node in enumerate(nodes):
        where = f"{place}.{number}"
        match node:
            case Step():
                values.append(result_of(node, where) if node.ends_well else f"failed: {node.attempts}")
            case Value():
                values.append(node.kind)
            case Several(how="first"):
                values.append(1)
            case Several(how="branch"):
                values.append(expected(node.parts[0], f"{where}.0"))
            case Several(how="gather"):
                values.append([expected(part, f"{where}.{index}") for index, part in enumerate(node.parts)])
            case Several():
                values.append([result_of(part[0], f"{where}.{index}") for index, part in enumerate(node.parts)])
    return values


# --- runs -----------------------------------------------------------------------------------------------

Journal = list[tuple[Any, ...]]


class Run:
    """One program in a ledger of its own."""

    def __init__(self, target: str, folder: Path, program: tuple[Any, ...]) -> None:
        self.target = target
        self.folder = folder
        self.program = program
        self.world = World()
        self.clock = ManualClock()
        self.deaths = 0
        self.journals: list[Journal] = []

        @holdfast.durable(kind="model")
        async def model() -> list[Any]:
            return await Interpreter(self.world).part(program, "p")

        self.fn = model

    def open(self) -> holdfast.Holdfast:
        # Time passes quickly here, and commits take real time: nothing but retries may depend on it.
        config = holdfast.DurableConfig(
            owner_dir=self.folder / "owners", ack_timeout_ms=80_000_000, lease_ms=80_000_000, renew_ms=20_000_000,
            segment_rows=3, ambiguous_attempts_max=100, stalled_recoveries_max=100,
        )  # fmt: skip
        return holdfast.open(self.target, durable=config, clock=self.clock)

    async def drive(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Let time pass until a call ends."""
        task = asyncio.ensure_future(call)
        while not task.done():
            await self.clock.advance(timedelta(milliseconds=100))
        return await task

    async def attempt(self, hf: holdfast.Holdfast) -> Any:
        """Run to the end, answering as an operator who has looked."""
        while True:
            try:
                return await self.drive(hf.run(self.fn, id="e"))
            except holdfast.NeedsDecision as asked:
                position = asked.positions[0]
            self.world.decisions += 1
            await self.drive(hf.decide("e", position, await self.verdict(hf, position), by="model"))

    async def verdict(self, hf: holdfast.Holdfast, position: str) -> holdfast.Verdict:
        entry = next(each for each in await hf.history("e") if each.position == position)
        for place, effects in self.world.effects.items():
            if any(key.hex()[:16] == entry.key_prefix for key in effects.keys) and effects.applied:
                return holdfast.happened(result_of(effects.step, place))
        return holdfast.not_happened()

    async def live_once(self, death: Death | None) -> Any:
        """One process: it dies, or it gets through."""
        self.world.restart()
        try:
            async with self.open() as hf:
                if death is None:
                    return await self.attempt(hf)
                with crash(death.point, death.hit, "raise"):
                    return await self.attempt(hf)
        except Crashed:
            self.deaths += 1
            return None

    async def look(self) -> Journal:
        """The journal as it is, and whether the ledger is sound."""
        async with self.open() as hf:
            report = await hf.verify()
            assert report.problems == ()
            if await hf.get("e") is None:
                return []
            entries = await hf.history("e", reveal=False)
            return [
                (e.position, e.kind, e.name, e.part, e.attempt, e.outcome, e.key_prefix, e.payload_bytes)
                for e in entries
            ]

    async def live(self, deaths: list[Death]) -> Any:
        """Die as told, then live."""
        for death in deaths:
            await self.live_once(death)
            self.journals.append(await self.look())
            self.clock.set(to_datetime(self.clock.now() + death.jump * 1_000_000))
        output = await self.live_once(None)
        self.journals.append(await self.look())
        return output


def check(run: Run, output: Any) -> None:
    """Hold what happened against the contract."""
    assert output == expected(run.program, "p")
    for place, effects in run.world.effects.items():
        note(f"{place}: {effects}")
        check_effects(place, effects, run.deaths)
    keys = [key for effects in run.world.effects.values() for key in effects.keys]
    assert len(keys) == len(set(keys)), "two calls share a key"
    nows = [
        value for place, value in sorted(run.world.values.items()) if hasattr(value, "tzinfo") and place.count(".") == 1
    ]
    assert nows == sorted(nows), "time went backwards"
    for earlier, later in zip(run.journals, run.journals[1:], strict=False):
        assert later[: len(earlier)] == earlier, "what was recorded changed"
    outcomes = Counter(entry[0] for entry in run.journals[-1] if entry[3] == "outcome")
    assert not outcomes or max(outcomes.values()) == 1


def check_effects(place: str, effects: Effects, deaths: int) -> None:
    """What one call may have done outside."""
    step = effects.step
    assert effects.after_ack == 0, f"{place} ran after its outcome was acknowledged"
    assert len(effects.keys) <= 1, f"{place} had two keys"
    assert effects.attempts == sorted(effects.attempts)
    if step.cls != "exactly_once":
        assert len(effects.attempts) <= (min(step.failures, step.attempts - 1) + 1) * (1 + deaths)
        if effects.acked:
            assert max(effects.attempts) == min(step.failures + 1, step.attempts)
        assert effects.applied <= 1 + deaths
        return
    assert len(effects.attempts) == len(set(effects.attempts)), f"{place}: an attempt ran twice"
    if step.policy in ("skip", "fail", "reconcile"):
        assert effects.applied <= 1, f"{place} applied {effects.applied} times under {step.policy}"
    if step.policy in ("fail", "reconcile", "rerun", "rerun_with_key") and effects.acked:
        assert effects.applied >= 1
    if step.policy in ("rerun", "rerun_with_key"):
        assert effects.applied <= 1 + deaths + step.unsure
    if deaths == 0:
        first = 1 if step.unsure and step.policy not in ("rerun", "rerun_with_key") else 1 + step.unsure + step.failures
        assert len(effects.attempts) <= first


async def course(target: str, folder: Path, program: tuple[Any, ...], deaths: list[Death]) -> None:
    run = Run(target, folder, program)
    check(run, await run.live(deaths))


COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

RETRY = Step("at_least_once", failures=2, attempts=2)
PAY = Step("exactly_once", "fail", unsure=True)


@settings(COMMON, max_examples=60)
@given(program=PROGRAMS, deaths=DEATHS)
@example(program=(RETRY, PAY), deaths=[Death("outcome.acked", 1, -3600)])
@example(program=(PAY, Value("now"), PAY), deaths=[Death("decision.committed", 1, 0)])
@example(program=(Several("gather", ((PAY,), (RETRY,))),), deaths=[Death("effect.returned", 2, 0)])
def test_random_programs_keep_the_contract_on_sqlite(program: tuple[Any, ...], deaths: list[Death]) -> None:
    """DA-24: counts, outputs, keys, and a journal that only grows."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(course(str(Path(folder) / "ledger.db"), Path(folder), program, deaths))


@settings(COMMON, max_examples=12)
@given(program=PROGRAMS, deaths=DEATHS)
def test_random_programs_keep_the_contract_on_postgres(
    migrated: Ledgers, program: tuple[Any, ...], deaths: list[Death]
) -> None:
    """DA-24."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(course(migrated.fresh(), Path(folder), program, deaths))


# --- prefixes -------------------------------------------------------------------------------------------


async def cut(run: Run, rows: int) -> int:
    """Make the journal of a completed execution end after so many entries, as if its process had died there."""
    seqs = [row[0] for row in await look(run.target, "SELECT seq FROM durable_journal ORDER BY seq")]
    last = seqs[min(rows, len(seqs)) - 1] if rows and seqs else 0
    await change(
        run.target,
        f"DELETE FROM durable_journal WHERE seq > {last}",  # noqa: S608 - a number
        "DELETE FROM durable_trail WHERE status = 'completed'",
        "DELETE FROM durable_decisions",
        "UPDATE durable_executions SET status = 'running', finished_at = NULL, output = NULL",
    )
    return min(rows, len(seqs))


@settings(COMMON, max_examples=40)
@given(program=PROGRAMS, rows=st.integers(0, 30))
def test_replay_of_a_prefix_is_a_prefix_of_the_run(program: tuple[Any, ...], rows: int) -> None:
    """Whatever prefix of the journal is left, a replay gives the same values and goes on to the same end."""

    async def prefix(folder: Path) -> None:
        run = Run(str(folder / "ledger.db"), folder, program)
        output = await run.live([])
        whole = run.journals[-1]
        kept = await cut(run, rows)
        before = defaultdict(int, {place: len(each.attempts) for place, each in run.world.effects.items()})
        settled = {entry[6] for entry in whole[:kept] if entry[3] == "outcome"}
        for effects in run.world.effects.values():
            effects.acked = False
        run.world.values = {p: each for p, each in run.world.values.items() if not isinstance(each, datetime)}
        assert await run.live_once(None) == output
        again = await run.look()
        assert again[:kept] == whole[:kept]
        if not any(entry[1] == "first" for entry in whole):  # a loser may have been recorded, or not
            assert {entry[:3] for entry in again} == {entry[:3] for entry in whole}
        for place, effects in run.world.effects.items():
            for key in effects.keys:
                if key.hex()[:16] in settled:
                    assert len(effects.attempts) == before[place], f"{place} ran again"

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(prefix(Path(folder)))
