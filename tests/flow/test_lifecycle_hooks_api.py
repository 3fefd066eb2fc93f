"""Hooks through the API, on every database: `run_hook`, `derive`, and a `Hooks` that stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tests.unit.plans import context, negotiated

from holdfast.lifecycle import Client, LifecycleConfig, LifecycleReceipt, decode, deliveries, derive, run_hook
from holdfast.lifecycle import ledger as receipts
from holdfast.lifecycle.continuations import list_continuations, put_continuation
from holdfast.lifecycle.deliveries import Delivery
from holdfast.lifecycle.documents import PressureObservation
from holdfast.lifecycle.enums import Ambiguous
from holdfast.lifecycle.harness import HookReply
from holdfast.lifecycle.hooks import Hooks
from holdfast.lifecycle.planning import is_dispatched
from holdfast.store.database import Database

PROMPT = {"session_id": "s", "hook_event_name": "UserPromptSubmit", "prompt": "hi", "prompt_id": "t"}
START = {"session_id": "s", "hook_event_name": "SessionStart", "source": "startup"}
BLOCK = {"directive": {"action": "block", "reason": "no"}}


def client(folder: Path, *events: str, late: Sequence[str] = (), metadata: Any = None) -> Client:
    """One that blocks, and writes down when it is asked."""
    answer = {"schema_version": "lifeloop.v0.3", "status": "delivered", "metadata": metadata or {}}
    script = f"cat > /dev/null; echo $HOLDFAST_EVENT >> {folder}/asked; echo '{json.dumps(answer)}'"
    return Client(id="ccd", command=("/bin/sh", "-c", script), events=events, late=tuple(late), timeout_ms=60_000)


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().split() if path.exists() else []


def delivery(db: Database, name: str, fields: object, **changes: Any) -> Delivery:
    body = json.dumps(fields).encode()
    now = db.clock.now()
    given = {"id": name, "harness": "claude", "event_hint": "", "body": body, "body_bytes": len(body)}
    rest = {"body_digest": None, "received_at": now, "cwd": None, "lease_until": now + 8_000_000}
    return Delivery(**{**given, **rest, **changes})


async def recorded(db: Database) -> list[LifecycleReceipt]:
    async with db.read() as tx:
        found = await receipts.list_receipts(tx)
        assert isinstance(await receipts.verify(tx), receipts.Verified)
    return [stored.receipt for stored in reversed(found)]


async def test_a_hook_in_one_call(db: Database, tmp_path: Path) -> None:
    config = LifecycleConfig(clients=(client(tmp_path, "frame.opening", metadata=BLOCK),))
    body = json.dumps(PROMPT).encode()
    reply = await run_hook("claude-code", body, event_hint=None, config=config, database=db, clock=db.clock)
    assert reply == HookReply(b'{"decision":"block","reason":"no"}')
    stop = b'{"session_id": "s"}'
    assert await run_hook("claude", stop, event_hint="Stop", config=config, database=db, clock=db.clock) == HookReply()
    assert await derive(db, config=config, call_clients=False) == 1
    assert await derive(db, config=config, call_clients=False) == 0
    told = [(receipt.event, receipt.client_id) for receipt in await recorded(db)]
    assert told == [("frame.opening", "ccd"), ("frame.ending", "holdfast"), ("frame.ended", "holdfast")]
    nobody = await run_hook("acme", body, event_hint=None, config=config, database=db, clock=db.clock)
    assert (nobody.exit_code, nobody.stdout) == (1, b"")


async def test_one_moment_delivered_many_times_at_once_is_asked_about_once(db: Database, tmp_path: Path) -> None:
    """LX-51: decided in one transaction, before any client is called."""
    config = LifecycleConfig(
        clients=(client(tmp_path, "frame.opening", "frame.ending", metadata=BLOCK),), inflight_wait_ms=8_000
    )
    stop = {"session_id": "s", "hook_event_name": "Stop", "prompt_id": "t"}
    async with Hooks(db, config=config, clock=db.clock) as hooks, Hooks(db, config=config, clock=db.clock) as others:
        calls = [
            each.receive(delivery(db, f"{number} {fields['hook_event_name']}", fields))
            for number in range(4)
            for each in (hooks, others)
            for fields in (PROMPT, stop)
            if number % 2 == (each is hooks)
        ]
        replies = await asyncio.gather(*calls)
    assert {reply.stdout for reply in replies} == {b'{"decision":"block","reason":"no"}', b""}
    assert {reply.stderr for reply in replies} == {""}
    assert sorted(asked(tmp_path)) == ["frame.ending", "frame.opening"]
    assert [receipt.event for receipt in await recorded(db)].count("frame.opening") == 1


async def test_deliveries_are_derived_once_however_many_derive(db: Database) -> None:
    """LX-49: in the order in which they came."""
    config = LifecycleConfig()
    async with db.write() as tx:
        for number in range(30):
            fields = {**PROMPT, "prompt_id": f"t{number}"}
            at = db.clock.now() - (40 - number) * 1_000_000
            row = delivery(db, f"d{99 - number}", fields, received_at=at, lease_until=0)
            assert await deliveries.append(tx, row)
            assert not await deliveries.append(tx, row)
    counts = await asyncio.gather(*(derive(db, config=config, call_clients=False) for _ in range(4)))
    assert sum(counts) == 30
    found = await recorded(db)
    assert [receipt.sequence for receipt in found[-50:]] == [*range(found[-50].sequence or 0, 61)]
    at = [receipt.at_epoch_s for receipt in found]
    assert at == sorted(at)
    assert await derive(db, config=config, call_clients=True) == 0


async def test_a_body_that_is_too_long_is_kept_as_its_known_fields(db: Database) -> None:
    """LX-57, LX-75: with the size and the digest of all of it."""
    body = json.dumps({**PROMPT, "prompt": "x" * (4 << 20)}).encode()
    config = LifecycleConfig(raw="full")
    await run_hook("claude", body, event_hint=None, config=config, database=db, clock=db.clock)
    assert await derive(db, config=config, call_clients=False) == 1
    assert [receipt.event for receipt in await recorded(db)] == ["frame.opening", "frame.opened"]
    async with db.read() as tx:
        notes = (await receipts.list_receipts(tx))[0].annotations
        assert notes is not None
        row = await deliveries.get(tx, notes.delivery or "")
    assert (row.body_bytes, row.body_digest) == (len(body), blake3(body).digest())
    assert len(row.body) < 1000


async def test_no_text_of_a_prompt_a_payload_or_a_reason_is_logged_or_noted(
    db: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LX-73: whatever fails."""
    caplog.set_level("DEBUG")
    answer = '{"schema_version": "lifeloop.v0.3", "status": "secret"}'
    script = f"cat > /dev/null; echo a secret >&2; echo '{answer}'; exit 3"
    broken = Client(id="broken", command=("/bin/sh", "-c", script), events=("frame.opening",))
    config = LifecycleConfig(
        clients=(broken, client(tmp_path, "frame.opening", metadata={"directive": {"reason": "secret"}}))
    )
    async with Hooks(db, config=config, clock=db.clock) as hooks:
        reply = await hooks.receive(delivery(db, "d", {**PROMPT, "prompt": "a secret"}))
        for number, bad in enumerate(("secret", {"secret": "secret"}, {"session_id": "secret\0"})):
            refused = await hooks.receive(delivery(db, f"d{number}", bad))
            assert "secret" not in refused.stderr
    assert "secret" not in reply.stderr + caplog.text
    async with db.read() as tx:
        found = await receipts.list_receipts(tx)
        assert [(await deliveries.get(tx, f"d{number}")).state for number in range(3)] == ["refused"] * 3
    assert len(found) == 3
    for stored in found:
        assert b"secret" not in stored.notes
        assert "secret" not in repr(stored.receipt)


