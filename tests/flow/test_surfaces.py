"""What can be seen of executions: lists, journals, timelines, differences, audit, metrics, spans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.flow.agents import Agent, turn
from tests.flow.tamper import counter, is_postgres, look, until
from tests.stage import Stage

import holdfast
from holdfast.core import trace
from holdfast.execution.engine import open_reader
from holdfast.testing import Crashed, ManualClock, WriterFaults, crash

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Story:
    """A program with a branch, a retry, a payment in doubt and a change in the middle."""

    def __init__(self, stage: Stage, clock: ManualClock) -> None:
        self.first = "a"
        retry = holdfast.Retry(max_attempts=3, initial=timedelta(0))

        @holdfast.step(effect=holdfast.idempotent(), retry=retry)
        async def look_up(what: str) -> str:
            clock.advance(timedelta(seconds=1))
            if holdfast.current_step().attempt == 1:
                raise ValueError("not yet")
            return what

        @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
        async def pay(cents: int) -> str:
            clock.advance(timedelta(seconds=2))
            if holdfast.current_step().attempt == 1:
                raise holdfast.OutcomeUnknown
            return f"receipt for {cents}"

        async def part() -> str:
            return await look_up("in the branch")

        @holdfast.durable(kind="story")
        async def story(title: str) -> list[str]:
            await holdfast.now()
            first = await look_up(self.first)
            (second,) = await holdfast.gather(part())
            return [first, second, await pay(7)]

        self.fn = story

    async def tell(self, stage: Stage, clock: ManualClock) -> None:
        """Run into doubt, decide, change the program, run to the end."""
        async with stage.open(clock=clock) as hf:
            with pytest.raises(holdfast.NeedsDecision):
                await hf.run(self.fn, "t", id="e")
            await hf.decide("e", "3", holdfast.not_happened(), by="ann", note="asked the bank")
            self.first = "b"
            assert await hf.run(self.fn, "t", id="e") == ["b", "in the branch", "receipt for 7"]


@pytest.fixture
async def told(stage: Stage) -> Stage:
    clock = ManualClock(START)
    await Story(stage, clock).tell(stage, clock)
    return stage


# --- one execution --------------------------------------------------------------------------------------


async def test_an_execution_tells_what_it_is(told: Stage) -> None:
    """§22: every field."""
    async with told.open() as hf:
        found = await hf.get("e")
        assert found is not None
        assert await hf.handle("e").info() == found
        assert await hf.get("nobody") is None
        with pytest.raises(holdfast.UnknownExecution):
            await hf.handle("nobody").info()
        ((entries,),) = await look(told.target, "SELECT count(*) FROM durable_journal")
    assert (found.id, found.kind, found.status, found.generation, found.chapter) == ("e", "story", "completed", 2, 0)
    assert (found.waiting_on, found.reason, found.queue, found.priority, found.parent_id) == (None, None, None, 0, None)
    assert (found.owner, found.owner_alive, found.request, found.degraded) == (None, False, None, False)
    assert (found.positions_count, found.entries_count) == (5, entries), "positions of this generation, rows of all"
    assert (found.recoveries_count, found.open_decisions, found.fence) == (0, (), 3)
    assert found.created_at == found.available_at == START
    assert found.finished_at == START + timedelta(seconds=2 + 2 + 2 + 2 + 2 + 2)
    assert found.updated_at == found.finished_at
    assert found.deadline_at is None


async def test_the_journal_shows_every_entry_and_no_payload(told: Stage) -> None:
    """§15, §22."""
    async with told.open() as hf:
        entries = await hf.history("e", generation=1)
        assert [(entry.position, entry.kind, entry.part, entry.attempt, entry.outcome) for entry in entries] == [
            ("0", "now", "outcome", 0, "value"),
            ("1", "step", "attempt", 1, "failed"),
            ("1", "step", "outcome", 2, "value"),
            ("2", "branch", "opened", 0, None),
            ("2.0", "step", "attempt", 1, "failed"),
            ("2.0", "step", "outcome", 2, "value"),
            ("3", "step", "opened", 1, None),
            ("3", "step", "attempt", 1, "not_happened"),
        ]
        everything = await hf.history("e")
        assert [entry.seq for entry in everything] == sorted(entry.seq for entry in everything)
        assert {entry.generation for entry in everything} == {1, 2}
        assert all(entry.payload is None for entry in everything)
        assert all(entry.key_prefix is None or len(entry.key_prefix) == 16 for entry in everything)
        assert [entry.payload_bytes > 0 for entry in entries if entry.outcome == "value" and entry.kind == "step"] == [
            True, True,
        ]  # fmt: skip
        assert not any(entry.folded for entry in everything)
        assert entries[0].at == START
        before = len(await hf.audit("e"))
        revealed = await hf.history("e", generation=1, reveal=True)
        assert [entry.payload for entry in revealed if entry.kind == "step" and entry.outcome == "value"] == [
            "a", "in the branch",
        ]  # fmt: skip
        audit = await hf.audit("e")
        assert len(audit) == before + 1
        assert audit[-1].event == "reveal"
        with pytest.raises(holdfast.UnknownExecution):
            await hf.history("nobody")


async def test_the_timeline_is_in_commit_order_with_durations(told: Stage) -> None:
    """§15: entries, attempts, trail and audit of all generations."""
    async with told.open() as hf:
        events = await hf.timeline("e")
        with pytest.raises(holdfast.UnknownExecution):
            await hf.timeline("nobody")
    assert [event.at for event in events] == sorted(event.at for event in events)
    statuses = [event.outcome for event in events if event.event == "status"]
    assert statuses == ["running", "needs_decision", "pending", "running", "running", "completed"]
    audited = [event.event for event in events]
    for name in ("ambiguity", "decision", "divergence", "attempt", "outcome", "opened", "generation"):
        assert name in audited, name
    (decision,) = [event for event in events if event.event == "decision"]
    assert (decision.position, decision.generation, decision.outcome) == ("3", 1, "ann")
    durations = [
        (event.position, event.duration) for event in events if event.event == "outcome" and event.generation == 2
    ]
    assert ("1", timedelta(seconds=1)) in durations
    # Within one generation what came first stands first.
    places = [
        event.position for event in events if event.event in ("opened", "attempt", "outcome") and event.generation == 1
    ]
    assert places == ["0", "1", "1", "2", "2.0", "2.0", "3", "3"]


async def test_the_difference_of_two_generations(told: Stage) -> None:
    """§15: same, changed with both shapes, only left, only right."""
    async with told.open() as hf:
        assert [(each.position, each.change) for each in await hf.diff("e", 1, 2)] == [
            ("0", "same"), ("1", "changed"), ("2", "same"), ("2.0", "same"), ("3", "same"),
        ]  # fmt: skip
        (changed,) = [each for each in await hf.diff("e", 1, 2) if each.change == "changed"]
        assert changed.left is not None
        assert changed.right is not None
        assert changed.left.name == changed.right.name == "look_up"
        assert changed.left.shape != changed.right.shape
        assert {each.change for each in await hf.diff("e", 1, 1)} == {"same"}
        nothing = await hf.diff("e", 1, 9)
        assert {each.change for each in nothing} == {"left"}
        assert all(each.right is None for each in nothing)
        assert {each.change for each in await hf.diff("e", 9, 1)} == {"right"}
        with pytest.raises(holdfast.UnknownExecution):
            await hf.diff("nobody", 1, 2)


async def test_the_audit_names_who_did_what(told: Stage) -> None:
    """§15."""
    async with told.open() as hf:
        audit = await hf.audit("e")
        assert [record.event for record in audit] == ["ambiguity", "decision", "divergence"]
        ambiguity, decision, divergence = audit
        assert (ambiguity.execution_id, ambiguity.generation, ambiguity.position) == ("e", 1, "3")
        assert (ambiguity.effect, ambiguity.policy, ambiguity.actor) == ("exactly_once", "fail", None)
        assert ambiguity.key_prefix is not None
        assert (decision.actor, decision.policy, decision.position) == ("ann", "not_happened", "3")
        assert decision.key_prefix == ambiguity.key_prefix
        assert decision.detail == {"note": "asked the bank"}
        assert divergence.position == "1"
        assert [record.seq for record in audit] == sorted(record.seq for record in audit)
        assert await hf.audit() == audit
        assert await hf.audit("nobody") == []


async def test_audit_events_are_logged_as_warnings(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """§15: WARN on the logger `holdfast.durable.audit`."""
    clock = ManualClock(START)
    await Story(stage, clock).tell(stage, clock)
    logged = [record for record in caplog.records if record.name == "holdfast.durable.audit"]
    assert [record.getMessage().split()[0] for record in logged] == ["ambiguity", "decision", "divergence"]
    assert {record.levelno for record in logged} == {logging.WARNING}
    assert all("execution=e" in record.getMessage() for record in logged)


# --- many executions ------------------------------------------------------------------------------------


async def test_lists_are_filtered_and_paged_newest_first(stage: Stage) -> None:
    """§15."""

    @holdfast.durable(kind="listed.good")
    async def good() -> None:
        return None

    @holdfast.durable(kind="listed.bad")
    async def bad() -> None:
        raise ValueError

    async with stage.open() as hf:
        for number in range(7):
            await hf.run(good, id=f"good {number}")
        for number in range(2):
            with pytest.raises(holdfast.ExecutionFailed):
                await hf.run(bad, id=f"bad {number}")

        async def ids(**filters: Any) -> list[str]:
            return [each.id for each in (await hf.list(**filters)).items]

        assert await ids() == ["bad 1", "bad 0", *(f"good {number}" for number in range(6, -1, -1))]
        assert await ids(status="failed") == ["bad 1", "bad 0"]
        assert await ids(kind="listed.good", limit=2) == ["good 6", "good 5"]
        assert await ids(queue="default") == []
        assert await ids(orphaned=True) == []
        seen: list[str] = []
        cursor = None
        for _ in range(10):
            page = await hf.list(limit=4, cursor=cursor)
            seen += [each.id for each in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert seen == await ids()


async def test_a_reader_sees_everything_and_changes_nothing(told: Stage) -> None:
    """DA-86: no process is alive, and no byte changes."""
    files = Path(told.target).parent.rglob("*") if not is_postgres(told.target) else []
    before = {path: path.read_bytes() for path in files if path.is_file()}
    async with open_reader(told.target) as hf:
        assert [each.id for each in (await hf.list()).items] == ["e"]
        assert len(await hf.history("e")) > 8
        assert len(await hf.timeline("e")) > 8
        assert len(await hf.diff("e", 1, 2)) == 5
        assert len(await hf.audit("e")) == 3
        assert (await hf.verify()).ok
    for path, content in before.items():
        assert path.read_bytes() == content, path
    ((owners,),) = await look(told.target, "SELECT count(*) FROM holdfast_owners")
    assert owners == 0


# --- agents ---------------------------------------------------------------------------------------------


async def test_an_agent_killed_in_a_turn_neither_pays_nor_speaks_twice(stage: Stage) -> None:
    """DA-87."""
    with Agent("converse", stage, "turn-1", "buy milk") as agent:
        assert await agent.hear() == "told"
        agent.kill()
    assert stage.outside.lines() == ["paid buy milk", "told answer to buy milk"]
    with Agent("converse", stage, "turn-1", "buy milk") as agent:
        assert await agent.hear() == "told"
        agent.say()
        assert agent.finish() == ["answer to buy milk, answer to closing of buy milk"]
    once = [
        "paid buy milk", "told answer to buy milk",
        "paid closing of buy milk", "told answer to closing of buy milk",
    ]  # fmt: skip
    assert stage.outside.lines() == once
    async with stage.open() as hf:
        folder = str(stage.folder)
        assert await hf.run(turn, folder, "buy tea", id="turn-2") == "answer to buy tea, answer to closing of buy tea"
        with pytest.raises(holdfast.ExecutionConflict):
            await hf.run(turn, folder, "buy tea", id="turn-1")
        assert stage.outside.count("paid") == 4
        # The same prompt again is another turn, and is paid for again.
        await hf.run(turn, folder, "buy milk", id="turn-3")
        assert stage.outside.count("paid") == 6


@dataclass
class Counters:
    """What a plan has counted so far."""

    searched: int = 0
    read: int = 0
    written: int = 0
    failed: int = 0
    spent: float = 0.0


async def test_a_plan_is_resumed_with_all_its_counters(stage: Stage) -> None:
    """DA-88."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(so_far: Counters, turn: int) -> Counters:
        stage.outside.happen("turn", turn)
        return Counters(
            so_far.searched + 1, so_far.read + turn, so_far.written + 2, so_far.failed + turn % 2, so_far.spent + 0.25
        )

    @holdfast.durable(kind="plan")
    async def plan(turns: int) -> Counters:
        counters = Counters()
        for number in range(turns):
            counters = await work(counters, number)
        return counters

    await stage.die("outcome.acked", plan, 8, id="e", hit=5)
    assert await stage.run(plan, 8, id="e") == Counters(8, 28, 16, 4, 2.0)
    assert stage.outside.lines() == [f"turn {number}" for number in range(8)]


