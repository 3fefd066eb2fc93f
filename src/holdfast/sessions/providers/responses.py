"""How OpenAI's Responses API says it: items of input and output, and their streams. Pure.

What the model did between two inputs is several items; here it is one message, so that history hashes like the answer
that it repeats.

Invariants:
    - Consecutive items of the assistant are one message, and so are consecutive outputs of tools.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.sessions import frames, jcs, tokens
from holdfast.sessions.jcs import Json
from holdfast.sessions.providers.answers import Answer
from holdfast.sessions.providers.chat import error_type
from holdfast.sessions.providers.reading import items, joined, number, part, read_object, text_of, tool_use
from holdfast.sessions.values import Block, Message

__all__ = ["answer", "messages", "offers_tools", "output_max", "system"]

_TEXTS = frozenset(("input_text", "output_text", "text"))
_SYSTEM = frozenset(("system", "developer"))
_MERGED = frozenset(("assistant", "tool"))
_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))
_UNFINISHED = frozenset(("queued", "in_progress", "cancelled"))


def messages(request: dict[str, Json], flags: set[str]) -> list[Message]:
    """Return the messages of a request."""
    given = request.get("input")
    if isinstance(given, str):
        return [Message("user", (Block("text", text=given),))]
    return _gathered(items(given, flags), flags)


def system(request: dict[str, Json]) -> str:
    """Return the text of the instructions and of system messages."""
    given = request.get("input")
    said = [
        _said(each)
        for each in (given if isinstance(given, list) else [])
        if isinstance(each, dict) and text_of(each.get("role")) in _SYSTEM
    ]
    return "\n".join([text_of(request.get("instructions")), *said]).strip("\n")


def _said(item: dict[str, Json]) -> str:
    return joined(item.get("content"))


def offers_tools(request: dict[str, Json]) -> bool:
    """Say whether the model may call tools."""
    return bool(request.get("tools"))


def output_max(request: dict[str, Json]) -> int | None:
    """Return how many tokens the answer may have."""
    return number(request.get("max_output_tokens"))


def _gathered(given: Iterable[dict[str, Json]], flags: set[str]) -> list[Message]:
    found: list[tuple[str, list[Block]]] = []
    for item in given:
        role, blocks = _read(item, flags)
        if found and role in _MERGED and found[-1][0] == role:
            found[-1][1].extend(blocks)
        else:
            found.append((role, blocks))
    return [Message(role, tuple(blocks)) for role, blocks in found]


def _read(item: dict[str, Json], flags: set[str]) -> tuple[str, list[Block]]:
    """Return whose an item is, and what it says."""
    kind = text_of(item.get("type")) or ("message" if "role" in item else "")
    if kind == "message":
        return text_of(item.get("role")), _content(item.get("content"), flags)
    if kind.endswith("_call_output"):
        answered = text_of(item.get("call_id")) or None
        return "tool", [Block("tool_result", tool_result_id=answered, tool_output=_output(item.get("output")))]
    if kind == "function_call":
        block = tool_use("tool_use", item.get("call_id"), item.get("name"), item.get("arguments"))
        if block.tool_input_raw is not None:
            block = Block(
                "tool_use",
                tool_use_id=block.tool_use_id,
                tool_name=block.tool_name,
                tool_input_raw=block.tool_input_raw,
                content=item,
            )
        return "assistant", [block]
    if kind == "custom_tool_call":
        given = {"input": text_of(item.get("input"))}
        return "assistant", [tool_use("tool_use", item.get("call_id"), item.get("name"), given)]
    if kind == "reasoning":
        block = Block(
            "thinking",
            thinking=joined(item.get("summary")) or None,
            thinking_signature=text_of(item.get("encrypted_content")) or None,
        )
        return "assistant", [block]
    return "assistant", [Block(kind, content=item)]


def _content(value: Json, flags: set[str]) -> list[Block]:
    if isinstance(value, str):
        return [Block("text", text=value)] if value else []
    return [_part(each) for each in items(value, flags)]


def _part(item: dict[str, Json]) -> Block:
    kind = text_of(item.get("type"))
    text = item.get("text")
    return Block(
        "text" if kind in _TEXTS else kind,
        text=text if isinstance(text, str) else None,
        image_url=text_of(item.get("image_url")) or None,
    )


def _output(value: Json) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, list) and value and all(isinstance(each, dict) and "text" in each for each in value):
        return joined(value) or None
    return None if value is None else jcs.write(value).decode()


# --- answers ------------------------------------------------------------------------------------------


def answer(body: bytes, content_type: str, flags: set[str]) -> Answer:
    """Read an answer.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    framing = frames.kind(content_type, body)
    found = Answer(flags)
    if framing == "json":
        value = read_object(body)
        if value is None:
            flags.add("response_unreadable")
        else:
            _whole(value, found, [])
    else:
        _streamed(frames.objects(body, framing, flags), found)
    return found


def _streamed(events: Iterable[dict[str, Json]], found: Answer) -> None:
    done: list[dict[str, Json]] = []
    texts: list[str] = []
    for event in events:
        kind = text_of(event.get("type"))
        if kind in _TERMINAL:
            _whole(part(event.get("response")), found, done)
            return
        if kind == "response.output_item.done":
            done.append(part(event.get("item")))
        elif kind == "response.output_text.delta":
            texts.append(text_of(event.get("delta")))
        elif kind == "response.created":
            _opened(part(event.get("response")), found)
        elif kind == "error":
            found.fail(text_of(event.get("code")) or (error_type(event) or ""))
    text = "".join(texts)
    if done:
        _answered(done, found)
    elif text:
        found.blocks = [Block("text", text=text)]


def _opened(value: dict[str, Json], found: Answer) -> None:
    found.message_id = text_of(value.get("id"))
    found.model = text_of(value.get("model"))


def _answered(output: Iterable[dict[str, Json]], found: Answer) -> None:
    """Take the items of an output, of which those of tools that the provider itself ran are part of the answer."""
    found.blocks = [block for item in output for block in _read(item, found.flags)[1]]


def _whole(value: dict[str, Json], found: Answer, done: list[dict[str, Json]]) -> None:
    _opened(value, found)
    _answered(list(items(value.get("output"), found.flags)) or done, found)
    status = text_of(value.get("status"))
    wrong = error_type(value)
    if status == "completed":
        found.stop_reason = "stop"
    elif status == "incomplete":
        found.stop_reason = text_of(part(value.get("incomplete_details")).get("reason")) or status
    else:
        found.stop_reason = status
    if wrong is not None or status == "failed":
        found.fail(wrong or "")
    elif status not in _UNFINISHED:
        found.outcome = "complete"
    raw = part(value.get("usage"))
    if raw:
        found.raw_usage = raw
        found.usage = tokens.openai(raw, found.flags, tier=text_of(value.get("service_tier")))
        found.usage_final = True