async def test_late_clients_are_called_by_who_may_call_them(db: Database, tmp_path: Path) -> None:
    """LX-49: the resident may; what the client asks of the harness then is dropped."""
    config = LifecycleConfig(clients=(client(tmp_path, "session.started", late=("session.started",), metadata=BLOCK),))
    heard: list[LifecycleReceipt] = []
    async with Hooks(db, config=config, clock=db.clock) as hooks:
        hooks.router.subscribe(heard.append)
        async with db.write() as tx:
            await deliveries.append(tx, delivery(db, "d", START, lease_until=0))
        assert await hooks.derive(call_clients=False) == 0
        assert asked(tmp_path) == []
        assert [receipt.event for receipt in await recorded(db)] == ["session.starting"]
        assert await hooks.derive(call_clients=True) == 1
        assert await hooks.derive(call_clients=True) == 0
    assert asked(tmp_path) == ["session.started"]
    assert [(each.event, each.status) for each in await recorded(db)] == [
        ("session.starting", "observed"),
        ("session.started", "delivered"),
    ]
    assert heard == await recorded(db)


async def test_a_call_ends_by_its_deadline_and_its_client_with_it(db: Database, tmp_path: Path) -> None:
    """LX-57: at the end of a session a hook has 1.2 s, whatever its client may take."""
    command = ("/bin/sh", "-c", f"echo >> {tmp_path}/asked; exec sleep 600")
    slow = Client(id="slow", command=command, events=("session.ended",), timeout_ms=600_000)
    config = LifecycleConfig(clients=(slow,))
    fields = {"session_id": "s", "hook_event_name": "SessionEnd", "reason": "other"}
    async with Hooks(db, config=config, clock=db.clock) as hooks:
        reply = await hooks.receive(delivery(db, "d", fields))
        assert (reply.exit_code, reply.stdout) == (0, b"")
        assert reply.stderr
        # If even the end of the client took too long, the delivery is left to who derives.
        async with db.write() as tx:
            await deliveries.lease(tx, "d", 0)
        await hooks.derive(call_clients=False)
    ended = [each for each in await recorded(db) if each.event == "session.ended"]
    assert [(each.client_id, each.status) for each in ended] in ([("slow", "failed")], [("slow", "skipped")])


