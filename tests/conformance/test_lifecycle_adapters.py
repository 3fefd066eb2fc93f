"""What the manifests claim, shown on the program itself: hooks go in, receipts and replies come out.

Every adapter is driven through the same steps by the hooks that its harness fires. The claims of the data files in
`holdfast/lifecycle/manifests` name these tests as their evidence.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import Answer
from tests.flow.hooking import Machine
from tests.unit.plans import context, request

from holdfast.lifecycle import LifecycleReceipt, PressureObservation, Router, decode
from holdfast.lifecycle.machine import ADAPTERS, Registry, support_of
from holdfast.store.database import Database

SESSION = "ses-1"
SYNTHESIZED = {"capability.degraded", "receipt.emitted", "receipt.gap_detected"}
"""Events that we make ourselves, whatever the harness does."""

# What each harness fires in a session, in order: the hook, and what its input has beyond the common part.
HOOKS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "claude": [
        ("SessionStart", {"source": "startup", "model": "opus"}),
        ("UserPromptSubmit", {"prompt": "buy milk", "prompt_id": "turn-1"}),
        ("PreCompact", {"trigger": "auto"}),
        ("PostCompact", {"trigger": "auto", "compact_summary": "milk was wanted"}),
        ("Stop", {"stop_hook_active": False}),
        ("SessionEnd", {"reason": "other"}),
    ],
    "codex": [
        ("SessionStart", {"source": "startup"}),
        ("UserPromptSubmit", {"prompt": "buy milk", "turn_id": "turn-1"}),
        ("PreCompact", {"trigger": "auto", "turn_id": "turn-1"}),
        ("PostCompact", {"trigger": "auto", "turn_id": "turn-1"}),
        ("Stop", {"stop_hook_active": False, "turn_id": "turn-1", "last_assistant_message": None}),
        ("SessionEnd", {"reason": "other"}),
    ],
    "gemini": [
        ("SessionStart", {"source": "startup"}),
        ("BeforeAgent", {"prompt": "buy milk"}),
        ("PreCompress", {"trigger": "auto"}),
        ("AfterAgent", {"prompt": "buy milk", "prompt_response": "bought", "stop_hook_active": False}),
        ("SessionEnd", {"reason": "exit"}),
    ],
    "opencode": [
        ("session.created", {}),
        ("chat.message", {"turn_id": "turn-1"}),
        ("experimental.session.compacting", {}),
        ("session.compacted", {}),
        ("session.idle", {"turn_id": "turn-1"}),
        ("session.deleted", {}),
    ],
    "openclaw": [
        ("message:preprocessed", {"turn_id": "turn-1"}),
        ("session:compact:before", {}),
        ("session:compact:after", {}),
        ("message:sent", {"turn_id": "turn-1"}),
        ("session:end", {}),
    ],
    "hermes": [
        ("session:start", {}),
        ("agent:start", {"turn_id": "turn-1"}),
        ("agent:step", {"turn_id": "turn-1"}),
        ("session:compress", {}),
        ("agent:end", {"turn_id": "turn-1"}),
        ("session:end", {}),
    ],
}
SHIMS = ("opencode", "openclaw", "hermes")
OPENING = {
    "claude": "UserPromptSubmit",
    "codex": "UserPromptSubmit",
    "gemini": "BeforeAgent",
    "opencode": "chat.message",
    "openclaw": "message:preprocessed",
    "hermes": "agent:start",
}
"""The hook of each harness that opens a frame."""


def fire(machine: Machine, adapter: str, hook: str) -> Answer:
    """Fire one hook of a harness, as the harness would."""
    number, extra = next((n, extra) for n, (name, extra) in enumerate(HOOKS[adapter]) if name == hook)
    body: dict[str, Any]
    if adapter in SHIMS:
        turn = {"turn_id": extra["turn_id"]} if "turn_id" in extra else {}
        body = {"shim": 1, "hook": hook, "session_id": SESSION, **turn, "delivery_id": f"d-{number}", "data": {}}
    else:
        body = {
            "session_id": SESSION,
            "transcript_path": str(machine.home / "transcript.jsonl"),
            "cwd": str(machine.home),
            "hook_event_name": hook,
            **({"timestamp": f"2026-05-06T20:0{number}:00Z"} if adapter == "gemini" else {}),
            **extra,
        }
    answer = machine.hook(adapter, hook, body)
    assert (answer.code, answer.err) == (0, ""), answer
    return answer


def fire_all(machine: Machine, adapter: str) -> list[dict[str, Any]]:
    """Fire all hooks of a session; return the receipts."""
    for hook, _ in HOOKS[adapter]:
        fire(machine, adapter, hook)
    return machine.receipts()


@cache
def exported(adapter: str) -> tuple[Answer, Answer]:
    """What the program says of a session: the export of its receipts, and what `verify` finds."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        fire_all(machine, adapter)
        return machine.run("receipts", "export"), machine.run("receipts", "verify")


