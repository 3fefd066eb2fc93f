"""Hooks of harnesses, from the call to the receipts and the answer: LA-51 to LA-59 and what section 10 says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import apsw
import pytest
from blake3 import blake3
from tests.flow.hooking import Machine, now_us
from tests.flow.tamper import look

from holdfast.lifecycle.harness import codex
from holdfast.testing import crash

BASE = {"session_id": "s1", "transcript_path": "/var/t.jsonl", "cwd": "/var", "permission_mode": "default"}
PROMPT = {**BASE, "hook_event_name": "UserPromptSubmit", "prompt": "buy milk", "prompt_id": "t1"}
STOP = {**BASE, "hook_event_name": "Stop", "stop_hook_active": False, "prompt_id": "t1"}
START = {**BASE, "hook_event_name": "SessionStart", "source": "startup", "model": "opus"}
SECOND = 1_000_000
NOW = 1_790_000_000 * SECOND
"""When recorded hooks came; only their distances count."""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def keep(machine: Machine, harness: str, body: object, at: int, hook: str | None = None, **changes: Any) -> None:
    """A hook call that is only kept: nobody is bound."""
    machine.keep(harness, hook, body, received_at=at, lease_until=0, **changes)


def rows(machine: Machine, query: str) -> list[Any]:
    return asyncio.run(look(str(machine.ledger), query))


# --- what is told -------------------------------------------------------------------------------------


def test_claude_s_hooks_give_their_events_with_ids_that_stay(machine: Machine, tmp_path: Path) -> None:
    """LA-51, LX-51 to LX-54: unknown fields are tolerated, and another machine finds the same ids."""
    hooks = [
        {**START, "future": {"deep": [1]}},
        PROMPT,
        {**BASE, "hook_event_name": "PreCompact", "trigger": "auto", "custom_instructions": ""},
        STOP,
        {**BASE, "hook_event_name": "SessionEnd", "reason": "other"},
    ]
    other = Machine(tmp_path / "other")
    for number, body in enumerate(hooks):
        for each in (machine, other):
            keep(each, "claude_code", body, NOW + number * SECOND)
    receipts = machine.receipts()
    assert [each["event"] for each in receipts] == [
        "session.starting", "session.started", "frame.opening", "frame.opened", "context.pressure_observed",
        "frame.ending", "frame.ended", "session.ending", "session.ended",
    ]  # fmt: skip
    assert {(each["adapter_id"], each["harness_session_id"], each["harness_run_id"]) for each in receipts} == {
        ("claude", "s1", "claude:s1")
    }
    for name, prefix in (("event_id", "evt_"), ("invocation_id", "inv_"), ("idempotency_key", "hk_")):
        found = [each[name] for each in receipts]
        assert len({*found}) == 9
        assert all(text.startswith(prefix) and len(text) == len(prefix) + 32 for text in found)
    assert [each["at_epoch_s"] for each in receipts[:3]] == [NOW // SECOND, NOW // SECOND, NOW // SECOND + 1]
    assert [each["event_id"] for each in other.receipts()] == [each["event_id"] for each in receipts]
    assert {each["status"] for each in receipts} == {"observed"}
    assert machine.run("verify").code == 0


def test_the_same_bytes_twice_are_two_deliveries_and_one_receipt_of_each_event(machine: Machine) -> None:
    """LA-52, LA-53: until the window is over; and a strong moment is one for ever."""
    for at in (NOW, NOW + SECOND, NOW + 3 * SECOND, NOW + 7 * SECOND):
        keep(machine, "claude", {**STOP, "cwd": f"/{at}"}, at)
        keep(machine, "claude", PROMPT, at)
    events = [each["event"] for each in machine.receipts()]
    # The fourth Stop came more than the window after the third.
    assert sorted(events) == ["frame.ended"] * 2 + ["frame.ending"] * 2 + ["frame.opened", "frame.opening"]
    assert rows(machine, "SELECT count(*) FROM lifecycle_hooks WHERE state = 'done'") == [(8,)]


def test_a_hook_without_an_event_is_kept_and_has_no_receipt(machine: Machine) -> None:
    """LA-56."""
    body = {**BASE, "hook_event_name": "PostToolUse", "tool_name": "Bash", "tool_use_id": "u1"}
    answer = machine.hook("claude", "PostToolUse", body)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    keep(machine, "gemini", {**BASE, "hook_event_name": "Notification"}, NOW)
    keep(machine, "codex", {**BASE, "hook_event_name": "Surprise"}, NOW)
    assert machine.receipts() == []
    assert rows(machine, "SELECT state, count(*) FROM lifecycle_hooks GROUP BY state") == [("done", 3)]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff{", "lifecycle.undecodable_hook"),
        (b"[1]", "lifecycle.undecodable_hook"),
        (b'{"prompt": "a secret"}', "lifecycle.hook_protocol"),
        (b'{"session_id": " "}', "lifecycle.hook_protocol"),
        (b"[" * 100_000, "lifecycle.undecodable_hook"),
    ],
)
def test_what_cannot_be_read_is_refused_and_harms_nobody(machine: Machine, body: bytes, why: str) -> None:
    """LX-52, LX-56: also at a hook for which a client waits."""
    machine.bind({}, ["frame.opening"])
    answer = machine.hook("claude", "UserPromptSubmit", body)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err
    assert "secret" not in answer.err
    keep(machine, "claude", PROMPT, NOW)
    assert [each["event"] for each in machine.receipts()] == ["frame.opening", "frame.opened"]
    [(state, error)] = rows(machine, "SELECT state, error FROM lifecycle_hooks WHERE state <> 'done'")
    assert state == "refused"
    assert error.startswith(why)
    assert rows(machine, "SELECT count(*) FROM lifecycle_sessions") == [(1,)]


def test_frames_are_named_by_turn_or_by_their_number_and_agents_have_their_own(machine: Machine) -> None:
    """LX-53."""
    machine.bind({}, ["frame.opening", "frame.ended"])
    agent = {**BASE, "agent_id": "a1", "agent_type": "explore"}
    for body in (
        PROMPT,
        {**agent, "hook_event_name": "SubagentStart"},
        {**agent, "hook_event_name": "SubagentStop"},
        STOP,
        {**PROMPT, "prompt": "and bread", "prompt_id": None},
        {**STOP, "prompt_id": None},
    ):
        assert machine.hook("claude", None, body).code == 0
    frames = [(each["event"], each["frame_context"]) for each in machine.asked()]
    assert [event for event, _ in frames] == ["frame.opening", "frame.opening"] + ["frame.ended"] * 2 + [
        "frame.opening",
        "frame.ended",
    ]
    first, agents, agents_end, end, second, second_end = (frame for _, frame in frames)
    assert first == end
    assert second == second_end
    assert first["frame_class"] == "top_level"
    assert agents == agents_end
    assert agents["frame_class"] == "subcall"
    assert agents["parent_frame_id"] == first["frame_id"]
    assert len({first["frame_id"], agents["frame_id"], second["frame_id"]}) == 3
    assert all(frame["frame_id"].startswith("frm_") for _, frame in frames)


@pytest.mark.parametrize(("setting", "text"), [("digest", None), ("full", "buy milk"), ("head:3", "buy")])
def test_a_request_says_of_a_prompt_what_is_configured(machine: Machine, setting: str, text: str | None) -> None:
    """LX-54."""
    machine.configure(f'[lifecycle]\nprompt_metadata = "{setting}"\n' + machine.client({}, ["frame.opening"]))
    machine.hook("claude", None, {**PROMPT, "model": "opus"})
    [request] = machine.asked()
    assert request["metadata"] == {
        "source_hook": "UserPromptSubmit",
        "lifeloop_run_id": "claude:s1",
        "model": "opus",
        "permission_mode": "default",
        "prompt_bytes": 8,
        "prompt_blake3": blake3(b"buy milk").hexdigest(),
        **({} if text is None else {"prompt": text}),
    }
    assert (request["integration_mode"], request["adapter_version"]) == ("native_hook", "0.2.0")


def test_two_hooks_that_tell_of_one_compaction_tell_of_it_once(machine: Machine) -> None:
    """LX-58: within a minute, whichever comes first."""
    after = {**BASE, "hook_event_name": "PostCompact", "trigger": "auto", "compact_summary": "a secret"}
    again = {**START, "source": "compact"}
    for number, body in enumerate((after, again)):
        keep(machine, "claude", body, NOW + number * SECOND)
    assert [each["event"] for each in machine.receipts()] == ["context.compacted"]
    for number, body in enumerate((again, after)):
        keep(machine, "claude", body, NOW + (200 + 61 * number) * SECOND)
    assert [each["event"] for each in machine.receipts()] == ["context.compacted"] * 3


def test_a_turn_that_the_notified_program_has_ended_ends_once(machine: Machine) -> None:
    """LA-55; and the other way round."""
    turn = {"session_id": "s1", "cwd": "/", "turn_id": "t1", "stop_hook_active": False}
    stop = {**turn, "hook_event_name": "Stop", "last_assistant_message": None}
    notified = {"type": "agent-turn-complete", "thread-id": "s1", "turn-id": "t1", "last-assistant-message": "done"}
    keep(machine, "codex", notified, NOW, "notify")
    keep(machine, "codex", stop, NOW + SECOND)
    keep(machine, "codex", {**stop, "turn_id": "t2"}, NOW + 2 * SECOND)
    keep(machine, "codex", {**notified, "turn-id": "t2"}, NOW + 3 * SECOND, "notify")
    assert [each["event"] for each in machine.receipts()] == [
        "frame.ended", "frame.ending", "frame.ending", "frame.ended"
    ]  # fmt: skip


# --- clients and their answers ------------------------------------------------------------------------


def asks(action: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"metadata": {"directive": {"action": action, "reason": reason}, **more}}


def payload(name: str, body: str, place: str = "pre_prompt_frame", **changes: Any) -> dict[str, Any]:
    return {
        "schema_version": "lifeloop.v0.3",
        "payload_id": name,
        "client_id": "ccd",
        "payload_kind": "frame",
        "format": "text",
        "content_encoding": "utf8",
        "body": body,
        "byte_size": len(body),
        "acceptable_placements": [{"placement": place, "requirement": "preferred"}],
        **changes,
    }


def test_a_blocked_prompt_opens_no_frame_and_a_continued_stop_ends_none(machine: Machine) -> None:
    """LA-58."""
    events = ["frame.opening", "frame.opened", "frame.ending", "frame.ended"]
    machine.bind({"frame.opening": asks("block", "no milk"), "frame.ending": asks("continue", "buy bread")}, events)
    assert machine.hook("claude", None, PROMPT).json == {"decision": "block", "reason": "no milk"}
    assert machine.hook("claude", None, STOP).json == {"decision": "block", "reason": "buy bread"}
    assert machine.told() == [("frame.opening", "ccd", "delivered"), ("frame.ending", "ccd", "delivered")]
    # While it goes on because of that, it is not asked to go on again: the frame ends.
    assert machine.hook("claude", None, {**STOP, "stop_hook_active": True}).out == ""
    assert machine.told()[2:] == [("frame.ending", "ccd", "delivered"), ("frame.ended", "ccd", "delivered")]
    dropped = machine.notes(machine.receipts()[2]["receipt_id"])["directive"]
    assert dropped == {"action": "continue", "dropped": "stop_hook_active"}


def test_codex_is_answered_with_keys_that_it_knows_and_a_reason(machine: Machine) -> None:
    """LA-54."""
    said = asks("continue", "buy bread", system_message="one more")
    machine.bind({"frame.ending": said}, ["frame.ending"])
    stop = {"session_id": "s1", "cwd": "/", "hook_event_name": "Stop", "turn_id": "t1", "stop_hook_active": False}
    answer = machine.hook("codex", "Stop", stop).json
    assert answer == {"systemMessage": "one more", "decision": "block", "reason": "buy bread"}
    assert set(answer) <= set(codex.KEYS["Stop"])
    machine.bind({"frame.ending": asks("continue", " ")}, ["frame.ending"])
    assert machine.hook("codex", "Stop", {**stop, "turn_id": "t2"}).out == ""
    last = next(each for each in reversed(machine.receipts()) if each["event"] == "frame.ending")
    assert machine.notes(last["receipt_id"])["directive"]["dropped"] == "blank_reason"


def test_several_clients_are_asked_in_order_and_the_strongest_wish_counts(machine: Machine) -> None:
    """LX-50, LX-55: what does not fit any more is left out, and what a hook cannot express."""
    bodies = {"a": ["x" * 6_000], "b": ["y" * 4_000, "z" * 3_000], "c": ["w" * 900]}
    sections = ""
    for name, action in (("a", "block"), ("b", "halt"), ("c", "continue")):
        payloads = [payload(f"{name}{number}", text) for number, text in enumerate(bodies[name])]
        answer = {**asks(action, f"{name} says so"), "client_payloads": payloads}
        sections += machine.client({"frame.opening": answer}, ["frame.opening"], name=name)
    machine.configure(sections)
    body = {"session_id": "s1", "hook_event_name": "BeforeAgent", "timestamp": "2026-05-06T20:00:00Z", "prompt": "hi"}
    answer = machine.hook("gemini", "BeforeAgent", body).json
    assert (answer["continue"], answer["stopReason"], answer["reason"]) == (False, "b says so", "b says so")
    context = "\n\n".join(["x" * 6_000, "z" * 3_000, "w" * 900])
    assert answer["hookSpecificOutput"] == {"hookEventName": "BeforeAgent", "additionalContext": context}
    receipts = machine.receipts()
    assert [each["client_id"] for each in receipts] == ["a", "b", "c"]
    notes = [machine.notes(each["receipt_id"]) for each in receipts]
    assert [each.get("why") for each in notes[1]["client_payloads"]] == ["reply_full", None]
    assert [each["directive"].get("dropped") for each in notes] == [None, None, "not_expressible"]
    assert len({each["delivery"] for each in notes}) == 1


def test_a_duplicate_gets_the_first_delivery_s_answer_and_asks_nobody(machine: Machine) -> None:
    """LX-51."""
    machine.bind({"frame.opening": asks("block", "no milk")}, ["frame.opening"])
    first, second = machine.hook("claude", None, PROMPT), machine.hook("claude", None, PROMPT)
    assert first.json == {"decision": "block", "reason": "no milk"}
    assert second.out == first.out
    assert len(machine.asked()) == 1
    assert len(machine.receipts()) == 1


def test_a_duplicate_of_one_that_is_not_done_gets_the_neutral_answer(machine: Machine) -> None:
    machine.configure("[lifecycle]\ninflight_wait_ms = 0\n" + machine.client({}, ["frame.opening"]))
    with crash("hooks.deriving", 1, "raise"), pytest.raises(BaseException, match=r"hooks\.deriving"):
        machine.hook("claude", None, PROMPT)
    answer = machine.hook("claude", None, PROMPT)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert machine.asked() == []


def test_unbound_events_are_observed_and_the_others_only_if_that_is_wanted(machine: Machine) -> None:
    """LX-50: `observer`."""
    found = {}
    for number, observer in enumerate(("unbound", "always", "off")):
        machine.configure(f'[lifecycle]\nobserver = "{observer}"\n' + machine.client({}, ["session.started"]))
        before = len(machine.told()) if machine.ledger.exists() else 0
        machine.hook("claude", None, {**START, "session_id": f"s{number}"})
        found[observer] = machine.told()[before:]
    asked = ("session.started", "ccd", "delivered")
    assert found == {
        "unbound": [("session.starting", "holdfast", "observed"), asked],
        "always": [
            ("session.starting", "holdfast", "observed"), asked, ("session.started", "holdfast", "observed")
        ],
        "off": [asked],
    }  # fmt: skip


# --- trouble ------------------------------------------------------------------------------------------


FAILING = {
    "missing": (["/nowhere/client"], "transport_error"),
    "failing": (["/bin/sh", "-c", "cat >/dev/null; exit 3"], "transport_error"),
    "hanging": (["/bin/sh", "-c", "exec sleep 60"], "timeout"),
    "talking junk": (["/bin/sh", "-c", "cat >/dev/null; echo a secret"], "invalid_request"),
}


@pytest.mark.parametrize(("kind", "closed"), [*((kind, False) for kind in FAILING), ("failing", True)])
def test_a_client_that_fails_blocks_nothing_but_where_that_is_wanted(machine: Machine, kind: str, closed: bool) -> None:
    """LA-57: the next client is asked all the same."""
    command, failure = FAILING[kind]
    events = ["frame.opening", "frame.ending"]
    settings = '[lifecycle]\non_error = "closed"\n' if closed else ""
    broken = machine.client({}, events, name="broken", command=command, timeout_ms=300)
    machine.configure(settings + broken + machine.client({}, events))
    answer = machine.hook("claude", None, PROMPT)
    assert (answer.code, answer.out) == ((2, "") if closed else (0, ""))
    assert answer.err == f"client broken: it failed ({failure})"
    stopped = machine.hook("claude", None, STOP)
    assert (stopped.code, stopped.out) == (0, "")
    receipts = {(each["event"], each["client_id"]): each for each in machine.receipts()}
    for event in events:
        assert receipts[event, "ccd"]["status"] == "delivered"
        failed = receipts[event, "broken"]
        assert (failed["status"], failed["failure_class"]) == ("failed", failure)
    assert "secret" not in json.dumps([*receipts.values()])


def test_a_requirement_that_is_not_met_keeps_the_client_from_being_asked(machine: Machine) -> None:
    machine.bind({}, ["frame.opening"], requires=["approval_surface=required:native"])
    answer = machine.hook("claude", None, PROMPT)
    assert (answer.code, answer.err) == (0, "client ccd: it failed (capability_unsupported)")
    assert machine.asked() == []
    assert machine.told()[0] == ("frame.opening", "ccd", "failed")


def test_a_call_that_died_after_it_was_kept_is_derived_by_whoever_reads(machine: Machine) -> None:
    """LA-59, LX-49: its client is not asked after the moment, and the harness went on."""
    machine.bind({"frame.opening": asks("block", "no")}, ["frame.opening", "frame.opened"])
    with crash("hooks.appended", 1, "raise"), pytest.raises(BaseException, match=r"hooks\.appended"):
        machine.hook("claude", None, PROMPT, received_at=(now := now_us()), lease_until=1)
    assert machine.told() == [("frame.opening", "ccd", "skipped"), ("frame.opened", "ccd", "skipped")]
    assert machine.asked() == []
    [receipt, _] = machine.receipts()
    assert receipt["at_epoch_s"] == now // SECOND
    assert [each["code"] for each in receipt["warnings"]] == ["derived_late"]
    assert machine.notes(receipt["receipt_id"])["delivery"].startswith("dlv_")
    assert machine.run("receipts", "pending", "--json").json == []


def test_a_call_whose_process_lives_is_nobody_else_s(machine: Machine) -> None:
    """LX-49: until its lease is over; `receipts pending` shows it."""
    machine.bind({}, ["frame.opening"])
    with crash("hooks.appended", 1, "raise"), pytest.raises(BaseException, match=r"hooks\.appended"):
        machine.hook("claude", "UserPromptSubmit", PROMPT)
    assert machine.receipts() == []
    [waiting] = machine.run("receipts", "pending", "--json").json
    assert (waiting["harness"], waiting["hook"], waiting["session_id"]) == ("claude", "UserPromptSubmit", None)


def test_a_client_that_wants_to_be_asked_late_is_asked_by_the_next_hook(machine: Machine) -> None:
    """LX-49: `late`; who only reads leaves it to them."""
    machine.bind({"session.started": asks("halt", "too late")}, ["session.started", "frame.opening"],
                 late=["session.started"])  # fmt: skip
    with crash("hooks.appended", 1, "raise"), pytest.raises(BaseException, match=r"hooks\.appended"):
        machine.hook("claude", None, START, lease_until=1)
    assert machine.told() == [("session.starting", "holdfast", "observed")]
    assert len(machine.run("receipts", "pending", "--json").json) == 1
    assert machine.hook("claude", None, PROMPT).out == ""
    assert [each["event"] for each in machine.asked()] == ["session.started", "frame.opening"]
    assert ("session.started", "ccd", "delivered") in machine.told()
    assert machine.run("receipts", "pending", "--json").json == []
    assert machine.run("verify").code == 0


def test_a_call_that_was_spooled_before_anybody_knew_that_no_client_waits_has_no_lease(machine: Machine) -> None:
    """LX-49: the very first call of all, for instance."""
    machine.keep("claude", "SessionStart", START, id="dlv_1")
    machine.hook("claude", "SessionStart", START, id="dlv_1", appended=True)
    assert [each["event"] for each in machine.receipts()] == ["session.starting", "session.started"]
    assert rows(machine, "SELECT id, state FROM lifecycle_hooks") == [("dlv_1", "done")]


def test_a_hook_of_another_session_leaves_what_is_not_its_own(machine: Machine) -> None:
    """LX-49."""
    machine.bind({}, ["frame.opening"])
    keep(machine, "claude", {**START, "session_id": "other"}, NOW)
    keep(machine, "claude", START, NOW)
    machine.hook("claude", None, PROMPT)
    assert rows(machine, "SELECT session_id FROM lifecycle_hooks WHERE state = 'done' ORDER BY id") == [("s1",)] * 2


def test_sessions_of_two_harnesses_with_one_id_count_for_themselves(machine: Machine) -> None:
    """LX-52."""
    for harness in ("claude", "codex"):
        keep(machine, harness, START, NOW)
    found = {(each["harness_run_id"], each["sequence"]) for each in machine.receipts()}
    assert found == {(f"{harness}:s1", number) for harness in ("claude", "codex") for number in (1, 2)}
    assert rows(machine, "SELECT count(*) FROM lifecycle_sessions") == [(2,)]


@pytest.mark.parametrize(("hook", "code"), [("UserPromptSubmit", 2), ("Stop", 0)])
def test_a_failure_of_ours_blocks_where_that_is_wanted_and_can_be(machine: Machine, hook: str, code: int) -> None:
    """LX-56: `on_error = "closed"`."""
    machine.configure('[lifecycle]\non_error = "closed"\n' + machine.client({}, ["frame.opening", "frame.ended"]))
    answer = machine.hook("claude", hook, b"{")
    assert (answer.code, answer.out) == (code, "")
    assert "JSON" in answer.err
    assert rows(machine, "SELECT state FROM lifecycle_hooks") == [("refused",)]


def test_a_ledger_that_is_locked_keeps_no_harness_waiting(machine: Machine) -> None:
    """LX-56: the call that a process keeps by itself finds the spool file; this is what comes after it."""
    machine.bind({}, ["session.ended"])
    machine.keep("claude", None, START)
    machine.receipts()
    end = {**BASE, "hook_event_name": "SessionEnd", "reason": "other"}
    connection = apsw.Connection(str(machine.ledger))
    connection.execute("BEGIN IMMEDIATE")
    try:
        answer = machine.hook("claude", "SessionEnd", end)
    finally:
        connection.close()
    assert (answer.code, answer.out) == (0, "")
    assert answer.err
    assert machine.asked() == []


# --- what is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["metadata", "full"])
def test_a_body_is_blanked_once_it_is_derived_unless_it_is_to_be_kept(machine: Machine, raw: str) -> None:
    """LX-73, `raw`: digest and size stay, and after `raw_keep_ms` the rest is gone too."""
    machine.configure(f'[lifecycle]\nraw = "{raw}"\n')
    data = json.dumps(PROMPT).encode()
    keep(machine, "claude", data, NOW)
    machine.receipts()
    kept = rows(machine, "SELECT body, body_bytes, body_digest FROM lifecycle_hooks")
    assert kept == [(data if raw == "full" else None, len(data), blake3(data).digest())]
    machine.configure(f'[lifecycle]\nraw = "{raw}"\nraw_keep_ms = 0\n')
    keep(machine, "claude", STOP, NOW)
    machine.receipts()
    assert rows(machine, "SELECT count(*) FROM lifecycle_hooks WHERE body IS NOT NULL") == [(0,)]


def test_a_compaction_is_kept_as_what_was_observed_last_of_its_session(machine: Machine) -> None:
    """LX-70: until that session ends."""
    for session in ("s1", "s2"):
        keep(machine, "claude", {**BASE, "session_id": session, "hook_event_name": "PreCompact"}, NOW)
    keep(machine, "claude", {**BASE, "hook_event_name": "SessionEnd", "reason": "other"}, NOW + SECOND)
    machine.receipts()
    found = rows(machine, "SELECT session_id, pressure, ended_at FROM lifecycle_sessions ORDER BY session_id")
    assert found[0] == ("s1", None, NOW + SECOND)
    assert json.loads(found[1][1])["compaction_signaled"] is True