async def test_a_harness_s_notice_keeps_what_is_known_of_its_context(db: Database) -> None:
    """LX-70."""
    config = LifecycleConfig()
    at = db.clock.now() // 1_000_000
    for seconds, percent in ((-100, 40), (100, 50)):
        known = PressureObservation(
            adapter_id="claude", observed_at_epoch_s=at + seconds, context_used_pct=percent, model_name="opus"
        )
        async with db.write() as tx:
            await deliveries.press(tx, "claude", "s", json.dumps({**_fields(known)}).encode())
            fields = {"session_id": "s", "hook_event_name": "PreCompact", "trigger": str(seconds)}
            await deliveries.append(tx, delivery(db, f"d{seconds}", fields, lease_until=0))
        await derive(db, config=config, call_clients=False)
        async with db.read() as tx:
            kept = await deliveries.pressure_of(tx, "claude", "s")
            assert await deliveries.pressure_of(tx, "claude", "other") is None
        assert kept is not None
        found = decode(kept, PressureObservation)
        assert (found.context_used_pct, found.model_name) == (percent, "opus")
        # What was observed after the notice came is newer than it.
        assert found.compaction_signaled is (True if seconds < 0 else None)


def _fields(observation: PressureObservation) -> dict[str, Any]:
    names = ("adapter_id", "observed_at_epoch_s", "context_used_pct", "model_name")
    return {name: getattr(observation, name) for name in names}


@pytest.mark.parametrize(
    ("harness", "hook", "dispatched"),
    [("claude", "SessionStart", True), ("claude", "Stop", False), ("codex", "SessionStart", False),
     ("claude", "Surprise", False)],
)  # fmt: skip
def test_a_plan_says_which_hooks_need_a_client(harness: str, hook: str, dispatched: bool) -> None:
    bound = Client(id="c", command=("/bin/true",), events=("context.compacted",), harnesses=("claude",))
    assert is_dispatched(LifecycleConfig(clients=(bound,)), harness, hook) is dispatched


@pytest.mark.parametrize(("ambiguous", "closed"), [("close", 1), ("rerun", 0)])
async def test_what_is_over_its_time_goes_and_what_the_dead_left_is_closed(
    db: Database, ambiguous: Ambiguous, closed: int
) -> None:
    """LX-42, LX-71: whoever derives lets go, too; a call that is to be made again stays open."""
    yesterday = db.clock.now() - 86_400_000_000

    async def put() -> None:
        async with db.write() as tx:
            await put_continuation(tx, "thread", "gone", b"", ttl=timedelta(hours=1), now=yesterday)
            await put_continuation(tx, "thread", "kept", b"", ttl=timedelta(days=2), now=yesterday)

    async def names() -> list[str]:
        async with db.read() as tx:
            return [each.name for each in await list_continuations(tx, "thread", now=yesterday)]

    async with Hooks(db, config=LifecycleConfig(ambiguous=ambiguous), clock=db.clock) as hooks:
        await put()
        assert await names() == ["gone", "kept"]
        await hooks.receive(delivery(db, "d1", START, lease_until=0))
        assert await hooks.derive(call_clients=False) == 1
        assert await names() == ["kept"]

        await put()
        async with db.write() as tx:
            lapsed = receipts.Lease("own_dead", yesterday)
            await receipts.claim(tx, negotiated(), context(), lapsed, mode="semantic", now=yesterday)
        await hooks.tidy()
        assert await names() == ["kept"]
    async with db.read() as tx:
        assert len(await receipts.pending(tx)) == 1 - closed


async def test_a_duplicate_of_what_nobody_was_asked_about_in_time_gets_its_harness_s_neutral_answer(
    db: Database, tmp_path: Path
) -> None:
    begin = {"session_id": "s", "hook_event_name": "BeforeAgent", "prompt": "hi", "timestamp": "1"}
    config = LifecycleConfig(clients=(client(tmp_path, "frame.opening", metadata=BLOCK),))
    async with Hooks(db, config=config, clock=db.clock) as hooks:
        async with db.write() as tx:
            await deliveries.append(tx, delivery(db, "d1", begin, harness="gemini", lease_until=0))
        assert await hooks.derive(call_clients=False) == 1
        assert await hooks.receive(delivery(db, "d2", begin, harness="gemini")) == HookReply(b"{}")
    assert asked(tmp_path) == []
