"""Put our hooks into a harness's settings, and take them out again, without touching anything else.

Settings belong to the user. They are edited as text: what is inserted goes right behind the last item of a container,
or right behind the bracket of an empty one, so every byte that was there stays, in its place.

Nothing beside the text says what we made, so the text does. A container that we made has space behind its opening
bracket; one that was empty before has none, because our first item follows the bracket at once. That is how taking out
knows which containers go too. (Where somebody has taken all space out since, they all go.)

Invariants:
    - `unmerge(merge(text)) == text`, and `merge(merge(text)) == merge(text)`.
    - A handler is ours if it is a command whose words are a program named `holdfast`, or `python -m holdfast`, then
      `hook` and the harness. Everything else is the user's, and is neither changed nor removed.
    - What cannot be read, has the member `hooks` twice, or in a type that it cannot have, is refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from holdfast.lifecycle.errors import SettingsUnreadable
from holdfast.lifecycle.manifest import ALIASES
from holdfast.lifecycle.spans import Item, Part, comma, commented, gap_before, parse, value

__all__ = ["HOOKS", "Hook", "HookState", "Inspected", "inspect", "merge", "unmerge"]


class Hook(NamedTuple):
    """A hook that we install.

    Attributes:
        name: The harness's name for it.
        timeout: How long the harness waits for us, in the harness's own unit.
    """

    name: str
    timeout: int


def _hooks(names: str, timeout: int, **own: int) -> tuple[Hook, ...]:
    return tuple(Hook(name, own.get(name, timeout)) for name in names.split())


HOOKS: Mapping[str, tuple[Hook, ...]] = {
    "claude": _hooks(
        "SessionStart UserPromptSubmit PreCompact PostCompact Stop StopFailure SubagentStart SubagentStop SessionEnd",
        10,
        SessionEnd=5,
    ),
    "codex": _hooks(
        "SessionStart UserPromptSubmit PreCompact PostCompact Stop SubagentStart SubagentStop StopFailure Interrupt "
        "SessionEnd",
        10,
        SessionEnd=3,
    ),
    "gemini": _hooks("SessionStart BeforeAgent AfterAgent PreCompress SessionEnd", 10_000),
}
"""The hooks that yield events, of each harness whose settings are edited; Gemini's timeouts are milliseconds."""

_COMMENTS = frozenset({"gemini"})
"""Harnesses that allow comments in their settings."""

HookState: TypeAlias = Literal["present", "missing", "drifted", "disabled"]
"""What became of a hook: as installed; not there; there, but not as we would install it; there, but switched off."""


class Inspected(NamedTuple):
    """A hook, and what became of it.

    Attributes:
        hook: The harness's name for it.
        state: What became of it.
    """

    hook: str
    state: HookState


class _Edit(NamedTuple):
    """A span of the text, and what comes in its place."""

    start: int
    end: int
    text: str = ""


class _Ours(NamedTuple):
    """A handler of ours: under which hook, in what group."""

    hook: str
    part: Part
    everywhere: bool
    """Its group has no matcher that keeps it from being called."""


def merge(text: str, harness: str, command: str) -> str:
    """Return settings with every hook of a harness installed.

    Args:
        text: The settings; empty if there are none yet.
        harness: Whose they are: a key of `HOOKS`.
        command: The program and its first arguments, quoted for a shell: `/usr/bin/holdfast`.

    Raises:
        SettingsUnreadable: They cannot be understood.
    """
    text = _without(text, harness, _stale(text, harness)) if text else text
    if not text:
        handlers = {hook.name: [_group(harness, hook, command)] for hook in HOOKS[harness]}
        return _rendered({"hooks": handlers}, _Style("\n", "  ", "")) + "\n"
    root = _document(text, harness)
    hooks = _member(root, "hooks")
    found = {ours.hook: ours for ours in _ours(text, root, harness)}
    edits = []
    missing: dict[str, Any] = {}
    for hook in HOOKS[harness]:
        wanted = _handler(harness, hook, command)
        array = None if hooks is None else _member(hooks.value, hook.name)
        if hook.name in found:
            part = found[hook.name].part
            if value(text, part) != wanted:
                edits.append(_Edit(part.start, part.end, _rendered(wanted, _style_at(text, root, part.start))))
        elif array is None:
            missing[hook.name] = [_group(harness, hook, command)]
        else:
            edits.append(_insertion(text, root, array.value, [_group(harness, hook, command)]))
    if missing:
        container, added = (root, {"hooks": missing}) if hooks is None else (hooks.value, missing)
        edits.append(_insertion(text, root, container, added))
    return _edited(text, edits)


