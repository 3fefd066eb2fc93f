"""The command line as a test uses it: in this process for speed, as a real command where that matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.cli.main import invoke

ROOT = Path(__file__).resolve().parents[2]
SHOP = "tests.flow.shop"
COMMAND_SECONDS_MAX = 60


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as the one JSON document it has to be."""
        return json.loads(self.out)


def ask(*arguments: object) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = invoke([str(each) for each in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def tell(*arguments: object) -> Any:
    """Run a command with `--json` in this process; it has to succeed."""
    answer = ask(*arguments, "--json")
    assert answer.code == 0, answer
    return answer.json


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "holdfast", *map(str, arguments)],
        cwd=ROOT,
        env=_environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*arguments: object, **environment: str) -> Answer:
    """Run a command as a process of its own."""
    with start(*arguments, **environment) as process:
        out, err = process.communicate(timeout=COMMAND_SECONDS_MAX)
    return Answer(process.returncode, out, err)


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return {**inherited, **own}
