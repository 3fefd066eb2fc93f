"""The request up to its claim: who asks, and the body within its limits.

`prove` and `too_long` need neither the body nor the ledger, so a request that is refused by them never makes the
client send its body. `Reading` takes the body in while it is hashed, and hands it to the application as one message.

Invariants:
    - A refused body was never held beyond its limit and one chunk.
    - Whatever was taken from the server's `receive` and is not part of the body reaches the application.
    - Bytes count against the process's cap from their arrival until the application has them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.core.clock import Clock
from holdfast.core.loops import spawn
from holdfast.idempotency.errors import IdentityUnproven, RequestInvalid, RequestTooLarge, StoreUnavailable
from holdfast.idempotency.fingerprint import Hasher, parts_of
from holdfast.idempotency.gate import Expired, bounded, resumed
from holdfast.idempotency.identity import FIRST_SENT, principal_of
from holdfast.idempotency.values import Headers, Principal

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.rules import IdempotencyConfig, RouteRule

__all__ = ["ASGIApp", "FieldNames", "Message", "Reading", "Receive", "Scope", "Send", "Site", "prove", "too_long"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES_MAX, NAME_BYTES_MAX = 4096, 128
"""Names of fields that are remembered, and their size; strangers choose them."""
TELLS, KEY, SENT, LENGTH = 1, 2, 3, 4
"""What a name is: the key's, that of `Idempotency-First-Sent` or `Content-Length`, or another that says something. 0:
it says nothing."""
TELLING = frozenset(
    {b"idempotency-first-sent", b"content-type", b"content-encoding", b"content-length", b"accept-encoding"}
)
LENGTH_DIGITS_MAX = 18
"""No body has a length of more digits, and reading a number of thousands of digits is refused by Python."""
THREAD_BYTES = 256 * 1024
"""Chunks above this are hashed in a thread; smaller ones are done before a thread would have begun."""
FORM_BYTES = 64 * 1024
"""Bodies above this are brought to their canonical form in a thread; Python does that byte by byte."""
RETRY_AFTER_S = 1
"""When memory is short: bodies pass in well under a second."""


class FieldNames:
    """Knows which fields of requests say anything to a guard. Names it has seen are found in a dict."""

    def __init__(self, config: IdempotencyConfig) -> None:
        self._keys = frozenset(name.lower().encode("latin-1") for name in config.headers)
        counting = {name.lower().encode("latin-1") for name in config.fingerprint_headers}
        self._counting = self._keys | counting | TELLING
        self._kinds: dict[bytes, int] = {}

    def keyed(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Say whether any field is the key's, or passes for it with an underscore."""
        kinds = self._kinds
        for field in headers:
            kind = kinds.get(field[0])
            if (self._kind(field[0]) if kind is None else kind) == KEY:
                return True
        return False

    def telling(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Return the fields that say anything, in order. Those that were never seen are taken along."""
        kinds = self._kinds
        return [field for field in headers if kinds.get(field[0], TELLS)]

    def sort(self, telling: Headers) -> tuple[Headers, Headers, Headers]:
        """Return the lines of the key, of `Idempotency-First-Sent` and of `Content-Length`."""
        kinds = self._kinds
        lines: tuple[Headers, Headers, Headers] = ([], [], [])
        for field in telling:
            kind = kinds.get(field[0])
            if kind is None:
                kind = self._kind(field[0])
            if kind >= KEY:
                lines[kind - KEY].append(field)
        return lines

    def _kind(self, name: bytes) -> int:
        lowered = name.lower()
        plain = lowered.replace(b"_", b"-")
        if lowered in self._keys or plain in self._keys:
            kind = KEY
        elif lowered == FIRST_SENT:
            kind = SENT
        else:
            kind = LENGTH if lowered == b"content-length" else int(lowered in self._counting)
        if len(name) <= NAME_BYTES_MAX:
            if len(self._kinds) >= NAMES_MAX:
                self._kinds.clear()
            self._kinds[name] = kind
        return kind


@dataclass(frozen=True, slots=True)
class Site:
    """Where a middleware stands.

    Attributes:
        app: What it wraps.
        guard: Whose ledger and settings it uses.
        names: Knows the fields that matter.
        adds: Whether the settings add fields to the handler's own response.
    """

    app: ASGIApp
    guard: Idempotency
    names: FieldNames
    adds: bool


class _Buffered:
    """How many bytes of bodies the process holds. Loops in several threads share it."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0

    def add(self, count: int) -> int:
        # No call between read and write, so threads cannot lose any of it.
        self.size = total = self.size + count
        return total


buffered = _Buffered()


async def prove(config: IdempotencyConfig, scope: Scope) -> Principal:
    """Return who asks.

    Raises:
        IdentityUnproven: Nobody is proven. Any other error of the application's function comes out unchanged.
    """
    told = config.principal(scope)
    if not isinstance(told, Principal | str) and inspect.isawaitable(told):
        told = await told
    principal = principal_of(told)
    if principal is None:
        raise IdentityUnproven("nobody proved who asks", "authenticate, then send the request with the same key")
    return principal


def too_long(headers: Headers, limit: int) -> bool:
    """Say whether the request declares a body over a limit. A length that is no number is the server's matter."""
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit():
            return len(value) > LENGTH_DIGITS_MAX or int(value) > limit
    return False


class Reading:
    """The body of one request, on its way from the server to the application.

    Attributes:
        body: What has arrived; the whole body after `read`.
        whole: Whether it is.
    """

    __slots__ = (
        "_clock", "_config", "_counted", "_given", "_hasher", "_keep", "_pending", "_receive", "_rule", "body", "whole"
    )  # fmt: skip

    def __init__(
        self,
        receive: Receive,
        scope: Scope,
        headers: Headers,
        *,
        rule: RouteRule,
        config: IdempotencyConfig,
        clock: Clock,
    ) -> None:
        """Prepare; nothing is received yet.

        Args:
            receive: The server's.
            scope: The request's, as the server gave it.
            headers: Its headers, copied before.
            rule: The rule it is under.
            config: The guard's settings.
            clock: What the body's time is measured with.
        """
        self.body: bytes | bytearray = b""
        self.whole = False
        self._receive = receive
        self._rule = rule
        self._config = config
        self._clock = clock
        self._hasher = Hasher(parts_of(scope, headers, rule, config))
        self._counted = 0
        self._given = False
        self._keep = rule.mode == "transaction"  # its unit may run again, with the same body
        self._pending: asyncio.Task[Message] | None = None

    async def read(self) -> bool:
        """Take the whole body in. Returns False when the client left before its end.

        Raises:
            RequestTooLarge: It is over the rule's limit.
            RequestInvalid: It took longer than `body_timeout`.
            StoreUnavailable: The process holds as many bytes as it may (`idempotency.overloaded`).
        """
        if self._config.observe:
            return await self._take()
        taking = self._take()
        try:
            waits_for = taking.send(None)
        except StopIteration as taken:  # it was all there: no clock is needed
            return bool(taken.value)
        try:
            seconds = self._config.body_timeout.total_seconds()
            return await bounded(self._clock, resumed(taking, waits_for), seconds)
        except Expired:
            raise RequestInvalid(
                "the body took too long to arrive", "send it again with the same key", code="idempotency.body_timeout"
            ) from None

    def fingerprint(self) -> bytes | Awaitable[bytes]:
        """Return what the request must not differ in; where that takes long, what is to be awaited for it.

        Raises:
            RequestInvalid: The body has no canonical form (`idempotency.body_not_canonical`).
        """
        if self._hasher.streams:
            return self._hasher.finish()
        body = bytes(self.body)
        if len(body) <= FORM_BYTES:
            return self._hasher.finish(body)
        return asyncio.to_thread(self._hasher.finish, body)

    async def receive(self) -> Message:
        """What the application calls: the body in one message, then whatever the server says."""
        if not self._given:
            return self._give()
        pending = self._pending
        if pending is None:
            return await self._receive()
        await self._clock.wait(pending, None)  # given up by its caller, it waits for the next one
        self._pending = None
        return pending.result()

    def watch(self) -> asyncio.Task[Message]:
        """Start listening for what comes after the body; it goes to the application if that runs after all."""
        if self._pending is None:
            self._pending = spawn(self._listen(), "holdfast idempotency listen")
            self._pending.add_done_callback(_seen)
        return self._pending

    def rewind(self) -> None:
        """Let the application have the body once more."""
        self._given = False

    def close(self) -> None:
        """Let go of the body, and of what was listened for; harmless when it is done again."""
        self._free()
        self.body = b""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    async def _take(self) -> bool:
        limit, cap = self._rule.request_bytes_max, self._config.buffered_bytes_max
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if chunk:
                self._counted += len(chunk)
                total = buffered.add(len(chunk))
                if not self._config.observe:
                    self._check(total, limit, cap)
                if self.body or len(chunk) > THREAD_BYTES:
                    await self._append(chunk)
                else:
                    self.body = chunk
                    self._hasher.update(chunk)
                if self._config.observe and (self._counted > limit or total > cap):
                    break
        self.whole = not more
        return True

    def _check(self, total: int, limit: int, cap: int) -> None:
        if self._counted > limit:
            raise RequestTooLarge(f"the body is over {limit} bytes", "send less, or ask for the limit to be raised")
        if total > cap:
            raise StoreUnavailable(
                "too many request bytes are held just now", "try again with the same key",
                code="idempotency.overloaded", retry_after=RETRY_AFTER_S,
            )  # fmt: skip

    async def _append(self, chunk: bytes) -> None:
        if not self.body:
            self.body = chunk
        else:
            # Grown in place: a body of many small chunks costs what its bytes cost.
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += chunk
        if len(chunk) > THREAD_BYTES and self._hasher.streams:
            await asyncio.to_thread(self._hasher.update, chunk)
        else:
            self._hasher.update(chunk)

    def _give(self) -> Message:
        self._given = True
        body = self.body = bytes(self.body)
        if not self._keep:
            self._free()
            self.body = b""
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    def _free(self) -> None:
        if self._counted:
            buffered.add(-self._counted)
            self._counted = 0

    async def _listen(self) -> Message:
        return await self._receive()


def _seen(task: asyncio.Task[Message]) -> None:
    # Nobody may ask any more; a server that fails here fails again when the answer is sent.
    if not task.cancelled():
        task.exception()
