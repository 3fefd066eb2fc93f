"""Send HTTP requests that take effect once: transports for httpx that mint keys, keep them, and try again.

    client = httpx.Client(transport=IdempotentTransport())
    client = httpx.AsyncClient(transport=AsyncIdempotentTransport())

This module hides how httpx makes one logical call out of several requests: it sends the same request again after an
authentication challenge, and a copy of it with the same extensions after a redirect. What is known of a call travels
in those extensions. One conductor says step by step what is to be done; the two transports do it, one by blocking and
one by awaiting.

Invariants:
    - A caller's request is not changed, except that its extensions remember the call; what goes out is a copy.
    - A response that is not returned is closed, and one that is returned can be read as if nobody had looked at it.
    - A journaled call is durable before its first byte leaves.
"""

from __future__ import annotations

import inspect
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from holdfast.core.clock import Clock, SystemClock, micros, to_datetime
from holdfast.core.errors import ConfigError, StoreError
from holdfast.core.ids import uuid7
from holdfast.idempotency import retry
from holdfast.idempotency.calls import CALL, Entry, KeyJournal, PendingCall
from holdfast.idempotency.errors import CallChanged
from holdfast.idempotency.headers import imf_date
from holdfast.idempotency.retry import Again, Answer, Budget, Call, CallInfo, Failure, RetryPolicy, Sending

try:
    import httpx
except ModuleNotFoundError as missing:
    if missing.name != "httpx":
        raise
    raise ConfigError(
        "the client needs the package httpx", "pip install 'holdfast[client]'", code="config.missing_extra"
    ) from None

from holdfast.idempotency.bodies import (
    AsyncBody,
    Body,
    copied,
    copied_with,
    decoded,
    is_loaded,
    is_resendable,
    read_ahead,
    read_ahead_async,
)

__all__ = [
    "AsyncIdempotentTransport",
    "CallInfo",
    "IdempotentTransport",
    "KeyJournal",
    "PendingCall",
    "RetryPolicy",
    "call_info",
]

Inner = TypeVar("Inner")
KeySource: TypeAlias = Callable[[httpx.Request], str | None]
Prepare: TypeAlias = Callable[[httpx.Request, int], object]

INFO = "holdfast.call_info"
_STATE = "holdfast.call_state"
_FIRST_SENT = "Idempotency-First-Sent"

_log = logging.getLogger("holdfast.idempotency")


def call_info(response: httpx.Response) -> CallInfo:
    """Return what the transport did for a response.

    Raises:
        ConfigError: It did not come through one of these transports.
    """
    info = response.extensions.get(INFO)
    if not isinstance(info, CallInfo):
        raise ConfigError("the response came through no idempotent transport", "give its client one")
    return info


@dataclass(frozen=True, slots=True)
class _Prepare:
    """Let the program have a look at an attempt."""

    request: httpx.Request
    attempt: int


@dataclass(frozen=True, slots=True)
class _Send:
    request: httpx.Request


