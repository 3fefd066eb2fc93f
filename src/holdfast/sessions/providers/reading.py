"""What the readers of all providers share: looking into JSON of which nothing is certain. Pure.

Invariants:
    - Whatever a member holds, looking at it does not raise; what is not of the expected type is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.sessions import jcs
from holdfast.sessions.errors import MalformedJson, NumberRange
from holdfast.sessions.jcs import Json
from holdfast.sessions.values import Block, Facts

__all__ = [
    "arguments", "items", "joined", "number", "part", "read_object", "request_of", "text_of", "tool_use", "unparsed",
]  # fmt: skip


def text_of(value: Json) -> str:
    """Return a text, or an empty one where there is none."""
    return value if isinstance(value, str) else ""


def part(value: Json) -> dict[str, Json]:
    """Return an object, or an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def items(value: Json, flags: set[str]) -> Iterable[dict[str, Json]]:
    """Return the objects of a list; what is no object is skipped and flagged."""
    if not isinstance(value, list):
        if value is not None:
            flags.add("content_invalid")
        return []
    found = [each for each in value if isinstance(each, dict)]
    if len(found) != len(value):
        flags.add("content_invalid")
    return found


def number(value: Json) -> int | None:
    """Return an integer, or None where there is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def joined(value: Json) -> str:
    """Return a text, or the texts of a list's parts joined by LF."""
    if isinstance(value, list):
        return "\n".join(text for each in value if isinstance(each, dict) and isinstance(text := each.get("text"), str))
    return text_of(value)


def arguments(raw: str) -> tuple[dict[str, Json] | None, str | None]:
    """Read the arguments of a tool call: an object, or the text that is none. Nothing, and `{}`, is neither.

    Raises:
        NumberRange: A number in them has no binary64.
    """
    if not raw.strip():
        return None, None
    try:
        value = jcs.read(raw.encode("utf-8", "surrogatepass"))
    except MalformedJson:
        return None, raw
    return (value or None, None) if isinstance(value, dict) else (None, raw)


def tool_use(type_: str, id_: Json, name: Json, given: Json) -> Block:
    """Return the block of a tool call whose arguments are an object, or its JSON text."""
    if isinstance(given, str):
        read, raw = arguments(given)
    elif isinstance(given, dict):
        read, raw = given or None, None
    else:
        read, raw = None, None if given is None else jcs.write(given).decode()
    return Block(
        type_, tool_use_id=text_of(id_) or None, tool_name=text_of(name) or None, tool_input=read, tool_input_raw=raw
    )


def read_object(data: bytes) -> dict[str, Json] | None:
    """Return the JSON object of a body, or None where it is none.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    try:
        value = jcs.read(data)
    except MalformedJson:
        return None
    return value if isinstance(value, dict) else None


def request_of(provider: str, endpoint: str, data: bytes) -> dict[str, Json] | Facts:
    """Return a request's object, or the facts of a call whose request cannot be read."""
    try:
        value = read_object(data)
    except NumberRange:
        return unparsed(provider, endpoint, "number_range")
    return unparsed(provider, endpoint, "request_unreadable") if value is None else value


def unparsed(provider: str, endpoint: str, reason: str) -> Facts:
    """Return the facts of a call of which no turn can be made."""
    return Facts(provider=provider, endpoint=endpoint, unparsed=reason)


def params(request: Mapping[str, Json], *messages: str) -> dict[str, Any]:
    """Return a request without its messages."""
    return {name: value for name, value in request.items() if name not in messages}
