"""How OpenAI's chat completions say it: requests, answers and their streams. Pure.

Many servers speak this. Of several choices the first is the answer; how many others there were is a flag.

Invariants:
    - A message hashes alike as an answer, as a streamed answer, and as history of a later request.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.sessions import frames, tokens
from holdfast.sessions.jcs import Json
from holdfast.sessions.providers.answers import Answer
from holdfast.sessions.providers.reading import items, joined, number, part, read_object, text_of, tool_use
from holdfast.sessions.values import Block, Message

__all__ = ["answer", "messages", "offers_tools", "output_max", "system"]

_SYSTEM = frozenset(("system", "developer"))


def messages(request: dict[str, Json], flags: set[str]) -> list[Message]:
    """Return the messages of a request."""
    return [
        Message(text_of(each.get("role")), tuple(_blocks(each, flags)))
        for each in items(request.get("messages"), flags)
    ]


def system(request: dict[str, Json]) -> str:
    """Return the text of the system messages."""
    found = items(request.get("messages"), set())
    return "\n".join(joined(each.get("content")) for each in found if text_of(each.get("role")) in _SYSTEM)


def offers_tools(request: dict[str, Json]) -> bool:
    """Say whether the model may call tools."""
    return bool(request.get("tools") or request.get("functions"))


def output_max(request: dict[str, Json]) -> int | None:
    """Return how many tokens the answer may have."""
    most = number(request.get("max_completion_tokens"))
    return number(request.get("max_tokens")) if most is None else most


def _blocks(message: dict[str, Json], flags: set[str]) -> list[Block]:
    if message.get("role") == "tool":
        output = joined(message.get("content")) or None
        return [Block("tool_result", tool_result_id=text_of(message.get("tool_call_id")) or None, tool_output=output)]
    blocks: list[Block] = []
    if thought := text_of(message.get("reasoning_content")):
        blocks.append(Block("thinking", thinking=thought))
    content = message.get("content")
    if isinstance(content, str):
        if content:
            blocks.append(Block("text", text=content))
    else:
        blocks += [_part(each) for each in items(content, flags)]
    blocks += [_call(each) for each in items(message.get("tool_calls"), flags)]
    return blocks


def _part(item: dict[str, Json]) -> Block:
    text, image = item.get("text"), item.get("image_url")
    url = text_of(part(image).get("url")) or text_of(image)
    return Block(text_of(item.get("type")), text=text if isinstance(text, str) else None, image_url=url or None)


def _call(item: dict[str, Json]) -> Block:
    if item.get("type") == "custom":
        custom = part(item.get("custom"))
        return tool_use("tool_use", item.get("id"), custom.get("name"), {"input": text_of(custom.get("input"))})
    function = part(item.get("function"))
    return tool_use("tool_use", item.get("id"), function.get("name"), function.get("arguments"))


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


def error_type(value: dict[str, Json]) -> str | None:
    """Return what kind of error an object reports, or None where it reports none."""
    error = value.get("error")
    if error is None:
        return None
    return text_of(part(error).get("type")) or text_of(part(error).get("code")) or "error"


def _whole(value: dict[str, Json], found: Answer) -> None:
    wrong = error_type(value)
    if wrong is not None:
        found.fail(wrong)
        return
    found.outcome = "complete"
    _opened(value, found)
    for choice in _choices(value, found.flags):
        found.blocks = _blocks(part(choice.get("message")), found.flags)
        found.stop_reason = text_of(choice.get("finish_reason"))
    _account(value, found, final=True)


def _opened(value: dict[str, Json], found: Answer) -> None:
    found.message_id = text_of(value.get("id")) or found.message_id
    found.model = text_of(value.get("model")) or found.model


def _choices(value: dict[str, Json], flags: set[str]) -> list[dict[str, Json]]:
    """Return the first choice, if it is there."""
    found = list(items(value.get("choices"), flags))
    first = [choice for choice in found if (number(choice.get("index")) or 0) == 0][:1]
    if len(found) > len(first):
        flags.add("choices_ignored")
    return first


def _account(value: dict[str, Json], found: Answer, *, final: bool) -> None:
    raw = part(value.get("usage"))
    if raw:
        found.raw_usage = raw
        found.usage = tokens.openai(raw, found.flags, tier=text_of(value.get("service_tier")))
        found.usage_final = final


@dataclass(slots=True)
class _Call:
    """A tool call of a stream: the first id and name, and its arguments so far."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class _Stream:
    """The chunks of one answer, put together."""

    def __init__(self, found: Answer) -> None:
        self.found = found
        self.thoughts: list[str] = []
        self.texts: list[str] = []
        self.calls: dict[int, _Call] = {}
        self.last: dict[str, Json] = {}
        self.tier: Json = None

    def take(self, chunk: dict[str, Json]) -> None:
        found = self.found
        if chunk.get("type") == "[DONE]":
            self.finish()
            return
        wrong = error_type(chunk)
        if wrong is not None:
            found.fail(wrong)
            return
        _opened(chunk, found)
        self.tier = chunk.get("service_tier") or self.tier
        if part(chunk.get("usage")):
            self.last = part(chunk.get("usage"))
        for choice in _choices(chunk, found.flags):
            self._grow(part(choice.get("delta")))
            if reason := text_of(choice.get("finish_reason")):
                found.stop_reason = reason
                self.finish()

    def finish(self) -> None:
        if self.found.outcome != "failed":
            self.found.outcome = "complete"

    def _grow(self, delta: dict[str, Json]) -> None:
        self.thoughts.append(text_of(delta.get("reasoning_content")))
        self.texts.append(text_of(delta.get("content")))
        for place, item in enumerate(items(delta.get("tool_calls"), self.found.flags)):
            index = number(item.get("index"))
            call = self.calls.setdefault(place if index is None else index, _Call())
            function = part(item.get("function"))
            call.id = call.id or text_of(item.get("id"))
            call.name = call.name or text_of(function.get("name"))
            call.arguments.append(text_of(function.get("arguments")))

    def end(self) -> None:
        found = self.found
        if thought := "".join(self.thoughts):
            found.blocks.append(Block("thinking", thinking=thought))
        if text := "".join(self.texts):
            found.blocks.append(Block("text", text=text))
        for index in sorted(self.calls):
            call = self.calls[index]
            found.blocks.append(tool_use("tool_use", call.id, call.name, "".join(call.arguments)))
        _account({"usage": self.last, "service_tier": self.tier}, found, final=found.outcome == "complete")
