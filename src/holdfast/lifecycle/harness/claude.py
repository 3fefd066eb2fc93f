"""Claude Code's hooks. Pure.

Invariants:
    - Where nothing is asked for, nothing is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.lifecycle.enums import LifecycleEventKind
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

__all__ = ["HOOKS", "NEUTRAL", "decode", "encode", "started"]

HOOKS: Final[Mapping[str, Hook]] = {
    "SessionStart": Hook(
        events=("session.starting", "session.started", "context.compacted"), means=("context", "message")
    ),
    "UserPromptSubmit": Hook(
        events=("frame.opening", "frame.opened"), means=("context", "block", "halt", "message"), strong="turn"
    ),
    "PreCompact": Hook(events=("context.pressure_observed",)),
    "PostCompact": Hook(events=("context.compacted",)),
    "Stop": Hook(events=("frame.ending", "frame.ended"), means=("continue", "halt", "message")),
    "StopFailure": Hook(events=("frame.ended",)),
    "SubagentStart": Hook(events=("frame.opening", "frame.opened"), strong="yes", agent=True),
    "SubagentStop": Hook(events=("frame.ending", "frame.ended"), means=("continue", "message"), agent=True),
    "SessionEnd": Hook(events=("session.ending", "session.ended"), deadline_ms=1200),
}
"""`SessionStart` tells of the first two, or after a compaction of the third: see `started`."""

NEUTRAL: Final = b""


def started(line: Hook, fields: Mapping[str, Any]) -> Hook:
    """Say of what the start of a session tells: it is told again when its context was compacted."""
    events: tuple[LifecycleEventKind, ...] = ("session.starting", "session.started")
    if fields.get("source") == "compact":
        events = ("context.compacted",)
    return Hook(events=events, means=line.means, deadline_ms=line.deadline_ms)


def decode(raw: bytes, *, event_hint: str | None, state: SessionState, received_at: int) -> HookEvent:
    """Read a hook's input; see `Adapter.decode`."""
    fields = read(raw)
    session_id = session_of(fields)
    hook = text_of(fields, "hook_event_name") or event_hint or ""
    line = HOOKS.get(hook, Hook())
    if hook == "SessionStart":
        line = started(line, fields)
    return tell(
        "claude", hook, line, fields, state, received_at, session_id=session_id, turn_id=text_of(fields, "prompt_id")
    )


def encode(event: HookEvent, directive: Directive) -> HookReply:
    """Write the answer to a hook; see `Adapter.encode`."""
    return json_reply(spelled(event, directive, "block"), NEUTRAL, least=SPARED)
