"""The examples as a reader runs them: each is killed on its way, started again, and has done its work once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, folder: Path, crash: str = "") -> subprocess.CompletedProcess[str]:
    """Run an example in a process of its own, which may die at a crash point."""
    variables = {"HOLDFAST_TESTING": "1", "HOLDFAST_TEST_CRASH": crash, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_through(name: str, *arguments: str, folder: Path, deaths: tuple[str, ...]) -> str:
    """Run an example that dies at one point after the other, then to its end; return what it prints."""
    for point in deaths:
        assert run(name, *arguments, folder=folder, crash=point).returncode == -signal.SIGKILL, point
    done = run(name, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert run(name, *arguments, folder=folder).stdout == done.stdout
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"paid_answers", "long_import", "release", "charge_once"}


def test_paid_answers_are_paid_once(ledger: str, tmp_path: Path) -> None:
    deaths = ("outcome.acked:2", "effect.returned", "finish.queued")
    said = run_through("paid_answers", ledger, "why is the sky blue", folder=tmp_path, deaths=deaths)
    assert said.startswith("an answer of")
    calls = [json.loads(line)["key"] for line in (tmp_path / "provider.jsonl").read_text().splitlines()]
    assert len(calls) == len(set(calls)) == 4


@pytest.mark.parametrize("count", [0, 5, 13])
def test_a_long_import_brings_every_row(ledger: str, tmp_path: Path, count: int) -> None:
    rows = [f"{number},order {number}\n" for number in range(count)]
    (tmp_path / "orders.csv").write_text("number,text\n" + "".join(rows))
    # The short ones have too little to die of.
    deaths = ("outcome.acked:2", "generation.opened", "effect.returned:3", "finish.queued") if count > 10 else ()
    said = run_through("long_import", ledger, "orders.csv", folder=tmp_path, deaths=deaths)
    assert said == f"{count} orders imported\n"
    stored = [path.read_text() for path in (tmp_path / "shop").glob("*")]
    assert sorted(stored) == sorted(f"order {number}" for number in range(count))


def test_a_release_is_uploaded_once_and_announced_at_most_once(ledger: str, tmp_path: Path) -> None:
    deaths = ("effect.returned:2", "effect.returned:2", "finish.queued")  # in the upload, in the announcement
    said = run_through("release", ledger, "1.4.0", folder=tmp_path, deaths=deaths)
    assert said.startswith("1.4.0 perhaps announced at")
    assert (tmp_path / "uploads.txt").read_text().count("package-1.4.0.tar") == 1
    assert (tmp_path / "mails.txt").read_text() == "version 1.4.0 is out\n"


def test_an_order_is_charged_once_by_a_guarded_service(ledger: str, tmp_path: Path) -> None:
    deaths = ("keys.claimed", "handler.returned", "keys.settled", "effect.returned", "finish.queued")
    said = run_through("charge_once", ledger, "order-17", "478", folder=tmp_path, deaths=deaths)
    assert said.startswith("order-17 is paid, receipt ")
    assert [path.read_text() for path in (tmp_path / "charges").iterdir()] == ["order-17 478\n"]
