"""How Ollama says it: chat and generate, at once or line by line. Pure.

Invariants:
    - An answer is whole when a line says `done`; only that line counts tokens.
"""

from __future__ import annotations

from holdfast.sessions import frames, tokens
from holdfast.sessions.jcs import Json
from holdfast.sessions.providers.answers import Answer
from holdfast.sessions.providers.reading import items, number, part, text_of, tool_use
from holdfast.sessions.values import Block, Message

__all__ = ["answer", "messages", "offers_tools", "output_max", "system"]

_COUNTS = (
    "prompt_eval_count", "eval_count", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration",
)  # fmt: skip


def messages(request: dict[str, Json], flags: set[str]) -> list[Message]:
    """Return the messages of a request, or of a prompt the one."""
    if "messages" not in request and isinstance(request.get("prompt"), str):
        said = {"content": request["prompt"], "images": request.get("images")}
        return [Message("user", tuple(_blocks(said, flags)))]
    return [
        Message(text_of(each.get("role")), tuple(_blocks(each, flags)))
        for each in items(request.get("messages"), flags)
    ]


def system(request: dict[str, Json]) -> str:
    """Return the text of the system prompt, or of the system messages."""
    said = [
        text_of(each.get("content")) for each in items(request.get("messages"), set()) if each.get("role") == "system"
    ]
    return "\n".join([text_of(request.get("system")), *said]).strip("\n")


def offers_tools(request: dict[str, Json]) -> bool:
    """Say whether the model may call tools."""
    return bool(request.get("tools"))


def output_max(request: dict[str, Json]) -> int | None:
    """Return how many tokens the answer may have."""
    return number(part(request.get("options")).get("num_predict"))


def _blocks(message: dict[str, Json], flags: set[str]) -> list[Block]:
    blocks: list[Block] = []
    if thought := text_of(message.get("thinking")):
        blocks.append(Block("thinking", thinking=thought))
    if text := text_of(message.get("content")):
        blocks.append(Block("text", text=text))
    images = message.get("images")
    if isinstance(images, list):
        blocks += [Block("image", image_base64=text_of(image) or None) for image in images]
    for call in items(message.get("tool_calls"), flags):
        function = part(call.get("function"))
        blocks.append(tool_use("tool_use", call.get("id"), function.get("name"), function.get("arguments")))
    return blocks


def answer(body: bytes, content_type: str, flags: set[str]) -> Answer:
    """Read an answer: one object, or one to a line.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    framing = frames.kind(content_type, body)
    found = Answer(flags)
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[Json] = []
    for line in frames.objects(body, framing, flags):
        if line.get("error") is not None:
            found.fail("error")
            continue
        found.model = text_of(line.get("model")) or found.model
        message = part(line.get("message"))
        thoughts.append(text_of(message.get("thinking")) or text_of(line.get("thinking")))
        texts.append(text_of(message.get("content")) or text_of(line.get("response")))
        calls += items(message.get("tool_calls"), flags)
        if line.get("done") is True:
            _finished(line, found)
    said = {"thinking": "".join(thoughts), "content": "".join(texts), "tool_calls": calls}
    found.blocks = _blocks(said, flags)
    return found


def _finished(line: dict[str, Json], found: Answer) -> None:
    if found.outcome != "failed":
        found.outcome = "complete"
    found.stop_reason = text_of(line.get("done_reason")) or "stop"
    raw = {name: line[name] for name in _COUNTS if name in line}
    if raw:
        found.raw_usage = raw
        found.usage = tokens.ollama(raw, found.flags)
        found.usage_final = True