@dataclass(frozen=True, slots=True)
class _ReadAhead:
    """Read the body as far as a problem document may go, and give it back to whoever reads the response."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class _Load:
    response: httpx.Response


@dataclass(frozen=True, slots=True)
class _Close:
    response: httpx.Response


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class _Ask:
    """Have the journal do something."""

    question: Coroutine[Any, Any, Any]


_Step: TypeAlias = _Prepare | _Send | _ReadAhead | _Load | _Close | _Pause | _Ask
_Steps: TypeAlias = Generator[_Step, Any, httpx.Response]


class _Conductor(Generic[Inner]):
    """What both transports share: their settings, and the way of a request."""

    def __init__(  # noqa: PLR0913 - each is one thing its user may set, and none must be
        self,
        inner: Inner | None = None,
        *,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        header: str = "Idempotency-Key",
        quoted: bool = False,
        key_source: KeySource | None = None,
        journal: KeyJournal | None = None,
        prepare: Prepare | None = None,
        send_first_sent: bool = True,
        raise_outcomes: bool = True,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Wrap a transport.

        Args:
            inner: What sends; None: httpx's own.
            policy: When a request is sent again.
            header: The field that carries the key.
            quoted: Send keys as Structured Field Strings.
            key_source: Gives the key of a request that has none; None from it: one is made.
            journal: Where named calls are kept over the end of the process.
            prepare: Called with each attempt and its number before it goes out, to sign it for instance. What it
                changes is the attempt's own.
            send_first_sent: Say when the call was first sent, so that a server that has forgotten it refuses.
            raise_outcomes: Raise answers that speak of the key instead of returning them.
            clock: Time, and pauses.
            rng: Jitter.
        """
        self._inner: Inner = self._default() if inner is None else inner
        self._policy = policy
        self._header = header
        self._quoted = quoted
        self._key_source = key_source
        self._journal = journal
        self._prepare = prepare
        self._send_first_sent = send_first_sent
        self._raise_outcomes = raise_outcomes
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - pauses need no secret
        self._budget = Budget(policy.budget)
        self._lock = threading.Lock()  # a client may be shared between threads

    def _default(self) -> Inner:
        raise NotImplementedError

    def _conclude(self, response: httpx.Response, entry: Entry) -> None:
        """Have the journal take a call off when the body has been read to its end."""
        raise NotImplementedError

    # The way of a request

    def _conduct(self, request: httpx.Request) -> _Steps:
        call = self._identify(request)
        if call is None:
            return (yield from self._send_plainly(request))
        if CALL in request.extensions:
            yield from self._write_down(request, call)
        if call.doubtful and self._clock.now() >= call.keep_until:
            raise retry.expired()
        return (yield from self._send_until_answered(request, call))

    def _identify(self, request: httpx.Request) -> Call | None:
        """Return the call a request belongs to, if it carries a key."""
        given = request.headers.get(self._header)
        known = request.extensions.get(_STATE)
        if given is not None:
            if isinstance(known, Call) and not known.minted and known.key == given:
                return known
            return self._begin(request, given, minted=False)
        if isinstance(known, Call) and known.minted:
            return known if retry.keeps_key(known, request.method, _origin(request.url)) else None
        if not retry.takes_key(request.method):
            return None
        key = self._key_source(request) if self._key_source is not None else None
        if key is None:
            key = str(uuid7(self._clock.now()))
        return self._begin(request, retry.encode_key(key, quoted=self._quoted), minted=True)

    def _begin(self, request: httpx.Request, key: str, *, minted: bool) -> Call:
        first = retry.read_date(request.headers.get(_FIRST_SENT, ""))
        if first is None:
            first = self._clock.now()
        call = Call(key, minted, request.method, _origin(request.url), first, first + micros(retry.RETENTION))
        request.extensions[_STATE] = call
        return call

    def _write_down(self, request: httpx.Request, call: Call) -> Generator[_Step, Any, None]:
        """Make a named call durable, or find the row it has."""
        if self._journal is None:
            raise ConfigError("a call has a name, and its transport no journal", "give the transport journal=")
        entry: Entry | None = call.entry
        if entry is not None:
            asked = entry.asked
        elif is_resendable(request.stream):
            place = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}", request.url.raw_path.decode("ascii")
            asked = self._journal.describe(
                request.extensions[CALL], request.method, place, request.headers.raw, request.read()
            )
        else:
            raise ConfigError("a journaled call has an open-ended body", "give its content as bytes")
        claim_id = None if entry is None else entry.claim_id
        entry = yield _Ask(self._journal.claim(asked, key=call.key, claim_id=claim_id, now=call.first_sent_at))
        assert entry is not None
        if not call.minted and entry.key != call.key:
            raise CallChanged(
                f"call {asked.name!r} was begun with another key, and has no outcome yet",
                "leave the key to the journal, or settle the call",
            )
        call.entry, call.key = entry, entry.key
        call.first_sent_at, call.keep_until = entry.first_sent_at, entry.expires_at
        call.doubtful = call.doubtful or not entry.fresh

    def _send_plainly(self, request: httpx.Request) -> _Steps:
        """Send a request without a key: once, and as it is."""
        if self._prepare is not None:
            request = copied(request)
            yield _Prepare(request, 1)
        response: httpx.Response = yield _Send(request)
        answer = retry.read_answer(response.status_code, response.headers.raw, now=self._clock.now())
        response.extensions[INFO] = CallInfo(None, 1, answer.replayed, None)
        return response

    def _send_until_answered(self, request: httpx.Request, call: Call) -> _Steps:
        began, attempt = self._clock.monotonic(), 0
        with self._lock:
            self._budget.begin()
        while True:
            attempt += 1
            outgoing = self._outgoing(request, call)
            if self._prepare is not None:
                yield _Prepare(outgoing, attempt)
            earlier, call.doubtful = call.doubtful, True
            try:
                response: httpx.Response = yield _Send(outgoing)
                answer = yield from self._read(response)
            except httpx.TransportError as error:
                failure = _failure(error)
                if failure is None:
                    raise
                call.doubtful = earlier or failure.sent
                delay = self._next(request, call, attempt, began, failure)
                if delay is None:
                    raise
            else:
                call.doubtful = earlier or retry.leaves_doubt(answer)
                if answer.expires_at is not None:
                    call.keep_until = answer.expires_at
                delay = self._next(request, call, attempt, began, answer)
                if delay is None:
                    break
                yield _Close(response)
            yield _Pause(delay)
        try:
            return (yield from self._finish(request, response, answer, call, attempt, doubtful=earlier))
        except BaseException:
            yield _Close(response)
            raise

    def _outgoing(self, request: httpx.Request, call: Call) -> httpx.Request:
        entry: Entry | None = call.entry
        if entry is None or entry.asked.body == request.read():
            made = copied(request)
        else:  # multipart with another boundary: the server compares it with what it got first
            made = copied_with(request, entry.asked.body, entry.asked.headers)
        if call.minted:
            made.headers[self._header] = call.key
        if self._send_first_sent and _FIRST_SENT not in made.headers:
            made.headers[_FIRST_SENT] = imf_date(call.first_sent_at).decode()
        return made

    def _read(self, response: httpx.Response) -> Generator[_Step, Any, Answer]:
        """Read the head of a response, of a problem document its code, and a small body to its end.

        A body that breaks off belongs to the attempt then: the call goes on, instead of failing in its caller's hands.
        """
        headers = response.headers
        code = None
        if retry.is_problem(response.status_code, headers.get("content-type", ""), headers.get("content-length", "")):
            raw: bytes | None = yield _ReadAhead(response)
            code = None if raw is None else retry.problem_code(decoded(raw, headers))
        elif retry.is_small(headers.get("content-length", "")):
            yield _ReadAhead(response)
        return retry.read_answer(response.status_code, headers.raw, now=self._clock.now(), code=code)

    def _next(
        self, request: httpx.Request, call: Call, attempt: int, began: float, ended: retry.Ending
    ) -> float | None:
        """Return the seconds until the next attempt; None: there is none."""
        elapsed = int((self._clock.monotonic() - began) * 1_000_000)
        sending = Sending(attempt, is_resendable(request.stream), elapsed, call.keep_until)
        found = retry.decide(self._policy, sending, ended, now=self._clock.now(), jitter=self._rng.random())
        if not isinstance(found, Again):
            return None
        with self._lock:
            return found.delay / 1_000_000 if self._budget.spend() else None

    def _finish(
        self, request: httpx.Request, response: httpx.Response, answer: Answer, call: Call, attempts: int, *,
        doubtful: bool,
    ) -> _Steps:  # fmt: skip
        """Return, or raise, the last answer, and let the journal know what it means."""
        sent_at = to_datetime(call.first_sent_at)
        response.extensions[INFO] = CallInfo(retry.decode_key(call.key), attempts, answer.replayed, sent_at)
        entry: Entry | None = call.entry
        if entry is not None and self._journal is not None:
            yield from self._tell(self._journal, entry, retry.fate(answer, doubtful=doubtful), response)
        refusal = retry.refusal(answer) if self._raise_outcomes else None
        if refusal is None:
            return response
        response.request = request
        yield _Load(response)
        refusal.response, refusal.info = response, response.extensions[INFO]
        raise refusal

    def _tell(
        self, journal: KeyJournal, entry: Entry, fate: retry.Fate, response: httpx.Response
    ) -> Generator[_Step, Any, None]:
        """Let the journal know what the last answer means for a call."""
        match fate:
            case "open":
                return
            case "settled" if not journal.settle_on_read:
                return
            case "settled" if not is_loaded(response):
                self._conclude(response, entry)
                return
            case "settled":
                news = journal.conclude(entry)
            case "refused":
                news = journal.release(entry)
        try:
            yield _Ask(news)
        except StoreError as error:
            _stays(entry, error)


