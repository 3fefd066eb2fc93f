"""The hash of a message, version 1: what of it counts, and how messages hang together. Pure.

A node is one message under its parent. Its hash is SHA-256 over the canonical JSON of parent, role and the projection
of its blocks: injected tags and white space are gone, empty inputs too, so that a message hashes alike whether it was
streamed, answered at once, or repeated as history by a client that tidied it. Model, usage, time and session are not
hashed.

Invariants:
    - Equal hashes mean equal projections under equal ancestors.
    - Projection is linear in the text, whatever the text.
    - A change of any rule is a new version; the old one stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast.sessions import jcs
from holdfast.sessions.errors import ChainBroken
from holdfast.sessions.jcs import Json
from holdfast.sessions.jcs import write as jcs_bytes
from holdfast.sessions.values import Block, Message

__all__ = [
    "HASH_VERSION",
    "Node",
    "answer_hash",
    "canonical",
    "chain",
    "check_chain",
    "jcs_bytes",
    "node_hash",
    "normalised",
    "project",
]

HASH_VERSION = 1
"""The version of the rules of this module."""

_TAGS = (
    "system-reminder", "command-name", "command-message", "command-args", "local-command-stdout",
    "local-command-stderr", "local-command-caveat", "session", "conversation", "new-diagnostics", "task-notification",
    "status", "summary", "transcript", "event", "tool-use-id", "output-file", "task-id", "environment_context",
)  # fmt: skip

# Not what str.strip() takes: that has U+001C to U+001F too.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

_LABELS = tuple(
    (name, f'"{name}":'.encode())
    for name in (
        "content", "image_base64", "image_url", "is_error", "media_type", "text", "thinking", "tool_input",
        "tool_name", "tool_output", "tool_result_id", "tool_use_id", "type",
    )
)  # fmt: skip
"""What is written of a block, in the order of canonical JSON."""

_PIECE_CHARS = 64 * 1024
"""Longer texts are worked on in pieces: there may be an image of many megabytes in one, and each step is a copy."""


@dataclass(frozen=True, slots=True)
class Node:
    """One message in its place: what it says, and the hash of everything up to it."""

    hash: str
    parent: str
    role: str
    blocks: tuple[Block, ...]


def chain(messages: Sequence[Message]) -> list[Node]:
    """Return the nodes of a conversation, from its root.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    nodes: list[Node] = []
    parent = ""
    for message in messages:
        own = node_hash(message.role, message.content, parent)
        nodes.append(Node(own, parent, message.role, tuple(message.content)))
        parent = own
    return nodes


def check_chain(nodes: Sequence[Node | None]) -> None:
    """Check that a chain is whole: a root, then each under the one before.

    Raises:
        ChainBroken: A node is missing, or hangs elsewhere.
    """
    parent = ""
    for index, node in enumerate(nodes):
        if node is None:
            raise ChainBroken(index, "the node is missing")
        if node.parent != parent:
            raise ChainBroken(index, "its parent is not the node before it" if index else "the first node has a parent")
        parent = node.hash


def node_hash(role: str, blocks: Sequence[Block], parent: str = "") -> str:
    """Return the hash of a message under its parent: 64 lower-case hex digits.

    Raises:
        NumberRange: A number in it has no binary64.
    """
    hashed = hashlib.sha256()
    for piece in _pieces(role, blocks, parent):
        hashed.update(piece)
    return hashed.hexdigest()


def answer_hash(message: Message) -> str:
    """Return the hash of an answer by itself, which is the same whatever was asked."""
    return node_hash(message.role, message.content)


def canonical(role: str, blocks: Sequence[Block], parent: str = "") -> bytes:
    """Return the bytes that are hashed.

    Raises:
        NumberRange: A number in them has no binary64.
    """
    return b"".join(_pieces(role, blocks, parent))


def _pieces(role: str, blocks: Sequence[Block], parent: str) -> Iterator[bytes]:
    """Go through the canonical bytes of a message, so that those of a large one are never all in memory."""
    yield b'{"content":{"content":['
    opening = b"{"
    for block in project(blocks):
        for name, label in _LABELS:
            value = getattr(block, name)
            if name != "type" and (value is None or value == "" or value == {} or value == []):
                continue
            yield opening + label
            opening = b","
            if not isinstance(value, str):
                yield jcs.write(value)
            elif len(value) <= _PIECE_CHARS:
                yield jcs.quoted(value)
            else:
                yield b'"'
                for start in range(0, len(value), _PIECE_CHARS):
                    yield jcs.quoted(value[start : start + _PIECE_CHARS])[1:-1]
                yield b'"'
        yield b"}"
        opening = b",{"
    yield b'],"role":' + jcs.quoted(role) + b',"type":"message"},"parent":' + jcs.quoted(parent) + b"}"


