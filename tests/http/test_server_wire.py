"""Requests as bytes on a line: what is a header and what is none, and what a line may make the server hold."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.flow.commandline import tell
from tests.http.backends import Server, server
from tests.http.captured import call, post
from tests.http.serving import ANSWERS_WITHIN_S, drain, until

ORG = b"6ba7b810-9dad-41d1-80b4-00c04fd430c8"
POST = b"POST /v1/ingest HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CLOSE = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Server]:
    with server(str(tmp_path / "ledger.db"), secret_file=tmp_path / "secret", trusted_proxies=("127.0.0.1",)) as made:
        yield made


@contextmanager
def sent(at: Server, *parts: bytes) -> Iterator[socket.socket]:
    """A connection on which bytes were sent in pieces."""
    with socket.create_connection(("127.0.0.1", at.port)) as line:
        line.settimeout(ANSWERS_WITHIN_S)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            line.sendall(part)
            turn(at)
        yield line


def told(at: Server, *parts: bytes) -> list[int]:
    """Send bytes in pieces, and return the statuses of the answers."""
    with sent(at, *parts) as line:
        answers = drain(line)
    return [int(each[:3]) for each in answers.split(b"HTTP/1.1 ")[1:]]


CUT: dict[int, tuple[bytes, bytes]] = {
    200: (b"", json.dumps(call("known")).encode()),
    409: (b"idempotency-key: known\r\n", json.dumps(call("known", endpoint="/other")).encode()),
    400: (b"", b"[" * 300),
    415: (b"content-encoding: br\r\n", b"{}"),
    403: (b"origin: http://elsewhere\r\n", b"{}"),
    413: (b"", b" " * 5000),
}
"""By the status of the answer, lines of the head and a body."""


def test_a_call_is_answered_alike_however_it_is_cut(tmp_path: Path) -> None:
    """As a whole it takes the short way."""
    with server(str(tmp_path / "ledger.db"), secret_file=tmp_path / "secret", body_bytes_max=4096) as made:
        assert post(made.client, call("known"))[0] == 202
        for status, (lines, body) in CUT.items():
            request = POST + lines + b"content-length: %d\r\n\r\n" % len(body) + body
            whole = answer_to(made, request)
            assert whole == answer_to(made, request[:60], request[60:])
            assert whole.startswith(b"HTTP/1.1 %d " % status)


def answer_to(at: Server, *parts: bytes) -> bytes:
    """Send a request in pieces, and return its answer but for the date."""
    with sent(at, *parts) as line:
        answer = until(line, b"}")
    return re.sub(rb"date: [^\r]*\r\n", b"", answer)


def turn(at: Server) -> None:
    """Let the server's loop come round, which reads what was sent."""

    async def nothing(_: object) -> None:
        pass

    for _ in range(3):
        at.do(nothing)


def chunked(name: str, trailers: bytes, head: bytes = b"") -> tuple[bytes, bytes]:
    """A call in chunks: up to its end, and what follows."""
    body = json.dumps(call(name)).encode()
    begin = POST + head + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(body), body)
    return begin, b"0\r\n" + trailers + b"\r\n"


def sessions(at: Server, **headers: str) -> set[str]:
    items = at.client.get("/v1/sessions", headers=headers).json()["items"]
    return {each["harness_session_id"] for each in items}


def test_trailers_are_no_headers(at: Server) -> None:
    """Whether they come with the head or long after it."""
    trailers = b"x-paper-auth-org-id: " + ORG + b"\r\nidempotency-key: other\r\nexpect: 100-continue\r\n"
    wait = b"prefer: wait=10\r\n"
    begin, end = chunked("at-once", trailers, wait)
    assert told(at, begin + end + CLOSE) == [202, 200]
    assert told(at, *chunked("late", trailers, wait), CLOSE) == [202, 200]
    assert sessions(at) == {"at-once", "late"}
    assert sessions(at, **{"x-paper-auth-org-id": ORG.decode()}) == set()
    for framing in (b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n"):
        begin, end = chunked("framed", framing, wait)
        assert told(at, begin + end + CLOSE)[1:] == [200], "what follows is the next request"
        assert told(at, begin, end + CLOSE) == [200, 200], "the same call again"
    assert sessions(at) == {"at-once", "late", "framed"}


def test_a_key_in_a_trailer_lets_nobody_in(tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger.db")
    made = tell("access", "create", "--db", ledger, "--scope", "ingest")
    key = b"authorization: Bearer " + made["access_key"].encode() + b"\r\n"
    with server(ledger, secret_file=tmp_path / "secret") as at:
        begin, end = chunked("mine", key)
        assert told(at, begin + end + CLOSE) == [401, 200]
        assert told(at, begin, end + CLOSE) == [401, 200]
        begin, end = chunked("mine", b"", key)
        assert told(at, begin + end + CLOSE) == [202, 200]


def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(at: Server) -> None:
    wish = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    body = json.dumps(call("upgrading")).encode()
    head = POST + wish + b"content-length: %d\r\n\r\n" % len(body)
    assert told(at, CLOSE.replace(b"connection: close\r\n", b"") + head + body + CLOSE) == [200, 202, 200]
    assert told(at, head, body[:9], body[9:] + CLOSE) == [200, 200], "the same call again"
    begin, end = chunked("chunks", b"x: y\r\n", wish)
    assert told(at, begin, end + CLOSE) == [202, 200]
    smuggled = POST + wish + b"content-length: %d\r\n\r\n" % len(CLOSE)
    assert told(at, smuggled, CLOSE, CLOSE) == [400, 200], "a body is no request"
    assert told(at, b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n") == [404]


@pytest.mark.parametrize("part", ["a target", "one header", "many headers"])
def test_a_head_without_end_is_refused(at: Server, part: str) -> None:
    begin, more = {
        "a target": (b"GET /live?", b"x" * 1000),
        "one header": (b"GET /live HTTP/1.1\r\nx: ", b"x" * 1000),
        "many headers": (b"GET /live HTTP/1.1\r\n", b"x: y\r\n" * 200),
    }[part]
    assert refused_after(at, begin, more) < 2_000_000


def test_trailers_without_end_are_refused(at: Server) -> None:
    begin, _ = chunked("endless", b"")
    assert refused_after(at, begin + b"0\r\n", b"x: y\r\n" * 200) < 2_000_000
    assert sessions(at) == set()


def refused_after(at: Server, begin: bytes, more: bytes) -> int:
    """Send something without end, and return how much of it was taken before the line was closed."""
    with socket.create_connection(("127.0.0.1", at.port)) as line:
        line.settimeout(ANSWERS_WITHIN_S)
        line.sendall(begin)
        sent = 0
        try:
            while sent < 10_000_000:
                line.sendall(more)
                sent += len(more)
                turn(at)
        except ConnectionError:
            pass
    assert at.client.get("/live").status_code == 200
    return sent
