"""The demo's other processes: started on real sockets, killed with SIGKILL, started again.

Invariants:
    - A child never outlives the supervisor: it ends when its standard input does.
    - A kill is counted when the kernel says that the process died of SIGKILL, not when it was asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

__all__ = ["Child", "DemoFailed", "run_cli"]

_LOG_TAIL_CHARS = 2000
_START_SECONDS = 15.0
_END_SECONDS = 15.0


class DemoFailed(Exception):
    """The demo cannot go on; the message says what to look at."""


class Child:
    """A process that runs one module of the demo.

    Attributes:
        kills: How often it died of SIGKILL.
    """

    def __init__(self, module: str, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.kills = 0
        self._environment = {**os.environ, **(environment or {})}
        self._module = module
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        """Whether a process is running."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The number of the process started last."""
        return 0 if self._process is None else self._process.pid

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self._module.rpartition(".")[2]

    async def start(self, *arguments: object) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", self._module, *map(str, arguments)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # an interrupt from the terminal is the supervisor's to handle
            )

    async def port(self) -> int:
        """Return the port the process announces once it listens."""
        if self._process is None or self._process.stdout is None:
            raise DemoFailed(f"{self.name} was never started")
        async with asyncio.timeout(_START_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise DemoFailed(self.obituary())
        told = json.loads(line)
        return told if isinstance(told, int) else httpx.URL(told["url"]).port or 0

    async def kill(self) -> None:
        """Kill the process with SIGKILL and see it dead."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            if await self._process.wait() == -signal.SIGKILL:
                self.kills += 1

    async def dismiss(self) -> None:
        """Tell the process to go home and wait until it has."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(_END_SECONDS):
            if await self._process.wait() != 0:
                raise DemoFailed(self.obituary())

    async def close(self) -> None:
        """End the process, if there is one, without counting that as a kill."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def obituary(self) -> str:
        """Say how the process ended, with the last it had to say."""
        code = None if self._process is None else self._process.returncode
        said = self._log.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip() or "nothing on standard error"
        return f"{self.name} ended by itself with exit code {code}; it said:\n{said}"


async def run_cli(arguments: tuple[str, ...], environment: Mapping[str, str], given: str = "") -> tuple[int, str]:
    """Run a `holdfast` command as its own process, with an input; return its exit code and all it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "holdfast", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_END_SECONDS):
            said, _ = await process.communicate(given.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")
