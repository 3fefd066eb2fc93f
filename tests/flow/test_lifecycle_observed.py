"""What is logged, traced and counted of events, and what is not."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from tests.flow.test_surfaces import Telemetry
from tests.unit.plans import context, payload, request, response

from holdfast.core import trace
from holdfast.lifecycle import (
    Annotations,
    Command,
    LifecycleConfig,
    LifecycleReceipt,
    ReceiptConflict,
    Registry,
    Router,
)
from holdfast.lifecycle import ledger as receipts
from holdfast.lifecycle.deliveries import Delivery
from holdfast.lifecycle.hooks import Hooks
from holdfast.lifecycle.verify import verify
from holdfast.store import Database

SECRETS = tuple(f"hunter2-{where}" for where in (
    "body", "metadata", "answer", "idempotency-key", "raised", "stderr", "stdout", "environment", "listener",
))  # fmt: skip
BODY, METADATA, ANSWER, KEY, RAISED, STDERR, STDOUT, ENVIRONMENT, LISTENER = SECRETS
CHAIN_KEY = b"hunter2-chain-key-of-32-bytes-xx"


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


async def answering(about: object, payloads: object) -> Any:
    return response("delivered", metadata={"a": ANSWER})


async def raising(about: object, payloads: object) -> Any:
    raise ValueError(RAISED)


class Story:
    """Events that go through everything that is logged, traced, counted or raised."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.errors: list[BaseException] = []
        self.notes: list[Annotations | None] = []

    async def tell(self) -> None:
        clock = self.database.clock
        async with Router(self.database, registry=Registry.builtin(), clock=clock, chain_key=CHAIN_KEY) as router:
            router.subscribe(_deaf)
            await self.dispatch(router, 1, answering)
            await self.dispatch(router, 1, answering)
            await self.dispatch(router, 2, raising)
            script = f"import sys; print({STDOUT!r}); print({STDERR!r}, file=sys.stderr); sys.exit(3)"
            command = Command((sys.executable, "-S", "-c", script), timedelta(seconds=60), ("HUNTER",))
            await self.dispatch(router, 3, command)
            with pytest.raises(ReceiptConflict) as caught:
                await self.dispatch(router, 1, answering, event="session.ended")
            self.errors.append(caught.value)
        found = await verify(self.database, chain_key=CHAIN_KEY)
        assert (found.ok, found.checked_count) == (True, 3)

    async def dispatch(self, router: Router, number: int, client: Any, **changes: Any) -> None:
        made = await router.dispatch(
            request(idempotency_key=f"{KEY}-{number}", metadata={"p": METADATA}, **changes),
            client=client,
            context=context(receipt_id=f"rcp-{number}"),
            payloads=[payload(("pre_prompt_frame", "preferred"), body=BODY, byte_size=len(BODY))],
            deadline=timedelta(seconds=60),
        )
        self.notes.append(made.annotations)
        if made.error is not None and not isinstance(client, Command):  # a program's stderr is said where it is asked
            self.errors.append(made.error)


def _deaf(receipt: LifecycleReceipt) -> None:
    raise ValueError(LISTENER)


async def test_secrets_stay_where_they_belong(
    db: Database, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LX-73: not in a log line, an error's message, a span, an annotation or a metric; nor in a receipt but its key."""
    monkeypatch.setenv("HUNTER", ENVIRONMENT)
    caplog.set_level(logging.DEBUG)
    story = Story(db)
    await story.tell()
    async with db.read() as tx:
        stored = await receipts.list_receipts(tx)
    said = {
        "logs": caplog.text,
        "spans": "".join(span.to_json() for span in telemetry.exporter.get_finished_spans()),
        "metrics": f"{telemetry.reader.get_metrics_data()}{trace.snapshot()}",
        "errors": "".join("".join(traceback.format_exception_only(error)) for error in story.errors),
        "annotations": f"{story.notes}{b''.join(each.notes for each in stored).decode()}",
        "receipts": "".join(repr(each.receipt).replace(each.receipt.idempotency_key or "", "") for each in stored),
    }
    assert "listener failed" in said["logs"]
    assert "duplicate_id_conflict" in said["errors"]
    secrets = (*SECRETS, "hunter2-chain")
    assert [(where, each) for where, text in said.items() for each in secrets if each in text] == []


async def test_spans_and_metrics_show_what_became_of_events(db: Database, telemetry: Telemetry) -> None:
    before = trace.snapshot()
    await Story(db).tell()
    spans: dict[str, list[dict[str, Any]]] = {}
    for span in telemetry.exporter.get_finished_spans():
        spans.setdefault(span.name.removeprefix("holdfast.lifecycle."), []).append(dict(span.attributes or {}))
    assert [each.get("outcome") or each["error.type"] for each in spans["dispatch"]] == [
        "inserted", "replayed", "inserted", "inserted", "lifecycle.conflict",
    ]  # fmt: skip
    assert spans["dispatch"][0] == {
        "event": "session.started", "adapter_id": "claude", "client_id": "ccd",
        "outcome": "inserted", "status": "delivered", "receipt_id": "rcp-1",
    }  # fmt: skip
    assert [each["result"] for each in spans["client"]] == ["delivered", "internal_error", "transport_error"]
    assert all(each["items"] >= 1 for each in spans["commit"])
    assert spans["verify"] == [{"receipts": 3, "problems": 0}]
    assert grown(before, "events_total") == {("inserted",): 3, ("replayed",): 1, ("conflict",): 1}
    assert grown(before, "receipts_total") == {("session.started", "delivered"): 1, ("session.started", "failed"): 2}
    assert grown(before, "client_calls_total") == {
        ("delivered",): 1, ("internal_error",): 1, ("transport_error",): 1,
    }  # fmt: skip
    assert grown(before, "listener_failures_total") == {(): 3}
    assert grown(before, "client_seconds_count") == {(): 3}
    assert grown(before, "record_seconds_count")[()] == grown(before, "batch_items_count")[()]


async def test_a_hook_call_has_a_span_and_is_counted(db: Database, telemetry: Telemetry) -> None:
    trace.configure()
    before = trace.snapshot()
    async with Hooks(db, config=LifecycleConfig(), clock=db.clock) as hooks:
        for name, body in (("dlv_1", b'{"session_id": "s", "hook_event_name": "Stop"}'), ("dlv_2", BODY.encode())):
            await hooks.receive(Delivery(name, "claude_code", "Sto", body, len(body), None, db.clock.now(), None, 0))
    spans = [dict(span.attributes or {}) for span in telemetry.exporter.get_finished_spans()]
    of_hooks = [each for each in spans if "delivery_id" in each]
    assert of_hooks == [
        {"harness": "claude", "hook": hook, "delivery_id": name, "result": result, "exit_code": 0}
        for hook, name, result in (("Stop", "dlv_1", "observed"), ("other", "dlv_2", "refused"))
    ]
    assert grown(before, "hooks_total") == {("observed",): 1, ("refused",): 1}
    assert grown(before, "hook_seconds_count") == {(): 2}


def grown(before: dict[str, dict[tuple[str, ...], float]], name: str) -> dict[tuple[str, ...], float]:
    """What a metric counted since."""
    name = f"holdfast_lifecycle_{name}"
    old = before.get(name, {})
    now = {labels: value - old.get(labels, 0) for labels, value in trace.snapshot()[name].items()}
    return {labels: value for labels, value in now.items() if value}
