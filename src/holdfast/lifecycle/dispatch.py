"""Ask a client what it makes of an event: a callable of this program, or a program of its own.

A program is started afresh for every event, in a session of its own and without a shell. It reads one
`DispatchEnvelope` on standard input until its end, writes one `CallbackResponse` on standard output, and exits
with 0. A child that leaves its process group is beyond what is killed here.

Invariants:
    - A client is asked at most once by one call, and is given up when its time is over; a program is then killed with
      its process group, a coroutine cancelled, a thread left to itself.
    - What comes back is a valid response under the request's label, or an error of the lifecycle.
    - No more of a program's output is kept than is allowed, and it sees of our environment only what is named here.
    - No error of ours repeats what a client printed, but for the end of its standard error in `NonZeroExit`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from holdfast.core.errors import ConfigError, HoldfastError
from holdfast.core.loops import seen, spawn
from holdfast.lifecycle import labels, wire
from holdfast.lifecycle.documents import (
    CallbackRequest,
    CallbackResponse,
    DispatchEnvelope,
    PayloadEnvelope,
    warning,
)
from holdfast.lifecycle.errors import (
    InvalidResponse,
    NonZeroExit,
    OutputTooLarge,
    ReceiptEmittedRejected,
    SubprocessInvalidResponse,
    SubprocessParseResponse,
    SubprocessReadResponse,
    SubprocessSerializeRequest,
    SubprocessSpawn,
    SubprocessTimeout,
    SubprocessWriteRequest,
    TransportError,
    TransportInternal,
    TransportTimeout,
    UndecodableDocument,
    ValidationError,
)
from holdfast.lifecycle.failures import failure_of
from holdfast.lifecycle.rules import NOTIFICATION

if TYPE_CHECKING:
    from holdfast.core.clock import Clock

__all__ = ["Callback", "Command", "ask", "failed_response"]

Callback: TypeAlias = Callable[
    [CallbackRequest, tuple[PayloadEnvelope, ...]],
    "CallbackResponse | Awaitable[CallbackResponse | None] | None",
]
"""A client in this program. A plain function runs in a thread; None counts as a response of status `observed`."""

STDOUT_BYTES_MAX: Final = 1024 * 1024
"""What a program may write: far more than a reply that a harness takes."""

STDERR_BYTES_KEPT: Final = 4096
"""How much of the end of standard error is kept: a traceback's last lines."""

TERM_S: Final = 0.5
"""How long a process group has between SIGTERM and SIGKILL."""

STDOUT_HELD_S: Final = 0.1
"""How long after a program's end its output is read on, where a grandchild holds it open."""

INHERITED: Final = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR")
"""What every program sees of our environment, beside `LC_*`."""


class Command(msgspec.Struct, frozen=True):
    """A client that is a program.

    Attributes:
        argv: The program and its arguments; no shell reads them.
        timeout: How long it has for one event.
        env_pass: Names of variables that it sees beyond those every program sees.
        cwd: Where it starts; None: in `/`.
    """

    argv: tuple[str, ...]
    timeout: timedelta
    env_pass: tuple[str, ...] = ()
    cwd: str | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ConfigError("a client's command is empty", "name the program and its arguments", keys=("command",))
        if self.timeout <= timedelta(0):
            raise ConfigError("a client's time is not positive", "give it at least a moment", keys=("timeout_ms",))


