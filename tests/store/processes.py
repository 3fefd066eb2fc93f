"""Starting the programs of `tests.store.programs`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program; talk to it through its pipes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.store.programs", name, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def say(process: subprocess.Popen[str]) -> None:
    """Tell a program to go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """Wait for a program's next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run(name: str, *arguments: object) -> list[str]:
    """Run a program to its end; return what it said."""
    process = start(name, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.splitlines()
