"""A user's machine with harnesses on it: hook calls and commands in this process, as the program takes them."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

from tests.flow.commandline import Answer, ask

from holdfast.cli.hook import warm
from holdfast.lifecycle import plan
from holdfast.store.drop import spool

CLIENT = """
import json, sys
request = json.load(sys.stdin)["request"]
answer = {"schema_version": request["schema_version"], "status": "delivered"}
answer.update(ANSWERS.get(request["event"], {}))
with open(CALLS, "a") as file:
    file.write(json.dumps(request) + "\\n")
json.dump(answer, sys.stdout)
"""


def now_us() -> int:
    """The time in microseconds."""
    return time.time_ns() // 1000


class Machine:
    """A configuration and a ledger of its own, and the program."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.calls = home / "calls"
        self.environment = {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
        }

    @property
    def ledger(self) -> Path:
        return self.home / "data" / "holdfast" / "holdfast.db"

    @contextmanager
    def around(self, stdin: str = "") -> Iterator[None]:
        """Make this process one on that machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        text = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        with (
            mock.patch.dict(os.environ, {**kept, **self.environment}, clear=True),
            mock.patch.object(sys, "stdin", text),
        ):
            yield

    def run(self, *arguments: object, stdin: str = "") -> Answer:
        """Run a command."""
        with self.around(stdin):
            return ask(*arguments)

    def hook(self, harness: str, hook: str | None, body: object, *, appended: bool = False, **changes: Any) -> Answer:
        """Let a harness call a hook, with this body, or what it is as JSON; some of its row may be `changes`."""
        with self.around():
            code, out, err = warm(self._row(harness, hook, body, changes), appended=appended, db=None, config=None)
        return Answer(code, out.decode(), err)

    def keep(self, harness: str, hook: str | None, body: object, **changes: Any) -> None:
        """Let a hook call be kept, and no more: as one that needs no client, when the ledger is busy."""
        spool(str(self.home / "state" / "holdfast" / "hooks.db"), self._row(harness, hook, body, changes), wait_ms=1000)

    def _row(self, harness: str, hook: str | None, body: object, changes: Mapping[str, Any]) -> tuple[Any, ...]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        now = now_us()
        row = {
            "id": f"dlv_{uuid4().hex}",
            "harness": harness,
            "event_hint": hook or "",
            "body": data,
            "body_bytes": len(data),
            "body_digest": None,
            "received_at": now,
            "cwd": str(self.home),
            "lease_until": now + plan.deadline_us(harness, hook or ""),
        }
        return tuple({**row, **changes}.values())

    def receipts(self) -> list[dict[str, Any]]:
        """Every receipt of the ledger, in the order of its chain; what waits is derived."""
        exported = self.run("receipts", "export")
        assert exported.code == 0, exported
        return [json.loads(json.loads(line)["body"]) for line in exported.out.splitlines()[1:-1]]

    def told(self) -> list[tuple[str, str, str]]:
        """Event, client and status of every receipt."""
        return [(each["event"], each["client_id"], each["status"]) for each in self.receipts()]

    def notes(self, receipt_id: str) -> Any:
        """The annotations of a receipt."""
        return self.run("receipts", "show", receipt_id, "--annotations").json["annotations"]

    def asked(self) -> list[dict[str, Any]]:
        """The requests that clients got."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []

    def configure(self, text: str) -> None:
        """Write the user's configuration."""
        folder = self.home / "config" / "holdfast"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "holdfast.toml").write_text(text)

    def client(self, answers: Mapping[str, Any], events: list[str], *, name: str = "ccd", **settings: object) -> str:
        """Write a client that gives these answers, by event, and an empty one to every other; return its section."""
        script = self.home / f"{name}.py"
        script.write_text(CLIENT.replace("ANSWERS", repr(dict(answers))).replace("CALLS", repr(str(self.calls))))
        command = [sys.executable, "-I", "-S", str(script)]
        lines = {"id": name, "events": events, "command": command, "timeout_ms": 20_000, **settings}
        text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
        return f"[[lifecycle.clients]]\n{text}\n"

    def bind(self, answers: Mapping[str, Any], events: list[str], **settings: object) -> None:
        """Bind one such client, and nothing else."""
        self.configure(self.client(answers, events, **settings))
