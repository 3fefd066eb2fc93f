"""Codex's hooks, and the program that older builds notify at the end of a turn. Pure.

Codex refuses an answer with a key that the hook does not know, so every hook has the keys it may be answered with.

Invariants:
    - No answer has a key beyond those of its hook; hooks without keys are answered with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.lifecycle.harness import (
    SPARED,
    Directive,
    Hook,
    HookEvent,
    HookReply,
    SessionState,
    json_reply,
    read,
    session_of,
    spelled,
    tell,
    text_of,
)
from holdfast.lifecycle.harness.claude import started

__all__ = ["HOOKS", "KEYS", "NEUTRAL", "NOTIFIED", "decode", "encode"]

NOTIFIED: Final = "notify"
"""How we call the program that is notified; its input names no hook."""

_ENDED_TURN: Final = "agent-turn-complete"

HOOKS: Final[Mapping[str, Hook]] = {
    "SessionStart": Hook(
        events=("session.starting", "session.started", "context.compacted"), means=("context", "message")
    ),
    "UserPromptSubmit": Hook(
        events=("frame.opening", "frame.opened"), means=("context", "block", "halt", "message"), strong="yes"
    ),
    "PreCompact": Hook(events=("context.pressure_observed",), means=("message",)),
    "PostCompact": Hook(events=("context.compacted",), means=("message",)),
    "Stop": Hook(events=("frame.ending", "frame.ended"), means=("continue", "halt", "message"), once=True),
    "SubagentStart": Hook(
        events=("frame.opening", "frame.opened"), means=("context", "message"), strong="yes", agent=True
    ),
    "SubagentStop": Hook(events=("frame.ending", "frame.ended"), means=("continue", "message"), agent=True),
    "StopFailure": Hook(events=("frame.ended",)),
    "Interrupt": Hook(events=("frame.ended",)),
    "SessionEnd": Hook(events=("session.ending", "session.ended"), deadline_ms=2500),
    NOTIFIED: Hook(events=("frame.ended",), strong="yes", once=True),
}
"""`SessionStart` tells of the first two, or after a compaction of the third."""

_STOPPING: Final = ("continue", "stopReason", "suppressOutput", "systemMessage")
_CONTEXT: Final = ("hookSpecificOutput",)
_DECISION: Final = ("decision", "reason")

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "SessionStart": _STOPPING + _CONTEXT,
    "UserPromptSubmit": _STOPPING + _CONTEXT + _DECISION,
    "PreCompact": _STOPPING,
    "PostCompact": _STOPPING,
    "Stop": _STOPPING + _DECISION,
    "SubagentStart": _STOPPING + _CONTEXT,
    "SubagentStop": _STOPPING + _DECISION,
}
"""The keys that an answer to each hook may have."""

NEUTRAL: Final = b""


def decode(raw: bytes, *, event_hint: str | None, state: SessionState, received_at: int) -> HookEvent:
    """Read a hook's input, or what the notified program got; see `Adapter.decode`."""
    fields = read(raw)
    if "hook_event_name" not in fields and "thread-id" in fields:
        return _notified(fields, state, received_at)
    session_id = session_of(fields)
    hook = text_of(fields, "hook_event_name") or event_hint or ""
    line = Hook() if hook == NOTIFIED else HOOKS.get(hook, Hook())
    if hook == "SessionStart":
        line = started(line, fields)
    if hook == "Interrupt" and text_of(fields, "error") is None:
        fields = {**fields, "error": "interrupted"}
    return tell(
        "codex", hook, line, fields, state, received_at, session_id=session_id, turn_id=text_of(fields, "turn_id")
    )


def _notified(fields: Mapping[str, Any], state: SessionState, received_at: int) -> HookEvent:
    session_id, turn_id = session_of(fields, "thread-id"), text_of(fields, "turn-id")
    line = HOOKS[NOTIFIED] if fields.get("type") == _ENDED_TURN else Hook()
    said = {"last_assistant_message": fields.get("last-assistant-message")}
    return tell(
        "codex", NOTIFIED, line, said, state, received_at, session_id=session_id, turn_id=turn_id, identity=fields
    )


def encode(event: HookEvent, directive: Directive) -> HookReply:
    """Write the answer to a hook; see `Adapter.encode`."""
    known = KEYS.get(event.hook, ())
    fields = spelled(event, directive, "block")
    return json_reply({name: value for name, value in fields.items() if name in known}, NEUTRAL, least=SPARED)