# --- projection ---------------------------------------------------------------------------------------


def project(blocks: Sequence[Block]) -> list[Block]:
    """Return what counts of blocks: copies without what is injected, empty, or for the eye only."""
    found: list[Block] = []
    for block in blocks:
        text = block.text
        if text:
            text = normalised(text)
            if not text:
                continue
        found.append(
            Block(
                type=block.type,
                text=text,
                image_url=block.image_url,
                image_base64=block.image_base64,
                media_type=block.media_type,
                tool_use_id=block.tool_use_id,
                tool_name=block.tool_name,
                tool_input=None if block.tool_input is None else _pruned(block.tool_input),
                tool_result_id=block.tool_result_id,
                tool_output=normalised(block.tool_output) if block.tool_output else block.tool_output,
                thinking=block.thinking,
                content=block.content,
                is_error=block.is_error,
            )
        )
    return found


def normalised(text: str) -> str:
    """Return a text without injected tags and without white space that says nothing."""
    if "<" in text:
        for tag in _TAGS:
            text = _without(text, f"<{tag}>", f"</{tag}>")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    if "\n" in text:
        text = "\n".join(_bare(text))
    return text.strip(_SPACE)


def _bare(text: str) -> Iterator[str]:
    """Go through the lines of a text, many at a time, without empty ones and without blanks at their ends."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE_CHARS)
        end = len(text) if end < 0 else end
        lines = "\n".join(bare for line in text[start:end].split("\n") if (bare := line.rstrip(" \t")))
        if lines:
            yield lines
        start = end + 1


def _without(text: str, opening: str, closing: str) -> str:
    """Remove a tag with what it holds, again from the start until none is left, in one pass.

    What is kept so far holds no whole opening tag. A removal can only make one where two kept pieces meet, so it is
    enough to look there: at the last characters kept and the first of what follows.
    """
    start = text.find(opening)
    if start < 0:
        return text
    size = len(opening)
    kept = [[0, start]] if start else []  # ranges of the text, none of them empty
    while True:
        end = text.find(closing, start + size)
        if end < 0:
            break
        at = end + len(closing)
        while True:
            tail = _tail(text, kept, size - 1)
            meets = (tail + text[at : at + size - 1]).find(opening)
            if meets < 0:
                break
            # The opening begins among what was kept, and ends behind the joint.
            _cut(kept, len(tail) - meets)
            end = text.find(closing, at + size - (len(tail) - meets))
            if end < 0:
                return "".join(text[a:b] for a, b in kept)
            at = end + len(closing)
        start = text.find(opening, at)
        last = start if start >= 0 else len(text)
        if last > at:
            kept.append([at, last])
        if start < 0:
            break
    return "".join(text[a:b] for a, b in kept)


def _tail(text: str, kept: Sequence[Sequence[int]], count: int) -> str:
    """Return the last characters of what is kept."""
    tail = ""
    for first, last in reversed(kept):
        tail = text[max(first, last - (count - len(tail))) : last] + tail
        if len(tail) == count:
            break
    return tail


def _cut(kept: list[list[int]], count: int) -> None:
    """Take characters from the end of what is kept."""
    while count:
        first, last = kept[-1]
        taken = min(count, last - first)
        kept[-1][1] = last - taken
        count -= taken
        if kept[-1][1] == first:
            kept.pop()


def _pruned(value: Mapping[str, Json]) -> dict[str, Json]:
    """Return an object without members that say nothing, at every depth but inside of lists."""
    # Children come before their parents in `order` reversed, so an object that becomes empty is seen as empty.
    order: list[tuple[dict[str, Json], str, dict[str, Json]]] = []
    root = dict(value)
    unseen = [root]
    while unseen:
        holder = unseen.pop()
        for name, inner in holder.items():
            if isinstance(inner, dict):
                copy = dict(inner)
                holder[name] = copy
                order.append((holder, name, copy))
                unseen.append(copy)
        for name in [name for name, inner in holder.items() if _says_nothing(inner)]:
            del holder[name]
    for holder, name, copy in reversed(order):
        if not copy:
            holder.pop(name, None)
    return root


def _says_nothing(value: Json) -> bool:
    # An empty object is left to the pass that knows what became of its members.
    return value is None or value is False or value == "" or value == [] or (_is_number(value) and value == 0)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