async def ask(  # noqa: PLR0913 - a call's circumstances, by name
    client: Callback | Command,
    request: CallbackRequest,
    payloads: Sequence[PayloadEnvelope] = (),
    *,
    client_id: str,
    clock: Clock,
    seconds: float,
    environ: Mapping[str, str] = os.environ,
) -> CallbackResponse | None:
    """Ask a client about an event, and return what it says.

    Args:
        client: Whom to ask.
        request: About what.
        payloads: What goes with it.
        client_id: What the client calls itself.
        clock: What the time is measured with.
        seconds: How long the client has; a program at most its own `timeout`.
        environ: Our environment.

    Raises:
        TransportError: The client could not be asked, raised, or took too long.
        SubprocessError: The program did not answer as it should; or the event is one that no client is asked about.
        ValidationError: The callable's answer is no valid response.
    """
    if request.event == NOTIFICATION:
        raise ReceiptEmittedRejected(f"{NOTIFICATION} is a notification event and is never dispatched")
    if isinstance(client, Command):
        child = _Child(client, clock)
        data = _serialized(request, payloads)
        limit = min(seconds, client.timeout.total_seconds())
        answered = await child.converse(data, _environment(client, request.event, client_id, environ), limit)
        return _decoded(answered, request.schema_version, read=child.read)
    answer = await _call(client, request, tuple(payloads), clock, seconds)
    if answer is None:
        return None
    if not isinstance(answer, CallbackResponse):
        raise InvalidResponse(f"the client returned {type(answer).__qualname__}, which is no CallbackResponse")
    wire.validate(answer)
    labels.agree(request.schema_version, answer.schema_version)
    return answer


def failed_response(label: str, error: BaseException) -> CallbackResponse:
    """Return the response that stands for a client that gave none.

    Args:
        label: The request's label.
        error: Why it gave none.
    """
    failure, retry = failure_of(error)
    if isinstance(error, NonZeroExit):  # its message ends in what the program printed, which may be anything
        said = NonZeroExit(error.exit_code, error.signal).message
    else:
        said = error.message if isinstance(error, HoldfastError) else type(error).__qualname__
    return CallbackResponse(
        schema_version=label,
        status="failed",
        failure_class=failure,
        retry_class=retry,
        warnings=(warning("client_failed", said),),
    )


# --- callables ----------------------------------------------------------------------------------------


async def _call(
    client: Callback, request: CallbackRequest, payloads: tuple[PayloadEnvelope, ...], clock: Clock, seconds: float
) -> Any:
    future: asyncio.Future[Any] = spawn(_called(client, request, payloads), "holdfast client")
    future.add_done_callback(seen)
    try:
        ended = await clock.wait(future, seconds)
    finally:
        future.cancel()
    if not ended:
        raise TransportTimeout
    if future.cancelled():
        raise TransportInternal("its task was cancelled")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception) and not isinstance(error, TransportError):
        # Its own words may quote a payload.
        raise TransportInternal(type(error).__qualname__) from error
    raise error


