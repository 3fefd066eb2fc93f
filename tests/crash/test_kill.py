"""Real processes, killed with SIGKILL at named points of their journeys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.crash.journeys import JOURNEYS, live_before, place
from tests.crash.lives import Relay, process
from tests.stage import Stage, halves

from holdfast.testing import crash_points

ROOT = Path(__file__).parents[2]

CASES = [
    ("steps", "lock.locked"),
    ("steps", "batch.inserted:2"),
    ("steps", "finish.committed"),
    ("guarded by fail", "intent.committed"),
    ("guarded by skip", "outcome.queued:2"),
    ("guarded by rerun_with_key", "effect.returned:2"),
    ("guarded by reconcile", "outcome.encoded:2"),
    ("retries", "outcome.acked:2"),
    ("divergence", "generation.opened"),
    ("parallel", "intent.acked:2"),
    ("gather", "outcome.committed:3"),
    ("decisions", "decision.committed"),
    ("takeover", "claim.updated"),
    ("decision after takeover", "ambiguity.audited"),
]


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    stage = Stage(ledger, tmp_path)
    place(stage.outside)
    return stage


def drive(stage: Stage, name: str, id: str, *, crash: str = "") -> subprocess.CompletedProcess[str]:
    """Drive a journey in a process of its own."""
    environment = {**os.environ, "HOLDFAST_TESTING": "1", "HOLDFAST_TEST_CRASH": crash}
    command = [sys.executable, "-m", "tests.crash.journeys", name, stage.target, str(stage.folder), id]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("ledger", "case"), halves(*(f"{name} at {crash}" for name, crash in CASES)), indirect=["ledger"]
)
async def test_a_journey_survives_the_kill_of_its_process(stage: Stage, case: str) -> None:
    name, crash = case.split(" at ")
    relay = Relay(stage, JOURNEYS[name])
    await relay.rehearse()
    if relay.journey.before is not None:
        await process(stage, relay.journey, lambda hf: live_before(hf, relay.journey, "killed"))
    killed = drive(stage, name, "killed", crash=crash)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    await relay.recover("killed")


async def test_what_a_killed_process_left_is_finished_by_a_process_that_knows_nothing_of_it(stage: Stage) -> None:
    """Killed twice at the same place; the third process runs through and prints what a first would have."""
    expected = drive(stage, "guarded by rerun", "whole")
    assert expected.returncode == 0, expected.stderr
    for hit in (2, 1):
        assert drive(stage, "guarded by rerun", "e", crash=f"effect.returned:{hit}").returncode == -signal.SIGKILL
    last = drive(stage, "guarded by rerun", "e")
    assert last.stdout == expected.stdout
    async with stage.open() as hf:
        audit = [record.event for record in await hf.audit("e")]
        assert audit == ["takeover", "ambiguity", "takeover", "ambiguity"]
        assert (await hf.verify()).ok
    assert stage.outside.count("e rerun 2") == 3


async def test_a_crash_point_that_does_not_exist_is_refused(stage: Stage) -> None:
    assert "no.such.point" not in crash_points()
    done = drive(stage, "steps", "e", crash="no.such.point")
    assert done.returncode == 1
    assert "no.such.point" in done.stderr
    async with stage.open() as hf:
        assert await hf.get("e") is None


def test_without_its_switch_the_environment_kills_nobody(stage: Stage) -> None:
    command = [sys.executable, "-m", "tests.crash.journeys", "steps", stage.target, str(stage.folder), "e"]
    environment = {**os.environ, "HOLDFAST_TEST_CRASH": "finish.queued"}
    environment.pop("HOLDFAST_TESTING", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == 2
