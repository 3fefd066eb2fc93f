"""An ASGI server for tests, in process: it plays the server's part message by message and keeps all it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from holdfast.idempotency import Idempotency, IdempotencyConfig, IdempotencyEvent, IdempotencyMiddleware, Principal
from holdfast.testing import ManualClock
from holdfast.testing.clock import Settled

SECRET = bytes(range(32))
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


def who(scope: Mapping[str, Any]) -> Principal | None:
    """The caller of a test request: `x-user`, else `user-1` of `acme`; `nobody` is not proven."""
    for name, value in scope["headers"]:
        if name == b"x-user":
            return None if value == b"nobody" else Principal(value.decode("latin-1"), "acme")
    return Principal("user-1", "acme")


def config(**settings: Any) -> IdempotencyConfig:
    return IdempotencyConfig(**{"principal": who, "secrets": [SECRET], "allow_memory": True} | settings)


@dataclass
class Answer:
    """What came back for one request."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None
    scope: Message = field(default_factory=dict)
    received: int = 0

    @property
    def start(self) -> Message:
        return next(m for m in self.messages if m["type"] == "http.response.start" and m["status"] >= 200)

    @property
    def status(self) -> int:
        return self.start["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.start["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def ended(self) -> bool:
        bodies = [m for m in self.messages if m["type"] == "http.response.body"]
        return bool(bodies) and not bodies[-1].get("more_body", False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        if self.header("content-type") != "application/problem+json":
            return None
        return self.json["code"]

    @property
    def replayed(self) -> bool:
        return self.header("idempotency-replayed") == "true"

    def header(self, name: str) -> str | None:
        found = [value.decode("latin-1") for n, value in self.headers if n.lower() == name.encode()]
        assert len(found) < 2, f"{name} is there {len(found)} times"
        return found[0] if found else None

    def lines(self, name: str) -> list[str]:
        return [value.decode("latin-1") for n, value in self.headers if n.lower() == name.encode()]


class Call:
    """One request under way."""

    def __init__(self, app: App, scope: Message, chunks: Iterable[bytes], *, whole: bool = True) -> None:
        self.answer = Answer(scope=scope)
        self.app = app
        self.scope = scope
        self._chunks: asyncio.Queue[Message] = asyncio.Queue()
        chunks = list(chunks) or [b""]
        for at, chunk in enumerate(chunks):
            last = whole and at == len(chunks) - 1
            self._chunks.put_nowait({"type": "http.request", "body": chunk, "more_body": not last})
        self.left = asyncio.Event()
        self.moved = asyncio.Event()
        self.on_send: Callable[[Message], Awaitable[None]] | None = None

    async def receive(self) -> Message:
        self.answer.received += 1
        if self._chunks.empty() and self.left.is_set():
            return {"type": "http.disconnect"}
        getting = asyncio.ensure_future(self._chunks.get())
        leaving = asyncio.ensure_future(self.left.wait())
        try:
            await asyncio.wait((getting, leaving), return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else {"type": "http.disconnect"}
        finally:
            getting.cancel()
            leaving.cancel()

    async def send(self, message: Message) -> None:
        if self.on_send is not None:
            await self.on_send(message)
        self.answer.messages.append(dict(message))
        self.moved.set()

    def feed(self, chunk: bytes, *, more: bool = False) -> None:
        self._chunks.put_nowait({"type": "http.request", "body": chunk, "more_body": more})

    def leave(self) -> None:
        self.left.set()

    async def run(self) -> Answer:
        """Run the application to its end; what it raises is kept."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - the server's part
            self.answer.error = error
        return self.answer

    async def start(self) -> asyncio.Task[Answer]:
        """Run it in a task, which has come as far as it gets without anybody else."""
        task = asyncio.ensure_future(self.run())
        await Settled()
        return task

    async def until(self, condition: Callable[[Answer], bool]) -> Answer:
        """Wait until what was sent satisfies a condition."""
        while not condition(self.answer):
            self.moved.clear()
            await asyncio.wait_for(self.moved.wait(), 20)
        return self.answer


def http_scope(method: str = "POST", path: str = "/orders", **more: Any) -> Message:
    headers = more.pop("headers", [])
    if isinstance(headers, Mapping):
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    path, _, query = path.partition("?")
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": list(headers), "client": ("127.0.0.1", 40000), "server": ("test", 80), "state": {},
        "extensions": {"http.response.debug": {}, "http.response.pathsend": {}, "http.response.trailers": {}},
    } | more  # fmt: skip


def call(
    app: App,
    key: str | None = None,
    *,
    method: str = "POST",
    path: str = "/orders",
    body: bytes = b'{"amount":5}',
    headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] = (),
    chunks: Iterable[bytes] | None = None,
    whole: bool = True,
    **scope: Any,
) -> Call:
    """Prepare a request; `key` is sent as it stands."""
    if isinstance(headers, Mapping):
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    lines = [(b"host", b"test"), (b"content-type", b"application/json"), *headers]
    if any(name == b"content-type" for name, _ in lines[2:]):
        del lines[1]
    if key is not None:
        lines.append((b"idempotency-key", key.encode("latin-1")))
    return Call(
        app, http_scope(method, path, headers=lines, **scope), [body] if chunks is None else chunks, whole=whole
    )


async def ask(app: App, key: str | None = None, **request: Any) -> Answer:
    """Make a request, and run it to its end."""
    return await call(app, key, **request).run()


@dataclass
class Guarded:
    """An application behind a middleware, and what its guard told."""

    app: IdempotencyMiddleware
    guard: Idempotency
    events: list[IdempotencyEvent]
    clock: ManualClock

    async def ask(self, key: str | None = None, **request: Any) -> Answer:
        return await ask(self.app, key, **request)

    def call(self, key: str | None = None, **request: Any) -> Call:
        return call(self.app, key, **request)

    def decisions(self) -> list[str]:
        return [event.kind for event in self.events if event.latency_us is not None]

    def notices(self) -> list[str]:
        return [event.kind for event in self.events if event.latency_us is None]

    async def rows(self) -> int:
        """How many records there are."""
        from holdfast.idempotency import keys

        await self.guard.ready()
        async with self.guard.database.read() as tx:
            return len((await keys.list(tx, limit=200)).items)


@asynccontextmanager
async def guarded(
    app: App, target: str, *, rule: Any = None, clock: Any = None, **settings: Any
) -> AsyncIterator[Guarded]:
    """Put an application behind a guard on a fresh ledger."""
    events: list[IdempotencyEvent] = []
    clock = clock or ManualClock()
    guard = Idempotency(target, config(**{"on_event": events.append} | settings), clock=clock)
    try:
        yield Guarded(IdempotencyMiddleware(app, guard, rule=rule), guard, events, clock)
    finally:
        await guard.stop(timedelta(0))  # the clock stands still: nobody waits for what a test has left behind


@dataclass
class Counting:
    """An application that counts its runs, and answers as it is told."""

    status: int = 201
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])
    body: Callable[[int], bytes] | bytes = lambda run: b'{"run":%d}' % run
    runs: int = 0
    seen: list[Message] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        run = self.runs
        self.seen.append(
            {
                "scope": scope,
                "receive": receive,
                "send": send,
                "headers": list(scope["headers"]),
                "extensions": scope.get("extensions"),
            }
        )
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        out = self.body(run) if callable(self.body) else self.body
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": out})
