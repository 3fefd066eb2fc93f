"""A program of every class and policy, killed with SIGKILL at random moments until it is through (DA-24).

A few dozen seeds always; the thousand of the promise under the marker `torture`, which `make torture` asks for.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HOLDFAST_TORTURE_ROUNDS", "1000"))
PARTS = 10
"""The thousand are split, so that the workers of a test run share them."""


def torture(ledger: str, folder: Path, first: int, count: int) -> int:
    """Torture some seeds, each in a fresh world; return how many deaths they were."""
    command = [sys.executable, "-m", "tests.crash.torture", ledger, str(folder), str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30 + 30 * count, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(told) == list(range(first, first + count))
    if not ledger.startswith("postgresql:"):
        connection = sqlite3.connect(ledger)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
    return sum(told.values())


@pytest.mark.parametrize("first", [10_000, 20_000])
def test_every_class_and_policy_survives_random_kills(ledger: str, tmp_path: Path, first: int) -> None:
    assert torture(ledger, tmp_path, first, 15) > 15


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_class_and_policy_survives_a_thousand_seeds(ledger: str, tmp_path: Path, part: int) -> None:
    bounds = [ROUNDS * number // PARTS for number in range(PARTS + 1)]
    assert torture(ledger, tmp_path, bounds[part], bounds[part + 1] - bounds[part]) > 0
