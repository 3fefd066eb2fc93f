"""A plain request that comes as a whole goes past h11, and nothing about it is different for that.

Both ways are taken side by side, with the same bytes in the same pieces, through uvicorn's own class and through ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from holdfast.server.protocol import PLAIN_BYTES_MAX, Protocol, plain

SPINS = 40
"""Turns of the loop after which everything has happened that bytes bring about."""
DATE = (b"date", b"Sun, 22 Nov 2026 00:00:00 GMT")
LINES = (
    b"Host: h", b"host:h", b"Content-Type: application/json", b"X-Empty:", b"X-Blank: ", b"x-two: a b\tc",
    b"x-high: \xe9",
    b"Connection: keep-alive", b"Connection: close", b"connection: Keep-Alive, upgrade", b"Upgrade: h2c",
    b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"transfer-encoding: gzip", b" folded", b"\tfolded",
    b"bad name: x", b"no colon", b"x-nul: a\0b", b"x-tail: v \t", b"x-blank: v ", b"x-cr: a\rb",
    b"Idempotency-Key: k", b": nameless",
    b"Content-Length: 2", b"content-length: 2, 2", b"Content-Length: +2", b"Content-Length: 02", b"x-do: wait",
    b"x-do: close", b"x-do: raise", b"x-do: stream", b"x-do: bare", b"x-do: unread", b"x-do: empty",
)  # fmt: skip
FIRST = (b"POST /v1/ingest HTTP/1.1",) * 6 + (
    b"POST /v1/ingest HTTP/1.0", b"POST /v1/ingest?x=1 HTTP/1.1", b"POST /v1/ingest/batch HTTP/1.1",
    b"post /v1/ingest HTTP/1.1", b"GET /v1/ingest HTTP/1.1", b"POST  /v1/ingest HTTP/1.1",
    b"POST /v1/%69ngest HTTP/1.1",
)  # fmt: skip

GOOD = (
    b"Content-Type: application/json", b"X-Empty:", b"x-two: a b c", b"Connection: keep-alive", b"Idempotency-Key: k",
    b"x-do: wait", b"accept: */*",
)  # fmt: skip
SELDOM = st.integers(0, 7).map(lambda number: number == 7)


def request(*lines: bytes, body: bytes = b'{"a":1}', first: bytes = FIRST[0], end: bytes = b"\r\n") -> bytes:
    head = (first, b"Host: h", b"Content-Length: %d" % len(body), *lines)
    return end.join(head) + end * 2 + body


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bytes that are a request, or nearly one."""
    body = draw(st.sampled_from((b"{}", b'{"a":"\\r\\n"}', b"0\r\n\r\n", b"x" * 40, b"")))
    lines = draw(st.lists(st.sampled_from(GOOD), max_size=3, unique=True))
    lines += draw(st.lists(st.sampled_from(LINES), max_size=1))
    if draw(SELDOM):
        lines += draw(st.lists(st.sampled_from(LINES), max_size=4))
    if not draw(SELDOM):
        lines.insert(0, b"Host: h")
    if not draw(SELDOM):
        lines.append(b"Content-Length: %d" % (len(body) + (draw(st.sampled_from((1, -1))) if draw(SELDOM) else 0)))
    end = draw(st.sampled_from((b"\n", b"\r", b"\r\r\n"))) if draw(SELDOM) else b"\r\n"
    made = end.join((draw(st.sampled_from(FIRST)), *lines, b"", b"")) + body
    if draw(SELDOM):
        at = draw(st.integers(0, len(made) - 1))
        made = made[:at] + draw(st.binary(max_size=2)) + made[at + 1 :]
    return made


