"""Mode A, killed with SIGKILL: order, event and record appear together or not at all (HA-53, HA-54).

Every named point and every boundary to the database always, on every driver, and a few random moments; the thousand
of the promise under the marker `torture`, which `make torture` asks for.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.crash.units import OUTCOMES, POINTS
from tests.flow.units import KINDS, ON_POSTGRES, world

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HOLDFAST_TORTURE_ROUNDS", "1000"))
MakeTarget = Callable[[str], str]


async def tortured(kind: str, make_target: MakeTarget, *seeds: str) -> list[tuple[str, list[int]]]:
    """Kill and judge in processes of their own; return what was left after each kill."""
    async with world(kind, make_target) as place:
        target = place.target
    command = [sys.executable, "-m", "tests.crash.units", kind, target, *seeds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)  # noqa: ASYNC221 - nothing else is to be done meanwhile
    assert done.returncode == 0, done.stderr[-6000:]
    if kind not in ON_POSTGRES:
        with closing(sqlite3.connect(target)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
async def test_all_or_nothing_is_left_wherever_a_request_is_killed(kind: str, make_target: MakeTarget) -> None:
    left = await tortured(kind, make_target)
    assert len(left) > len(OUTCOMES) * (len(POINTS) + 3)
    for outcome in ("stored", "refused", "unkept"):  # there were kills that came too late, and kills that did not
        assert len({tuple(each) for name, each in left if name.startswith(outcome)}) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_all_or_nothing_is_left_after_random_kills(kind: str, make_target: MakeTarget) -> None:
    assert len(await tortured(kind, make_target, "10000", "6")) == 7


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
async def test_all_or_nothing_is_left_after_a_thousand_random_kills(kind: str, make_target: MakeTarget) -> None:
    assert len(await tortured(kind, make_target, "0", str(ROUNDS))) == ROUNDS + 1