# --- metrics and spans ----------------------------------------------------------------------------------


class Telemetry:
    """The user's OpenTelemetry, which keeps everything."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def spans(self, name: str) -> list[dict[str, Any]]:
        """The attributes of all spans of a name."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == f"holdfast.durable.{name}"]
        return [dict(span.attributes or {}) for span in found]


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    made = Telemetry()
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: made.tracers)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: made.meters)
    yield made
    monkeypatch.undo()
    trace.configure()
    made.tracers.shutdown()
    made.meters.shutdown()


async def test_spans_show_what_an_execution_does(stage: Stage, telemetry: Telemetry) -> None:
    """§15."""
    clock = ManualClock(START)
    await Story(stage, clock).tell(stage, clock)
    async with stage.open(clock=clock) as hf:
        await hf.verify()
        await hf.recover()
    for name in ("execution", "step", "commit", "claim", "replay.segment", "decide", "recover", "verify"):
        assert telemetry.spans(name), name
    steps = telemetry.spans("step")
    assert {"position", "name", "effect", "attempt", "outcome"} <= set(steps[0])
    assert {(span["name"], span["position"]) for span in steps} == {
        ("look_up", "1"), ("look_up", "2.0"), ("pay", "3"),
    }  # fmt: skip
    assert all(span["items"] >= 1 and span["bytes"] >= 0 for span in telemetry.spans("commit"))


