"""Find where the parts of a JSON text lie, so that one can be changed and the others keep their bytes.

The grammar is JSON's own; where a harness allows comments, they are space. What is read is never printed again: a
caller cuts and inserts text between positions.

Invariants:
    - What does not follow the grammar is refused, with its line and column.
    - The space around the parts of a container, its gaps, holds no byte of any part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, NoReturn

from holdfast.lifecycle.errors import SettingsUnreadable

__all__ = ["Item", "Part", "comma", "commented", "gap_before", "parse", "value"]

DEPTH_MAX = 64
"""How deep containers may lie in each other, as in any document."""

BOM = "\ufeff"
_SPACE = re.compile(r"[ \t\r\n]*")
_SPACE_AND_COMMENTS = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_SCALAR = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)(?![\w.+-])")


class Part(NamedTuple):
    """A value in the text.

    Attributes:
        kind: What it is.
        start: Where it begins.
        end: Where it has ended.
        items: What it contains, in order.
    """

    kind: Literal["object", "array", "scalar"]
    start: int
    end: int
    items: tuple[Item, ...] = ()


class Item(NamedTuple):
    """A member of an object, or an element of an array.

    Attributes:
        key: A member's name; None of an element.
        start: Where it begins: at its name, if it has one.
        value: Its value.
    """

    key: str | None
    start: int
    value: Part

    @property
    def end(self) -> int:
        """Where it has ended."""
        return self.value.end


class _Reader:
    """Reads one text."""

    def __init__(self, text: str, *, comments: bool) -> None:
        self.text = text
        self.space = _SPACE_AND_COMMENTS if comments else _SPACE

    def document(self) -> Part:
        start = self.skip(1 if self.text.startswith(BOM) else 0)
        root = self.part(start, 1)
        if (rest := self.skip(root.end)) < len(self.text):
            self.refuse(rest, "something follows the end")
        return root

    def skip(self, at: int) -> int:
        found = self.space.match(self.text, at)
        assert found is not None
        return found.end()

    def part(self, at: int, depth: int) -> Part:
        opening = self.text[at : at + 1]
        if opening in ("{", "["):
            if depth > DEPTH_MAX:
                self.refuse(at, f"containers lie more than {DEPTH_MAX} deep")
            return self.container(at, depth, "}" if opening == "{" else "]")
        found = (_STRING if opening == '"' else _SCALAR).match(self.text, at)
        if found is None:
            self.refuse(at, "a value should be here")
        return Part("scalar", at, found.end())

    def container(self, start: int, depth: int, closing: str) -> Part:
        items: list[Item] = []
        at = self.skip(start + 1)
        while self.text[at : at + 1] != closing:
            if items:
                if self.text[at : at + 1] != ",":
                    self.refuse(at, f"`,` or `{closing}` should be here")
                at = self.skip(at + 1)
            items.append(self.member(at, depth) if closing == "}" else Item(None, at, self.part(at, depth + 1)))
            at = self.skip(items[-1].end)
        return Part("object" if closing == "}" else "array", start, at + 1, tuple(items))

    def member(self, start: int, depth: int) -> Item:
        found = _STRING.match(self.text, start)
        if found is None:
            self.refuse(start, "a name in quotes should be here")
        at = self.skip(found.end())
        if self.text[at : at + 1] != ":":
            self.refuse(at, "`:` should be here")
        return Item(json.loads(found.group()), start, self.part(self.skip(at + 1), depth + 1))

    def refuse(self, at: int, why: str) -> NoReturn:
        line = self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at)
        raise SettingsUnreadable(f"line {line}, column {column}: {why}", "correct the file; it was not touched")


def parse(text: str, *, comments: bool) -> Part:
    """Find the parts of a text.

    Args:
        text: One JSON value, perhaps after a byte order mark.
        comments: Whether `//` and `/* */` are allowed.

    Raises:
        SettingsUnreadable: It is something else, or deeper than `DEPTH_MAX`.
    """
    return _Reader(text, comments=comments).document()


def value(text: str, part: Part) -> Any:
    """Return what a part says, as Python has it; of members with one name the last."""
    if part.kind == "scalar":
        return json.loads(text[part.start : part.end])
    if part.kind == "array":
        return [value(text, item.value) for item in part.items]
    return {item.key: value(text, item.value) for item in part.items}


def gap_before(text: str, container: Part) -> str:
    """Return what lies between a container's bracket and its first item."""
    return text[container.start + 1 : container.items[0].start]


def comma(text: str, item: Item) -> int:
    """Return where the comma after an item is that another one follows."""
    found = _SPACE_AND_COMMENTS.match(text, item.end)
    assert found is not None
    return found.end()


def commented(text: str, container: Part) -> bool:
    """Tell whether there are comments among the items of a container."""
    return any("/" in gap for gap in _gaps(text, container))


def _gaps(text: str, container: Part) -> Iterator[str]:
    at = container.start + 1
    for item in container.items:
        yield text[at : item.start]
        if item.key is not None:
            named = _STRING.match(text, item.start)
            assert named is not None
            yield text[named.end() : item.value.start]
        at = item.end
    yield text[at : container.end - 1]
