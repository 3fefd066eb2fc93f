"""What the manifests claim, shown on the program itself: hooks go in, receipts and replies come out.

Every adapter is driven through the same steps by the hooks that its harness fires. The claims of the data files in
`holdfast/lifecycle/manifests` name these tests as their evidence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import Answer, start
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


class Machine:
    """A user's machine: a configuration and a ledger of its own, and the program."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    def run(self, *arguments: object, stdin: str = "") -> Answer:
        with start(*arguments, **self.environment) as process:
            out, err = process.communicate(stdin, timeout=60)
        return Answer(process.returncode, out, err)

    def fire(self, adapter: str, hook: str) -> Answer:
        """Fire one hook of a harness, as the harness would."""
        number, extra = next((n, extra) for n, (name, extra) in enumerate(HOOKS[adapter]) if name == hook)
        if adapter in SHIMS:
            turn = {"turn_id": extra["turn_id"]} if "turn_id" in extra else {}
            body = {"shim": 1, "hook": hook, "session_id": SESSION, **turn, "delivery_id": f"d-{number}", "data": {}}
        else:
            body = {
                "session_id": SESSION,
                "transcript_path": str(self.home / "transcript.jsonl"),
                "cwd": str(self.home),
                "hook_event_name": hook,
                **({"timestamp": f"2026-05-06T20:0{number}:00Z"} if adapter == "gemini" else {}),
                **extra,
            }
        answer = self.run("hook", adapter, "--event", hook, stdin=json.dumps(body))
        assert (answer.code, answer.err) == (0, ""), answer
        return answer

    def receipts(self) -> list[dict[str, Any]]:
        """Every receipt of the ledger, in the order of its chain."""
        listed = self.run("receipts", "list", "--limit", "500", "--json")
        assert listed.code == 0, listed
        exported = self.run("receipts", "export")
        assert exported.code == 0, exported
        return [json.loads(json.loads(line)["body"]) for line in exported.out.splitlines()[1:-1]]

    def bind(self, answers: Mapping[str, Any], **settings: object) -> None:
        """Bind a client that gives these answers, by event, and an empty one to every other."""
        script = self.home / "client.py"
        script.write_text(CLIENT.replace("ANSWERS", repr(dict(answers))))
        lines = {"id": "ccd", "events": sorted(CLAIMED), "command": [sys.executable, str(script)], "timeout_ms": 20_000}
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in {**lines, **settings}.items())
        folder = self.home / "config" / "holdfast"
        folder.mkdir(parents=True)
        (folder / "holdfast.toml").write_text(f"[[lifecycle.clients]]\n{text}\n")


CLIENT = """
import json, sys
request = json.load(sys.stdin)["request"]
answer = {"schema_version": request["schema_version"], "status": "delivered"}
answer.update(ANSWERS.get(request["event"], {}))
json.dump(answer, sys.stdout)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def claimed(adapter: str) -> set[str]:
    manifest = Registry.builtin().get(adapter)
    assert manifest is not None
    return {event for event, claim in manifest.lifecycle_events.items() if claim.support != "unavailable"}


CLAIMED = set.union(*(claimed(adapter) for adapter in ADAPTERS)) - SYNTHESIZED


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_hooks_of_a_session_tell_the_events_that_are_claimed(machine: Machine, adapter: str) -> None:
    """Those, each once, and no other."""
    for hook, _ in HOOKS[adapter]:
        machine.fire(adapter, hook)
    events = [receipt["event"] for receipt in machine.receipts()]
    assert sorted(events) == sorted(claimed(adapter) - SYNTHESIZED)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_receipts_are_numbered_by_run_and_kept_in_a_chain(machine: Machine, adapter: str) -> None:
    for hook, _ in HOOKS[adapter]:
        machine.fire(adapter, hook)
    receipts = machine.receipts()
    assert [receipt["sequence"] for receipt in receipts] == list(range(1, len(receipts) + 1))
    assert {receipt["adapter_id"] for receipt in receipts} == {adapter}
    assert machine.run("receipts", "verify").code == 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_receipts_have_the_session_s_id_and_a_run_made_of_it(machine: Machine, adapter: str) -> None:
    machine.fire(adapter, OPENING[adapter])
    receipts = machine.receipts()
    assert receipts
    assert {receipt["harness_session_id"] for receipt in receipts} == {SESSION}
    assert {receipt["harness_run_id"] for receipt in receipts} == {f"{adapter}:{SESSION}"}
    assert {receipt.get("harness_task_id") for receipt in receipts} == {None}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_first_degradation_of_a_capability_is_an_event_of_the_session(machine: Machine, adapter: str) -> None:
    """LX-50."""
    machine.bind({}, requires=["session_rename=preferred:native"])
    for hook, _ in HOOKS[adapter]:
        machine.fire(adapter, hook)
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
    machine.bind({event: {"client_payloads": [payload]}})
    fired = hook or OPENING[adapter]
    said = machine.fire(adapter, fired).out
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
def test_a_number_that_is_missing_in_a_run_is_told_once(machine: Machine, adapter: str, tmp_path: Path) -> None:
    """LX-43: receipts 1, 2 and 5 of a run come from elsewhere."""
    source = Machine(tmp_path / "source")
    source.home.mkdir()
    for hook, _ in HOOKS[adapter]:
        source.fire(adapter, hook)
    source.receipts()
    exported = source.run("receipts", "export").out.splitlines()
    assert len(exported) >= 7
    kept = [exported[0], *(exported[number] for number in (1, 2, 5)), exported[-1]]
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
