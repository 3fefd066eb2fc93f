"""Read what a harness tells its hooks, and write what a hook may answer. Pure.

Each harness has a module here with a table of its hooks (`HOOKS`), `decode`, `encode`, and `NEUTRAL`, the answer that
changes nothing. This module has what they share: the values that go in and out, tolerant reading, identity, frames,
and the choice among what several clients ask for. How a harness spells it is hidden in its own module.

Reading is tolerant: unknown hooks and fields, missing optional ones and values of odd types are no errors. Only bytes
that are no JSON object, and a hook without a session, are refused.

Invariants:
    - Equal bytes, hint, state and time give an equal `HookEvent`.
    - No text of a prompt, a tool or a summary is in a draft: sizes and digests are. `prompt` alone has one.
    - Whatever is asked for, an answer holds only what the hook can express.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
from blake3 import blake3

from holdfast.lifecycle import wire
from holdfast.lifecycle.chain import canonical
from holdfast.lifecycle.documents import FrameContext, OpenObject
from holdfast.lifecycle.enums import LifecycleEventKind
from holdfast.lifecycle.errors import HookProtocol, UndecodableDocument, UndecodableHook

__all__ = [
    "BODY_BYTES_MAX", "DEADLINE_MS", "SPARED", "Action", "Adapter", "Directive", "EventDraft", "Hook", "HookEvent",
    "HookReply", "SessionState", "degraded_ids", "event_ids", "expressed", "json_reply", "merge", "read", "receipt_id",
    "run_id", "session_of", "shorten", "spelled", "spoken", "tell", "text_of",
]  # fmt: skip

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""The largest body that is kept whole: far more than a prompt; a longer one is kept as its known fields."""

REPLY_BYTES_MAX: Final = 64 * 1024
"""The largest answer to a harness."""

DEADLINE_MS: Final = 8000
"""How long a hook takes at most, where its table says nothing else: less than a harness waits by default."""

COMPACTION_US: Final = 60_000_000
"""Two kinds of hook that tell of a compaction within this time tell of the same one."""

ID_CHARS_MAX: Final = 512
"""The longest id of a session, a turn or an agent: well within what an index can hold."""

WORD_CHARS_MAX: Final = 1000
"""The longest text of a harness that goes into metadata."""

SAID_CHARS_MAX: Final = 4000
"""The longest reason or message of a client that goes to a harness."""

Action: TypeAlias = Literal["none", "block", "continue", "halt"]
"""What a client may ask of a harness."""
Means: TypeAlias = Literal["context", "block", "continue", "halt", "message"]
"""What a hook's answer can express."""

_ORDER: Final[tuple[Action, ...]] = ("halt", "block", "continue", "none")
_ACTIONS: Final[Mapping[str, Action]] = {action: action for action in _ORDER}
_AMBIENT: Final = ("transcript_path", "cwd", "permission_mode")
"""Fields of an input that may differ between two tellings of one moment."""
_WORDS: Final = ("model", "permission_mode", "source", "trigger", "reason")
"""Fields of an input that go into metadata as they are."""
_DIGESTED: Final = ("compact_summary", "last_assistant_message", "prompt_response")
"""Fields of an input of which metadata has size and digest."""


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a harness's table.

    Attributes:
        events: What it tells of, in order.
        means: What its answer can express; nothing: it is not read.
        strong: Whether equal inputs are the same moment for ever; `turn`: where the input names its turn.
        agent: Whether it is about an agent within a turn.
        once: Whether it tells of the end of a turn that another hook may have told of.
        deadline_ms: How long it takes at most.
    """

    events: tuple[LifecycleEventKind, ...] = ()
    means: tuple[Means, ...] = ()
    strong: Literal["yes", "no", "turn"] = "no"
    agent: bool = False
    once: bool = False
    deadline_ms: int = DEADLINE_MS


class SessionState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a session before a hook.

    Attributes:
        frame_ordinal: How many frames were opened.
        turn_id: The turn of the newest one, where the harness names turns.
        ended_turn_id: The newest turn that has ended.
        compacted_by: The hook that told of the newest compaction, until the other kind has, too.
        compacted_at: When, microseconds.
    """

    frame_ordinal: int = 0
    turn_id: str | None = None
    ended_turn_id: str | None = None
    compacted_by: str | None = None
    compacted_at: int | None = None


class EventDraft(msgspec.Struct, frozen=True):
    """An event that a hook tells of, before it has a client.

    Attributes:
        event: Its kind.
        frame_context: Its frame.
        metadata: What the request says beside it.
    """

    event: LifecycleEventKind
    frame_context: FrameContext | None = None
    metadata: OpenObject = {}


class HookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A hook call, understood.

    Attributes:
        harness: Who called, by canonical id.
        hook: The harness's name of the hook.
        session_id: The harness's session.
        turn_id: The turn it is about, where the harness names one; else that of the newest frame.
        agent_id: The agent within the turn.
        material: 32 bytes that two tellings of one moment share.
        strong: Whether they share them for ever, or for a short while.
        drafts: What it tells of, in order.
        means: What the answer can express.
        stop_hook_active: Whether the harness goes on already because a hook asked it to.
        prompt: The text that the user wrote.
        after: What is known of the session from now on.
    """

    harness: str
    hook: str
    session_id: str
    turn_id: str | None = None
    agent_id: str | None = None
    material: bytes
    strong: bool
    drafts: tuple[EventDraft, ...] = ()
    means: tuple[Means, ...] = ()
    stop_hook_active: bool = False
    prompt: str | None = None
    after: SessionState = SessionState()


class Directive(msgspec.Struct, frozen=True):
    """What the harness is asked for.

    Attributes:
        action: What it shall do.
        reason: Why; the harness may show it, or give it to the model.
        system_message: What it shall show to the user.
        context: What it shall give to the model.
    """

    action: Action = "none"
    reason: str | None = None
    system_message: str | None = None
    context: str | None = None


class HookReply(msgspec.Struct, frozen=True):
    """How a hook's process ends.

    Attributes:
        stdout: Exactly what it prints.
        stderr: What it says to people.
        exit_code: Its exit code.
    """

    stdout: bytes = b""
    stderr: str = ""
    exit_code: int = 0


class Adapter(Protocol):
    """What a harness's module has."""

    @property
    def HOOKS(self) -> Mapping[str, Hook]:
        """The hooks that tell of something, or whose answer is read. Any other is kept, and means nothing."""
        ...

    @property
    def NEUTRAL(self) -> bytes:
        """What is printed where nothing is asked for."""
        ...

    def decode(self, raw: bytes, *, event_hint: str | None, state: SessionState, received_at: int) -> HookEvent:
        """Read a hook's input.

        Args:
            raw: What the harness wrote.
            event_hint: The hook, as the handler names it; what the input says comes first.
            state: What is known of the session.
            received_at: When it came, microseconds.

        Raises:
            UndecodableHook: It is no such input.
            HookProtocol: It names no session.
        """
        ...

    def encode(self, event: HookEvent, directive: Directive) -> HookReply:
        """Write the answer to a hook; what the hook cannot express is left out."""
        ...


# --- reading ------------------------------------------------------------------------------------------


def read(raw: bytes) -> dict[str, Any]:
    """Parse a hook's input.

    Raises:
        UndecodableHook: It is no JSON object, or nested too deep.
    """
    try:
        fields = wire.parse(raw)
    except UndecodableDocument as error:
        # What the parser says names a position, never a text of the input.
        raise UndecodableHook(error.message) from None
    if not isinstance(fields, dict):
        raise UndecodableHook("the input is JSON, but no object")
    if wire.too_deep(fields):
        raise UndecodableHook(f"the input is nested deeper than {wire.DEPTH_MAX} levels")
    return fields


