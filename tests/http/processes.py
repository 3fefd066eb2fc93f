"""The server as a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from tests.flow.commandline import start
from tests.http.orgs import CARDS

PATIENCE_S = 60


class Running:
    """A server in a process of its own.

    Attributes:
        url: Where it is.
        client: Speaks to it.
        process: It.
        said: What it wrote to its output and its log, once it has ended.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = document(process)
        self.url: str = json.loads(self.said)["url"]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def end(self, how: signal.Signals) -> int:
        """End it, and wait until it is gone; return how it ended."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE_S)

    def memory_peak(self) -> int:
        """The most memory it ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


@contextmanager
def running(ledger: str, folder: Path, *arguments: object, **environment: str) -> Iterator[Running]:
    """Run a server until the end of the block, or until it is ended."""
    own = {
        "HOLDFAST_SESSIONS_SECRET_FILE": str(folder / "secret"), "HOLDFAST_SESSIONS_PRICES__CARDS": str(CARDS),
        **environment,
    }  # fmt: skip
    process = start("serve", "--db", ledger, "--port", 0, "--json", *arguments, **own)
    made: Running | None = None
    try:
        made = Running(process)
        yield made
    finally:
        process.kill()
        out, err = process.communicate()
        if made is not None:
            made.client.close()
            made.said += out + err


def document(process: subprocess.Popen[str]) -> str:
    """Read one JSON document of the output of a process that goes on."""
    assert process.stdout is not None
    read = ""
    while True:
        line = process.stdout.readline()
        assert line, f"the process ended after {read!r}"
        read += line
        try:
            json.loads(read)
        except ValueError:
            continue
        return read
