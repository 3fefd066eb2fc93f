"""What harnesses tell their hooks, and what a hook may answer: the tables of LX-58 to LX-61, row by row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.plans import response

from holdfast.lifecycle import AcceptablePlacement, PayloadEnvelope, Registry
from holdfast.lifecycle.annotations import Annotations, ClientPayloadNote, DirectiveNote
from holdfast.lifecycle.errors import HookProtocol, UndecodableHook
from holdfast.lifecycle.harness import (
    Directive,
    Hook,
    HookEvent,
    HookReply,
    SessionState,
    event_ids,
    expressed,
    json_reply,
    merge,
    shorten,
    spoken,
)
from holdfast.lifecycle.harness.answers import Answer, Heard
from holdfast.lifecycle.harness.codex import KEYS
from holdfast.lifecycle.harness.known import (
    HARNESSES,
    blocks,
    canonical_harness,
    deadline_us,
    events_of,
    known_hooks,
)
from holdfast.lifecycle.harness.requests import context_for, degraded_request, late_response, request_for
from holdfast.lifecycle.negotiation import DEFAULT_POLICY
from holdfast.lifecycle.wire import validate

START = ("session.starting", "session.started")
OPEN = ("frame.opening", "frame.opened")
END = ("frame.ending", "frame.ended")
GONE = ("session.ending", "session.ended")
PRESSED = ("context.pressure_observed",)
COMPACTED = ("context.compacted",)
AT = 1_800_000_000_000_000


NEW = SessionState()


def read(harness: str, fields: object, hint: str | None = None, state: SessionState = NEW) -> HookEvent:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return HARNESSES[harness].decode(raw, event_hint=hint, state=state, received_at=AT)


def told(event: HookEvent) -> tuple[str, ...]:
    return tuple(draft.event for draft in event.drafts)


CASES: list[tuple[str, str, dict[str, Any], tuple[str, ...], bool]] = [
    ("claude", "SessionStart", {"source": "startup"}, START, False),
    ("claude", "SessionStart", {"source": "fork"}, START, False),
    ("claude", "SessionStart", {}, START, False),
    ("claude", "SessionStart", {"source": "compact"}, COMPACTED, False),
    ("claude", "UserPromptSubmit", {"prompt": "hi", "prompt_id": "t"}, OPEN, True),
    ("claude", "UserPromptSubmit", {"prompt": 7}, OPEN, False),
    ("claude", "PreCompact", {}, PRESSED, False),
    ("claude", "PostCompact", {}, COMPACTED, False),
    ("claude", "Stop", {"stop_hook_active": True}, END, False),
    ("claude", "StopFailure", {"error": "overloaded"}, ("frame.ended",), False),
    ("claude", "SubagentStart", {"agent_id": "a"}, OPEN, True),
    ("claude", "SubagentStop", {"agent_id": "a"}, END, False),
    ("claude", "SubagentStop", {}, (), False),
    ("claude", "SessionEnd", {"reason": "other"}, GONE, False),
    ("claude", "PreToolUse", {"tool_use_id": "u"}, (), True),
    ("claude", "Notification", {}, (), False),
    ("codex", "SessionStart", {"source": "resume"}, START, False),
    ("codex", "SessionStart", {"source": "compact"}, COMPACTED, False),
    ("codex", "UserPromptSubmit", {"prompt": "hi"}, OPEN, True),
    ("codex", "PreCompact", {"turn_id": "t"}, PRESSED, False),
    ("codex", "PostCompact", {"turn_id": "t"}, COMPACTED, False),
    ("codex", "Stop", {"turn_id": "t"}, END, False),
    ("codex", "SubagentStart", {"agent_id": "a"}, OPEN, True),
    ("codex", "SubagentStop", {"agent_id": "a"}, END, False),
    ("codex", "StopFailure", {}, ("frame.ended",), False),
    ("codex", "Interrupt", {}, ("frame.ended",), False),
    ("codex", "SessionEnd", {}, GONE, False),
    ("codex", "notify", {}, (), False),
    ("gemini", "SessionStart", {}, START, True),
    ("gemini", "BeforeAgent", {"prompt": "hi"}, OPEN, True),
    ("gemini", "AfterAgent", {"prompt": "hi", "prompt_response": "ho"}, END, True),
    ("gemini", "PreCompress", {}, PRESSED, True),
    ("gemini", "SessionEnd", {}, GONE, True),
    ("gemini", "BeforeTool", {}, (), True),
]


@pytest.mark.parametrize(("harness", "hook", "fields", "events", "strong"), CASES)
@pytest.mark.parametrize("hinted", [False, True])
def test_a_hook_tells_of_its_events(
    harness: str, hook: str, fields: dict[str, Any], events: tuple[str, ...], strong: bool, hinted: bool
) -> None:
    name = {} if hinted else {"hook_event_name": hook}
    event = read(harness, {"session_id": "s", **name, **fields}, hook if hinted else "SomethingElse")
    assert (event.hook, told(event), event.strong) == (hook, events, strong)
    for draft in event.drafts:
        request = request_for(event, draft, 0, label="lifeloop.v0.3", version="1")
        validate(request)
        validate(context_for(request, "ccd", AT))
        assert request.metadata["source_hook"] == hook


SHIMS: list[tuple[str, str, tuple[str, ...]]] = [
    ("opencode", "session.created", ("session.started",)),
    ("opencode", "chat.message", ("frame.opening",)),
    ("opencode", "session.idle", ("frame.ended",)),
    ("opencode", "experimental.session.compacting", PRESSED),
    ("opencode", "session.compacted", COMPACTED),
    ("opencode", "session.deleted", ("session.ended",)),
    ("openclaw", "session:compact:before", PRESSED),
    ("openclaw", "session:compact:after", COMPACTED),
    ("openclaw", "message:preprocessed", ("frame.opening",)),
    ("openclaw", "message:sent", ("frame.ended",)),
    ("openclaw", "session:end", ("session.ended",)),
    ("hermes", "session:start", ("session.started",)),
    ("hermes", "agent:start", ("frame.opening",)),
    ("hermes", "agent:end", ("frame.ended",)),
    ("hermes", "session:compress", COMPACTED),
    ("hermes", "agent:step", ("supervisor.tick",)),
    ("hermes", "session:end", ("session.ended",)),
    ("hermes", "agent:dream", ()),
]


@pytest.mark.parametrize(("harness", "hook", "events"), SHIMS)
def test_a_shim_tells_of_its_events(harness: str, hook: str, events: tuple[str, ...]) -> None:
    fields = {"shim": 1, "hook": hook, "session_id": "s", "delivery_id": "d1", "data": {"reason": "over"}}
    event = read(harness, fields)
    assert (event.hook, told(event), event.strong) == (hook, events, bool(events))
    # Its delivery is all that tells it from others.
    assert read(harness, {**fields, "data": "none"}).material == event.material
    assert read(harness, {**fields, "delivery_id": "d2"}).material != event.material
    without = read(harness, {**fields, "delivery_id": None})
    assert not without.strong
    assert HARNESSES[harness].encode(event, Directive("block", "why", "said", "text")) == HookReply(b"{}")


@pytest.mark.parametrize("version", [None, True, 2, "1"])
def test_a_shim_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(UndecodableHook):
        read("hermes", {"shim": version, "hook": "agent:end", "session_id": "s"})


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", UndecodableHook),
        (b"{", UndecodableHook),
        (b"3", UndecodableHook),
        (b'{"shim":1,"a":' + b"[" * 70 + b"]" * 70 + b"}", UndecodableHook),
        (b'{"shim":1}', HookProtocol),
        (b'{"shim":1,"session_id":7}', HookProtocol),
        (b'{"shim":1,"session_id":"a\\u0000b"}', HookProtocol),
        (b'{"shim":1,"session_id":"' + b"x" * 513 + b'"}', HookProtocol),
    ],
)
def test_only_what_is_no_object_or_has_no_session_is_refused(harness: str, body: bytes, error: Any) -> None:
    with pytest.raises(error):
        read(harness, body, "Stop")


@given(
    st.sampled_from(sorted(HARNESSES)),
    st.dictionaries(
        st.sampled_from(["hook_event_name", "prompt", "turn_id", "prompt_id", "agent_id", "source", "error", "x"]),
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9) | st.lists(st.none(), max_size=1),
    ),
    st.none() | st.sampled_from(["Stop", "SessionStart", "UserPromptSubmit", "SubagentStart", "nothing"]),
)
def test_fields_of_any_type_are_tolerated(harness: str, fields: dict[str, Any], hint: str | None) -> None:
    event = read(harness, {"shim": 1, "session_id": "s", **fields}, hint)
    assert event == read(harness, {"shim": 1, "session_id": "s", **fields}, hint)
    for draft in event.drafts:
        validate(request_for(event, draft, 3, label="lifeloop.v0.3", version="1", prompt_chars=None))


# --- identity and state -------------------------------------------------------------------------------


def test_material_tells_moments_apart_but_not_by_what_may_differ_by_chance() -> None:
    """LX-51."""
    fields = {"session_id": "s", "hook_event_name": "Stop", "stop_hook_active": False}
    event = read("claude", fields)
    ambient = {"transcript_path": "/x", "cwd": "/y", "permission_mode": "plan"}
    assert read("claude", {**fields, **ambient}).material == event.material
    assert read("claude", fields, state=SessionState(7, "t", "t")).material == event.material
    others = [{"session_id": "z"}, {"stop_hook_active": True}, {"prompt_id": "t"}, {"agent_id": "a"}, {"new": 1}]
    found = {read("claude", {**fields, **other}).material for other in others} | {read("codex", fields).material}
    assert len(found | {event.material}) == len(others) + 2
    assert len({*event_ids(event.material, 0, "a"), *event_ids(event.material, 1, "a")}) == 6


def test_frames_are_counted_where_turns_have_no_names() -> None:
    """LX-53."""
    prompt = {"session_id": "s", "hook_event_name": "UserPromptSubmit", "prompt": "hi"}
    first = read("claude", prompt)
    assert first.after == SessionState(frame_ordinal=1)
    second = read("claude", {**prompt, "prompt_id": "t"}, state=first.after)
    assert second.after == SessionState(frame_ordinal=2, turn_id="t")
    stop = read("claude", {"session_id": "s", "hook_event_name": "Stop"}, state=second.after)
    assert stop.drafts[0].frame_context == second.drafts[0].frame_context != first.drafts[0].frame_context
    assert (stop.turn_id, stop.after) == ("t", second.after)
    # An id that cannot be one is none.
    assert read("claude", {**prompt, "prompt_id": "x" * 600}).after == SessionState(frame_ordinal=1)


def test_of_two_kinds_that_tell_of_one_compaction_the_second_tells_nothing() -> None:
    after = {"session_id": "s", "hook_event_name": "PostCompact"}
    first = read("codex", after)
    assert first.after == SessionState(compacted_by="PostCompact", compacted_at=AT)
    assert told(read("codex", after, state=first.after)) == COMPACTED  # the same kind: another one
    again = {"session_id": "s", "hook_event_name": "SessionStart", "source": "compact"}
    silent = read("codex", again, state=first.after)
    assert (told(silent), silent.after) == ((), SessionState())
    late = replace(first.after, compacted_at=AT - 60_000_001)
    assert told(read("codex", again, state=late)) == COMPACTED


def test_a_turn_that_has_ended_ends_once_for_codex() -> None:
    stop = {"session_id": "s", "hook_event_name": "Stop", "turn_id": "t"}
    assert told(read("codex", stop, state=SessionState(ended_turn_id="t"))) == ("frame.ending",)
    notified = {"type": "agent-turn-complete", "thread-id": "s", "turn-id": "t", "last-assistant-message": "done"}
    event = read("codex", notified, "notify")
    assert (event.hook, told(event), event.strong, event.session_id) == ("notify", ("frame.ended",), True, "s")
    assert event.drafts[0].metadata["last_assistant_message_bytes"] == 4
    assert told(read("codex", notified, state=SessionState(ended_turn_id="t"))) == ()
    assert told(read("codex", {**notified, "type": "something-else"})) == ()
    assert read("codex", {"session_id": "s", "hook_event_name": "Interrupt"}).drafts[0].metadata["failure"] == (
        "interrupted"
    )


def test_texts_come_as_digests_and_the_prompt_only_as_far_as_was_asked() -> None:
    """LX-54."""
    fields = {"session_id": "s", "hook_event_name": "BeforeAgent", "prompt": "x" * 200_000, "model": "m" * 2000}
    event = read("gemini", fields)
    draft = event.drafts[0]
    assert set(draft.metadata) == {"source_hook", "lifeloop_run_id", "model", "prompt_bytes", "prompt_blake3"}
    assert len(draft.metadata["model"]) == 1000
    for chars, length in ((0, None), (5, 5), (None, 25_000)):
        request = request_for(event, draft, 0, label="lifeloop.v0.3", version="1", prompt_chars=chars)
        validate(request)
        assert len(request.metadata.get("prompt", "")) == (length or 0)


def test_a_body_that_is_too_long_is_kept_as_its_known_fields() -> None:
    """LX-57."""
    head = '{ "session_id" : "s", "hook_event_name": "Stop", "n": 7, "deep": {"a": [1]}, "long": "' + "y" * 5000
    kept = json.loads(shorten(head.encode() + b'", "prompt": "' + b"x" * 9000, 99_999, b"\1" * 32))
    cut = {"bytes": 99_999, "blake3": "01" * 32}
    assert kept == {"session_id": "s", "hook_event_name": "Stop", "n": 7, "holdfast_cut": cut}
    assert told(read("claude", json.dumps(kept).encode())) == END
    for prefix in (b"", b"[1, 2", b"{7: 1}", b'{"a" 1', b'{"a": 12', b'{"a": tru', b'{"a":' + b"[" * 90_000):
        assert json.loads(shorten(prefix, 1, b"\1" * 32)).keys() == {"holdfast_cut"}
    assert json.loads(shorten(b'{"a": "\xc3\xa9", "b": "\xc3', 1, b""))["a"] == "é"


# --- answers ------------------------------------------------------------------------------------------


FULL = Directive("halt", "why", "said", "text")
CONTEXT = {"hookEventName": "?", "additionalContext": "text"}


@pytest.mark.parametrize(
    ("harness", "hook", "action", "answer"),
    [
        ("claude", "SessionStart", "halt", {"systemMessage": "said", "hookSpecificOutput": CONTEXT}),
        ("claude", "UserPromptSubmit", "block",
         {"systemMessage": "said", "decision": "block", "reason": "why", "hookSpecificOutput": CONTEXT}),
        ("claude", "UserPromptSubmit", "halt",
         {"continue": False, "stopReason": "why", "systemMessage": "said", "hookSpecificOutput": CONTEXT}),
        ("claude", "Stop", "continue", {"systemMessage": "said", "decision": "block", "reason": "why"}),
        ("claude", "Stop", "block", {"systemMessage": "said"}),
        ("claude", "SubagentStop", "continue", {"systemMessage": "said", "decision": "block", "reason": "why"}),
        ("claude", "SessionEnd", "halt", None),
        ("claude", "PreCompact", "block", None),
        ("codex", "SubagentStart", "none", {"systemMessage": "said", "hookSpecificOutput": CONTEXT}),
        ("codex", "PreCompact", "halt", {"systemMessage": "said"}),
        ("codex", "Stop", "continue", {"systemMessage": "said", "decision": "block", "reason": "why"}),
        ("codex", "Stop", "halt", {"continue": False, "stopReason": "why", "systemMessage": "said"}),
        ("codex", "SessionEnd", "halt", None),
        ("codex", "Interrupt", "halt", None),
        ("gemini", "BeforeAgent", "block",
         {"systemMessage": "said", "decision": "deny", "reason": "why", "hookSpecificOutput": CONTEXT}),
        ("gemini", "AfterAgent", "continue", {"systemMessage": "said", "decision": "deny", "reason": "why"}),
        ("gemini", "AfterAgent", "halt",
         {"continue": False, "stopReason": "why", "systemMessage": "said", "reason": "why"}),
        ("gemini", "SessionEnd", "halt", {}),
    ],
)  # fmt: skip
def test_an_answer_is_in_the_harness_s_words(harness: str, hook: str, action: Any, answer: Any) -> None:
    """LX-61."""
    event = read(harness, {"session_id": "s", "hook_event_name": hook})
    reply = HARNESSES[harness].encode(event, replace(FULL, action=action))
    if answer is None:
        assert reply == HookReply(b"")
        return
    if "hookSpecificOutput" in answer:
        answer = {**answer, "hookSpecificOutput": {**CONTEXT, "hookEventName": hook}}
    assert json.loads(reply.stdout) == answer
    assert (reply.exit_code, reply.stderr) == (0, "")
    assert HARNESSES[harness].encode(event, Directive()) == HookReply(HARNESSES[harness].NEUTRAL)


@pytest.mark.parametrize("hook", known_hooks("codex"))
@pytest.mark.parametrize("action", ["none", "block", "continue", "halt"])
def test_codex_gets_no_key_that_it_does_not_know(hook: str, action: Any) -> None:
    """LA-54."""
    event = replace(read("codex", {"session_id": "s"}, "Stop"), hook=hook, means=HARNESSES["codex"].HOOKS[hook].means)
    for reason in ("why", None, " "):
        out = HARNESSES["codex"].encode(event, replace(FULL, action=action, reason=reason)).stdout
        found = json.loads(out or b"{}")
        assert set(found) <= set(KEYS.get(hook, ()))
        assert "reason" not in found or found["reason"].strip()


def test_an_answer_that_is_too_long_leaves_out_what_can_be_spared() -> None:
    """LX-75: 64 KiB."""
    event = read("claude", {"session_id": "s", "hook_event_name": "UserPromptSubmit"})
    encode = HARNESSES["claude"].encode
    long = encode(event, Directive("block", "r" * 9_000, "m" * 9_000, "\1" * 9_000))
    assert len(json.loads(long.stdout)["reason"]) == 4000
    assert len(json.loads(long.stdout)["systemMessage"]) == 4000
    found = json.loads(encode(event, Directive("block", "why", "\1" * 4_000, "\1" * 10_000)).stdout)
    assert set(found) == {"decision", "reason", "hookSpecificOutput"}
    found = json.loads(encode(event, Directive("block", "why", None, "\1" * 20_000)).stdout)
    assert set(found) == {"decision", "reason"}
    assert json_reply({"a": "\1" * 20_000}, b"{}") == HookReply(b"{}")


@pytest.mark.parametrize(
    ("hook", "asked", "left", "dropped"),
    [
        ("Stop", Directive("continue", "why"), Directive("continue", "why"), None),
        ("Stop", Directive("block", "why"), Directive(), "not_expressible"),
        ("Stop", Directive("continue", "\t"), Directive(), "blank_reason"),
        ("Stop", Directive("continue"), Directive(), "blank_reason"),
        ("Stop", Directive("halt"), Directive("halt"), None),
        ("Stop", Directive("halt", ""), Directive("halt"), "blank_reason"),
        ("Stop", Directive("none", ""), Directive(), None),
        ("Stop", Directive("none", "why", "said", "text"), Directive("none", None, "said"), None),
        ("active", Directive("continue", "why"), Directive(), "stop_hook_active"),
        ("active", Directive("halt", "why"), Directive("halt", "why"), None),
    ],
)
def test_what_a_hook_cannot_express_is_left_out(hook: str, asked: Directive, left: Directive, dropped: Any) -> None:
    """LX-55."""
    event = read("claude", {"session_id": "s", "hook_event_name": "Stop", "stop_hook_active": hook == "active"})
    assert expressed(event, asked) == (left, dropped)
    assert expressed(event, left) == (left, None)


def test_of_several_wishes_the_strongest_counts_with_its_first_reason() -> None:
    asked = [Directive("block"), Directive("block", "b"), Directive("block", "c", "one", "x"), Directive(context="y")]
    assert merge(asked) == Directive("block", "b", "one", "x\n\ny")
    assert merge([*asked, Directive("halt", None, "two")]) == Directive("halt", None, "one\n\ntwo", "x\n\ny")
    assert merge([]) == Directive()


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({}, Directive()),
        ({"directive": "halt", "system_message": 3}, Directive()),
        ({"directive": {"action": ["halt"], "reason": 3}, "system_message": " "}, Directive()),
        ({"directive": {"action": "explode", "reason": "r"}}, Directive("none", "r")),
        ({"directive": {"action": "halt", "reason": "r"}, "system_message": "m"}, Directive("halt", "r", "m")),
    ],
)
def test_what_a_client_asks_for_is_read_tolerantly(metadata: Any, found: Directive) -> None:
    assert spoken(metadata) == found


# --- answers of many clients --------------------------------------------------------------------------


def payload(name: str, body: str | None, place: Any = "pre_prompt_frame", **changes: Any) -> PayloadEnvelope:
    return PayloadEnvelope(
        schema_version="lifeloop.v0.3",
        payload_id=name,
        client_id="ccd",
        payload_kind="frame",
        format="text",
        content_encoding=changes.pop("content_encoding", "utf8"),
        body=body,
        byte_size=len(body or ""),
        acceptable_placements=(AcceptablePlacement(placement=place, requirement="preferred"),),
        **changes,
    )


def answer_to(hook: str) -> Answer:
    manifest = Registry.builtin().get("claude")
    assert manifest is not None
    event = read("claude", {"session_id": "s", "hook_event_name": hook})
    return Answer(event, manifest, now_epoch_s=AT // 1_000_000, policy=DEFAULT_POLICY)


def test_context_is_taken_whole_and_in_order_while_there_is_room() -> None:
    """LX-55."""
    answer = answer_to("UserPromptSubmit")
    said = replace(
        response(),
        client_payloads=(
            payload("a", "x" * 9_000),
            payload("b", "y" * 999),
            payload("c", "é" * 500),
            payload("d", "z"),
            payload("e", "w", "receipt_only"),
            payload("f", None, body_ref="blob:1"),
            payload("g", "/w==", content_encoding="base64"),
            payload("h", "v" * 10_001),
        ),
    )
    heard = answer.hear(said)
    assert heard.refused == (
        None, "reply_full", "reply_full", None, None, "no_text", "no_text", "payload_too_large"
    )  # fmt: skip
    answer.take(heard)
    answer.take(answer.hear(replace(response(), client_payloads=(payload("i", "u" * 995),))))
    assert answer.directive.context == "\n\n".join(["x" * 9_000, "z", "u" * 995])
    assert answer.hear(replace(response(), client_payloads=(payload("j", "t"),))).refused == ("reply_full",)
    assert answer_to("Stop").hear(said).refused[0] == "not_expressible"


def test_a_client_that_failed_or_said_nothing_asks_for_nothing() -> None:
    answer = answer_to("UserPromptSubmit")
    failed = replace(response(), status="failed", failure_class="timeout", metadata={"directive": {"action": "halt"}})
    assert answer.hear(None) == answer.hear(failed) == Heard(Directive())


def test_events_that_do_not_happen_are_kept_back() -> None:
    """LX-55."""
    for hook, action, kept in (
        ("UserPromptSubmit", "block", {"frame.opened"}),
        ("UserPromptSubmit", "halt", {"frame.opened"}),
        ("UserPromptSubmit", "none", set()),
        ("Stop", "continue", {"frame.ended"}),
        ("Stop", "halt", set()),
    ):
        answer = answer_to(hook)
        asked = {"directive": {"action": action, "reason": "why"}}
        answer.take(answer.hear(replace(response(), metadata=asked)))
        assert {event for event in events_of("claude", hook) if answer.keeps(event)} == kept


def test_annotations_say_what_was_dropped_and_what_did_not_fit() -> None:
    answer = answer_to("Stop")
    said = replace(
        response(),
        client_payloads=(payload("a", "x"), payload("b", "y", "receipt_only")),
        metadata={"directive": {"action": "block", "reason": "r"}},
    )
    notes = Annotations(
        outcome="satisfied",
        dispatched=True,
        client_payloads=tuple(
            ClientPayloadNote(payload_id=name, byte_size=1, placement="pre_prompt_frame") for name in "ab"
        ),
        directive=DirectiveNote(action="block"),
    )
    made = answer.annotated(notes, said)
    assert [(each.placement, each.why) for each in made.client_payloads] == [
        (None, "not_expressible"),
        ("pre_prompt_frame", None),
    ]
    assert made.directive == DirectiveNote(action="block", dropped="not_expressible")
    unknown = replace(notes, directive=DirectiveNote(action="none", dropped="unknown_action"))
    assert answer.annotated(unknown, said).directive == unknown.directive
    assert answer.annotated(replace(notes, directive=None), None).directive is None
    # A client that failed: what is noted of its payloads stays.
    assert answer.annotated(notes, None).client_payloads == notes.client_payloads


# --- by name ------------------------------------------------------------------------------------------


def test_harnesses_are_known_by_their_names() -> None:
    assert canonical_harness("claude-code") == "claude"
    assert canonical_harness("acme") == "acme"
    assert known_hooks("gemini") == ("SessionStart", "BeforeAgent", "AfterAgent", "PreCompress", "SessionEnd")
    assert events_of("claude", "Stop") == END
    assert events_of("claude", "Surprise") == ()
    assert [name for name in known_hooks("codex") if blocks("codex", name)] == ["UserPromptSubmit"]
    assert not blocks("codex", "Surprise")
    assert [deadline_us(HARNESSES[name], "SessionEnd") for name in ("claude", "codex", "gemini")] == [
        1_200_000,
        2_500_000,
        8_000_000,
    ]
    assert deadline_us(HARNESSES["claude"], "Surprise") == Hook().deadline_ms * 1000


def test_requests_beside_those_of_events_are_valid_too() -> None:
    event = read("claude", {"session_id": "s", "hook_event_name": "Stop"})
    degraded = degraded_request(event, "session_rename", label="lifeloop.v0.2", version="0.2.0")
    validate(degraded)
    assert degraded == degraded_request(
        read("claude", {"session_id": "s"}, "SessionEnd"), "session_rename", label="lifeloop.v0.2", version="0.2.0"
    )
    validate(late_response("lifeloop.v0.3"))
    assert context_for(replace(degraded, idempotency_key=None), "c", AT).receipt_id.startswith("rcp_")
