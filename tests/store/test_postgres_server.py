"""The server that tests get: shared by those who name it, and gone when the last of them has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from holdfast.core.clock import SystemClock
from holdfast.testing.postgres import PostgresServer

HOLD = """
import sys
from pathlib import Path
from holdfast.testing.postgres import PostgresServer
server = PostgresServer(shared=Path(sys.argv[1]))
print(server.directory, server.pid, flush=True)
sys.stdin.read()
"""


def hold(shared: Path) -> subprocess.Popen[str]:
    """A process that holds the shared server."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(shared)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_a_shared_server_ends_with_its_last_holder_even_when_that_is_killed(tmp_path: Path) -> None:
    holders = [hold(tmp_path) for _ in range(3)]
    said = {holder.stdout.readline() for holder in holders if holder.stdout is not None}
    assert len(said) == 1
    directory = Path(said.pop().split()[0])
    with PostgresServer(shared=tmp_path) as joined:
        assert joined.directory == directory
        for holder in holders:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        assert joined.sql("SELECT 1") == "1"
    await gone(directory)
    with PostgresServer(shared=tmp_path) as founded:
        assert founded.directory != directory
        assert founded.sql("SELECT 1") == "1"
    await gone(founded.directory)


async def gone(directory: Path) -> None:
    """Wait until a server and its files are no more."""
    clock = SystemClock()
    deadline = clock.monotonic() + 20
    while os.path.exists(directory):  # noqa: ASYNC240 - quick
        assert clock.monotonic() < deadline, f"{directory} is still there"
        await clock.sleep(0.02)


def test_a_server_comes_back_with_what_was_committed() -> None:
    with PostgresServer() as server:
        server.sql("CREATE TABLE kept AS SELECT 7 AS number")
        for end in (server.kill, server.stop):
            pid = server.pid
            end()
            assert server.pid is None
            server.start()
            assert server.pid not in (None, pid)
            assert server.sql("SELECT number FROM kept") == "7"
        assert [server.sql(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == [
            "on"
        ] * 3
    assert not server.directory.exists()


def test_databases_and_schemas_are_fresh(postgres: PostgresServer) -> None:
    urls = {postgres.fresh_database(), postgres.fresh_database(), postgres.fresh_schema(), postgres.fresh_schema()}
    assert len(urls) == 4