def unmerge(text: str, harness: str) -> str:
    """Return settings without any handler of ours; empty if there was nothing else.

    Raises:
        SettingsUnreadable: They cannot be understood.
    """
    if not text:
        return text
    ours = _ours(text, _document(text, harness), harness)
    return _without(text, harness, {each.part.start for each in ours})


def inspect(text: str, harness: str, command: str) -> tuple[Inspected, ...]:
    """Tell what became of every hook of a harness.

    Args:
        text: The settings; empty if there are none.
        harness: Whose they are: a key of `HOOKS`.
        command: What `merge` would be given.

    Raises:
        SettingsUnreadable: They cannot be understood.
    """
    if not text:
        return tuple(Inspected(hook.name, "missing") for hook in HOOKS[harness])
    root = _document(text, harness)
    found: dict[str, list[_Ours]] = {}
    for ours in _ours(text, root, harness):
        found.setdefault(ours.hook, []).append(ours)
    off = _switched_off(text, root, harness)
    states = []
    for hook in HOOKS[harness]:
        state: HookState
        match found.get(hook.name, []):
            case []:
                state = "missing"
            case [ours] if ours.everywhere and value(text, ours.part) == _handler(harness, hook, command):
                state = "disabled" if off else "present"
            case _:
                state = "drifted"
        states.append(Inspected(hook.name, state))
    return tuple(states)


# --- what is there ------------------------------------------------------------------------------------


def _document(text: str, harness: str) -> Part:
    """Read settings, as far as our hooks depend on them."""
    root = parse(text, comments=harness in _COMMENTS)
    if root.kind != "object":
        raise SettingsUnreadable("the settings are no JSON object", "correct the file; it was not touched")
    hooks = _member(root, "hooks")
    if hooks is not None:
        if hooks.value.kind != "object":
            raise SettingsUnreadable("`hooks` is no object", "correct the file; it was not touched")
        for hook in HOOKS[harness]:
            array = _member(hooks.value, hook.name)
            if array is not None and array.value.kind != "array":
                raise SettingsUnreadable(f"`hooks.{hook.name}` is no array", "correct the file; it was not touched")
    return root


def _member(container: Part, name: str) -> Item | None:
    found = [item for item in container.items if item.key == name]
    if len(found) > 1:
        raise SettingsUnreadable(f"`{name}` is there {len(found)} times", "keep one of them; the file was not touched")
    return found[0] if found else None


def _groups(root: Part) -> Iterator[tuple[Item, Part]]:
    """The groups of handlers under each hook."""
    hooks = _member(root, "hooks")
    for item in () if hooks is None else hooks.value.items:
        if item.value.kind == "array":
            yield from ((item, group.value) for group in item.value.items if group.value.kind == "object")


def _lists(group: Part) -> list[Part]:
    return [item.value for item in group.items if item.key == "hooks" and item.value.kind == "array"]


def _ours(text: str, root: Part, harness: str) -> list[_Ours]:
    """Our handlers, in the order of the text."""
    return [
        _Ours(hook.key or "", handler.value, everywhere=_everywhere(text, group))
        for hook, group in _groups(root)
        for handlers in _lists(group)
        for handler in handlers.items
        if _is_ours(value(text, handler.value), harness)
    ]


