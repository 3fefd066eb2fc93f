"""Hook calls as a harness makes them: processes of their own, on a user's machine (`tests.flow.hooking`)."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.flow.commandline import COMMAND_SECONDS_MAX, ROOT, Answer
from tests.flow.hooking import Machine

from holdfast.cli.hook import warm
from holdfast.core.clock import SystemClock
from holdfast.lifecycle import plan

ENTRY = "from holdfast.cli.entry import main; main()"
"""The installed program's first line."""

HEAVY = {"msgspec", "asyncio", "typing", "dataclasses", "json", "typer", "re", "rich", "logging", "pathlib", "socket"}
"""What a call that needs no client does without."""

FOOTPRINT = """
import os, sys
end = os._exit
def told(code):
    os.write(2, " ".join(sys.modules).encode())
    end(code)
os._exit = told
from holdfast.cli.entry import main
main()
"""


class Desk(Machine):
    """A user's machine whose harness starts processes."""

    @property
    def state(self) -> Path:
        return self.home / "state" / "holdfast"

    @property
    def variables(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "XDG_"))}
        return {**inherited, **self.environment}

    def plan(self) -> None:
        """Make the ledger, and the plan for the next call."""
        with self.around():
            row = ("dlv_first", "claude", "PreToolUse", b'{"session_id": "s0"}', 20, None, 1, None, 0)
            code, *_ = warm(row, appended=False, db=None, config=None, head=plan.head(None, None, os.environ))
        assert code == 0

    def program(self, code: str = ENTRY) -> list[str]:
        """The installed program, or one that is almost it."""
        return [sys.executable, "-c", code]

    def start(self, *arguments: str, setup: Callable[[], None] | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Start the program as a harness does."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self.program(), *arguments],
            env={**self.variables, **more}, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=setup,
        )  # fmt: skip

    def call(
        self,
        *arguments: str,
        body: object = None,
        setup: Callable[[], None] | None = None,
        **more: str,
    ) -> Answer:
        """Let a harness call a hook."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.start("hook", *arguments, setup=setup, **more) as process:
            out, err = process.communicate(data, timeout=COMMAND_SECONDS_MAX)
        return Answer(process.returncode, out.decode(), err.decode())

    def kept(self, where: Path | None = None) -> list[dict[str, Any]]:
        """The calls in the ledger, or in a spool file, but for the one that made the plan."""
        path = where or self.ledger
        if not path.exists():
            return []
        with closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute("SELECT * FROM lifecycle_hooks WHERE id <> 'dlv_first' ORDER BY received_at, id")
            return [dict(row) for row in rows]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody from writing the ledger."""
        with closing(sqlite3.connect(self.ledger, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def resident(self) -> Iterator[subprocess.Popen[bytes]]:
        """Have a resident for a block."""
        with self.start("hook", "serve") as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith(b"listening on ")
                yield process
            finally:
                process.kill()


def stop(session: str = "s1", **more: object) -> dict[str, object]:
    """What Claude tells at the end of a turn."""
    return {"hook_event_name": "Stop", "session_id": session, "stop_hook_active": False, **more}


def prompt(session: str = "s1", turn: str = "p1", **more: object) -> dict[str, object]:
    """What Claude tells of a prompt."""
    return {
        "hook_event_name": "UserPromptSubmit", "session_id": session, "prompt_id": turn, "prompt": "do it", **more,
    }  # fmt: skip


def until(true: Callable[[], bool]) -> None:
    """Wait for something, for as long as a machine under load may take."""
    clock = SystemClock()
    for _ in range(600):
        if true():
            return
        clock.pause(0.05)
    raise AssertionError("it did not happen")
