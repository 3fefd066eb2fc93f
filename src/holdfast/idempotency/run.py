"""One run of the application for a keyed request: its scope, its context, and how long it may take.

The application runs in the caller's task and gets the caller's own scope, changed only in what a record needs: no
extension that would let a response past the responder, and no content coding of one client's choice.

Invariants:
    - The scope is as it was when the run is over, but for what the application wrote into it.
    - A second run of mode `transaction` finds scope and body as the first one found them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.core import points
from holdfast.core.errors import LeaseLost
from holdfast.idempotency.errors import HandlerTimeout
from holdfast.idempotency.idem import enter, leave
from holdfast.idempotency.interrupt import Interrupt
from holdfast.idempotency.responder import Responder
from holdfast.idempotency.unit import Ending

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Held, Ticket
    from holdfast.idempotency.idem import Idem
    from holdfast.idempotency.request import Reading, Scope, Send, Site
    from holdfast.idempotency.rules import RouteRule

__all__ = ["IN_SCOPE", "Runs", "interruptible", "play"]

IN_SCOPE = "holdfast.idempotency"
"""The scope's key for what speaks for the request; while it is there, a guard inside passes it on."""
CODING = b"accept-encoding"
EXTENSIONS = frozenset({"tls", "http.response.early_hint", "http.response.debug"})
"""What the application may know of the server's extensions: none of these carries a part of the response."""

points.register("handler.entered")


class Told(Protocol):
    """Whoever sends what runs of mode `transaction` answer, and tells of them."""

    @property
    def send(self) -> Send:
        """The server's."""
        ...

    def began(self, attempt: int) -> None:
        """An attempt begins."""
        ...

    def committed(self, status: int | None) -> None:
        """The last one is committed, or let go."""
        ...


async def play(
    site: Site, reading: Reading, idem: Idem, scope: Scope, responder: Responder, *, codings: bool = True
) -> None:
    """Run the application once. Nothing reaches the client before the responder's `end` has returned.

    Args:
        site: The application.
        reading: The request's body, read.
        idem: What speaks for the request in the application.
        scope: The request's own scope.
        responder: What the application sends to.
        codings: Whether the request may ask for a content coding. The record holds the identity form, which every
            client can be given, so the application does not hear of it.

    Raises:
        HandlerTimeout: It took longer than the rule allows, and was cancelled.
        LeaseLost: The claim was lost, and it was cancelled.
        BaseException: What the application raised.
    """
    interrupt = responder.interrupt
    headers, extensions = scope["headers"], scope.get("extensions")
    token = enter(idem)
    try:
        if codings:
            scope["headers"] = [field for field in headers if field[0].lower() != CODING]
        if extensions:
            scope["extensions"] = {name: extensions[name] for name in extensions if name in EXTENSIONS}
        scope[IN_SCOPE] = idem
        if points.armed:
            points.reach("handler.entered")
        await site.app(scope, reading.receive, responder.send)
    except asyncio.CancelledError:
        if interrupt is not None and interrupt.caught():
            raise _told(interrupt) from None
        raise
    else:
        if interrupt is not None:
            interrupt.caught()  # the application made do without being stopped
    finally:
        leave(token)
        scope["headers"] = headers
        if extensions:
            scope["extensions"] = extensions
        scope.pop(IN_SCOPE, None)
        responder.close()
        if interrupt is not None:
            interrupt.disarm()


def interruptible(site: Site, rule: RouteRule, held: Held | None = None) -> Interrupt | None:
    """Return what cancels a run that takes too long, or whose claim is lost, where the rule says so."""
    cancels = held is not None and rule.on_lost == "cancel"
    if (rule.handler_timeout is None and not cancels) or site.guard.config.observe:
        return None
    interrupt = Interrupt(site.guard.clock)
    if rule.handler_timeout is not None:
        interrupt.after(rule.handler_timeout.total_seconds())
    if held is not None and cancels:
        held.on_lost(lambda: interrupt.strike("lost"))
    return interrupt


class Runs:
    """The runs of the application in mode `transaction`: as many as its unit needs, all with one scope and body.

    Attributes:
        attempts: How many there were.
        last: The response of the last one.
        failure: What the last one raised.
    """

    def __init__(self, site: Site, ticket: Ticket, reading: Reading, scope: Scope, told: Told) -> None:
        """Prepare; nothing runs yet.

        Args:
            site: The application, and whose settings hold.
            ticket: The request as the guard knows it.
            reading: Its body, read.
            scope: The request's own scope.
            told: Whoever tells of the request.
        """
        self.attempts = 0
        self.last: Responder | None = None
        self.failure: BaseException | None = None
        self._site = site
        self._ticket = ticket
        self._reading = reading
        self._scope = scope
        self._told = told
        self._entry = _copied(scope)

    async def attempt(self, idem: Idem, end: Callable[[Ending], Awaitable[None]]) -> None:
        """Run the application once, its scope and body as at entry; see `transaction.Run`.

        Raises:
            HandlerTimeout: It took longer than the rule allows, and was cancelled.
            BaseException: What the application raised.
        """
        if self.attempts:
            self._rewind()
        self.attempts += 1
        self.failure = None
        self._told.began(idem.attempt)

        async def ended(responder: Responder, ending: Ending) -> bool:
            await end(ending)
            self._told.committed(responder.status)
            return True

        self.last = responder = Responder(
            self._site,
            self._ticket,
            idem,
            send=self._told.send,
            end=ended,
            interrupt=interruptible(self._site, self._ticket.rule),
        )
        try:
            await play(self._site, self._reading, idem, self._scope, responder)
        except BaseException as error:
            self.failure = error
            raise

    @property
    def timed_out(self) -> bool:
        """Whether the last run was cancelled because it took too long, and nothing of it has left."""
        last = self.last
        return last is not None and last.interrupt is not None and last.interrupt.reason == "timeout" and not last.sent

    def _rewind(self) -> None:
        """Bring scope and body back to what the first attempt found."""
        self._scope.clear()
        for name, (value, content) in self._entry.items():
            if isinstance(value, dict):
                value.clear()
                value.update(content)
            elif isinstance(value, list):
                value[:] = content
            self._scope[name] = value
        self._reading.rewind()


def _told(interrupt: Interrupt) -> HandlerTimeout | LeaseLost:
    if interrupt.reason == "lost":
        return LeaseLost("the claim was lost, and its handler was cancelled")
    return HandlerTimeout("the handler took longer than it may", "ask again with the same key what became of it")


def _copied(scope: Scope) -> dict[str, tuple[Any, Any]]:
    """What is in a scope, and what is in its lists and mappings."""
    return {name: (value, value.copy() if isinstance(value, dict | list) else None) for name, value in scope.items()}
