"""Guarded services in real processes: asked at once, and killed with SIGKILL while they work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.flow.commandline import ask
from tests.flow.units import world
from tests.stage import Outside

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("HOLDFAST_TORTURE_ROUNDS", "1000")) // 5
"""Fewer than of others: each is several lives of two processes."""
PATIENCE_S = 60
PROCESSES = 4
REQUESTS = 50


@contextmanager
def services(target: str, folder: Path, count: int) -> Iterator[list[str]]:
    """Run service processes on one ledger; give their URLs."""
    command = [sys.executable, "-m", "tests.crash.services", str(count), target, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield [f"http://127.0.0.1:{port}" for port in json.loads(process.stdout.readline())]
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


class Crowd:
    """Clients of several processes."""

    def __init__(self, urls: list[str], outside: Outside) -> None:
        self.urls = urls
        self.outside = outside

    def ask(self, path: str, key: str) -> list[asyncio.Task[httpx.Response]]:
        """Make the same request again and again, in turn of each process."""
        return [
            asyncio.ensure_future(self.client.post(url + path, content=b"5", headers={"idempotency-key": key}))
            for url in (self.urls * REQUESTS)[:REQUESTS]
        ]

    async def __aenter__(self) -> Crowd:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.AsyncClient(timeout=PATIENCE_S, limits=limits)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.aclose()

    def runs(self) -> int:
        return self.outside.count("run")


async def test_of_fifty_equal_requests_to_four_processes_one_runs(ledger: str, tmp_path: Path) -> None:
    """HA-25."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with services(ledger, tmp_path, PROCESSES) as urls:
        async with Crowd(urls, Outside(tmp_path / "outside")) as crowd:
            asked = crowd.ask("/held", "a-key-that-is-held")
            refused: list[httpx.Response] = []
            for answering in asyncio.as_completed(asked):
                refused.append(await answering)
                if len(refused) == REQUESTS - 1:
                    break
            await asyncio.to_thread(gate.write_bytes, b"go on")
            [ran] = [answer for answer in await asyncio.gather(*asked) if answer not in refused]
            assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(409, "in_flight")}
            assert (ran.status_code, crowd.runs()) == (201, 1)
            again = await asyncio.gather(*crowd.ask("/held", "a-key-that-is-held"))
            assert {(answer.status_code, answer.content) for answer in again} == {(201, ran.content)}
            assert {answer.headers["idempotency-replayed"] for answer in again} == {"true"}

            waited = await asyncio.gather(*crowd.ask("/wait", "a-key-that-is-waited-for"))
            assert {answer.status_code for answer in waited} == {201}
            assert len({answer.content for answer in waited}) == 1
            assert crowd.runs() == 2

            for number in range(5):
                raced = await asyncio.gather(*crowd.ask("/plain", f"a-key-for-race-{number}"))
                codes = Counter(answer.status_code for answer in raced)
                assert set(codes) <= {201, 409}, codes
                assert len({answer.content for answer in raced if answer.status_code == 201}) == 1
                assert sum("idempotency-replayed" not in answer.headers for answer in raced if answer.is_success) == 1
                assert crowd.runs() == 3 + number


def test_an_execution_goes_on_where_its_process_died(ledger: str, tmp_path: Path) -> None:
    """HA-58."""
    outside = Outside(tmp_path / "outside")
    with services(ledger, tmp_path, 1) as [url], httpx.Client(timeout=PATIENCE_S) as client:
        for dies_at, steps in (
            ("outcome.acked/2", 2), ("intent.acked/3", 2), ("finish.committed/1", 3), ("keys.settling/1", 3),
        ):  # fmt: skip
            seen = len(outside.lines())
            asking = client.build_request(
                "POST", f"{url}/pay/{dies_at}", headers={"idempotency-key": f"a-key-of-it-{dies_at}"}
            )
            with pytest.raises(httpx.TransportError):
                client.send(asking)
            before = [line.split() for line in outside.lines()[seen:] if not line.startswith("run")]
            assert [number for _, number, _ in before] == ["1", "2", "3"][:steps]
            answers = [client.send(asking) for _ in range(3)]
            assert {(answer.status_code, answer.content) for answer in answers} == {(201, b"paid 6")}
            assert [answer.headers.get("idempotency-replayed") for answer in answers[1:]] == ["true", "true"]
            paid = [line.split() for line in outside.lines()[seen:] if not line.startswith("run")]
            assert [number for _, number, _ in paid] == ["1", "2", "3"], "no step was taken twice"
            assert paid[:steps] == before
            assert len({execution for execution, _, _ in paid}) == 1
            assert len({key for _, _, key in paid}) == 3
    assert ask("verify", "--db", ledger).out == "4 executions and 4 keys checked, no problem found\n"


KINDS = {"sqlite-file": "apsw", "postgres": "asyncpg"}


async def tortured(kind: str, make_target: Callable[[str], str], folder: Path, first: int, count: int) -> int:
    """Kill a program and its service; return how many deaths there were."""
    async with world(KINDS[kind], make_target) as place:
        service = place.target
    caller = str(folder / "caller.db") if kind == "sqlite-file" else make_target(kind)
    command = [sys.executable, "-m", "tests.crash.pairs", KINDS[kind], service, caller, str(folder)]
    done = await asyncio.to_thread(
        subprocess.run, [*command, str(first), str(count)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(told) == list(range(first, first + count))
    if kind == "sqlite-file":
        for path in (service, caller):
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return sum(told.values())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_durable_step_takes_effect_once_in_a_service_while_both_are_killed(
    kind: str, make_target: Callable[[str], str], tmp_path: Path
) -> None:
    """HA-59."""
    assert await tortured(kind, make_target, tmp_path, 10_000, 12) > 12


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_durable_step_takes_effect_once_over_two_hundred_rounds(
    kind: str, make_target: Callable[[str], str], tmp_path: Path
) -> None:
    """HA-59."""
    assert await tortured(kind, make_target, tmp_path, 0, ROUNDS) > ROUNDS // 2
