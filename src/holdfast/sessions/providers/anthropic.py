"""How Anthropic's Messages API says it: requests, answers and their streams. Pure.

Invariants:
    - A stream and the one-shot answer of the same content give equal blocks, usage and stop reason.
    - A stream without `message_stop` is incomplete, and its last account of output is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.sessions import frames, tokens
from holdfast.sessions.jcs import Json
from holdfast.sessions.providers.answers import Answer
from holdfast.sessions.providers.reading import items, joined, number, part, read_object, text_of, tool_use
from holdfast.sessions.values import Block, Message

__all__ = ["answer", "messages", "offers_tools", "output_max", "system"]

_TOOL_USES = frozenset(("tool_use", "server_tool_use"))


def messages(request: dict[str, Json], flags: set[str]) -> list[Message]:
    """Return the messages of a request."""
    return [
        Message(text_of(each.get("role")), tuple(_content(each.get("content"), flags)))
        for each in items(request.get("messages"), flags)
    ]


def system(request: dict[str, Json]) -> str:
    """Return the text of the system prompt."""
    return joined(request.get("system"))


def offers_tools(request: dict[str, Json]) -> bool:
    """Say whether the model may call tools."""
    return bool(request.get("tools"))


def output_max(request: dict[str, Json]) -> int | None:
    """Return how many tokens the answer may have."""
    return number(request.get("max_tokens"))


def _content(value: Json, flags: set[str]) -> list[Block]:
    if isinstance(value, str):
        return [Block("text", text=value)]
    return [_block(each) for each in items(value, flags)]


def _block(item: dict[str, Json]) -> Block:
    kind = text_of(item.get("type"))
    if kind in _TOOL_USES:
        return tool_use(kind, item.get("id"), item.get("name"), item.get("input"))
    answered = text_of(item.get("tool_use_id")) or None
    if kind == "tool_result":
        return Block(
            kind,
            tool_result_id=answered,
            tool_output=joined(item.get("content")) or None,
            is_error=item.get("is_error") is True,
        )
    if kind == "web_search_tool_result":
        return Block(kind, tool_result_id=answered, content=item.get("content"))
    if kind == "thinking":
        return Block(
            kind,
            thinking=text_of(item.get("thinking")) or None,
            thinking_signature=text_of(item.get("signature")) or None,
        )
    text = item.get("text")
    source = part(item.get("source"))
    return Block(
        kind,
        text=text if isinstance(text, str) else None,
        image_url=text_of(source.get("url")) or None,
        image_base64=text_of(source.get("data")) or None,
        media_type=text_of(source.get("media_type")) or None,
    )


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
            _whole(value, found)
    else:
        stream = _Stream(found)
        for event in frames.objects(body, framing, flags):
            stream.take(event)
        stream.end()
    return found


def _whole(value: dict[str, Json], found: Answer) -> None:
    if text_of(value.get("type")) == "error" or value.get("error") is not None:
        found.fail(text_of(part(value.get("error")).get("type")))
        return
    found.outcome = "complete"
    _opened(value, found)
    found.blocks = _content(value.get("content"), found.flags)
    found.stop_reason = text_of(value.get("stop_reason"))
    _account(part(value.get("usage")), found, final=True)


def _opened(message: dict[str, Json], found: Answer) -> None:
    found.message_id = text_of(message.get("id"))
    found.model = text_of(message.get("model"))


def _account(raw: dict[str, Json], found: Answer, *, final: bool) -> None:
    if raw:
        found.raw_usage = raw
        found.usage = tokens.anthropic(raw, found.flags)
        found.usage_final = final


@dataclass(slots=True)
class _Growing:
    """A block of a stream: how it began, and what has been added."""

    item: dict[str, Json]
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    def block(self) -> Block:
        item = dict(self.item)
        if self.texts:
            item["text"] = text_of(item.get("text")) + "".join(self.texts)
        if self.thoughts:
            item["thinking"] = text_of(item.get("thinking")) + "".join(self.thoughts)
        if self.signatures:
            item["signature"] = text_of(item.get("signature")) + "".join(self.signatures)
        if self.inputs:
            item["input"] = "".join(self.inputs)  # the placeholder that the block began with is no input
        return _block(item)


class _Stream:
    """The events of one answer, put together."""

    def __init__(self, found: Answer) -> None:
        self.found = found
        self.growing: dict[int, _Growing] = {}
        self.usage: dict[str, Json] = {}
        self.counted = False
        self.stopped = False

    def take(self, event: dict[str, Json]) -> None:
        found = self.found
        match event["type"] if isinstance(event.get("type"), str) else "":
            case "message_start":
                message = part(event.get("message"))
                _opened(message, found)
                self.usage = dict(part(message.get("usage")))
                found.stop_reason = text_of(message.get("stop_reason"))
            case "content_block_start":
                self.growing[self._index(event)] = _Growing(part(event.get("content_block")))
            case "content_block_delta":
                self._grow(self._index(event), part(event.get("delta")))
            case "message_delta":
                found.stop_reason = text_of(part(event.get("delta")).get("stop_reason")) or found.stop_reason
                latest = {name: value for name, value in part(event.get("usage")).items() if value is not None}
                self.usage.update(latest)
                self.counted = self.counted or "output_tokens" in latest
            case "message_stop":
                self.stopped = True
            case "error":
                found.fail(text_of(part(event.get("error")).get("type")))

    def _index(self, event: dict[str, Json]) -> int:
        index = number(event.get("index"))
        return len(self.growing) if index is None else index

    def _grow(self, index: int, delta: dict[str, Json]) -> None:
        block = self.growing.get(index)
        if block is None:
            self.found.flags.add("block_unopened")
            block = self.growing[index] = _Growing({"type": "text", "text": ""})
        match delta.get("type"):
            case "text_delta":
                block.texts.append(text_of(delta.get("text")))
            case "thinking_delta":
                block.thoughts.append(text_of(delta.get("thinking")))
            case "signature_delta":
                block.signatures.append(text_of(delta.get("signature")))
            case "input_json_delta":
                block.inputs.append(text_of(delta.get("partial_json")))

    def end(self) -> None:
        found = self.found
        found.blocks = [self.growing[index].block() for index in sorted(self.growing)]
        if self.stopped and found.outcome != "failed":
            found.outcome = "complete"
        _account(self.usage, found, final=self.counted or found.outcome == "complete")
