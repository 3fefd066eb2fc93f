"""Harnesses that know no hooks as programs: a few lines inside them send one line of ours. Pure.

    {"shim": 1, "hook": ..., "session_id": ..., "turn_id"?: ..., "delivery_id": ..., "data": {}}

Invariants:
    - The answer is always the same: nothing is asked of these harnesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from holdfast.lifecycle.errors import UndecodableHook
from holdfast.lifecycle.harness import (
    Directive,
    Hook,
    HookEvent,
    HookReply,
    SessionState,
    read,
    session_of,
    tell,
    text_of,
)

__all__ = ["Shim", "hermes", "openclaw", "opencode"]

VERSION: Final = 1
"""What our lines in a harness say that they write."""


class Shim:
    """A harness that is told of by a shim of ours."""

    NEUTRAL: Final = b"{}"

    def __init__(self, harness: str, hooks: Mapping[str, Hook]) -> None:
        """Describe it by its name and the table of its hooks."""
        self._harness = harness
        self.HOOKS = hooks

    def decode(self, raw: bytes, *, event_hint: str | None, state: SessionState, received_at: int) -> HookEvent:
        """Read what the shim wrote; see `Adapter.decode`."""
        fields = read(raw)
        if fields.get("shim") != VERSION or fields["shim"] is True:
            raise UndecodableHook(f"the input is not what version {VERSION} of the shim writes")
        session_id = session_of(fields)
        hook = text_of(fields, "hook") or event_hint or ""
        told = text_of(fields, "delivery_id")
        line = self.HOOKS.get(hook, Hook())
        if told is None:  # nothing tells it from another one like it
            line = Hook(events=line.events)
        data = fields.get("data")
        return tell(
            self._harness,
            hook,
            line,
            data if isinstance(data, dict) else {},
            state,
            received_at,
            session_id=session_id,
            turn_id=text_of(fields, "turn_id"),
            identity=fields if told is None else {"delivery_id": told},
        )

    def encode(self, event: HookEvent, directive: Directive) -> HookReply:
        """Write the answer to a hook; see `Adapter.encode`."""
        return HookReply(self.NEUTRAL)


opencode: Final = Shim(
    "opencode",
    {
        "session.created": Hook(events=("session.started",), strong="yes"),
        "chat.message": Hook(events=("frame.opening",), strong="yes"),
        "session.idle": Hook(events=("frame.ended",), strong="yes"),
        "experimental.session.compacting": Hook(events=("context.pressure_observed",), strong="yes"),
        "session.compacted": Hook(events=("context.compacted",), strong="yes"),
        "session.deleted": Hook(events=("session.ended",), strong="yes"),
    },
)
openclaw: Final = Shim(
    "openclaw",
    {
        "session:compact:before": Hook(events=("context.pressure_observed",), strong="yes"),
        "session:compact:after": Hook(events=("context.compacted",), strong="yes"),
        "message:preprocessed": Hook(events=("frame.opening",), strong="yes"),
        "message:sent": Hook(events=("frame.ended",), strong="yes"),
        "session:end": Hook(events=("session.ended",), strong="yes"),
    },
)
hermes: Final = Shim(
    "hermes",
    {
        "session:start": Hook(events=("session.started",), strong="yes"),
        "agent:start": Hook(events=("frame.opening",), strong="yes"),
        "agent:end": Hook(events=("frame.ended",), strong="yes"),
        "session:compress": Hook(events=("context.compacted",), strong="yes"),
        "agent:step": Hook(events=("supervisor.tick",), strong="yes"),
        "session:end": Hook(events=("session.ended",), strong="yes"),
    },
)
