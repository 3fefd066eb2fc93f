"""What became of a call, and what it was for. Pure.

Invariants:
    - Every call that was made is a turn, whatever became of it; only `failed` ones count as failed.
    - The client's leaving, the status, and the connection speak before the bytes do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from holdfast.sessions.values import Facts, Status, Upstream

__all__ = ["CallKind", "Rule", "call_kind", "outcome"]

CallKind: TypeAlias = str
"""One of `probe`, `title`, `compaction`, `main`, `unknown`, or what a user's rule says."""

_WORD_TITLE = re.compile(r"(?<!\w)title(?!\w)", re.IGNORECASE)
_COMPACTION = "summary of the conversation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A user's rule: calls to which everything applies that it names are of its kind.

    Attributes:
        kind: What such calls are.
        model: The model's name.
        agent_name: The agent's name.
        system: A piece of the system prompt.
        text: A piece of the last text the user sent.
    """

    kind: str
    model: str = ""
    agent_name: str = ""
    system: str = ""
    text: str = ""


def outcome(facts: Facts, upstream: Upstream | None, fault: str = "") -> tuple[Status, str]:
    """Say what became of a call, and the type of the error if there was one.

    Args:
        facts: What the bytes said.
        upstream: How the connection went, where somebody saw it.
        fault: Why the response's codings could not be undone; empty where they could.
    """
    went: Literal["complete", "incomplete", "aborted", "error"] = "complete" if upstream is None else upstream.outcome
    status = 0 if upstream is None else upstream.status
    said = facts.error_type or ("" if upstream is None else upstream.error_type)
    if went == "aborted":
        return "aborted", said
    if status and not 200 <= status < 300:
        return "failed", said or f"http_{status}"
    if went == "error":
        return "failed", said or "connection_error"
    if facts.outcome == "failed":
        return "failed", said
    if fault:
        return "incomplete", fault
    if facts.outcome in ("incomplete", "none") or went == "incomplete":
        # Without any bytes nobody can tell; whoever captured only the call says how it went, or that it went well.
        unseen = facts.outcome == "none" and went == "complete" and not facts.messages
        return ("ok", said) if unseen else ("incomplete", said)
    return "ok", said


def call_kind(facts: Facts, *, agent_name: str = "", rules: Iterable[Rule] = ()) -> CallKind:
    """Say what a call was for: the first rule that fits, else what the request looks like."""
    text = _last_user_text(facts)
    for rule in rules:
        if (
            rule.model in ("", facts.model)
            and rule.agent_name in ("", agent_name)
            and rule.system in facts.system
            and rule.text in text
        ):
            return rule.kind
    if facts.output_max is not None and facts.output_max <= 1:
        return "probe"
    if not facts.tools_offered and _WORD_TITLE.search(facts.system):
        return "title"
    if _COMPACTION in text:
        return "compaction"
    return "main" if facts.tools_offered else "unknown"


def _last_user_text(facts: Facts) -> str:
    for message in reversed(facts.messages):
        if message.role == "user":
            return "\n".join(block.text for block in message.content if block.text)
    return ""
