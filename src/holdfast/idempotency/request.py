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
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.core.clock import Clock
from holdfast.core.loops import seen, spawn
from holdfast.idempotency.errors import (
    IdempotencyError,
    IdentityUnproven,
    RequestInvalid,
    RequestTooLarge,
    StoreUnavailable,
)  # fmt: skip
from holdfast.idempotency.fingerprint import Hasher, Recipe, parts_of
from holdfast.idempotency.gate import Expired, bounded, resumed
from holdfast.idempotency.identity import FIRST_SENT, principal_of
from holdfast.idempotency.values import Headers, Principal

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.rules import IdempotencyConfig, RouteRule

__all__ = [
    "ASGIApp",
    "FieldNames",
    "Message",
    "Reading",
    "Receive",
    "Recipes",
    "Scope",
    "Send",
    "Shape",
    "Site",
    "proven",
    "too_long",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SHAPES_MAX, SHAPE_BYTES_MAX = 1024, 2048
"""How many sets of names are remembered, and how long one may be: strangers choose them, and have few each."""
_name_of = itemgetter(0)
PLAIN = (b"content-type", b"content-encoding")
USUAL_MAX, USUAL_BYTES_MAX = 1024, 512
"""How many recipes are remembered, and how long path and head of one may be: strangers choose them."""
LENGTH_DIGITS_MAX = 18
"""No body has a length of more digits, and reading a number of thousands of digits is refused by Python."""
THREAD_BYTES = 256 * 1024
"""Chunks above this are hashed in a thread; smaller ones are done before a thread would have begun."""
FORM_BYTES = 64 * 1024
"""Bodies above this are brought to their canonical form in a thread; Python does that byte by byte."""
RETRY_AFTER_S = 1
"""When memory is short: bodies pass in well under a second."""


class Shape:
    """What the fields of a request say to a guard, by their places. Requests of one client have the same.

    Attributes:
        keyed: Whether any is the key's, or passes for it with an underscore.
        key: The place of the only line of the key, if there is one line and it is spelled well.
        keys: The places of all lines that may be the key's.
        sent: Those of `Idempotency-First-Sent`.
        lengths: Those of `Content-Length`.
        plain: Those of `Content-Type` and `Content-Encoding`.
        listed: Those that the settings name.
        coding: Whether any asks for a content coding.
    """

    __slots__ = ("coding", "key", "keyed", "keys", "lengths", "listed", "plain", "sent")

    def __init__(self, names: Sequence[bytes], keys: frozenset[bytes], listed: frozenset[bytes]) -> None:
        places = list(enumerate(names))
        self.keys = tuple(at for at, name in places if name in keys or name.replace(b"_", b"-") in keys)
        self.keyed = bool(self.keys)
        self.key = self.keys[0] if len(self.keys) == 1 and names[self.keys[0]] in keys else None
        self.sent = tuple(at for at, name in places if name == FIRST_SENT)
        self.lengths = tuple(at for at, name in places if name == b"content-length")
        self.listed = tuple(at for at, name in places if name in listed)
        self.plain = tuple(at for at, name in places if name in PLAIN and name not in listed)
        self.coding = b"accept-encoding" in names


class FieldNames:
    """Knows which fields of requests say anything to a guard."""

    def __init__(self, config: IdempotencyConfig) -> None:
        self._keys = frozenset(name.lower().encode("latin-1") for name in config.headers)
        self._listed = frozenset(name.lower().encode("latin-1") for name in config.fingerprint_headers)
        self._shapes: dict[tuple[bytes, ...], Shape] = {}

    def shape(self, headers: Iterable[tuple[bytes, bytes]]) -> Shape:
        """Return what the fields of a request say."""
        names = tuple(map(_name_of, headers))
        shape = self._shapes.get(names)
        if shape is None:
            shape = Shape([name.lower() for name in names], self._keys, self._listed)
            if sum(map(len, names)) <= SHAPE_BYTES_MAX:
                if len(self._shapes) >= SHAPES_MAX:
                    self._shapes.clear()
                self._shapes[names] = shape
        return shape


class Recipes:
    """The recipes of an application's requests. Those of its usual ones are made once: they are of a few routes."""

    def __init__(self, config: IdempotencyConfig) -> None:
        self._config = config
        self._usual: dict[tuple[object, ...], Recipe] = {}

    def find(self, scope: Scope, plain: Headers, listed: Headers, rule: RouteRule) -> Recipe:
        """Return the recipe of a request.

        Args:
            scope: The request's, as the server gave it.
            plain: Its fields `Content-Type` and `Content-Encoding`.
            listed: Those of its fields that the settings name; they may be secrets, so no memory is kept of them.
            rule: The rule it is under.
        """
        if listed or callable(rule.body):
            return Recipe(parts_of(scope, plain + listed, rule, self._config))
        path, raw_path, query = scope["path"], scope.get("raw_path"), scope.get("query_string")
        key = (scope["method"], path, raw_path, query, rule.body, *plain)
        recipe = self._usual.get(key)
        if recipe is None:
            recipe = Recipe(parts_of(scope, plain, rule, self._config))
            if len(path) + len(recipe.head) <= USUAL_BYTES_MAX:
                if len(self._usual) >= USUAL_MAX:
                    self._usual.clear()
                self._usual[key] = recipe
        return recipe


@dataclass(frozen=True, slots=True)
class Site:
    """Where a middleware stands.

    Attributes:
        app: What it wraps.
        guard: Whose ledger and settings it uses.
        recipes: Knows how requests are fingerprinted.
        adds: Whether the settings add fields to the handler's own response.
    """

    app: ASGIApp
    guard: Idempotency
    recipes: Recipes
    adds: bool


class _Buffered:
    """How many bytes of bodies the process holds. Loops in several threads share it.

    Whoever changes it makes no call between reading and writing it, so threads cannot lose any of it.
    """

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


buffered = _Buffered()


def proven(told: object) -> Principal:
    """Return who asks, given what the application's function said.

    Raises:
        IdentityUnproven: Nobody is proven.
        TypeError: It said something else.
    """
    principal = principal_of(told)
    if principal is None:
        raise IdentityUnproven("nobody proved who asks", "authenticate, then send the request with the same key")
    return principal


def too_long(headers: Headers, shape: Shape, limit: int) -> bool:
    """Say whether `Content-Length` declares a body over a limit. One that is no number is the server's matter."""
    for at in shape.lengths:
        value = headers[at][1]
        if value.isdigit():
            return len(value) > LENGTH_DIGITS_MAX or int(value) > limit
    return False


class Reading:
    """The body of one request, on its way from the server to the application.

    Attributes:
        body: What has arrived; the whole body after `read`.
        whole: Whether it is.
    """

    __slots__ = (
        "_clock", "_config", "_counted", "_given", "_hasher", "_keep", "_pending", "_receive", "_recipe", "_rule",
        "body", "whole",
    )  # fmt: skip

    def __init__(
        self,
        receive: Receive,
        recipe: Recipe,
        *,
        rule: RouteRule,
        config: IdempotencyConfig,
        clock: Clock,
    ) -> None:
        """Prepare; nothing is received yet.

        Args:
            receive: The server's.
            recipe: How it is fingerprinted.
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
        self._recipe = recipe
        self._hasher: Hasher | None = None  # of a body that comes in several messages
        self._counted = 0
        self._given = False
        self._keep = rule.mode == "transaction"  # its unit may run again, with the same body
        self._pending: asyncio.Task[Message] | None = None

    def read(self) -> bool | Awaitable[bool]:
        """Take the whole body in; False: the client left before its end. If it takes time, return what to await for it.

        Raises:
            RequestTooLarge: It is over the rule's limit.
            RequestInvalid: It took longer than `body_timeout`.
            StoreUnavailable: The process holds as many bytes as it may (`idempotency.overloaded`).
        """
        taking = self._take()
        try:
            waits_for = taking.send(None)
        except StopIteration as taken:  # it was all there: no clock is needed
            return bool(taken.value)
        going_on = resumed(taking, waits_for)
        return going_on if self._config.observe else self._read_in_time(going_on)

    async def _read_in_time(self, taking: Awaitable[bool]) -> bool:
        try:
            return await bounded(self._clock, taking, self._config.body_timeout.total_seconds())
        except Expired:
            raise RequestInvalid(
                "the body took too long to arrive", "send it again with the same key", code="idempotency.body_timeout"
            ) from None

    def fingerprint(self) -> bytes | Awaitable[bytes]:
        """Return what the request must not differ in; where that takes long, what is to be awaited for it.

        Raises:
            RequestInvalid: The body has no canonical form (`idempotency.body_not_canonical`).
        """
        hasher, recipe = self._hasher, self._recipe
        if hasher is not None and hasher.begun:
            return hasher.finish()
        body = bytes(self.body)
        if recipe.form == "raw" or len(body) <= FORM_BYTES:
            return recipe.finish(body)
        return asyncio.to_thread(Hasher(recipe).finish, body)

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
            # Nobody may ask any more; a server that fails here fails again when the answer is sent.
            self._pending.add_done_callback(seen)
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
        limit, cap, observe = self._rule.request_bytes_max, self._config.buffered_bytes_max, self._config.observe
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if chunk:
                size = len(chunk)
                self._counted += size
                buffered.size = total = buffered.size + size
                over = self._counted > limit or total > cap
                if over and not observe:
                    raise self._too_much(limit)
                if more or size > THREAD_BYTES or self.body:
                    await self._append(chunk)
                else:
                    self.body = chunk  # all of it: it is hashed at once
                if over:
                    break
        self.whole = not more
        return True

    def _too_much(self, limit: int) -> IdempotencyError:
        if self._counted > limit:
            return RequestTooLarge(f"the body is over {limit} bytes", "send less, or ask for the limit to be raised")
        return StoreUnavailable(
            "too many request bytes are held just now", "try again with the same key",
            code="idempotency.overloaded", retry_after=RETRY_AFTER_S,
        )  # fmt: skip

    async def _append(self, chunk: bytes) -> None:
        if self._hasher is None:
            self._hasher = Hasher(self._recipe)
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
            counted = self._counted
            buffered.size = buffered.size - counted
            self._counted = 0

    async def _listen(self) -> Message:
        return await self._receive()
