"""Payloads, arguments and whole keys stay out of logs, spans, metrics, errors, audit and default output."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ask
from tests.flow.tamper import look, until
from tests.flow.test_surfaces import Telemetry
from tests.stage import Stage

import holdfast
from holdfast.core import trace
from holdfast.testing import Crashed, ManualClock, WriterFaults, crash

SECRETS = tuple(f"hunter2-{where}" for where in (
    "input", "argument", "result", "output", "substitute", "verdict", "probed", "late", "large", "odd", "unfit", "set",
))  # fmt: skip
(INPUT, ARGUMENT, RESULT, OUTPUT, SUBSTITUTE, VERDICT, PROBED, LATE, LARGE, ODD, UNFIT, SET) = SECRETS


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    made = Telemetry()
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: made.tracers)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: made.meters)
    yield made
    monkeypatch.undo()
    trace.configure()


@dataclass
class Odd:
    """What no codec can write."""

    thing: object

    def __repr__(self) -> str:
        return f"Odd({ODD})"


class Story:
    """Executions that go through everything that is logged, traced, counted, raised or audited."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.said: list[str] = []
        self.keys: list[str] = []

    def heard(self, error: BaseException) -> None:
        """Keep all that an error shows."""
        self.said.append("".join(traceback.format_exception_only(error)))
        self.said.append(repr(error))
        self.said.append(str(vars(error)))
        if isinstance(error, holdfast.HoldfastError):
            self.said.append(error.hint)

    async def expect(self, call: Any, *kinds: type[BaseException]) -> None:
        with pytest.raises(kinds) as raised:
            await call
        self.heard(raised.value)

    def step(self, policy: Any, kind: Any = "money", **options: Any) -> Any:
        """A guarded step that is in doubt at its first attempt."""

        @holdfast.step(effect=holdfast.exactly_once(kind, on_ambiguous=policy), name="doubt", **options)
        async def doubt(what: str) -> str:
            handle = holdfast.current_step()
            self.keys.append(handle.idempotency_key.hex())
            if handle.attempt == 1:
                raise holdfast.OutcomeUnknown(RESULT)
            return RESULT

        return doubt

    async def tell(self) -> None:
        clock = ManualClock()
        policies = (
            holdfast.skip(SUBSTITUTE), holdfast.rerun(), holdfast.rerun_with_key(),
            holdfast.reconcile(lambda handle: holdfast.happened(PROBED)), holdfast.reconcile(self._broken_probe),
        )  # fmt: skip
        async with self.stage.open(clock=clock, ack_timeout_ms=500, payload_bytes_max=5000) as hf:
            for number, policy in enumerate(policies):
                await self._doubt(hf, policy, f"doubt {number}")
            await self._decisions(hf)
            await self._divergence(hf)
            await self._failures(hf)
            await self._results(hf)
            await self._misuse(hf)
            await self._degraded(hf, clock)
            await self._cancel(hf)

    @staticmethod
    def _broken_probe(handle: holdfast.StepHandle) -> holdfast.Verdict:
        raise LookupError(PROBED)

    async def _doubt(self, hf: holdfast.Holdfast, policy: Any, id: str) -> None:
        step = self.step(policy)

        @holdfast.durable(kind="secret.doubt")
        async def program(text: str) -> str:
            await step(ARGUMENT)
            return OUTPUT

        try:
            assert await hf.run(program, INPUT, id=id) == OUTPUT
        except holdfast.NeedsDecision as error:
            self.heard(error)

    async def _decisions(self, hf: holdfast.Holdfast) -> None:
        step = self.step(holdfast.fail(), result_type=int)

        @holdfast.durable(kind="secret.decided")
        async def program(text: str) -> str:
            await step(ARGUMENT)
            return OUTPUT

        await self.expect(hf.run(program, INPUT, id="d"), holdfast.NeedsDecision)
        await hf.decide("d", "0", holdfast.happened(VERDICT), by="ann")
        await self.expect(hf.run(program, INPUT, id="d"), holdfast.NeedsDecision)
        await hf.decide("d", "0", holdfast.happened(3), by="ann")
        await hf.run(program, INPUT, id="d")
        await self.expect(hf.run(program, VERDICT, id="d"), holdfast.ExecutionConflict)
        await self.expect(hf.decide("d", "0", holdfast.happened(VERDICT), by="ann"), holdfast.NoDecisionOpen)

    async def _divergence(self, hf: holdfast.Holdfast) -> None:
        words = [ARGUMENT, RESULT]

        @holdfast.step(effect=holdfast.at_least_once())
        async def send(what: str) -> str:
            return what

        @holdfast.durable(kind="secret.diverging")
        async def program(text: str) -> str:
            await send(words[0])
            if len(words) == 2:
                raise Left
            return OUTPUT

        await self.expect(hf.run(program, INPUT, id="v"), Left)
        words.pop(0)
        await self.expect(hf.run(program, INPUT, id="v", on_divergence="raise"), holdfast.ReplayDivergence)
        await hf.run(program, INPUT, id="v", reopen=True)

    async def _failures(self, hf: holdfast.Holdfast) -> None:
        retry = holdfast.Retry(max_attempts=2, initial=timedelta(0))

        @holdfast.step(effect=holdfast.at_least_once(), retry=retry)
        async def fail(what: str) -> None:
            raise ValueError("out of stock")

        @holdfast.durable(kind="secret.failing")
        async def program(text: str) -> None:
            await fail(ARGUMENT)

        await self.expect(hf.run(program, INPUT, id="f"), holdfast.ExecutionFailed)

    async def _results(self, hf: holdfast.Holdfast) -> None:
        @holdfast.step(effect=holdfast.at_least_once())
        async def odd(what: str) -> Any:
            return {LARGE: LARGE * 1000, ODD: Odd(object()), UNFIT: [UNFIT], SET: {SET, 1 << 70}}[what]

        @holdfast.step(effect=holdfast.at_least_once(), name="typed")
        async def typed() -> int:
            return UNFIT

        @holdfast.durable(kind="secret.results")
        async def program(text: str) -> Any:
            for what in (LARGE, ODD, SET):
                await self.expect(odd(what), holdfast.ResultLost)
            await self.expect(typed(), holdfast.ResultLost)
            return Odd(object())

        await self.expect(hf.run(program, INPUT, id="r"), holdfast.ExecutionFailed)

        @holdfast.durable(kind="secret.large")
        async def large(text: str) -> str:
            return LARGE * 1000

        await self.expect(hf.run(large, INPUT, id="l"), holdfast.ExecutionFailed)

    async def _misuse(self, hf: holdfast.Holdfast) -> None:
        @holdfast.step(effect=holdfast.at_least_once())
        async def send(what: Any) -> None:
            return None

        @holdfast.durable(kind="secret.misuse")
        async def program(text: Any) -> None:
            for value in (Odd(object()), f"\ud800{ODD}", {ODD: 1 << 70}):
                with pytest.raises(holdfast.FingerprintError) as raised:
                    send(value)
                self.heard(raised.value)

        await hf.run(program, INPUT, id="m")
        await self.expect(hf.run(program, Odd(object()), id="x"), holdfast.CodecError)
        await self.expect(hf.run(program, LARGE * 1000, id="x"), holdfast.LimitError)
        await self.expect(hf.run(program, INPUT, ODD, id="x"), TypeError, holdfast.ConfigError)

    async def _degraded(self, hf: holdfast.Holdfast, clock: ManualClock) -> None:
        @holdfast.step(effect=holdfast.at_least_once())
        async def send(what: str) -> str:
            return LATE

        guarded = self.step(holdfast.fail())

        @holdfast.durable(kind="secret.degraded")
        async def program(text: str) -> str:
            await send("first")
            WriterFaults(hf).stall()
            await send(ARGUMENT)
            await guarded(ARGUMENT)
            return OUTPUT

        task = asyncio.ensure_future(hf.run(program, INPUT, id="g"))
        await until(lambda: hf.database.writer.faults.stalled)
        for _ in range(5):
            await clock.advance(timedelta(milliseconds=200))
            await until(task.done, 0.03, anyway=True)
        await self.expect(task, holdfast.JournalUnavailable)
        WriterFaults(hf).resume()
        await until(lambda: hf.database.writer.pending_items == 0)

    async def _cancel(self, hf: holdfast.Holdfast) -> None:
        await hf.database.writer.drained()
        assert await hf.cancel("g") == holdfast.Canceled()
        await self.expect(hf.handle("g").result(), holdfast.ExecutionCanceled)