def _is_ours(handler: Any, harness: str) -> bool:
    if not isinstance(handler, dict) or handler.get("type") != "command":
        return False
    command = handler.get("command")
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return False
    if not words:
        return False
    program = words[0].rpartition("/")[2]
    if re.fullmatch(r"python[0-9.]*", program) and words[1:3] == ["-m", "holdfast"]:
        rest = words[3:5]
    elif program == "holdfast":
        rest = words[1:3]
    else:
        return False
    return len(rest) == 2 and rest[0] == "hook" and ALIASES.get(rest[1], rest[1]) == harness


def _everywhere(text: str, group: Part) -> bool:
    said = value(text, group)
    return said.get("matcher", "") in ("", "*")


def _stale(text: str, harness: str) -> set[int]:
    """Where handlers of ours begin that cannot be mended in place: a second one of a hook, or one that is matched."""
    kept: set[str] = set()
    stale = set()
    installed = {hook.name for hook in HOOKS[harness]}
    for ours in _ours(text, _document(text, harness), harness):
        if ours.hook not in installed:
            continue
        if ours.hook in kept or not ours.everywhere:
            stale.add(ours.part.start)
        else:
            kept.add(ours.hook)
    return stale


def _switched_off(text: str, root: Part, harness: str) -> bool:
    said = value(text, root)
    if harness != "gemini":
        return said.get("disableAllHooks") is True
    for settings in (said.get("hooksConfig"), said.get("hooks")):  # the second is where older builds have it
        if isinstance(settings, dict):
            names = settings.get("disabled")
            if settings.get("enabled") is False or (isinstance(names, list) and "holdfast" in names):
                return True
    return False


def _handler(harness: str, hook: Hook, command: str) -> dict[str, Any]:
    named = {"name": "holdfast"} if harness == "gemini" else {}
    return {
        "type": "command",
        "command": f"{command} hook {harness} --event {hook.name}",
        **named,
        "timeout": hook.timeout,
    }


def _group(harness: str, hook: Hook, command: str) -> dict[str, Any]:
    return {"hooks": [_handler(harness, hook, command)]}


# --- putting in ---------------------------------------------------------------------------------------


class _Style(NamedTuple):
    """How text is laid out at some place.

    Attributes:
        newline: What ends a line; empty: everything stays on one line.
        unit: What a deeper line begins with, in addition.
        indent: What a line begins with.
    """

    newline: str
    unit: str
    indent: str


def _insertion(text: str, root: Part, container: Part, added: dict[str, Any] | list[Any]) -> _Edit:
    """Add items to a container that exists, behind what it has."""
    style = _style_in(text, root, container)
    between = "," + (style.newline + style.indent if style.newline else " ")
    added_text = between.join(_items(added, style))
    at = container.items[-1].end if container.items else container.start + 1
    return _Edit(at, at, between + added_text if container.items else added_text)


def _rendered(what: Any, style: _Style) -> str:
    """Write a value whose last line is laid out in a style. A container has space inside its brackets."""
    if not isinstance(what, dict | list):
        return json.dumps(what, ensure_ascii=False)
    inner = style._replace(indent=style.indent + style.unit)
    before, after = (style.newline + inner.indent, style.newline + style.indent) if style.newline else (" ", " ")
    opening, closing = "{}" if isinstance(what, dict) else "[]"
    return opening + before + f",{before}".join(_items(what, inner)) + after + closing


def _items(what: dict[str, Any] | list[Any], style: _Style) -> list[str]:
    """Write the items of a container, each laid out in a style."""
    if isinstance(what, list):
        return [_rendered(each, style) for each in what]
    return [f"{json.dumps(key)}: {_rendered(each, style)}" for key, each in what.items()]


def _style_in(text: str, root: Part, container: Part) -> _Style:
    """How the items of a container are laid out."""
    style = _style_of(text, root)
    if not container.items:
        return style._replace(indent=_line_indent(text, container.start) + style.unit)
    begun = container.items[-2].end if len(container.items) > 1 else container.start + 1
    if "\n" not in text[begun : container.items[-1].start]:
        return style._replace(newline="")
    return style._replace(indent=_line_indent(text, container.items[-1].start))


