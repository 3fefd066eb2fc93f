"""One run of the application for a keyed request: its scope, its context, and how long it may take.

The application runs in the caller's task and gets the caller's own scope, changed only in what a record needs: no
extension that would let a response past the responder, and no content coding of one client's choice.

Invariants:
    - The scope is as it was when the run is over, but for what the application wrote into it.
    - What is interrupted here is told apart from a cancellation that came from outside.
    - A second run of mode `transaction` finds scope and body as the first one found them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from holdfast.core import points
from holdfast.core.errors import LeaseLost
from holdfast.idempotency.errors import HandlerTimeout
from holdfast.idempotency.idem import enter, leave
from holdfast.idempotency.responder import Responder
from holdfast.idempotency.unit import Ending

if TYPE_CHECKING:
    from holdfast.core.clock import Clock, Timer
    from holdfast.idempotency.claims import Held, Ticket
    from holdfast.idempotency.idem import Idem
    from holdfast.idempotency.request import Reading, Scope, Send, Site
    from holdfast.idempotency.values import Headers

__all__ = ["IN_SCOPE", "Interrupt", "Run"]

IN_SCOPE = "holdfast.idempotency"
"""The scope's key for what speaks for the request; while it is there, a guard inside passes it on."""
CODING = b"accept-encoding"
"""The record holds the identity form, which every client can be given."""
EXTENSIONS = frozenset({"tls", "http.response.early_hint", "http.response.debug"})
"""What the application may know of the server's extensions: none of these carries a part of the response."""

points.register("handler.entered")


class Interrupt:
    """Cancels the task that made it, once, and knows that it did."""

    def __init__(self, clock: Clock) -> None:
        task = asyncio.current_task()
        assert task is not None, "an application runs in a task"
        self.reason: Literal["timeout", "lost"] | None = None
        self._clock = clock
        self._task = task
        self._before = task.cancelling()
        self._timer: Timer | None = None
        self._over = False

    def after(self, seconds: float) -> None:
        """Strike when that much time has passed."""
        self._timer = self._clock.call_later(seconds, lambda: self.strike("timeout"))

    def strike(self, reason: Literal["timeout", "lost"]) -> None:
        """Cancel the task, unless it is over."""
        if not self._over and self.reason is None:
            self.reason = reason
            self._task.cancel()

    def disarm(self) -> None:
        """Strike no more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def caught(self) -> bool:
        """Say whether it struck, and nobody else cancelled the task as well; take its cancellation back."""
        return self.reason is not None and self._task.uncancel() <= self._before


class Run:
    """The runs of the application for one keyed request: one, or in mode `transaction` as many as its unit needs.

    Attributes:
        attempts: How many there were.
        responder: The response of the last one.
        failure: What the last one raised.
    """

    def __init__(
        self,
        site: Site,
        ticket: Ticket,
        reading: Reading,
        *,
        scope: Scope,
        send: Send,
        refused: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            site: The application, and whose settings hold.
            ticket: The request as the guard knows it.
            reading: Its body, read.
            scope: The request's own scope.
            send: The server's.
            refused: Answers the client when the end of a run was refused.
        """
        self.attempts = 0
        self.responder: Responder | None = None
        self.failure: BaseException | None = None
        self._site = site
        self._ticket = ticket
        self._reading = reading
        self._scope = scope
        self._send = send
        self._refused = refused
        self._interrupt: Interrupt | None = None
        self._entry = _copied(scope) if ticket.rule.mode == "transaction" else None

    @property
    def last(self) -> Responder:
        """The response of the run under way, or of the last one."""
        assert self.responder is not None, "nothing has run yet"
        return self.responder

    @property
    def interrupted(self) -> Literal["timeout", "lost"] | None:
        """Why the last run was cancelled from here, if it was."""
        return self._interrupt.reason if self._interrupt is not None else None

    async def attempt(self, idem: Idem, end: Callable[[Ending], Awaitable[object]], held: Held | None = None) -> None:
        """Run the application once. Nothing reaches the client before `end` has returned.

        Args:
            idem: What speaks for the request in the application.
            end: Called in the application's task when the response is decided; False: the claim is lost.
                What it raises comes out of the application's `send`.
            held: The claim whose loss cancels the run, if the rule says so.

        Raises:
            HandlerTimeout: It took longer than the rule allows, and was cancelled.
            LeaseLost: The claim was lost, and it was cancelled.
            BaseException: What the application raised.
        """
        if self._entry is not None and self.attempts:
            self._rewind(self._entry)
        self.attempts += 1
        self.failure = None
        self._interrupt = interrupt = self._interruptible(held)
        responder = self.responder = Responder(
            self._site, self._ticket, idem, send=self._send, end=self._ended(end), refused=self._refused
        )
        scope = self._scope
        headers, extensions = scope["headers"], scope.get("extensions")
        token = enter(idem)
        try:
            scope["headers"] = _identity_form(headers)
            if extensions:
                scope["extensions"] = {name: extensions[name] for name in extensions if name in EXTENSIONS}
            scope[IN_SCOPE] = idem
            if points.armed:
                points.reach("handler.entered")
            await self._site.app(scope, self._reading.receive, responder.send)
        except BaseException as error:
            self.failure = error
            if interrupt is not None and isinstance(error, asyncio.CancelledError) and interrupt.caught():
                self.failure = told = _told(interrupt)
                raise told from None
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

    def _interruptible(self, held: Held | None) -> Interrupt | None:
        rule, config = self._ticket.rule, self._site.guard.config
        if config.observe or (rule.handler_timeout is None and (held is None or rule.on_lost != "cancel")):
            return None
        interrupt = Interrupt(self._site.guard.clock)
        if rule.handler_timeout is not None:
            interrupt.after(rule.handler_timeout.total_seconds())
        if held is not None and rule.on_lost == "cancel":
            held.on_lost(lambda: interrupt.strike("lost"))
        return interrupt

    def _ended(self, end: Callable[[Ending], Awaitable[object]]) -> Callable[[Ending], Awaitable[object]]:
        interrupt = self._interrupt
        if interrupt is None:
            return end

        async def ended(ending: Ending) -> object:
            interrupt.disarm()
            return await end(ending)

        return ended

    def _rewind(self, entry: dict[str, tuple[Any, Any]]) -> None:
        """Bring scope and body back to what the first attempt found."""
        self._scope.clear()
        for name, (value, content) in entry.items():
            if isinstance(value, dict):
                value.clear()
                value.update(content)
            elif isinstance(value, list):
                value[:] = content
            self._scope[name] = value
        self._reading.rewind()


def _identity_form(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers without what asks for a content coding."""
    return [field for field in headers if len(field[0]) != len(CODING) or field[0].lower() != CODING]


def _told(interrupt: Interrupt) -> HandlerTimeout | LeaseLost:
    if interrupt.reason == "lost":
        return LeaseLost("the claim was lost, and its handler was cancelled")
    return HandlerTimeout("the handler took longer than it may", "ask again with the same key what became of it")


def _copied(scope: Scope) -> dict[str, tuple[Any, Any]]:
    """What is in a scope, and what is in its lists and mappings."""
    return {name: (value, value.copy() if isinstance(value, dict | list) else None) for name, value in scope.items()}
