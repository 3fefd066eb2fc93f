"""The demo as a newcomer starts it: real processes, real SIGKILLs, every effect once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

_KEYS = [
    *("turns_expected", "turns_completed", "kills", "model_calls_paid", "model_calls_expected"),
    *("payments_expected", "payments_applied", "payments_doubled", "steps_run", "steps_replayed"),
    *("decisions", "lost", "verify_ok", "http_replays", "http_conflicts", "http_in_flight"),
    *("receipts", "receipts_verified", "sequence_gaps", "turns_captured", "turns_expected_captured"),
    *("input_tokens", "output_tokens", "cost_usd", "timelines", "seconds"),
]
_LIMIT_SECONDS = 100


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def test_every_effect_happens_once_though_processes_are_killed(tmp_path: Path) -> None:
    done = _demo(tmp_path, "--json", "--turns", "6", "--kills", "6", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr

    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures) == _KEYS
    assert figures["turns_completed"] == figures["turns_expected"] == 6
    assert figures["kills"] >= 6
    assert figures["model_calls_paid"] == figures["model_calls_expected"] == 12
    assert figures["payments_applied"] == figures["payments_expected"] == 6
    assert figures["payments_doubled"] == figures["lost"] == 0
    assert figures["verify_ok"] is True
    assert figures["http_conflicts"] == 0
    assert figures["http_replays"] >= 0 <= figures["http_in_flight"]
    assert figures["receipts"] == figures["receipts_verified"] == 2 + 2 * 6
    assert figures["sequence_gaps"] == 0
    assert figures["turns_captured"] == figures["turns_expected_captured"] == 12
    assert figures["timelines"] == 6
    paid = (figures["input_tokens"] * 3 + figures["output_tokens"] * 15) / Decimal(1_000_000)
    assert paid == Decimal(figures["cost_usd"]) > 0
    assert figures["decisions"] >= 1
    assert figures["steps_run"] > 0
    assert figures["steps_replayed"] > 0
    assert figures["seconds"] < 40

    # Progress and table go where they do not disturb whoever reads the JSON.
    assert len(done.stdout.splitlines()) == 1
    assert "kill 6:" in done.stderr
    assert "the operator found" in done.stderr
    assert "Every effect once" in done.stderr
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"


def test_a_demo_without_turns_is_a_usage_error(tmp_path: Path) -> None:
    assert _demo(tmp_path, "--turns", "0").returncode == 2
