"""The server as a process of its own: it says where it is, and stops in order when it is told to."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
from tests.flow.commandline import start, tell
from tests.http.captured import call, post
from tests.http.processes import document
from tests.http.serving import until

import holdfast
from holdfast.execution.engine import open_reader
from holdfast.lifecycle import deliveries
from holdfast.lifecycle.deliveries import Delivery
from holdfast.sessions import archive
from holdfast.sessions.values import LOCAL

PATIENCE_S = 30
SENDERS = 4


def begun(port: int, body: bytes) -> socket.socket:
    """Begin a request, and wait until the server asks for its body."""
    made = socket.create_connection(("127.0.0.1", port))
    made.settimeout(PATIENCE_S)
    head = "POST /v1/executions/nobody/cancel HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    made.sendall(f"{head}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    assert b"100" in made.recv(4096)
    return made


def test_a_server_that_is_terminated_answers_what_is_in_flight(ledger: str, tmp_path: Path) -> None:
    asyncio.run(_left(ledger))
    environment = {"HOLDFAST_SESSIONS_SECRET_FILE": str(tmp_path / "secret")}
    process = start("serve", "--db", ledger, "--port", 0, "--json", **environment)
    try:
        url = json.loads(document(process))["url"]
        port = httpx.URL(url).port
        assert port is not None
        asyncio.run(_derived(ledger))
        with begun(port, b"{}") as waiting, ThreadPoolExecutor(SENDERS) as senders:
            sent = [senders.submit(_send, url, number, under_way := threading.Event()) for number in range(SENDERS)]
            assert under_way.wait(PATIENCE_S)
            process.send_signal(signal.SIGTERM)
            while True:  # until it is noticed: a request that begins now is refused, or finds nobody
                try:
                    late = httpx.get(f"{url}/ready", timeout=PATIENCE_S)
                except httpx.TransportError:
                    break
                if late.status_code == 503:
                    assert (late.json()["code"], "retry-after" in late.headers) == ("stopping", True)
                    break
            waiting.sendall(b"{}")
            assert b"unknown_execution" in until(waiting, b"}")
            acknowledged = [name for each in sent for name in each.result(PATIENCE_S)]
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        _, err = process.communicate()
    assert "Traceback" not in err
    assert tell("verify", "--db", ledger)["ok"]
    assert acknowledged
    assert asyncio.run(_lost(ledger, acknowledged)) == []


def _send(url: str, number: int, under_way: threading.Event) -> list[str]:
    """Send calls until the server takes no more; return those that it acknowledged."""
    acknowledged: list[str] = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, suppress(httpx.TransportError):
        while True:
            name = f"sender-{number}-call-{len(acknowledged)}"
            if post(client, call(name))[0] != 202:
                break
            acknowledged.append(name)
            under_way.set()
    return acknowledged


async def _lost(target: str, acknowledged: list[str]) -> list[str]:
    """Return the calls that are not in the ledger."""
    async with open_reader(target) as hf, hf.database.read() as tx:
        return [name for name in acknowledged if await archive.recorded(tx, LOCAL.org_id, name) is None]


async def _left(target: str) -> None:
    """Leave a hook call that its own process has not seen to."""
    body = json.dumps({"session_id": "s1", "hook_event_name": "UserPromptSubmit", "prompt": "hello"}).encode()
    async with holdfast.open(target) as hf, hf.database.write() as tx:
        now = hf.database.clock.now()
        await deliveries.append(tx, Delivery("d1", "claude", "", body, len(body), None, now, None, 0))


async def _derived(target: str) -> None:
    """Wait until the server has made receipts of it."""
    async with open_reader(target) as hf:
        while True:
            async with hf.database.read() as tx:
                row = await deliveries.get(tx, "d1")
            if row is not None and row.state == "done":
                return
            await hf.database.wait("receipts", 0.05)