class IdempotentTransport(_Conductor[httpx.BaseTransport], httpx.BaseTransport):
    """Make the requests of an `httpx.Client` take effect once, however often they have to be sent.

    POST, PUT, PATCH and DELETE get a key, the same for everything that one `Request` object leads to: attempts after
    failures, redirects that stay at the origin, answers to challenges, and being sent once more by the caller. A key
    of the caller's own is kept. Requests without a key, and those whose body is open-ended, go out once.

    A transport may be shared between threads. With a journal, the ledger's event loop must run in another thread, as
    that of `holdfast.sync.open` does.

    Raises, from the client's methods, unless `raise_outcomes` is off:
        KeyReused: The server has the key for another request.
        OutcomeUnknown: An earlier attempt may have taken effect, and nobody can tell.
        AlreadyExecuted: It was executed, and its answer is not kept.
        KeyInFlight: It is still running after all attempts.
        KeyWindowPassed: It is too old; the server, or the transport before sending it.
    """

    def _default(self) -> httpx.BaseTransport:
        return httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, again if need be."""
        steps = self._conduct(request)
        try:
            step = next(steps)
            while True:
                try:
                    done = self._do(step)
                except BaseException as error:  # noqa: BLE001 - the conductor decides what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            response: httpx.Response = end.value
            return response

    def _do(self, step: _Step) -> Any:
        match step:
            case _Prepare(request, attempt):
                assert self._prepare is not None
                self._prepare(request, attempt)
            case _Send(request):
                return self._inner.handle_request(request)
            case _ReadAhead(response):
                return read_ahead(response)
            case _Load(response):
                response.read()
            case _Close(response):
                response.close()
            case _Pause(seconds):
                self._clock.pause(seconds)
            case _Ask(question):
                assert self._journal is not None
                return self._journal.call(question)
        return None

    def _conclude(self, response: httpx.Response, entry: Entry) -> None:
        journal = self._journal
        assert journal is not None

        def ended() -> None:
            try:
                journal.call(journal.conclude(entry))
            except StoreError as error:
                _stays(entry, error)

        response.stream = Body(response.stream, ended=ended)

    def close(self) -> None:
        """Close the wrapped transport."""
        self._inner.close()

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._inner.__exit__(exc_type, exc_value, traceback)


class AsyncIdempotentTransport(_Conductor[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    """Make the requests of an `httpx.AsyncClient` take effect once: `IdempotentTransport`, awaited.

    `prepare` may be asynchronous. A journal's ledger is open in the event loop that makes the calls.
    """

    def _default(self) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, again if need be."""
        steps = self._conduct(request)
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._do(step)
                except BaseException as error:  # noqa: BLE001 - the conductor decides what it means
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            response: httpx.Response = end.value
            return response

    async def _do(self, step: _Step) -> Any:
        match step:
            case _Prepare(request, attempt):
                assert self._prepare is not None
                prepared = self._prepare(request, attempt)
                if inspect.isawaitable(prepared):
                    await prepared
            case _Send(request):
                return await self._inner.handle_async_request(request)
            case _ReadAhead(response):
                return await read_ahead_async(response)
            case _Load(response):
                await response.aread()
            case _Close(response):
                await response.aclose()
            case _Pause(seconds):
                await self._clock.sleep(seconds)
            case _Ask(question):
                return await question
        return None

    def _conclude(self, response: httpx.Response, entry: Entry) -> None:
        journal = self._journal
        assert journal is not None

        async def ended() -> None:
            try:
                await journal.conclude(entry)
            except StoreError as error:
                _stays(entry, error)

        response.stream = AsyncBody(response.stream, ended=ended)

    async def aclose(self) -> None:
        """Close the wrapped transport."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._inner.__aexit__(exc_type, exc_value, traceback)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port  # httpx leaves out a scheme's own port


def _failure(error: httpx.TransportError) -> Failure | None:
    """Return what a transport's error means; None: another attempt would end the same way."""
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return Failure(sent=False)
        case httpx.NetworkError() | httpx.TimeoutException() | httpx.RemoteProtocolError():
            return Failure(sent=True)  # a connection closed without an answer is a protocol error to httpx
        case _:
            return None


def _stays(entry: Entry, error: StoreError) -> None:
    # The answer is worth more than the row: the next call of the name goes under the same key, and is answered alike.
    _log.warning("call %s stays in the journal: %s", entry.asked.name, error.code)