async def _called(client: Callback, request: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> Any:
    try:
        return await _answer(client, request, payloads)
    except SystemExit:  # it would end the event loop
        raise TransportInternal("SystemExit") from None


async def _answer(client: Callback, request: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> Any:
    if inspect.iscoroutinefunction(client) or inspect.iscoroutinefunction(getattr(client, "__call__", None)):  # noqa: B004 - what it is, not whether
        answer: Any = client(request, payloads)
    else:
        answer = await _in_thread(client, request, payloads)
    return await answer if inspect.isawaitable(answer) else answer


def _in_thread(client: Callback, *args: Any) -> asyncio.Future[Any]:
    """Run a plain function in a thread of its own: one that never ends keeps nobody from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def end(value: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def work() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = client(*args), None
        except StopIteration as error:  # no future can hold one
            outcome = None, TransportInternal(type(error).__qualname__)
        except BaseException as error:  # noqa: BLE001 - whoever asked decides what it means
            outcome = None, error
        with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(end, *outcome)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), name="holdfast client", daemon=True).start()
    return done


# --- programs -----------------------------------------------------------------------------------------


def _serialized(request: CallbackRequest, payloads: Sequence[PayloadEnvelope]) -> bytes:
    envelope = DispatchEnvelope(schema_version=request.schema_version, request=request, payloads=tuple(payloads))
    try:
        data = wire.encode(envelope)
    except ValidationError as error:
        raise SubprocessSerializeRequest(error.message) from error
    if len(data) > wire.DOCUMENT_BYTES_MAX:
        raise SubprocessSerializeRequest(f"the envelope has {len(data)} bytes, more than {wire.DOCUMENT_BYTES_MAX}")
    return data


def _environment(command: Command, event: str, client_id: str, environ: Mapping[str, str]) -> dict[str, str]:
    wanted = {*INHERITED, *command.env_pass}
    seen = {name: value for name, value in environ.items() if name in wanted or name.startswith("LC_")}
    return {**seen, "HOLDFAST_CLIENT_ID": client_id, "HOLDFAST_EVENT": event}


def _decoded(data: bytes, label: str, *, read: bool) -> CallbackResponse:
    try:
        answer = wire.decode(data, CallbackResponse)
        labels.agree(label, answer.schema_version)
    except UndecodableDocument as error:
        if not read:
            raise SubprocessWriteRequest("the client's program ended without reading its input") from error
        raise SubprocessParseResponse(f"the client's program did not write one document: {error.message}") from error
    except ValidationError as error:
        raise SubprocessInvalidResponse(error.message) from error
    return answer


class _Child(asyncio.SubprocessProtocol):
    """One conversation with a program, from its start to the end of its process group.

    Attributes:
        read: Whether it has read all of its input, as far as we know.
    """

    def __init__(self, command: Command, clock: Clock) -> None:
        self._command = command
        self._clock = clock
        self._stdout = bytearray()
        self._stderr = bytearray()
        self.read = True
        self._unread: Exception | None = None
        loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._silent: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[None] = loop.create_future()  # it has exited, or has written too much

    async def converse(self, data: bytes, environ: dict[str, str], seconds: float) -> bytes:
        """Start the program, let it read `data` and end, and return what it wrote."""
        until = self._clock.monotonic() + seconds
        transport = await self._start(environ)
        try:
            stdin: Any = transport.get_pipe_transport(0)
            stdin.write(data)
            stdin.write_eof()
            if not await self._clock.wait(self._over, until - self._clock.monotonic()):
                raise SubprocessTimeout(f"the client's program did not end within {seconds:g} s")
            if self._gone.done():
                self._kill(transport, signal.SIGKILL)
                await self._clock.wait(self._silent, STDOUT_HELD_S)
            if len(self._stdout) > STDOUT_BYTES_MAX:
                raise OutputTooLarge(STDOUT_BYTES_MAX)
        finally:
            try:
                if not self._gone.done():
                    self._kill(transport, signal.SIGTERM)
                    await self._clock.wait(self._gone, TERM_S)
            finally:
                self._kill(transport, signal.SIGKILL)
                try:
                    # Closed earlier, the transport would take the child's exit code from whoever waits for it.
                    await self._clock.wait(self._gone, TERM_S)
                finally:
                    transport.close()
        self._check(transport)
        return bytes(self._stdout)

    async def _start(self, environ: dict[str, str]) -> asyncio.SubprocessTransport:
        command = self._command
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: self,
                *command.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environ,
                cwd=command.cwd or "/",
                start_new_session=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = error.strerror if isinstance(error, OSError) else "its arguments cannot be passed"
            raise SubprocessSpawn(f"the client's program cannot be started: {why}") from error
        return transport

    def _kill(self, transport: asyncio.SubprocessTransport, number: int) -> None:
        # The group is the child's own session; when the last of it has ended, nobody has its number.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), number)

    def _check(self, transport: asyncio.SubprocessTransport) -> None:
        code = transport.get_returncode()
        if code:
            tail = self._stderr.decode(errors="replace")
            raise NonZeroExit(code if code > 0 else None, -code if code < 0 else None, tail)
        if self._unread is not None:
            raise SubprocessReadResponse("the output of the client's program broke off") from self._unread

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1 and len(self._stdout) <= STDOUT_BYTES_MAX:
            self._stdout += data
            if len(self._stdout) > STDOUT_BYTES_MAX:
                _resolve(self._over)
        elif fd == 2:
            self._stderr += data
            del self._stderr[:-STDERR_BYTES_KEPT]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 0:
            self.read = exc is None
        elif fd == 1:
            self._unread = exc
            _resolve(self._silent)

    def process_exited(self) -> None:
        _resolve(self._gone)
        _resolve(self._over)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
