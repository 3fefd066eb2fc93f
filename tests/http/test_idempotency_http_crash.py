"""Services that are killed in the middle of a keyed request, and started again on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
K = "f2b0c5de-7a6b-4f50-9d5e-000000000007"
PATIENCE_S = 30


@contextmanager
def service(target: str, fate: str) -> Iterator[str]:
    """Run the service; give its URL."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.http.program", target, fate]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/pay"
    finally:
        process.kill()
        process.communicate()


def pay(url: str) -> httpx.Response:
    return httpx.post(url, headers={"idempotency-key": K}, content=b"5", timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("fate", "status", "body", "runs"),
    [
        ("committed", 202, b"set", 1),  # HA-57
        ("rolled-back", 201, b"ran", 2),  # HA-57
        ("entered", 201, b"ran", 2),  # HA-31, HA-32
        ("effect", 409, None, 1),  # HA-32, HA-52
    ],
)
def test_a_service_killed_in_its_handler(
    ledger: str, tmp_path: Path, fate: str, status: int, body: bytes | None, runs: int
) -> None:
    ran = tmp_path / "runs"
    with service(ledger, f"{fate}@{ran}") as url, pytest.raises(httpx.RemoteProtocolError):
        pay(url)
    with service(ledger, f"{fate}@{ran}") as url:
        retried, again = pay(url), pay(url)
    assert (retried.status_code, again.status_code) == (status, status)
    lines = ran.read_text().splitlines()
    assert [line.split()[0] for line in lines] == [str(attempt) for attempt in range(1, runs + 1)]
    assert len({line.split()[1] for line in lines}) == 1, "downstream keys are the same over attempts"
    if body is None:
        assert retried.json()["code"] == "outcome_unknown"
    else:
        assert retried.content == again.content == body
        assert again.headers["idempotency-replayed"] == "true"