def text_of(fields: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of these fields that is a text which is not blank."""
    return next((text for name in names if isinstance(text := fields.get(name), str) and text.strip()), None)


def session_of(fields: Mapping[str, Any], name: str = "session_id") -> str:
    """Return the session that an input names.

    Raises:
        HookProtocol: It names none, or one that cannot be stored.
    """
    found = text_of(fields, name)
    if found is None:
        raise HookProtocol("the hook names no session")
    if _id(found) is None:
        raise HookProtocol("the hook names a session by a text that is no id")
    return found


def _id(text: str | None) -> str | None:
    return None if text is None or len(text) > ID_CHARS_MAX or "\0" in text else text


def tell(  # noqa: PLR0913 - a hook call, and what is known beside it
    harness: str,
    hook: str,
    line: Hook,
    fields: Mapping[str, Any],
    state: SessionState,
    received_at: int,
    *,
    session_id: str,
    turn_id: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> HookEvent:
    """Make of a hook call what its line of the table says.

    Args:
        harness: Who called.
        hook: The harness's name of the hook.
        line: Its line of the table.
        fields: The input.
        state: What is known of the session.
        received_at: When it came, microseconds.
        session_id: The session, from `session_of`.
        turn_id: The turn, where the input names one.
        identity: What of the input tells it from others; None: all but what may differ by chance.
    """
    turn_id = _id(turn_id)
    agent_id = _id(text_of(fields, "agent_id"))
    events, after = _events(hook, line, turn_id, agent_id, state, received_at)
    frame = _frame(harness, session_id, line, turn_id or (after.turn_id if line.events else None), agent_id, after)
    metadata = _metadata(harness, hook, fields, session_id)
    own = {name: value for name, value in fields.items() if name not in _AMBIENT} if identity is None else identity
    tool = text_of(fields, "tool_use_id")
    moment = [harness, session_id, hook, turn_id, agent_id, tool, own]
    return HookEvent(
        harness=harness,
        hook=hook,
        session_id=session_id,
        turn_id=turn_id or after.turn_id,
        agent_id=agent_id,
        material=blake3(canonical(moment)).digest(),
        strong=line.strong == "yes" or (line.strong == "turn" and turn_id is not None) or tool is not None,
        drafts=tuple(
            EventDraft(event, frame if event.startswith("frame.") else None, metadata) for event in events
        ),
        means=line.means,
        stop_hook_active=fields.get("stop_hook_active") is True,
        prompt=text_of(fields, "prompt") if "frame.opening" in events else None,
        after=after,
    )  # fmt: skip


def _events(
    hook: str, line: Hook, turn_id: str | None, agent_id: str | None, state: SessionState, received_at: int
) -> tuple[tuple[LifecycleEventKind, ...], SessionState]:
    """Say what a hook tells of, and what is known of the session then."""
    events = line.events
    if line.agent:
        return (events if agent_id is not None else ()), state
    if "context.compacted" in events:
        last = state.compacted_at
        if last is not None and state.compacted_by != hook and abs(received_at - last) <= COMPACTION_US:
            return (), msgspec.structs.replace(state, compacted_by=None, compacted_at=None)
        state = msgspec.structs.replace(state, compacted_by=hook, compacted_at=received_at)
    if "frame.opening" in events:
        state = msgspec.structs.replace(state, frame_ordinal=state.frame_ordinal + 1, turn_id=turn_id)
    if line.once and turn_id is not None and turn_id == state.ended_turn_id:
        events = tuple(event for event in events if event != "frame.ended")
    return events, state


def _frame(
    harness: str, session_id: str, line: Hook, turn_id: str | None, agent_id: str | None, state: SessionState
) -> FrameContext:
    named: list[object] = ["ordinal", state.frame_ordinal] if turn_id is None else ["turn", turn_id]
    frame = f"frm_{_digest(['frame', harness, session_id, *named])}"
    if not line.agent:
        return FrameContext(frame_id=frame, frame_class="top_level")
    own = f"frm_{_digest(['frame', harness, session_id, 'agent', agent_id])}"
    return FrameContext(frame_id=own, frame_class="subcall", parent_frame_id=frame)


def _metadata(harness: str, hook: str, fields: Mapping[str, Any], session_id: str) -> OpenObject:
    found: OpenObject = {"source_hook": hook[:WORD_CHARS_MAX], "lifeloop_run_id": run_id(harness, session_id)}
    for name in _WORDS:
        if (text := text_of(fields, name)) is not None:
            found[name] = text[:WORD_CHARS_MAX]
    if (failure := text_of(fields, "error", "error_type", "failure")) is not None:
        found["failure"] = failure[:WORD_CHARS_MAX]
    for name in ("prompt", *_DIGESTED):
        if isinstance(text := fields.get(name), str):
            data = text.encode()
            found[f"{name}_bytes"] = len(data)
            found[f"{name}_blake3"] = blake3(data).hexdigest()
    return found


# --- identity -----------------------------------------------------------------------------------------


def run_id(harness: str, session_id: str) -> str:
    """Return the run that a session's receipts are numbered in."""
    return f"{harness}:{session_id}"


def event_ids(material: bytes, occurrence: int, event: str) -> tuple[str, str, str]:
    """Return event id, invocation id and idempotency key of an event of a moment."""
    told = [material.hex(), occurrence, event]
    return (
        f"evt_{_digest(['event', *told])}",
        f"inv_{_digest(['invocation', *told])}",
        f"hk_{_digest(['key', *told])}",
    )


def degraded_ids(harness: str, session_id: str, capability: str) -> tuple[str, str, str]:
    """Return event id, invocation id and idempotency key of the first degradation of a capability in a session."""
    told = ["degraded", harness, session_id, capability]
    return (
        f"evt_{_digest(['event', *told])}",
        f"inv_{_digest(['invocation', *told])}",
        f"hk_{_digest(['key', *told])}",
    )


def receipt_id(idempotency_key: str, client_id: str) -> str:
    """Return the id of the receipt of an event for a client."""
    return f"rcp_{_digest(['receipt', idempotency_key, client_id])}"


def _digest(value: object) -> str:
    return blake3(canonical(value)).hexdigest()[:32]


def shorten(prefix: bytes, size: int, digest: bytes) -> bytes:
    """Keep the known fields of a body that is too long to be kept whole.

    Args:
        prefix: The beginning of the body.
        size: How long all of it is, bytes.
        digest: The BLAKE3 digest of all of it.

    Returns:
        A body with the texts and numbers that come first in it; size and digest stand for the rest.
    """
    import json  # nobody needs it who is told no more than a harness usually tells

    scan = json.JSONDecoder().raw_decode
    found: dict[str, Any] = {}
    text = prefix.decode(errors="ignore")
    at = _after(text, 0, "{")
    while at is not None:
        name, at = _value(scan, text, at)
        if not isinstance(name, str) or at is None or (at := _after(text, at, ":")) is None:
            break
        value, at = _value(scan, text, at)
        if at is None or at >= len(text):  # it may have been cut
            break
        if isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= SAID_CHARS_MAX):
            found[name] = value
        at = _after(text, at, ",")
    return msgspec.json.encode({**found, "holdfast_cut": {"bytes": size, "blake3": digest.hex()}})