async def test_metrics_have_their_published_names(stage: Stage, telemetry: Telemetry) -> None:
    """§15."""
    before = {
        name: counter(name) for name in ("steps_total", "ambiguities_total", "divergences_total", "retries_total")
    }
    clock = ManualClock(START)
    await Story(stage, clock).tell(stage, clock)
    names = {
        "steps_total", "ambiguities_total", "divergences_total", "degraded_steps_total", "retries_total",
        "recoveries_total", "lease_lost_total", "late_results_total", "writer_restarts_total", "commit_seconds",
        "batch_items", "ack_seconds", "replay_seconds", "queue_items", "queue_bytes", "executions",
    }  # fmt: skip
    assert {f"holdfast_durable_{name}" for name in names} <= set(trace.metrics())
    assert counter("ambiguities_total") == before["ambiguities_total"] + 1
    assert counter("divergences_total") == before["divergences_total"] + 1
    assert counter("retries_total") == before["retries_total"] + 4
    assert counter("steps_total") > before["steps_total"]
    labels = {name: trace.metrics()[f"holdfast_durable_{name}"].labels for name in names}
    assert labels["steps_total"] == ("effect", "outcome")
    assert labels["ambiguities_total"] == ("policy",)
    assert labels["executions"] == ("status",)
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    exported = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert "holdfast_durable_steps_total" in exported


