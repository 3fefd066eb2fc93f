"""Cut a streamed answer into frames: server-sent events, and JSON by lines. Pure.

Invariants:
    - Cutting is linear in the bytes, and never raises.
    - A frame that no blank line ended is still a frame; whether the stream is whole is for the provider to say.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from holdfast.sessions import jcs
from holdfast.sessions.errors import MalformedJson
from holdfast.sessions.jcs import Json

__all__ = ["Frame", "Kind", "kind", "objects", "sse"]

Kind: TypeAlias = Literal["sse", "ndjson", "json"]


class Frame(NamedTuple):
    """One server-sent event: its name, and its data lines joined."""

    event: str
    data: bytes


def kind(content_type: str, body: bytes) -> Kind:
    """Say how an answer is framed: by its content type, else by how it begins."""
    declared = content_type.partition(";")[0].strip().lower()
    if declared == "text/event-stream":
        return "sse"
    if declared in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return "ndjson"
    head = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"event:", b"data:", b"id:", b"retry:", b":")):
        return "sse"
    if declared == "application/json":
        return "json"
    first, _, rest = head.partition(b"\n")
    return "ndjson" if rest.lstrip().startswith(b"{") and first.rstrip().endswith(b"}") else "json"


def sse(body: bytes) -> list[Frame]:
    """Return the events of a server-sent stream that have data."""
    frames: list[Frame] = []
    event = ""
    data: list[bytes] = []
    for line in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if not line:
            if data:
                frames.append(Frame(event, b"\n".join(data)))
            event, data = "", []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = jcs.text(value)
    if data:
        frames.append(Frame(event, b"\n".join(data)))
    return frames


def objects(body: bytes, framing: Kind, flags: set[str]) -> list[dict[str, Json]]:
    """Return the JSON objects of a streamed answer; a frame that is none is skipped, and flagged.

    The event's name stands in for a `type` that the object lacks, and `[DONE]` is an object of that type.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    frames = sse(body) if framing == "sse" else [Frame("", line) for line in body.split(b"\n") if line.strip()]
    found: list[dict[str, Json]] = []
    for event, data in frames:
        if data.strip() == b"[DONE]":
            found.append({"type": "[DONE]"})
            continue
        try:
            value = jcs.read(data)
        except MalformedJson:
            flags.add("frame_malformed")
            continue
        if not isinstance(value, dict):
            flags.add("frame_malformed")
            continue
        if event and not isinstance(value.get("type"), str):
            value["type"] = event
        found.append(value)
    return found
