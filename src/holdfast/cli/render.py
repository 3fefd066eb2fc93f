"""Show answers: aligned tables and short lines for people, JSON for programs.

Standard output carries the answer and nothing else; warnings, hints and errors go to standard error.

Invariants:
    - Text that came from a ledger, or from a user, cannot steer the terminal: what does not print is escaped.
    - JSON has the field names of the records, RFC 3339 instants in UTC, ISO 8601 durations and lower-case hex.
    - Nothing is cut off when the output is not a terminal.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any

from holdfast.core.plain import payload, plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Column",
    "age",
    "clean",
    "complain",
    "duration",
    "facts",
    "instant",
    "json_text",
    "line",
    "payload",
    "plain",
    "print_json",
    "size",
    "status",
    "table",
    "warn",
]

_STATUS_STYLES = {
    "completed": "green",
    "running": "cyan",
    "pending": "blue",
    "waiting": "yellow",
    "needs_decision": "bold magenta",
    "failed": "red",
    "aborted": "red",
    "canceled": "dim",
}
_UNLIMITED_COLUMNS = 100_000
"""Width when nobody's screen limits it: no row of ours is that long."""

Cell = str | tuple[str, str]
"""A text, or a text and its style."""


# --- texts --------------------------------------------------------------------------------------------


def clean(text: object) -> str:
    """Return a text that shows as it is: control characters and the like become escapes."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def instant(at: datetime | None) -> str:
    """Return an instant, to the second, in UTC."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def duration(span: timedelta | None) -> str:
    """Return a duration in the two units that matter."""
    if span is None:
        return ""
    if span < timedelta(0):
        return "-" + duration(-span)
    seconds = span.total_seconds()
    if seconds < 1:
        millis = seconds * 1000
        return f"{millis:.1f} ms" if millis < 10 else f"{millis:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} m"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02} h"


def age(span: timedelta) -> str:
    """Return how long ago something was, in the one unit that matters."""
    seconds = max(0, int(span.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(count: int | None) -> str:
    """Return a number of bytes in a unit that keeps it short."""
    if count is None:
        return ""
    if count < 1024:
        return f"{count} B"
    value = count / 1024
    for unit in ("KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count} {noun if count == 1 else noun + 's'}"


def status(name: str, detail: str = "") -> Cell:
    """Return a status, with what it is waiting on or ended for, in its colour."""
    return f"{name} ({detail})" if detail else name, _STATUS_STYLES.get(name, "")


# --- JSON ---------------------------------------------------------------------------------------------


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return JSON that shows as it is: what does not print is escaped, in JSON's own way."""
    import json

    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def print_json(value: object) -> None:
    """Print one JSON document, indented when somebody looks at it."""
    _write(sys.stdout, json_text(plain(value), indent=2 if sys.stdout.isatty() else None))


# --- for people ---------------------------------------------------------------------------------------


def line(text: str, style: str = "") -> None:
    """Print one line of an answer."""
    if sys.stdout.isatty():
        from rich.text import Text

        _console().print(Text(clean(text), style=style), soft_wrap=True)
    else:
        _write(sys.stdout, clean(text))


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        right: Whether its cells are numbers, to be aligned to the right.
        keep: Whether its cells are names, never to be broken into lines while others can.
        minor: Whether its cells may go to a line of their own, below the row, where the screen is too narrow.
    """

    title: str
    right: bool = False
    keep: bool = False
    minor: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table; columns without any content are left out."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [
        [(clean(cell), "") if isinstance(cell, str) else (clean(cell[0]), cell[1]) for cell in row] for row in rows
    ]
    used = [number for number in range(len(columns)) if any(row[number][0] for row in cells)]
    widths = {number: max(cell_len(text) for text in _texts(columns, cells, number)) for number in used}
    console = _console()
    too_wide = sum(widths.values()) + 2 * (len(used) - 1) > console.width
    if console.is_terminal and too_wide and any(columns[number].minor for number in used):
        _print_in_two(columns, cells, widths)
        return
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in (columns[number] for number in used):
        shown.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=column.keep, overflow="fold"
        )
    for row in cells:
        shown.add_row(*(Text(text, style=style) for text, style in (row[number] for number in used)))
    _print_aligned(shown)


def _texts(columns: Sequence[Column], cells: Sequence[Sequence[tuple[str, str]]], number: int) -> Iterable[str]:
    return [columns[number].title, *(row[number][0] for row in cells)]


def _print_in_two(
    columns: Sequence[Column], cells: Sequence[Sequence[tuple[str, str]]], widths: Mapping[int, int]
) -> None:
    """Print a table on a narrow screen: under each row a line with what is minor."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    console = _console()
    major = [number for number in widths if not columns[number].minor]
    minor = [number for number in widths if columns[number].minor]

    def aligned(number: int, text: str, style: str) -> Text:
        room = widths[number]
        right = columns[number].right
        return Text(" " * (room - cell_len(text)) + text if right else set_cell_size(text, room), style=style)

    heading = Text("  ").join(aligned(number, columns[number].title, "bold") for number in major)
    console.print(heading, soft_wrap=True)
    for row in cells:
        console.print(Text("  ").join(aligned(number, *row[number]) for number in major), soft_wrap=True)
        rest = "  ".join(row[number][0] for number in minor if row[number][0])
        console.print(Text(f"    {rest}", style="dim"), soft_wrap=True)


def facts(pairs: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values, one pair a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, cell in pairs:
        text, style = (cell, "") if isinstance(cell, str) else cell
        if text:
            shown.add_row(name, Text(clean(text), style=style))
    _print_aligned(shown)


def complain(message: str, hint: str = "") -> None:
    """Say on standard error what went wrong, and what to do."""
    _tell("error", message, "31;1")
    if hint:
        _tell("hint", hint, "36")


def warn(message: str, label: str = "warning") -> None:
    """Say on standard error what somebody should know."""
    _tell(label, message, "33")


def _tell(label: str, message: str, colour: str) -> None:
    head = f"\x1b[{colour}m{label}:\x1b[0m" if sys.stderr.isatty() and not _colourless() else f"{label}:"
    for number, text in enumerate(message.splitlines() or [""]):
        _write(sys.stderr, f"{head} {clean(text)}" if number == 0 else f"  {clean(text)}")


def _colourless() -> bool:
    import os

    return bool(os.environ.get("NO_COLOR"))


def _write(stream: IO[str], text: str) -> None:
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:  # the terminal's encoding lacks a letter
        encoding = getattr(stream, "encoding", None) or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_UNLIMITED_COLUMNS)
    return console


def _print_aligned(shown: Any) -> None:
    console = _console()
    if console.is_terminal:
        console.print(shown)
        return
    with console.capture() as captured:
        console.print(shown)
    # Cells are padded to their column; at the end of a line nobody needs that.
    for text in captured.get().splitlines():
        _write(sys.stdout, text.rstrip())
