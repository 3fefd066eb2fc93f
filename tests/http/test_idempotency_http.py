"""Guarded applications behind real servers: what goes over the wire, and clients that misbehave."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.flow.exchanges import config
from tests.http.serving import Served, drain, request_bytes, served, until

from holdfast.idempotency import Idempotency, IdempotencyMiddleware, RouteRule

K = "f2b0c5de-7a6b-4f50-9d5e-000000000006"
PATIENCE_S = 20


class Shop:
    """An application with routes of every kind, and what happened in it."""

    def __init__(self, folder: Path) -> None:
        self.runs = 0
        self.bodies: list[bytes] = []
        self.disconnected: list[bool] = []
        self.begun = threading.Event()
        self.go_on = asyncio.Event()
        self.over = threading.Event()
        self.file = folder / "file.bin"
        self.file.write_bytes(bytes(range(256)) * 1000)
        routes = [
            Route("/orders", self.order, methods=["POST"]),
            Route("/slow", self.slow, methods=["POST"]),
            Route("/stream", self.stream, methods=["POST"]),
            Route("/events", self.events, methods=["POST"]),
            Route("/background", self.background, methods=["POST"]),
            Route("/file", self.send_file, methods=["GET", "POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def order(self, request: Request) -> Response:
        self.runs += 1
        self.bodies.append(await request.body())
        return JSONResponse({"run": self.runs}, 201, {"location": "/orders/1"})

    async def slow(self, request: Request) -> Response:
        self.runs += 1
        await request.body()
        self.begun.set()
        await self.go_on.wait()
        self.over.set()
        return JSONResponse({"run": self.runs}, 201)

    async def stream(self, request: Request) -> Response:
        self.runs += 1
        await request.body()

        async def parts() -> Any:
            for number in range(100):
                self.disconnected.append(await request.is_disconnected())
                yield b"%03d," % number * 100

        return StreamingResponse(parts(), 201)

    async def events(self, request: Request) -> Response:
        self.runs += 1

        async def parts() -> Any:
            yield b"data: 1\n\n"
            await self.go_on.wait()
            yield b"data: 2\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def background(self, request: Request) -> Response:
        self.runs += 1

        async def later() -> None:
            await self.go_on.wait()
            self.over.set()

        return JSONResponse({"run": self.runs}, 201, background=BackgroundTask(later))

    async def send_file(self, request: Request) -> Response:
        self.runs += 1
        return FileResponse(self.file)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgres"])
def target(request: pytest.FixtureRequest, make_target: Callable[[str], str]) -> str:
    return make_target(request.param)


@pytest.fixture(params=["uvicorn", "hypercorn"])
def on_each_server(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Served]:
    """The shop, guarded on a ledger in memory, behind each server."""
    guard = Idempotency(":memory:", config(rule=RouteRule(request_bytes_max=100_000)))
    with served(IdempotencyMiddleware(shop.app, guard), guard, server=request.param) as server:
        yield server


@pytest.fixture
def on_uvicorn(shop: Shop) -> Iterator[Served]:
    guard = Idempotency(":memory:", config(rule=RouteRule(request_bytes_max=100_000)))
    with served(IdempotencyMiddleware(shop.app, guard), guard) as server:
        yield server


def post(server: Served, path: str = "/orders", key: str | None = K, **request: Any) -> httpx.Response:
    headers = {"content-type": "application/json"} | request.pop("headers", {})
    if key is not None:
        headers["idempotency-key"] = key
    content = request.pop("content", b'{"amount":5}')
    return httpx.post(server.url + path, headers=headers, content=content, timeout=PATIENCE_S, **request)


def replayed(response: httpx.Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


def test_the_journey_over_the_wire(shop: Shop, target: str) -> None:
    """HA-1, HA-2, HA-6."""
    guard = Idempotency(target, config())
    with served(IdempotencyMiddleware(shop.app, guard), guard) as server:
        first, again = post(server), post(server)
        assert (first.status_code, first.json(), replayed(first)) == (201, {"run": 1}, False)
        assert (again.status_code, again.content, replayed(again)) == (201, first.content, True)
        assert again.headers["content-length"] == str(len(first.content))
        assert again.headers["location"] == "/orders/1"
        assert len(again.headers.get_list("date")) == 1
        assert post(server, content=b"other").status_code == 422
        assert replayed(post(server, key=f'"{K}"'))
        assert shop.runs == 1


def test_a_body_in_chunks_and_trailers_of_a_request(shop: Shop, on_each_server: Served) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"amount"'
        yield b":5}"

    assert post(on_each_server, content=parts()).status_code == 201
    assert replayed(post(on_each_server))
    head = b"POST /orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nconnection: close\r\n"
    chunked = b"transfer-encoding: chunked\r\n\r\nc\r\n" + b'{"amount":5}' + b"\r\n0\r\nidempotency-key: late\r\n\r\n"
    answer = on_each_server.raw(head + b"idempotency-key: " + K.encode() + b"\r\n" + chunked)
    assert b"idempotency-replayed: true" in answer.lower()
    assert shop.bodies == [b'{"amount":5}']


def test_two_lines_and_underscores_are_refused(shop: Shop, on_uvicorn: Served) -> None:
    """HA-7."""
    key = K.encode()
    for lines in ([b"idempotency-key: " + key], [b"Idempotency_Key: " + key], [b"idempotency-key: other"]):
        answer = on_uvicorn.raw(request_bytes(key, b"x", *lines))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"key_invalid" in answer
    assert on_uvicorn.raw(request_bytes(key + b", " + key)).startswith(b"HTTP/1.1 400 ")
    assert shop.runs == 0


def test_a_client_that_waits_to_be_asked_for_its_body_is_not_asked_in_vain(shop: Shop, on_uvicorn: Served) -> None:
    """HX-35. Hypercorn asks for every body, whatever the application does."""
    ask = b"POST /orders HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\nconnection: close\r\n"
    for lines in (
        b"idempotency-key: (no key)\r\ncontent-length: 5\r\n\r\n",
        b"idempotency-key: abc\r\nx-user: nobody\r\ncontent-length: 5\r\n\r\n",
        b"idempotency-key: abc\r\ncontent-length: 200000\r\n\r\n",
    ):
        with on_uvicorn.connect() as connection:
            connection.sendall(ask + lines)
            answer = until(connection, b"\r\n")
            assert answer.split()[1] in (b"400", b"403", b"413")
    with on_uvicorn.connect() as connection:
        connection.sendall(ask + b"idempotency-key: abc\r\ncontent-length: 5\r\n\r\n")
        assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        connection.sendall(b"hello")
        assert b" 201 " in until(connection, b'{"run":1}')


def test_http_1_0_gets_a_length_with_a_replay(shop: Shop, on_uvicorn: Served) -> None:
    """HX-64."""
    made = request_bytes(K.encode(), version=b"1.0")
    on_uvicorn.raw(made)
    answer = on_uvicorn.raw(made).lower()
    assert b"idempotency-replayed: true" in answer
    assert b"content-length: 9" in answer
    assert answer.endswith(b'{"run":1}')


@pytest.mark.parametrize("how", ["reset", "half-closed", "closed"])
def test_a_client_that_leaves_while_the_handler_runs_changes_nothing(
    shop: Shop, on_each_server: Served, how: str
) -> None:
    """HX-57."""
    connection = on_each_server.connect()
    connection.sendall(request_bytes(K.encode(), path=b"/slow", body=b"x"))
    assert shop.begun.wait(PATIENCE_S)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-closed":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    on_each_server.do(shop.go_on.set)
    assert shop.over.wait(PATIENCE_S)
    if how == "half-closed":
        drain(connection)
        connection.close()
    while (again := post(on_each_server, "/slow", content=b"x", headers={"content-type": ""})).status_code == 409:
        assert again.json()["code"] == "in_flight"  # it settles at this moment
    assert (again.status_code, again.json(), replayed(again), shop.runs) == (201, {"run": 1}, True, 1)


@pytest.mark.parametrize("key", [K, None])
def test_streams_and_files_arrive_whole(shop: Shop, on_each_server: Served, key: str | None) -> None:
    """HA-45."""
    whole = b"".join(b"%03d," % number * 100 for number in range(100))
    # Without a key nobody reads a body, and a server that closes on an unread one may reset the connection.
    given = {} if key is not None else {"content": b""}
    assert post(on_each_server, "/stream", key, **given).content == whole
    assert shop.disconnected == [False] * 100
    if key is not None:
        again = post(on_each_server, "/stream", key)
        assert (again.content, replayed(again), shop.runs) == (whole, True, 1)
    assert post(on_each_server, "/file", key and key + "-2", **given).content == shop.file.read_bytes()
    headers = {} if key is None else {"idempotency-key": key}
    assert httpx.get(on_each_server.url + "/file", headers=headers).content == shop.file.read_bytes()


def test_events_arrive_as_they_happen(shop: Shop, on_each_server: Served) -> None:
    """HA-47."""
    with on_each_server.connect() as connection:
        connection.sendall(request_bytes(K.encode(), b"x", path=b"/events"))
        assert b"idempotency-replayed" not in until(connection, b"data: 1\n\n").lower()
        executed = post(on_each_server, "/events", content=b"x", headers={"content-type": ""})
        assert (executed.status_code, executed.json()["code"], executed.json()["reason"]) == (409, "executed", "stream")
        on_each_server.do(shop.go_on.set)
        assert b"data: 2\n\n" in drain(connection)
    assert shop.runs == 1


def test_background_work_does_not_hold_up_a_retry(shop: Shop, on_each_server: Served) -> None:
    """HA-28."""
    first = post(on_each_server, "/background")
    assert not shop.over.is_set()
    again = post(on_each_server, "/background")
    assert (again.content, replayed(again), shop.over.is_set()) == (first.content, True, False)
    on_each_server.do(shop.go_on.set)
    assert shop.over.wait(PATIENCE_S)


def test_a_retry_at_the_last_byte_is_a_replay(shop: Shop, target: str) -> None:
    """HA-29: as soon as the client has the last byte, over another connection."""
    guard = Idempotency(target, config())
    with served(IdempotencyMiddleware(shop.app, guard), guard) as server, httpx.Client(timeout=PATIENCE_S) as client:
        for number in range(40):
            key = f"key-number-{number}-of-mine"
            with server.connect() as connection:
                connection.sendall(request_bytes(key.encode(), b"x").replace(b"connection: close\r\n", b""))
                until(connection, b'{"run":%d}' % (number + 1))
                again = client.post(server.url + "/orders", headers={"idempotency-key": key}, content=b"x")
            assert (again.json(), replayed(again)) == ({"run": number + 1}, True)
        assert shop.runs == 40