class Left(BaseException):
    """Leaves a program."""


async def test_no_payload_argument_or_whole_key_is_ever_told(
    stage: Stage, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """DA-85, DX-86."""
    caplog.set_level(logging.DEBUG)
    story = Story(stage)
    await story.tell()
    told = {
        "errors": "\n".join(story.said),
        "logs": "\n".join(f"{record.getMessage()} {record.exc_text or ''} {record.args}" for record in caplog.records),
        "spans": "\n".join(span.to_json() for span in telemetry.exporter.get_finished_spans()),
        "metrics": json.dumps([list(map(str, values)) for values in trace.snapshot().items()]),
        "exported metrics": str(telemetry.reader.get_metrics_data()),
        "audit": str(await look(stage.target, "SELECT * FROM durable_audit")),
        "reports": str(await look(stage.target, "SELECT report FROM durable_generations")),
        "decisions": str(await look(stage.target, "SELECT position, reason, decision, note FROM durable_decisions")),
    }
    async with stage.open() as hf:
        page = await hf.list(limit=100)
        views: list[Any] = [page, await hf.audit(), await hf.verify(), await hf.recover()]
        for each in page.items:
            views += [
                await hf.history(each.id),
                await hf.timeline(each.id),
                await hf.diff(each.id, 1, 2),
                hf.handle(each.id),
            ]
        told["views"] = str(views)
    told["output"] = "".join(capfd.readouterr())
    assert story.keys
    assert "WARNING" in {record.levelname for record in caplog.records}
    for place, text in told.items():
        assert text or place == "output", place  # a quiet run is told nothing there
        found = [secret for secret in SECRETS if secret in text]
        assert found == [], (place, found)
        whole = [key for key in story.keys if key in text.lower() or repr(bytes.fromhex(key)) in text]
        assert whole == [], (place, whole)


def test_no_command_shows_a_payload_unless_asked(stage: Stage) -> None:
    """DX-86, DA-86."""
    asyncio.run(Story(stage).tell())
    db = ("--db", stage.target)
    ids = [each["id"] for each in ask("executions", "list", "--json", *db).json["items"]]
    assert len(ids) > 10
    commands: list[tuple[str, ...]] = [("executions", "list"), ("verify",)]
    for id in ids:
        commands += [("executions", "show", id), ("executions", "timeline", id), ("executions", "diff", id)]
    for command in commands:
        for option in ((), ("--json",)):
            answer = ask(*command, *option, *db)
            told = answer.out + answer.err
            assert not any(secret in told for secret in SECRETS), command


async def test_failure_messages_are_recorded_as_configured(stage: Stage) -> None:
    """`failure_message`, `failure_message_chars_max`."""

    @holdfast.durable(kind="secret.message")
    async def program() -> None:
        raise ValueError("password=hunter2-message " + "x" * 100)

    seen = {}
    for mode in ("full", "redacted", "none"):
        async with stage.open(failure_message=mode, failure_message_chars_max=60) as hf:
            with pytest.raises(holdfast.ExecutionFailed):
                await hf.run(program, id=mode)
            with pytest.raises(holdfast.ExecutionFailed) as raised:
                await hf.run(program, id=mode)
            seen[mode] = raised.value.error_message
    assert seen["full"].startswith("password=hunter2-message")
    assert "hunter2" not in seen["redacted"]
    assert seen["redacted"].startswith("password=")
    assert seen["none"] == ""
    assert [len(message) for message in seen.values()] == [60, 60, 0]


async def test_a_crash_tells_nothing_either(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay(what: str) -> str:
        return RESULT

    @holdfast.durable(kind="secret.crash")
    async def program(text: str) -> str:
        return await pay(ARGUMENT)

    caplog.set_level(logging.DEBUG)
    async with stage.open() as hf:
        with crash("effect.returned", action="raise"), pytest.raises(Crashed) as raised:
            await hf.run(program, INPUT, id="e")
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(program, INPUT, id="e")
    told = caplog.text + repr(raised.value)
    assert not any(secret in told for secret in SECRETS)
