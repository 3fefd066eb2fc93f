"""Servers as processes: what they acknowledge outlives them, no secret reaches a file, and memory has a bound."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.flow.captured import rows
from tests.flow.commandline import tell
from tests.http.backends import server
from tests.http.orgs import Org, asked, event, named, said
from tests.http.processes import PATIENCE_S, Running, running
from tests.http.serving import until

from holdfast.sessions.values import LOCAL

SENDERS = 4
MIB = 1024 * 1024


def local(at: Any) -> Org:
    """Whoever uses a server without access keys."""
    return Org(at, LOCAL.org_id, {"all": ""})


# --- what was acknowledged


def send(url: str, number: int, under_way: threading.Event, enough: int) -> list[str]:
    """Send calls, some in batches, until the server is gone; return those that it acknowledged."""
    acknowledged: list[str] = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, suppress(httpx.TransportError):
        for at in range(100_000):
            parent = {"parent_harness_session_id": f"s{number - 1}"} if number else {}
            names = [f"{number}-{at}-{each}" for each in range(1 + 4 * (at % 2))]
            session = named(f"s{number}", **parent)
            items = [event(name, at, request=asked("hi", "yes", name), session=session) for name in names]
            one = len(items) == 1
            content = json.dumps(items[0] if one else {"items": items})
            headers = {"content-type": "application/json"}
            answer = client.post("/v1/ingest" if one else "/v1/ingest/batch", content=content, headers=headers)
            told = [answer.json()] if one else answer.json().get("results", [])
            acknowledged += [
                name for name, each in zip(names, told, strict=False) if each["status"] in ("accepted", "duplicate")
            ]
            if len(acknowledged) > enough:
                under_way.set()
    return acknowledged


def settled_states(org: Org) -> tuple[dict[str, str], dict[str, Any]]:
    """The state of every event and the sessions, once nothing moves: a database may still commit for whoever died."""
    until = time.monotonic() + PATIENCE_S
    while True:
        org.settle()
        states = {each["capture_id"]: each["state"] for each in org.events()}
        found = org.sessions()
        if time.monotonic() > until or sum(each["turn_count"] for each in found.values()) == len(states):
            return states, found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "enough"),
    [
        (signal.SIGKILL, 20),
        pytest.param(signal.SIGKILL, 400, marks=pytest.mark.torture),
        pytest.param(signal.SIGTERM, 400, marks=pytest.mark.torture),
    ],
)
def test_what_was_acknowledged_under_load_is_a_turn(
    ledger: str, tmp_path: Path, how: signal.Signals, enough: int
) -> None:
    """SA-25, SA-26, SA-28: a server is killed, or told to stop, under load; nobody sends anything again."""
    with running(ledger, tmp_path) as one, ThreadPoolExecutor(SENDERS) as senders:
        under_way = threading.Event()
        sent = [senders.submit(send, one.url, number, under_way, enough) for number in range(SENDERS)]
        assert under_way.wait(PATIENCE_S)
        code = one.end(how)
        acknowledged = [name for each in sent for name in each.result(PATIENCE_S)]
    assert code == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert "Traceback" not in one.said
    with server(ledger, secret_file=tmp_path / "secret") as at:
        org = local(at)
        states, found = settled_states(org)
        assert [name for name in acknowledged if states.get(name) != "derived"] == []
        assert sum(each["turn_count"] for each in found.values()) == len(states), "one turn for each event"
        assert {name: found[name]["parent"]["state"] for name in ("s1", "s2", "s3")} == dict.fromkeys(
            ("s1", "s2", "s3"), "resolved"
        )
        [first] = [name for name in acknowledged if name.startswith("0-0-")]
        again = event(first, 0, request=asked("hi", "yes", first), session=named("s0"))
        assert org.post(again)[1]["status"] == "duplicate"
    assert tell("verify", "--slice", "sessions", "--db", ledger)["problems"] == []


def test_who_does_not_finish_holds_up_no_end(tmp_path: Path) -> None:
    """SX-76: a request that never gets on is left behind when the time to stop is over."""
    ledger = tmp_path / "ledger.db"
    with running(str(ledger), tmp_path, HOLDFAST_SESSIONS_SHUTDOWN_MS="1000") as one, begun(one, 100) as connection:
        assert b" 100 " in connection.recv(4096)
        assert one.end(signal.SIGTERM) == 0


def begun(one: Running, size: int) -> socket.socket:
    """Begin a call of that size, and send none of it."""
    made = socket.create_connection(("127.0.0.1", httpx.URL(one.url).port or 0))
    made.settimeout(PATIENCE_S)
    head = "POST /v1/ingest HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    made.sendall(f"{head}expect: 100-continue\r\ncontent-length: {size}\r\n\r\n".encode())
    return made


# --- secrets


SECRETS = [
    "sk-ant-api03-" + "aB3" * 30, "ghp_" + "Zy9x" * 9, "AKIA" + "QWERTYUIOPASDFGH",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r",
]  # fmt: skip
"""What looks like a secret wherever it stands."""

HIDDEN = [
    "hunter2-cookie",
    "hunter2-authorization",
    "hunter2-google",
    "hunter2-query",
    "hunter2-endpoint",
    "hunter2-path",
]
"""What looks like nothing, and is known by where it stands."""


def sent_with_secrets(client: httpx.Client, key: str) -> list[Any]:
    """Send secrets wherever one may be by mistake; return what was answered."""
    cookie, bearer, google, query, endpoint, path = HIDDEN
    ours = {"x-api-key": key, "cookie": f"session={cookie}", "x-goog-api-key": google, "proxy-authorization": bearer}
    delta = {"type": "content_block_delta", "index": 0}
    pieces = [SECRETS[0][:20], SECRETS[0][20:]]
    stream = [
        {"type": "message_start", "message": {"id": "m", "model": "claude-sonnet-4-6", "usage": {"input_tokens": 9}}},
        *({**delta, "delta": {"type": "text_delta", "text": each}} for each in pieces),
        {"type": "message_stop"},
    ]
    sse = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in stream)
    upstream = {"status": 200, "headers": {"Authorization": f"Bearer {bearer}", "Set-Cookie": cookie, "date": "today"}}
    meta = {"request_id": "r", "path": f"/v1/messages?access_token={path}"}
    events: list[Any] = [
        event("body", request=asked(SECRETS[0], system=SECRETS[1]), response=said(SECRETS[2])),
        event("told", agent_name=SECRETS[3], upstream=upstream, endpoint=f"/v1/messages?key={endpoint}&beta=true"),
        event(
            "split", response={"base64": base64.b64encode(sse.encode()).decode(), "content_type": "text/event-stream"}
        ),
        event("meta", session=named("s", name=SECRETS[0], harness_metadata={"token": SECRETS[1]}), meta=meta),
        event("odd", provider="nobody", request={"key": SECRETS[0]}),
        event("wrong", provider=SECRETS[0]),
        event("wrong-session", session=named("s", parent_harness_session_id="", cwd=SECRETS[2])),
    ]
    where = f"/v1/ingest?key={query}&access_token={query}"
    answers = [client.post(where, json=each, headers={**ours, "prefer": "wait=10"}) for each in events]
    answers += [
        client.post(where, content=f'{{"a": "{SECRETS[0]}"', headers={**ours, "content-type": "application/json"}),
        client.get(f"/v1/turns/{SECRETS[0]}?token={query}", headers=ours),
        client.get("/v1/sessions", params={"agent_name": SECRETS[1], "cursor": SECRETS[2]}, headers=ours),
        client.get("/v1/sessions", headers={**ours, "x-api-key": SECRETS[1]}),
    ]
    return answers


async def everything(ledger: str) -> bytes:
    """All rows of the slice, bytes and all."""
    if "://" not in ledger:
        return b""
    import asyncpg

    connection = await asyncpg.connect(ledger)
    found = []
    try:
        for name in await rows(ledger):
            for row in await connection.fetch(f'SELECT * FROM "{name}"'):  # noqa: S608 - our own tables
                found += [each if isinstance(each, bytes) else repr(each).encode() for each in row.values()]
    finally:
        await connection.close()
    return b"\n".join(found)


def test_no_secret_is_ever_written(ledger: str, tmp_path: Path) -> None:
    """SA-24, SX-104: of headers, addresses, bodies and keys, in the ledger, its log, and what the server says."""
    scopes = [part for each in ("ingest", "read", "admin") for part in ("--scope", each)]
    key = tell("access", "create", "--db", ledger, *scopes)["access_key"]
    with running(ledger, tmp_path) as one:
        answers = sent_with_secrets(one.client, key)
        assert [each.status_code for each in answers] == [202, 202, 202, 202, 202, 400, 400, 400, 404, 400, 401]
        shown = [each.text for each in answers]
        ours = {"x-api-key": key}
        for each in one.client.get("/v1/raw", headers=ours).json()["items"]:
            for path in (f"/v1/raw/{each['event_id']}", f"/v1/turns/{each['event_id']}?payload=full",
                         f"/v1/turns/{each['event_id']}/raw?part=request",
                         f"/v1/turns/{each['event_id']}/raw?part=response"):  # fmt: skip
                shown += [one.client.get(path, headers=ours).text]
        shown += [one.client.get(path, headers=ours).text for path in ("/v1/sessions", "/metrics", "/ready")]
        split = one.client.get("/v1/sessions", headers=ours).json()["items"]
        assert split
        assert one.end(signal.SIGTERM) == 0
    # It is read a second time from the files themselves: small bodies lie there as they are.
    files = b"\n".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    written = files + asyncio.run(everything(ledger)) + one.said.encode() + "\n".join(shown).encode()
    assert b"[redacted:" in written
    assert "raw_dropped_redaction" in "".join(shown)
    for secret in (*SECRETS, *HIDDEN, key, key.split("_", 2)[2]):
        assert secret.encode() not in written, secret


# --- memory


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "ledger", ["postgres", pytest.param("sqlite-file", marks=pytest.mark.torture)], indirect=["ledger"]
)
def test_a_large_call_takes_memory_in_bounds(ledger: str, tmp_path: Path) -> None:
    """SA-32: a request of images, stored and derived; a larger one is refused before any of it is read."""
    size = 45_000_000
    body = pictured("large", size)
    assert size - 10_000 < len(body) < size
    with running(ledger, tmp_path) as one:
        headers = {"content-type": "application/json"}
        one.client.post("/v1/ingest", content=pictured("warm", MIB), headers={**headers, "prefer": "wait=10"})
        before = one.memory_peak()
        told = one.client.post("/v1/ingest", content=body, headers=headers)
        assert told.status_code == 202, told.text
        settled(one)
        with begun(one, 65_000_000) as connection:
            answer = until(connection, b"}")
            assert b" 413 " in answer
            assert b"body_bytes_max" in answer
        grown = one.memory_peak() - before
        assert grown <= 4 * size, f"{grown / size:.2f} times its size"
        kept = one.client.get(f"/v1/turns/{told.json()['event_id']}/raw?part=request").content
        assert kept == json.dumps(json.loads(body)["request"]).encode()
        preview = one.client.get(f"/v1/turns/{told.json()['event_id']}?payload=preview")
        assert len(preview.content) < MIB


def pictured(name: str, size: int) -> bytes:
    """A call with an image, of so many bytes in all, or a little less."""
    image = base64.b64encode(random.Random(1).randbytes(size * 3 // 4 - 3000)).decode()  # noqa: S311 - no secret
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}}
    return json.dumps(event(name, request=asked([part, {"type": "text", "text": "what is it?"}]))).encode()


def settled(one: Running) -> None:
    """Wait until nothing waits to be derived."""
    while one.client.get("/v1/raw", params={"state": "pending"}).json()["items"]:
        pass
