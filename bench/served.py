"""`holdfast serve` as a process of its own, on a ledger that is looked into from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

STOP_SECONDS_MAX = 30
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server that runs.

    Attributes:
        port: Where it listens.
    """

    port: int
    process: Popen[str]

    def cpu_s(self) -> float:
        """What it has taken so far, both in its code and for it in the system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_bytes(self) -> int:
        """The most memory it has held at a time."""
        [line] = [each for each in self._status() if each.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def held_bytes(self) -> int:
        """The memory it holds now."""
        [line] = [each for each in self._status() if each.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def _status(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/status").read_text().splitlines()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(target: str, *, workers: int | None = None) -> Iterator[Server]:
    """Serve a ledger with the defaults; with `workers` 0 nothing is derived."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    # Nobody's own settings are read, and no secret is left behind.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    environment |= {"HOME": str(folder), "XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    environment["HOLDFAST_SESSIONS_SECRET_FILE"] = str(folder / "secret")
    if workers is not None:
        environment["HOLDFAST_SESSIONS_DERIVE__WORKERS"] = str(workers)
    command = [sys.executable, "-m", "holdfast", "serve", "--db", target, "--port", "0", "--json"]
    process = Popen(command, stdout=PIPE, text=True, cwd=folder, env=environment)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        if not told:
            raise SystemExit("the server did not come up")
        yield Server(int(json.loads(told)["url"].rpartition(":")[2]), process)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