def _style_at(text: str, root: Part, at: int) -> _Style:
    """How a part is laid out that begins at a place."""
    begun = text[text.rfind("\n", 0, at) + 1 : at]
    style = _style_of(text, root)
    return style._replace(newline="") if begun.strip(" \t") else style._replace(indent=begun)


def _style_of(text: str, root: Part) -> _Style:
    """How a whole text is laid out."""
    if root.items and "\n" not in text[root.start : root.end]:
        return _Style("", "", "")
    gap = gap_before(text, root) if root.items else ""
    line = gap.rpartition("\n")[2]
    indented = "\n" in gap and line and not line.strip(" \t")
    return _Style("\r\n" if "\r\n" in text else "\n", line if indented else "  ", "")


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


# --- taking out ---------------------------------------------------------------------------------------


def _without(text: str, harness: str, doomed: set[int]) -> str:
    """Take out the handlers that begin at these places, and the containers that we made for them."""
    root = _document(text, harness)
    hooks = _member(root, "hooks")
    if hooks is None or not doomed:
        return text
    edits: list[_Edit] = []
    empty = set()
    for number, item in enumerate(hooks.value.items):
        gone = set()
        for place, group in enumerate(item.value.items if item.value.kind == "array" else ()):
            cut, whole = _handlers_cut(text, group.value, doomed)
            edits += cut
            if whole:
                gone.add(place)
        if gone and len(gone) == len(item.value.items) and _made_by_us(text, item.value, doomed):
            empty.add(number)
        elif gone:
            edits += _cut(text, item.value, gone)
    if len(empty) == len(hooks.value.items) and _made_by_us(text, hooks.value, doomed):
        alone = len(root.items) == 1 and not text[: root.start] + text[root.end :].strip()
        if alone and _made_by_us(text, root, doomed):
            return ""
        edits += _cut(text, root, {root.items.index(hooks)})
    elif empty:
        edits += _cut(text, hooks.value, empty)
    return _edited(text, edits)


def _handlers_cut(text: str, group: Part, doomed: set[int]) -> tuple[list[_Edit], bool]:
    """Take handlers out of a group; tell whether it goes as a whole, being made for them."""
    edits: list[_Edit] = []
    for handlers in _lists(group):
        gone = {number for number, item in enumerate(handlers.items) if item.start in doomed}
        bare = len(group.items) == 1 and not commented(text, group) and not commented(text, handlers)
        if gone and len(gone) == len(handlers.items) and bare:
            return [], True
        edits += _cut(text, handlers, gone)
    return edits, False


def _made_by_us(text: str, container: Part, doomed: set[int]) -> bool:
    """Tell whether we made a container, all of whose items go."""
    if commented(text, container):
        return False
    first = min(at for at in doomed if container.start < at)
    return bool(gap_before(text, container)) or not text[first + 1].isspace()


def _cut(text: str, container: Part, gone: set[int]) -> Iterable[_Edit]:
    """Take items out of a container, with one comma each. Comments among them stay."""
    if not gone:
        return
    items = container.items
    kept = [number for number in range(len(items)) if number not in gone]
    head = kept[0] if kept else len(items)
    starts = [container.start + 1, *(item.end for item in items)]
    loud = {number for number in gone if "/" in text[starts[number] : items[number].start]}
    last = starts[head]
    behind = comma(text, items[head - 1]) + 1 if head and kept else last
    if head and "/" not in text[last:behind] and not any(number in loud for number in range(head)):
        yield _Edit(starts[0], behind)
        gone = {number for number in gone if number > head}
    for number in sorted(gone):
        if number > head and number not in loud:
            yield _Edit(starts[number], items[number].end)
            continue
        yield _Edit(items[number].start, items[number].end)
        before = number if number < head else number - 1
        if before + 1 < len(items):
            at = comma(text, items[before])
            yield _Edit(at, at + 1)


def _edited(text: str, edits: Iterable[_Edit]) -> str:
    parts = []
    at = 0
    for edit in sorted(edits):
        parts += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, text[at:]])
