"""From each provider's account of a call to the nine columns, and how far they are known. Pure.

Totals are inclusive: `input` contains what a cache gave and took, `output` contains reasoning. A part is never added
to its total again.

Invariants:
    - Nothing is estimated: what the provider did not say is None.
    - A count is an integer from 0 to 2**63 - 1, or it is not one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import TOKENS_MAX
from holdfast.sessions.values import Facts, Status, Usage, UsageState

__all__ = ["anthropic", "cache_written", "given", "inconsistent", "measured", "ollama", "openai"]

_PARTS = (
    ("cache_write", ("cache_write_5m", "cache_write_1h")),
    ("output", ("reasoning",)),
    ("input", ("input_audio",)),
    ("output", ("output_audio",)),
)


class _Account:
    """A provider's usage object, and what is wrong with it."""

    def __init__(self, raw: Mapping[str, Json], flags: set[str]) -> None:
        self.raw = raw
        self.flags = flags

    def __call__(self, *path: str) -> int | None:
        value: Json = self.raw
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
            self.flags.add("usage_invalid")
            return None
        return value

    def sum(self, *parts: int | None) -> int | None:
        total = sum(part for part in parts if part is not None)
        if total > TOKENS_MAX:
            self.flags.add("usage_invalid")
            return None
        return total


def anthropic(raw: Mapping[str, Json], flags: set[str]) -> Usage:
    """Read the `usage` of an Anthropic message; what is odd about it goes to `flags`."""
    count = _Account(raw, flags)
    fresh = count("input_tokens")
    read, write = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    short = count("cache_creation", "ephemeral_5m_input_tokens")
    long = count("cache_creation", "ephemeral_1h_input_tokens")
    if write is None and (short is not None or long is not None):
        write = count.sum(short, long)
    if write and short is None and long is None:
        flags.add("cache_ttl_assumed")
    tools: dict[str, int] = {}
    requests = raw.get("server_tool_use")
    for name in requests if isinstance(requests, dict) else ():
        made = count("server_tool_use", name)
        if made is not None:
            tools["web_search" if name == "web_search_requests" else name] = made
    return Usage(
        input=None if fresh is None else count.sum(fresh, read, write),
        cache_read=read,
        cache_write=write,
        cache_write_5m=short,
        cache_write_1h=long,
        output=count("output_tokens"),
        reasoning=count("output_tokens_details", "thinking_tokens"),
        server_tools=tools,
        service_tier=_text(raw.get("service_tier")),
    )


def openai(raw: Mapping[str, Json], flags: set[str], *, tier: str = "") -> Usage:
    """Read the `usage` of an OpenAI answer, of chat completions or of Responses."""
    count = _Account(raw, flags)
    given, said = ("input", "output") if "input_tokens" in raw or "output_tokens" in raw else ("prompt", "completion")
    taken, made = f"{given}_tokens_details", f"{said}_tokens_details"
    return Usage(
        input=count(f"{given}_tokens"),
        cache_read=count(taken, "cached_tokens"),
        cache_write=count(taken, "cache_write_tokens"),
        output=count(f"{said}_tokens"),
        reasoning=count(made, "reasoning_tokens"),
        input_audio=count(taken, "audio_tokens"),
        output_audio=count(made, "audio_tokens"),
        service_tier=tier,
    )


def ollama(raw: Mapping[str, Json], flags: set[str]) -> Usage:
    """Read the counts of an Ollama answer's last line."""
    count = _Account(raw, flags)
    return Usage(input=count("prompt_eval_count"), output=count("eval_count"))


def given(raw: Mapping[str, Json], flags: set[str]) -> Usage:
    """Read counts by the names of the columns, or by those of the reference's reduced answers."""
    count = _Account(raw, flags)
    tools = raw.get("server_tools")
    kept = {name: made for name in tools if (made := count("server_tools", name)) is not None} if tools else {}
    return Usage(
        input=_first(count("input"), count("prompt_tokens")),
        cache_read=_first(count("cache_read"), count("cache_read_input_tokens")),
        cache_write=_first(count("cache_write"), count("cache_creation_input_tokens")),
        cache_write_5m=count("cache_write_5m"),
        cache_write_1h=count("cache_write_1h"),
        output=_first(count("output"), count("completion_tokens")),
        reasoning=count("reasoning"),
        input_audio=count("input_audio"),
        output_audio=count("output_audio"),
        server_tools=kept,
        service_tier=_text(raw.get("service_tier")),
    )


def _first(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def inconsistent(usage: Usage) -> bool:
    """Say whether a part is larger than its whole, so that no price can be right."""
    for whole, parts in _PARTS:
        total = cast("int | None", getattr(usage, whole))
        if total is not None and sum(getattr(usage, part) or 0 for part in parts) > total:
            return True
    return usage.input is not None and (usage.cache_read or 0) + cache_written(usage) > usage.input


def cache_written(usage: Usage) -> int:
    """Return how much a cache took: what was said in all, else the sum of what was said of its parts."""
    if usage.cache_write is not None:
        return usage.cache_write
    return (usage.cache_write_5m or 0) + (usage.cache_write_1h or 0)


def measured(facts: Facts, status: Status, provided: Usage | None) -> tuple[Usage, UsageState]:
    """Say what a call used, and how that is known.

    Args:
        facts: What the bytes said.
        status: What became of the call.
        provided: What the caller measured; it counts where the answer had nothing.
    """
    usage = facts.usage
    if usage is not None and (usage.input is not None or usage.output is not None):
        if facts.usage_final:
            return usage, "measured"
        # Only the last count is one: what a broken stream had said of its output is where it began.
        return replace(usage, output=None, reasoning=None, output_audio=None), "partial"
    if provided is not None:
        return provided, "provided"
    return Usage(), "none" if status == "failed" else "missing"
