"""The first stop of the program: a hook call is answered from here, everything else goes on to `cli.main`.

A harness waits for every hook call, so until one needs a client nothing is imported that costs more than the call
itself. What happens to a call, in this order:

    1. its input is read, and it gets an id
    2. it is kept: in the ledger, or in the spool file when the ledger cannot take it
    3. no client is to be asked: the reply that changes nothing, and the end
    4. a client is: the resident asks it, or else this process does

A resident keeps the call itself, so with one the second step is its own; if it falls silent, the call is kept here.

Invariants:
    - A call is on disk before anybody is asked about it.
    - Exactly one reply is printed, by the deadline, whatever fails; only a failure that has to block exits with 2.
    - Up to the fourth step neither `typing` nor `asyncio`, `json`, `msgspec` or `dataclasses` is imported.
"""

from __future__ import annotations

import _thread
import os
import sys
import time

from holdfast.lifecycle import plan as plans

TYPE_CHECKING = False  # what `typing` says too
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

__all__ = ["main"]

COMMANDS = ("install", "serve", "shim", "status", "uninstall")
"""What `hook` can do besides taking a call."""
BODY_BYTES_MAX = 4 * 1024 * 1024
"""The longest input that is kept whole."""
READ_BYTES_MAX = 16 * 1024 * 1024
"""How much of a longer one is looked through for its short fields."""
READ_S = 2.0
"""How long input is waited for."""
SPOOL_WAIT_MS = 300
"""How long another process may hold the spool file."""
CHUNK_BYTES = 1024 * 1024
CONNECT_S = 0.05
"""How long a resident may take to answer the door."""
RESERVE_S = 0.3
"""What is kept of the time to put a call on disk and to reply."""
POINT = "hooks.appended"

USAGE = "usage: holdfast hook HARNESS [--event NAME] [--notify JSON] [--db LEDGER] [--config FILE]"

Reply = tuple[int, bytes, str]


def main() -> NoReturn:
    """Run the program and end the process."""
    arguments = sys.argv[1:]
    if "hook" in arguments and (call := _recognise(arguments)) is not None:
        _finish(_answer(call))
    from holdfast.cli.main import main as go_on

    go_on()


class _Call:
    """One hook call as the command line gives it.

    Attributes:
        harness: The harness's canonical id.
        hook: The hook's name, empty: none is given.
        notify: The input, where it is an argument.
        db: `--db`, or None.
        config: `--config`, or None.
        closed: Whether a failure has to block the harness.
        started: When the call began, on the monotonic clock.
        received_at: The same in microseconds since the epoch.
    """

    __slots__ = ("closed", "config", "db", "harness", "hook", "notify", "received_at", "started")

    def __init__(self, harness: str, options: Mapping[str, str]) -> None:
        self.harness = harness
        self.notify = options.get("--notify")
        self.hook = options.get("--event", "" if self.notify is None else "notify")
        self.db = options.get("--db")
        self.config = options.get("--config")
        self.closed = False
        self.started = time.monotonic()
        self.received_at = time.time_ns() // 1000  # noqa: TID251 - the clock's module costs more than the whole call

    def close(self, closed: bool) -> None:  # noqa: FBT001 - what is told is just this
        """Note whether a failure has to block the harness."""
        self.closed = closed

    def seconds_left(self) -> float:
        """How long until the reply is due."""
        return self.started + plans.deadline_us(self.harness, self.hook) / 1e6 - time.monotonic()


def _recognise(arguments: Sequence[str]) -> _Call | None:
    """Read the arguments of a hook call; None: they are another command's.

    A harness takes some exit codes of a hook for an order, so whatever is wrong with a call exits with 1.
    """
    words, options = _sorted(arguments)
    if words[:1] != ["hook"] or len(words) == 1 or words[1] in COMMANDS:
        return None
    if os.environ.get("HOLDFAST_HOOKS") == "off":
        os._exit(0)
    if "--help" in options:
        _finish((0, f"{USAGE}\n".encode(), ""))
    if wrong := options.get("") or (f"{words[2]!r} is one argument too many" if len(words) > 2 else ""):
        _finish((1, b"", f"{wrong}\n{USAGE}"))
    if words[1] not in plans.HARNESSES:
        known = ", ".join(dict.fromkeys(plans.HARNESSES.values()))
        _finish((1, b"", f"no harness is called {words[1]!r}; known are {known}"))
    return _Call(plans.HARNESSES[words[1]], options)