def receipts_of(adapter: str) -> list[dict[str, Any]]:
    return [json.loads(json.loads(line)["body"]) for line in exported(adapter)[0].out.splitlines()[1:-1]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def claimed(adapter: str) -> set[str]:
    manifest = Registry.builtin().get(adapter)
    assert manifest is not None
    return {event for event, claim in manifest.lifecycle_events.items() if claim.support != "unavailable"}


CLAIMED = set.union(*(claimed(adapter) for adapter in ADAPTERS)) - SYNTHESIZED


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_hooks_of_a_session_tell_the_events_that_are_claimed(adapter: str) -> None:
    """Those, each once, and no other."""
    events = [receipt["event"] for receipt in receipts_of(adapter)]
    assert sorted(events) == sorted(claimed(adapter) - SYNTHESIZED)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_receipts_are_numbered_by_run_and_kept_in_a_chain(adapter: str) -> None:
    receipts = receipts_of(adapter)
    assert [receipt["sequence"] for receipt in receipts] == list(range(1, len(receipts) + 1))
    assert {receipt["adapter_id"] for receipt in receipts} == {adapter}
    assert exported(adapter)[1].code == 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_receipts_have_the_session_s_id_and_a_run_made_of_it(adapter: str) -> None:
    receipts = receipts_of(adapter)
    assert receipts
    assert {receipt["harness_session_id"] for receipt in receipts} == {SESSION}
    assert {receipt["harness_run_id"] for receipt in receipts} == {f"{adapter}:{SESSION}"}
    assert {receipt.get("harness_task_id") for receipt in receipts} == {None}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_first_degradation_of_a_capability_is_an_event_of_the_session(machine: Machine, adapter: str) -> None:
    """LX-50."""
    machine.bind({}, sorted(CLAIMED), requires=["session_rename=preferred:native"])
    for hook, _ in HOOKS[adapter][:2]:
        fire(machine, adapter, hook)
    receipts = machine.receipts()
    degraded = [receipt for receipt in receipts if receipt["event"] == "capability.degraded"]
    assert [receipt["status"] for receipt in degraded] == ["observed"]
    assert {receipt["status"] for receipt in receipts if receipt["event"] in CLAIMED} == {"degraded"}


@pytest.mark.parametrize("adapter", ["claude", "codex", "gemini"])
@pytest.mark.parametrize(
    ("hook", "event", "placement"),
    [("SessionStart", "session.starting", "developer_equivalent_frame"), ("", "frame.opening", "pre_prompt_frame")],
)
@pytest.mark.parametrize("size", [10_000, 10_001])
def test_a_payload_of_a_client_reaches_the_harness_up_to_the_limit(
    machine: Machine, adapter: str, hook: str, event: str, placement: str, size: int
) -> None:
    body = "x" * size
    payload = {
        "schema_version": "lifeloop.v0.3",
        "payload_id": "pay-1",
        "client_id": "ccd",
        "payload_kind": "instruction_frame",
        "format": "text",
        "content_encoding": "utf8",
        "body": body,
        "byte_size": size,
        "acceptable_placements": [{"placement": placement, "requirement": "preferred"}],
    }
    machine.bind({event: {"client_payloads": [payload]}}, [event])
    fired = hook or OPENING[adapter]
    said = fire(machine, adapter, fired).out
    context = json.loads(said or "{}").get("hookSpecificOutput")
    assert context == ({"hookEventName": fired, "additionalContext": body} if size <= 10_000 else None)


@pytest.mark.parametrize(
    ("adapter", "place", "row"),
    [
        (
            "claude",
            f".claude/projects/-home-shop/{SESSION}.jsonl",
            {
                "type": "assistant",
                "isSidechain": False,
                "sessionId": SESSION,
                "message": {
                    "role": "assistant",
                    "model": "claude-opus-4-5",
                    "usage": {
                        "input_tokens": 10_000,
                        "cache_read_input_tokens": 40_000,
                        "cache_creation_input_tokens": 9_000,
                        "output_tokens": 3_999,
                    },
                },
            },
        ),
        (
            "codex",
            f".codex/sessions/2026/05/06/rollout-2026-05-06T20-00-00-{SESSION}.jsonl",
            {
                "type": "event_msg",
                "payload": {
                    "type": "token_count",
                    "info": {"last_token_usage": {"total_tokens": 63_999}, "model_context_window": 200_000},
                },
            },
        ),
    ],
)
def test_how_full_the_context_is_is_read_from_the_session_s_file(
    machine: Machine, adapter: str, place: str, row: dict[str, Any]
) -> None:
    """LX-69: floored to whole percent; the last line is cut."""
    file = machine.home / place
    file.parent.mkdir(parents=True)
    line = json.dumps({"timestamp": datetime.now(UTC).isoformat(), **row})
    file.write_text(f"{line}\n{line[:40]}")
    answer = machine.run("telemetry", "snapshot", "--host", adapter, "--session", SESSION)
    assert (answer.code, answer.err) == (0, ""), answer
    observation = decode(answer.out, PressureObservation)
    assert (observation.adapter_id, observation.context_used_pct) == (adapter, 31)


@pytest.mark.parametrize("adapter", ["claude", "codex"])
def test_an_operator_may_tell_of_an_event_by_hand(machine: Machine, adapter: str) -> None:
    manifest = Registry.builtin().get(adapter)
    assert manifest is not None
    assert support_of(manifest, "lifecycle_event:session.started") == "native"
    request = {
        "schema_version": "lifeloop.v0.3",
        "event": "session.started",
        "event_id": "evt-1",
        "adapter_id": adapter,
        "adapter_version": manifest.adapter_version,
        "integration_mode": "manual_skill",
        "invocation_id": "inv-1",
        "harness_run_id": "run-1",
    }
    given = {
        "request": request,
        "response": {"schema_version": "lifeloop.v0.3", "status": "delivered"},
        "context": {"client_id": "ccd", "receipt_id": "rcp-1", "at_epoch_s": 1, "harness_run_id": "run-1"},
    }
    answer = machine.run("receipts", "emit", stdin=json.dumps(given))
    assert answer.code == 0, answer
    assert answer.json["integration_mode"] == "manual_skill"
    assert "warnings" not in answer.json


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_number_that_is_missing_in_a_run_is_told_once(machine: Machine, adapter: str) -> None:
    """LX-43: receipts 1, 2 and 5 of a run come from elsewhere."""
    lines = exported(adapter)[0].out.splitlines()
    assert len(lines) >= 7
    kept = [lines[0], *(lines[number] for number in (1, 2, 5)), lines[-1]]
    for _ in range(2):
        machine.run("receipts", "replay", "-", stdin="\n".join(kept) + "\n")
        told = [receipt for receipt in machine.receipts() if receipt["event"] == "receipt.gap_detected"]
        assert [(receipt["adapter_id"], receipt["sequence"]) for receipt in told] == [(adapter, None)]


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_whoever_subscribes_is_told_of_every_receipt(db: Database, adapter: str) -> None:
    """LX-46."""
    registry = Registry.builtin()
    manifest = registry.get(adapter)
    assert manifest is not None
    told: list[LifecycleReceipt] = []
    router = Router(db, registry=registry, clock=db.clock)
    stop = router.subscribe(told.append)
    made = []
    for number in (1, 2):
        dispatched = await router.dispatch(
            request(adapter_id=adapter, adapter_version=manifest.adapter_version, idempotency_key=f"key-{number}"),
            client=None,
            context=context(receipt_id=f"rcp-{number}"),
        )
        made.append(dispatched.receipt)
    assert told == made
    stop()
    assert [receipt.sequence for receipt in told] == [1, 2]
