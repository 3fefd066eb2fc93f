"""Gemini CLI's hooks. Pure.

Its inputs carry the instant at which they were made, so equal inputs are one moment.

Invariants:
    - There is always a JSON object in the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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

__all__ = ["HOOKS", "NEUTRAL", "decode", "encode"]

HOOKS: Final[Mapping[str, Hook]] = {
    "SessionStart": Hook(events=("session.starting", "session.started"), means=("context", "message"), strong="yes"),
    "BeforeAgent": Hook(
        events=("frame.opening", "frame.opened"), means=("context", "block", "halt", "message"), strong="yes"
    ),
    "AfterAgent": Hook(
        events=("frame.ending", "frame.ended"), means=("continue", "halt", "message"), strong="yes"
    ),
    "PreCompress": Hook(events=("context.pressure_observed",), strong="yes"),
    "SessionEnd": Hook(events=("session.ending", "session.ended"), strong="yes"),
}  # fmt: skip

NEUTRAL: Final = b"{}"


def decode(raw: bytes, *, event_hint: str | None, state: SessionState, received_at: int) -> HookEvent:
    """Read a hook's input; see `Adapter.decode`."""
    fields = read(raw)
    session_id = session_of(fields)
    hook = text_of(fields, "hook_event_name") or event_hint or ""
    line = HOOKS.get(hook, Hook(strong="yes"))
    return tell("gemini", hook, line, fields, state, received_at, session_id=session_id)


def encode(event: HookEvent, directive: Directive) -> HookReply:
    """Write the answer to a hook; see `Adapter.encode`."""
    fields = spelled(event, directive, "deny")
    if fields["stopReason"] is not None:
        fields["reason"] = fields["stopReason"]
    return json_reply(fields, NEUTRAL, least=SPARED)
