"""A process that stays, and sees to hook calls for those that come and go.

It listens on a socket in the state directory. A call that comes in is kept and answered as the call's own process
would do it, without that process having to load what this one has loaded. Between calls it derives receipts of hooks
that nobody was asked about, closes what dead processes left open, and lets go of what is over its time.

Invariants:
    - Only processes of the same user are answered, and only those of the same version and configuration.
    - There is one resident for a state directory, as long as its process lives.
    - What it has taken it finishes, unless it is killed; then the caller keeps the call, under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, Literal, TypeAlias

import msgspec

from holdfast.core.clock import Clock
from holdfast.core.errors import ConfigError
from holdfast.core.loops import Loop, Tasks
from holdfast.lifecycle import frames, plan
from holdfast.lifecycle.deliveries import Delivery
from holdfast.lifecycle.harness import HookReply

__all__ = ["Ending", "Resident"]

Ending: TypeAlias = Literal["outdated", "reconfigured"]
"""Why a resident ends by itself: a program of another version has called, or what it was made from has changed."""

DERIVE_S: Final = 1.0
"""How long a hook that nobody was asked about may wait for its receipt."""
TIDY_S: Final = 30.0
"""How often what is over its time is looked for."""
FRAME_S: Final = 2.0
"""How long a caller may take to say what it wants: it has read its input before."""
CALLS_MAX: Final = 64
"""How many calls are taken at a time; the next ones see to themselves."""
CALLERS_MAX: Final = 4 * CALLS_MAX
"""How many may say what they want at a time."""
DRAIN_S: Final = 8.0
"""How long what was taken may take to end: a call's own deadline."""

LOCK_NAME: Final = "hook.lock"
_log = logging.getLogger(__name__)

Receive: TypeAlias = Callable[[Delivery], Awaitable[HookReply]]
Work: TypeAlias = Callable[[], Awaitable[object]]


class Resident:
    """The socket, and who answers there.

    Args:
        receive: Keeps a call and sees to it; it does not raise.
        derive: Makes receipts of calls that nobody sees to; one round.
        tidy: Recovers and expires; one round.
        head: Returns what a plan made now would be for.
        directory: The state directory.
        clock: Time.
    """

    def __init__(
        self, receive: Receive, *, derive: Work, tidy: Work, head: Callable[[], str], directory: str, clock: Clock
    ) -> None:
        self.path = os.path.join(directory, plan.SOCKET_NAME)
        self._directory = directory
        self._receive = receive
        self._head_now = head
        self._head = head()
        self._clock = clock
        self._calls = Tasks()
        self._over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._loops = (
            Loop("holdfast hooks derive", derive, DERIVE_S, clock),
            Loop("holdfast hooks tidy", tidy, TIDY_S, clock),
        )

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take calls for a block; at its end no new ones, and what was taken is finished.

        Raises:
            ConfigError: There is a resident already, or the state directory is not one for a socket.
        """
        with self._alone():
            server = await asyncio.start_unix_server(self._accept, sock=self._socket())
            try:
                for loop in self._loops:
                    loop.start()
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
                server.close()
                for loop in self._loops:
                    await loop.stop()
                if not await self._calls.drain(self._clock, DRAIN_S):
                    await self._calls.stop()

    async def over(self) -> Ending:
        """Wait until it should end by itself."""
        return await asyncio.shield(self._over)

    # The socket

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only resident of the directory."""
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            state = os.stat(self._directory)
            if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
                raise ConfigError(
                    f"others may look into {self._directory}",
                    "chmod 700 it, or set another state_dir",
                    keys=("state_dir",),
                )
            descriptor = os.open(
                os.path.join(self._directory, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise ConfigError(
                f"{self._directory} cannot be used: {error.strerror}", "set another state_dir", keys=("state_dir",)
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"a resident is there already for {self._directory}", "stop that one first", keys=("state_dir",)
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _socket(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # of one that was killed: who holds the lock is alone
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(self.path)
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"there can be no socket at {self.path}: {error.strerror or error}",
                "set a state_dir with a shorter path, on a local disk",
                keys=("state_dir",),
            ) from error
        finally:
            os.umask(mask)
        listener.listen(CALLERS_MAX)
        listener.setblocking(False)  # noqa: FBT003 - the name of the method says what it is
        return listener

    # Calls

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._calls) >= CALLERS_MAX or not _same_user(writer.get_extra_info("socket")):
            writer.close()
            return
        self._calls.spawn(self._serve(reader, writer), "holdfast hook")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(FRAME_S):
                    size = frames.length(await reader.readexactly(frames.HEAD_BYTES))
                    fields = frames.decode(await reader.readexactly(size))
                delivery = self._admitted(fields)
            except (ValueError, OSError, EOFError, TimeoutError):
                return  # nothing was taken, and the caller sees to it
            answer: tuple[bytes, ...] = frames.BUSY
            if delivery is not None:
                reply = await self._receive(delivery)
                answer = (str(reply.exit_code).encode(), reply.stdout, reply.stderr.encode("utf-8", "replace"))
            with contextlib.suppress(OSError):  # who called may be gone
                writer.write(frames.encode(answer))
                await writer.drain()
        finally:
            writer.close()

    def _admitted(self, fields: tuple[bytes, ...]) -> Delivery | None:
        """The call that a frame brings, None: it is not for this resident.

        Raises:
            ValueError: It is no call.
        """
        if fields[:1] != (frames.VERSION,):
            self._end("outdated")
            return None
        if len(fields) < 2 or fields[1].decode("utf-8", "surrogateescape") != self._head:
            if self._head_now() != self._head:
                self._end("reconfigured")
            return None
        if self._over.done() or len(self._calls) > CALLS_MAX:
            return None
        values = dict(zip(Delivery.__struct_fields__, frames.row(fields[2:]), strict=True))
        delivery = msgspec.convert(values, Delivery)
        if plan.HARNESSES.get(delivery.harness) != delivery.harness:
            raise ValueError("not a call")
        return delivery

    def _end(self, why: Ending) -> None:
        if not self._over.done():
            _log.info("the resident ends: %s", why)
            self._over.set_result(why)


def _same_user(peer: socket.socket) -> bool:
    """Say whether a process of the same user called; where the system does not tell, the folder's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.geteuid())
