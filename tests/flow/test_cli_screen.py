"""Tables on a terminal, as wide as it is."""

from __future__ import annotations

import os
import re
import sys
from typing import BinaryIO

import pytest

from holdfast.cli.render import Column, table

COLUMNS = [
    Column("receipt", keep=True, minor=True),
    Column("event"),
    Column("number", right=True),
    Column("run", minor=True),
]
ROWS = [
    ("rcp_0123456789abcdef", ("session.ended", "red"), "10", "claude:s-1"),
    ("rcp_\x1b[2J", "frame.opened", "9", ""),
]


def read(sent: BinaryIO) -> bytes:
    """What has arrived; nothing more does once the terminal is closed and has been read."""
    try:
        return sent.read(65_536)
    except OSError:
        return b""


def shown(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    """What a terminal of a width is sent, without its colours."""
    keyboard, screen = os.openpty()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(keyboard, "rb", buffering=0) as sent, os.fdopen(screen, "w") as terminal:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", terminal)
            table(COLUMNS, ROWS)
        terminal.close()
        text = b"".join(iter(lambda: read(sent), b"")).decode()
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]


def test_a_row_that_is_too_wide_gives_what_is_minor_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, 40) == [
        "event          number",
        "session.ended      10",
        "    rcp_0123456789abcdef  claude:s-1",
        "frame.opened        9",
        r"    rcp_\x1b[2J",
    ]


def test_where_there_is_room_a_row_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, 80) == [
        "receipt               event          number  run",
        "rcp_0123456789abcdef  session.ended      10  claude:s-1",
        r"rcp_\x1b[2J           frame.opened        9",
    ]
