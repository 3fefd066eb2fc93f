"""Starting the programs of `tests.store.programs`, and talking to them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]


class Program:
    """A program that runs in a process of its own, for a block; at the block's end it is killed if it still runs."""

    def __init__(self, name: str, *arguments: object) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        command = [sys.executable, "-m", "tests.store.programs", name, *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def say(self) -> None:
        """Tell it to go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    async def hear(self) -> str:
        """Wait for its next line, while the loop goes on."""
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def finish(self) -> list[str]:
        """Wait for its end; return what else it said."""
        output, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, output
        return output.splitlines()


def run(name: str, *arguments: object) -> list[str]:
    """Run a program to its end; return what it said."""
    with Program(name, *arguments) as program:
        return program.finish()