async def test_steps_are_counted_by_class_and_outcome(stage: Stage) -> None:
    """§15: `steps_total{effect,outcome}`."""

    def total(effect: str, outcome: str) -> float:
        return trace.snapshot().get("holdfast_durable_steps_total", {}).get((effect, outcome), 0)

    @holdfast.step(effect=holdfast.at_least_once())
    async def act(what: str) -> str:
        if what == "bad":
            raise ValueError
        return what

    @holdfast.durable(kind="counted")
    async def program() -> None:
        for what in ("a", "b"):
            await act(what)
        with pytest.raises(holdfast.StepFailed):
            await act("bad")

        if crashing:
            with crash("step.looked_up", action="raise"):
                await act("c")

    before = {outcome: total("at_least_once", outcome) for outcome in ("live", "replayed", "failed")}
    crashing = True
    async with stage.open() as hf:
        with pytest.raises(Crashed):
            await hf.run(program, id="e")
    crashing = False
    await stage.run(program, id="e")
    assert total("at_least_once", "replayed") == before["replayed"] + 3
    await stage.run(program, id="f")
    assert total("at_least_once", "live") >= before["live"] + 2
    assert total("at_least_once", "failed") >= before["failed"] + 1


async def test_the_queue_is_seen_in_its_gauges(stage: Stage) -> None:
    """§15."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def act() -> bytes:
        return b"x" * 1000

    @holdfast.durable(kind="gauged")
    async def program() -> None:
        await act()
        WriterFaults(hf).stall()
        await act()

    async with stage.open() as hf:
        task = asyncio.ensure_future(hf.run(program, id="e"))
        writer = hf.database.writer
        await until(lambda: writer.faults.stalled and writer.pending_bytes > 1000)
        gauges = trace.snapshot()
        pending = writer.pending_items, writer.pending_bytes
        WriterFaults(hf).resume()
        await task
        assert (gauges["holdfast_durable_queue_items"][()], gauges["holdfast_durable_queue_bytes"][()]) == pending
        assert trace.snapshot()["holdfast_durable_queue_items"][()] == 0