def _sorted(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Tell words from options; under the empty name stands what is wrong with the first of them that is."""
    words: list[str] = []
    options: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        name, given, value = word.partition("=")
        if name in ("--event", "--notify", "--db", "--config"):
            options[name] = value if given else left.pop(0) if left else ""
            if not given and not options[name]:
                options.setdefault("", f"{name} needs a value")
        elif name in ("--help", "-h"):
            options["--help"] = ""
        elif word.startswith("{") and words[:1] == ["hook"] and len(words) == 2:
            options["--notify"] = word  # Codex puts it last, after what it was configured with
        elif word.startswith("-"):
            options.setdefault("", f"there is no option {name!r}")
        else:
            words.append(word)
    return words, options


def _answer(call: _Call) -> Reply:
    """See to one hook call; never raises."""
    try:
        _thread.start_new_thread(_watch, (call,))
        head = plans.head(call.config, call.db, os.environ)
        plan = plans.read(plans.state_directory(os.environ), head)
        row = _row(call)
        if plan is None:
            return _ask_client(call, _leased(call, row), None, head)
        call.closed = plan.closes(call.harness, call.hook)
        if not plan.dispatches(call.harness, call.hook):
            trouble = _keep(call, row, plan)
            return _failure(call, trouble) if trouble else (0, plans.neutral(call.harness), "")
        row = _leased(call, row)
        return _ask_resident(call, row, plan, head) or _ask_client(call, row, plan, head)
    except BaseException as error:  # noqa: BLE001 - a hook is never in the way
        # Our own messages quote nothing of the input; those of others may.
        own = type(error).__module__.startswith("holdfast.")
        return _failure(call, str(error) if own else f"the call failed: {type(error).__name__}")


def _failure(call: _Call, why: str) -> Reply:
    """The reply to a call that something went wrong with."""
    return (2, b"", why) if call.closed else (0, plans.neutral(call.harness), why)


def _row(call: _Call) -> tuple[object, ...]:
    """Read the input; return the parameters of `hooks.append`, without a lease."""
    digest = None
    if call.notify is not None:
        body = os.fsencode(call.notify)
        size = len(body)
    else:
        body, size, digest = _read(min(READ_S, call.seconds_left() / 2))
    if digest is not None:
        from holdfast.lifecycle.harness import shorten

        body = shorten(body, size, digest)
    try:
        cwd = os.getcwd().encode("utf-8", "replace").decode()
    except OSError:  # it was removed
        cwd = None
    hook = call.hook.encode("utf-8", "replace").decode()
    return f"dlv_{os.urandom(16).hex()}", call.harness, hook, body, size, digest, call.received_at, cwd, 0


def _read(seconds: float) -> tuple[bytes, int, bytes | None]:
    """Read the input to its end or for that long; return its beginning, its size, and for a long one its digest."""
    import select

    until = time.monotonic() + seconds
    chunks: list[bytes] = []
    size = 0
    digest = None
    while (left := until - time.monotonic()) > 0:
        try:
            if not select.select((0,), (), (), left)[0]:
                break
            chunk = os.read(0, CHUNK_BYTES)
        except (OSError, ValueError):  # it was closed, or is no input at all
            break
        if not chunk:
            break
        size += len(chunk)
        if digest is None and size > BODY_BYTES_MAX:
            from blake3 import blake3

            digest = blake3(b"".join(chunks))
        if digest is not None:
            digest.update(chunk)
        if size <= READ_BYTES_MAX:
            chunks.append(chunk)
    return b"".join(chunks), size, None if digest is None else digest.digest()


def _leased(call: _Call, row: tuple[object, ...]) -> tuple[object, ...]:
    """The row of a call that its own process, or a resident, is about to see to."""
    return (*row[:-1], call.received_at + plans.deadline_us(call.harness, call.hook))


def _keep(call: _Call, row: tuple[object, ...], plan: plans.Plan | None) -> str:
    """Put a call on disk; return why that could not be done, empty: it was."""
    from holdfast.store import drop

    trouble = ""
    spare_ms = max(int((call.seconds_left() - 2 * RESERVE_S) * 1000), 0)
    if plan is not None and plan.ledger is not None:
        try:
            drop.append(plan.ledger, row, schema=plan.schema, wait_ms=min(plan.lock_wait_ms, spare_ms))
        except drop.Refused as refused:
            trouble = f"{refused.why}; "
        else:
            return _kept()
    directory = plans.state_directory(os.environ) if plan is None else plan.state_dir
    try:
        drop.spool(os.path.join(directory, drop.FILE_NAME), row, wait_ms=SPOOL_WAIT_MS)
    except drop.Refused as refused:
        return f"the call is not kept: {trouble}{refused.why}"
    return _kept()


def _kept() -> str:
    _pass(POINT)
    return ""


def _pass(point: str) -> None:
    """Pass a crash point; what that takes is imported only where a test asks for it."""
    if os.environ.get("HOLDFAST_TEST_CRASH", "").partition(":")[0] == point:
        from holdfast.core import points

        points.register(point)
        if points.armed:
            points.reach(point)


def _ask_resident(call: _Call, row: tuple[object, ...], plan: plans.Plan, head: str) -> Reply | None:
    """Have the resident see to a call; None: there is none that does."""
    path = os.path.join(plan.state_dir, plans.SOCKET_NAME)
    try:
        if os.stat(path).st_uid != os.geteuid():
            return None
    except OSError:
        return None
    import _socket

    from holdfast.lifecycle import frames

    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        peer.settimeout(CONNECT_S)
        peer.connect(path)
    except OSError:
        peer.close()
        return None
    try:
        until = call.seconds_left() - RESERVE_S + time.monotonic()
        _set_time(peer, until)
        peer.sendall(frames.encode(frames.call(head, row)))
        size = frames.length(_receive(peer, frames.HEAD_BYTES, until))
        answer = frames.decode(_receive(peer, size, until))
        if answer == frames.BUSY:
            return None
        code, out, err = answer
        return int(code), out, err.decode("utf-8", "replace")
    except (OSError, ValueError):
        # Whether it has kept the call nobody knows; under one id it is there once. It has no lease: nobody sees to it.
        return _failure(call, _keep(call, (*row[:-1], 0), plan) or "the resident gave no answer")
    finally:
        peer.close()


def _receive(peer: socket, size: int, until: float) -> bytes:
    parts = []
    while size:
        _set_time(peer, until)
        part = peer.recv(min(size, CHUNK_BYTES))
        if not part:
            raise OSError("it went away")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _set_time(peer: socket, until: float) -> None:
    peer.settimeout(max(until - time.monotonic(), 0.001))


def _ask_client(call: _Call, row: tuple[object, ...], plan: plans.Plan | None, head: str) -> Reply:
    """See to a call in this process, with everything that takes."""
    trouble = _keep(call, row, plan)
    import gc

    gc.disable()  # the process ends with the call, and collecting while modules are loaded takes a tenth of the time
    if plan is not None and plan.ledger is not None:
        for name in ("ssl", "typing_extensions"):  # asyncio and msgspec do without, and nothing here needs them
            sys.modules[name] = None  # type: ignore[assignment]  # how an import is told that there is no such module
    from holdfast.cli.hook import warm

    # A plan that is there is as good as the next one would be.
    fresh = "" if plan is not None else head
    return warm(row, appended=not trouble, db=call.db, config=call.config, closes=call.close, head=fresh)


_printing = _thread.allocate_lock()


def _watch(call: _Call) -> None:
    """Reply when the time is over, whatever the call is at: the harness waits no longer."""
    while (left := call.seconds_left()) > 0:
        time.sleep(left)
    _finish(_failure(call, "the call took too long"))


def _finish(reply: Reply) -> NoReturn:
    """Print a reply and end the process at once; the second to get here only waits for that."""
    while not _printing.acquire(blocking=False):
        time.sleep(1)
    code, out, err = reply
    if err:
        _write(2, f"holdfast: {err}\n".encode("utf-8", "replace"))
    _write(1, out)
    _pass("hooks.replied")
    os._exit(code)


def _write(descriptor: int, text: bytes) -> None:
    try:
        while text:
            text = text[os.write(descriptor, text) :]
    except OSError:  # whoever reads it went away
        pass