def _after(text: str, at: int, mark: str) -> int | None:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at + 1 if text[at : at + 1] == mark else None


def _value(scan: Callable[[str, int], tuple[Any, int]], text: str, at: int) -> tuple[Any, int | None]:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    try:
        return scan(text, at)
    except (ValueError, RecursionError):
        return None, None


# --- answering ----------------------------------------------------------------------------------------


def spoken(metadata: Mapping[str, Any]) -> Directive:
    """Return what a client's response asks of the harness; context comes from its payloads."""
    given = metadata.get("directive")
    given = given if isinstance(given, dict) else {}
    asked = given.get("action")
    action: Action = _ACTIONS.get(asked, "none") if isinstance(asked, str) else "none"
    message = metadata.get("system_message")
    reason = given.get("reason")
    return Directive(
        action,
        reason if isinstance(reason, str) else None,
        message if isinstance(message, str) and message.strip() else None,
    )


def expressed(event: HookEvent, directive: Directive) -> tuple[Directive, str | None]:
    """Leave out of a directive what the hook cannot express; say why its action, or its reason, was left out."""
    dropped: str | None = None
    action, reason = directive.action, directive.reason
    if reason is not None and not reason.strip():
        reason, dropped = None, "blank_reason"
    if action != "none" and action not in event.means:
        action, dropped = "none", "not_expressible"
    elif action == "continue" and event.stop_hook_active:
        action, dropped = "none", "stop_hook_active"
    elif action in ("block", "continue") and reason is None:
        action, dropped = "none", "blank_reason"
    return (
        Directive(
            action,
            None if action == "none" else reason,
            directive.system_message if "message" in event.means else None,
            directive.context if "context" in event.means else None,
        ),
        None if directive.action == "none" else dropped,
    )


def merge(directives: Iterable[Directive]) -> Directive:
    """Choose among what several clients ask for: the strongest action with its first reason, and all that is said."""
    asked = tuple(directives)
    actions = {each.action for each in asked}
    action = next((each for each in _ORDER if each in actions), _ORDER[-1])
    reasons = (each.reason for each in asked if each.action == action and each.reason is not None)
    messages = [each.system_message for each in asked if each.system_message is not None]
    contexts = [each.context for each in asked if each.context is not None]
    return Directive(action, next(reasons, None), "\n\n".join(messages) or None, "\n\n".join(contexts) or None)


def json_reply(fields: Mapping[str, Any], neutral: bytes, *, least: tuple[str, ...] = ()) -> HookReply:
    """Print fields as JSON, or what is printed where there are none.

    Args:
        fields: What to print; those that are None are left out.
        neutral: What is printed where nothing is left.
        least: What is left out first where all of it is too long.
    """
    kept = {name: value for name, value in fields.items() if value is not None}
    for number in range(len(least) + 1):
        left = {name: value for name, value in kept.items() if name not in least[:number]}
        data = msgspec.json.encode(left) if left else neutral
        if len(data) <= REPLY_BYTES_MAX:
            return HookReply(data)
    return HookReply(neutral)


def spelled(event: HookEvent, directive: Directive, verdict: str) -> dict[str, Any]:
    """Write what a hook can express of a directive as most harnesses spell it; fields that are None say nothing.

    Args:
        event: The hook.
        directive: What is asked for.
        verdict: How the harness calls the decision that blocks, or has it go on.
    """
    said, _ = expressed(event, directive)
    reason = _cut(said.reason)
    halts, decides = said.action == "halt", said.action in ("block", "continue")
    context = {"hookEventName": event.hook, "additionalContext": said.context}
    return {
        "continue": False if halts else None,
        "stopReason": reason if halts else None,
        "systemMessage": _cut(said.system_message),
        "decision": verdict if decides else None,
        "reason": reason if decides else None,
        "hookSpecificOutput": None if said.context is None else context,
    }


SPARED: Final = ("systemMessage", "hookSpecificOutput")
"""Of these fields, what is left out first where all of them would be too long."""


def _cut(text: str | None) -> str | None:
    """Shorten what a client says to what a harness is told."""
    return None if text is None else text[:SAID_CHARS_MAX]