PLAIN = {
    "curl": request(b"User-Agent: curl/8", b"Accept: */*", b"Content-Type: application/json"),
    "httpx": request(b"accept-encoding: gzip, deflate", b"connection: keep-alive", b"content-type: application/json"),
    "empty and spaced": request(b"x-empty:", b"prefer: wait=5, respond-async"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_usual_clients_send_is_plain(name: str) -> None:
    found = plain(PLAIN[name])
    assert found is not None
    assert found[1] == b'{"a":1}'


NOT_PLAIN = {
    "only part": request()[:-1],
    "and more": request() + b"\r\n",
    "nothing in it": request(body=b""),
    "large": request(body=b"x" * PLAIN_BYTES_MAX),
    "two lengths": request(b"Content-Length: 7"),
    "two hosts": request(b"host: h"),
    "chunks too": request(b"Transfer-Encoding: chunked"),
    "the last on its line": request(b"Connection: close"),
    "another protocol": request(b"Connection: upgrade", b"Upgrade: h2c"),
    "an upgrade": request(b"Upgrade: h2c"),
    "who waits to be asked": request(b"Expect: 100-continue"),
    "a fold": request(b"x-long: a", b" b"),
    "bare line feeds": request(end=b"\n"),
    "a signed length": request().replace(b"Content-Length: 7", b"Content-Length: +7"),
    "no host": request().replace(b"Host: h\r\n", b""),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_anything_out_of_the_ordinary_is_left_to_h11(name: str) -> None:
    assert plain(NOT_PLAIN[name]) is None


@settings(max_examples=1500)
@given(requests())
def test_what_is_plain_is_so_for_h11_too(data: bytes) -> None:
    found = plain(data)
    if found is None:
        return
    headers, body = found
    conn = h11.Connection(h11.SERVER)
    conn.receive_data(data)
    read = conn.next_event()
    assert isinstance(read, h11.Request)
    assert (read.method, read.target, read.http_version) == (b"POST", b"/v1/ingest", b"1.1")
    assert [(name.lower(), value) for name, value in read.headers] == headers
    assert conn.next_event() == h11.Data(data=body)
    assert conn.next_event() == h11.EndOfMessage()
    assert (conn.trailing_data[0], conn.their_state, conn.our_state) == (b"", h11.DONE, h11.SEND_RESPONSE)
    assert not conn.they_are_waiting_for_100_continue


class Line(asyncio.Transport):
    """A connection in memory, which gives what was sent piece by piece and keeps what is answered."""

    def __init__(self, kind: type[H11Protocol], config: uvicorn.Config) -> None:
        super().__init__()
        self.state = ServerState()
        self.state.default_headers = [DATE]
        self.protocol = kind(config=config, server_state=self.state, app_state={})
        self.answers = b""
        self.paused = self.ended = False
        self._unread: deque[bytes] = deque()
        self.protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)

    def come(self, data: bytes) -> None:
        self._unread.append(data)
        self._read()

    def _read(self) -> None:
        while self._unread and not (self.paused or self.ended):
            self.protocol.data_received(self._unread.popleft())

    def write(self, data: Any) -> None:
        self.answers += bytes(data)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        asyncio.get_running_loop().call_soon(self._read)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked, in the way that it is asked for."""
    asked = dict(scope["headers"]).get(b"x-do", b"")
    body, more = b"", asked != b"unread"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    if asked == b"wait":
        for _ in range(3):
            await asyncio.sleep(0)
    if asked == b"raise":
        raise RuntimeError("as it happens")
    shown = {name: value for name, value in scope.items() if name not in ("headers", "state")}
    said = b"" if asked == b"empty" else json.dumps([shown, scope["headers"], body], default=repr).encode()
    headers = [] if asked == b"bare" else [(b"content-length", b"%d" % len(said))]
    headers += [(b"connection", b"close")] if asked == b"close" else []
    await send({"type": "http.response.start", "status": 202, "headers": [(b"x-said", b"so"), *headers]})
    if asked == b"stream":
        await send({"type": "http.response.body", "body": said[:5], "more_body": True})
        said = said[5:]
    await send({"type": "http.response.body", "body": said})
    assert (await receive())["type"] == "http.disconnect"


@pytest.fixture(autouse=True, scope="module")
def unheard() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def spin() -> None:
    for _ in range(SPINS):
        await asyncio.sleep(0)


async def talk(kind: type[H11Protocol], pieces: list[bytes], *, stop: bool = False) -> tuple[bytes, bool, int]:
    """Send pieces; return what was answered, whether the line was closed, and how many answers were counted."""
    line = Line(kind, uvicorn.Config(app, http=kind, lifespan="off", ws="none", log_config=None, access_log=False))
    for number, piece in enumerate(pieces):
        line.come(piece)
        for _ in range(number % 3):
            await asyncio.sleep(0)
    if stop:
        line.protocol.shutdown()
    await spin()
    answered = line.answers, line.ended, line.state.total_requests
    line.close()
    await spin()
    assert not line.state.tasks
    return answered


def both(pieces: list[bytes], *, stop: bool = False) -> tuple[bytes, bool, int]:
    ours = asyncio.run(talk(Protocol, pieces, stop=stop))
    assert ours == asyncio.run(talk(H11Protocol, pieces, stop=stop))
    return ours


SCRIPTS = {
    "one": [request()],
    "one after the other": [request(), request(body=b"second"), request(body=b"third")],
    "at once": [request() + request(body=b"second") + request(body=b"third")],
    "while one is answered": [request(b"x-do: wait"), request(body=b"second"), request(body=b"third")],
    "in pieces while one is answered": [request(b"x-do: wait"), request()[:9], request()[9:], request()],
    "in turns": [request(), request()[:50], request()[50:], request(), request(first=FIRST[8]), request()],
    "a stray line": [request(), b"\r\n", request(body=b"second")],
    "rubbish": [request(), b"\0\r\n\r\n", request()],
    "another length": [request(b"Content-Length: 6"), request()],
    "both framings": [request(b"Transfer-Encoding: chunked") + request(), request()],
    "a bad chunk": [request(b"Transfer-Encoding: chunked", body=b"zz\r\n"), request()],
    "a fold": [request(b"x-a: b", b" c"), request()],
    "line feeds": [request(end=b"\n"), request()],
    "endless": [request(), b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, b"z" * 70_000],
    **{f"{what}": [request(b"x-do: " + what.encode()), request(body=b"second")]
       for what in ("close", "raise", "stream", "bare", "unread", "empty")},
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_answers_are_those_of_h11(name: str) -> None:
    answers, _, _ = both(SCRIPTS[name])
    assert answers.startswith(b"HTTP/1.1 ")


@settings(max_examples=150)
@given(st.lists(st.one_of(requests(), st.sampled_from(sorted(PLAIN.values()))), min_size=1, max_size=3), st.data())
@example([request(b"x-do: wait"), request()], None)
def test_answers_are_those_of_h11_whatever_comes(sent: list[bytes], data: st.DataObject | None) -> None:
    cuts = [] if data is None else sorted(data.draw(st.lists(st.integers(0, len(b"".join(sent))), max_size=2)))
    whole, pieces, at = b"".join(sent), [], 0
    if data is None or not cuts:
        pieces = sent
    else:
        for cut in (*cuts, len(whole)):
            pieces.append(whole[at:cut])
            at = cut
    both([each for each in pieces if each])


def test_a_server_that_stops_lets_the_last_answer_out() -> None:
    answers, ended, count = both([request(b"x-do: wait")], stop=True)
    assert answers.startswith(b"HTTP/1.1 202 Accepted\r\ndate: ")
    assert (ended, count) == (True, 1)
    assert both([request()], stop=True)[1]


def test_a_client_that_leaves_disturbs_nobody() -> None:
    async def leave(kind: type[H11Protocol]) -> bytes:
        line = Line(kind, uvicorn.Config(app, http=kind, lifespan="off", ws="none", log_config=None, access_log=False))
        line.come(request(b"x-do: wait"))
        line.close()
        await spin()
        assert not line.state.tasks
        assert not line.state.connections
        return line.answers

    assert asyncio.run(leave(Protocol)) == asyncio.run(leave(H11Protocol)) == b""


def test_a_line_on_which_nothing_comes_is_closed() -> None:
    """After as long as uvicorn says, whoever read the last request, and never during an answer."""

    async def idle(pieces: list[bytes]) -> list[float]:
        config = uvicorn.Config(app, http=Protocol, lifespan="off", ws="none", log_config=None, access_log=False)
        line = Line(Protocol, config)
        protocol, now = line.protocol, asyncio.get_running_loop().time()
        for piece in pieces:
            line.come(piece)
            await spin()
        timer = protocol.timeout_keep_alive_task
        assert timer is not None
        due = [timer.when() - now]
        timer.cancel()
        protocol.timeout_keep_alive_handler()
        assert not line.ended, "it is not time yet"
        line.come(request(b"x-do: wait"))
        protocol.timeout_keep_alive_handler()
        assert not line.ended, "an answer is under way"
        await spin()
        assert protocol.timeout_keep_alive_task is not None, "its end sets another timer"
        protocol.timeout_keep_alive = -1
        protocol.timeout_keep_alive_handler()
        assert line.ended
        await spin()
        return due

    for pieces in ([request()], [request(), request()[:9], request()[9:]], [request()[:9], request()[9:], request()]):
        [due] = asyncio.run(idle(pieces))
        assert 4 < due < 60
