"""A guarded service in several processes on one ledger, which are started again when they die.

`python -m tests.crash.services COUNT TARGET FOLDER` prints the ports and serves until it is told to end. Each process
is a fork of this one, which opens nothing itself and keeps the sockets, so that whoever asks while nobody serves waits.

`/held`      counts its run, and answers when somebody has written to the pipe `gate`
`/wait`      counts its run; duplicates wait for its answer
`/plain`     counts its run
`/pay/POINT/HIT` starts or attaches to an execution of three steps; its first attempt is killed at a point
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn
from tests.crash.torture import child
from tests.flow.exchanges import config
from tests.stage import Outside, Stage

import holdfast
from holdfast.core import points
from holdfast.idempotency import Absent, Completed, Idempotency, IdempotencyMiddleware, RouteRule, current

HEAD = [(b"content-type", b"text/plain")]
PAID = b"paid %d"
_outside: list[Outside] = []


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key()))
async def pay(number: int) -> int:
    step = holdfast.current_step()
    _outside[0].happen(step.execution_id, number, step.idempotency_key.hex())
    return number


@holdfast.durable(kind="crash.services.paying")
async def paying() -> int:
    return sum([await pay(number) for number in (1, 2, 3)])


class Service:
    """What one process serves."""

    def __init__(self, hf: holdfast.Holdfast, folder: Path) -> None:
        self.hf = hf
        self.folder = folder
        self.outside = Outside(folder / "outside")
        _outside[:] = [self.outside]
        rules = (
            RouteRule(path="/wait", on_in_flight="wait", wait_max=timedelta(seconds=30)),
            RouteRule(path="/pay/{point}/{hit}", mode="execution", attach=self.attach),
            RouteRule(),
        )
        self.guard = Idempotency(hf.database, config(routes=rules, waiters_max=100))
        self.app = IdempotencyMiddleware(self.handle, self.guard)

    async def attach(self, execution_id: str) -> Any:
        found = await self.hf.get(execution_id)
        if found is None or found.status != "completed":
            return Absent()
        return Completed(201, HEAD, PAID % await self.hf.run(paying, id=execution_id))

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        idem = current()
        assert idem is not None
        place, *more = scope["path"].strip("/").split("/")
        self.outside.happen("run", idem.key_ref, idem.attempt)
        body = b"process %d" % os.getpid()
        if place == "held":
            await asyncio.to_thread((self.folder / "gate").read_bytes)
        elif place == "pay":
            if idem.attempt == 1:
                points.arm(more[0], int(more[1]), "kill")
            body = PAID % await self.hf.run(paying, id=idem.execution_id)
        await send({"type": "http.response.start", "status": 201, "headers": HEAD})
        await send({"type": "http.response.body", "body": body})


async def serve(app: Any, listening: socket.socket) -> None:
    """Serve until the process is killed."""
    settings = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    await uvicorn.Server(settings).serve(sockets=[listening])


async def one(target: str, folder: Path, listening: socket.socket) -> None:
    async with Stage(target, folder).open(poll_ms=50) as hf:
        service = Service(hf, folder)
        await service.guard.start()
        await serve(service.app, listening)


class _Over(Exception):
    """It is to end."""


def _end(*_: object) -> None:
    raise _Over


def main(count: str, target: str, folder: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    listening = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(int(count))]
    serving: dict[int, socket.socket] = {}

    def start(at: socket.socket) -> None:
        serving[child(lambda: one(target, Path(folder), at))] = at

    try:
        for at in listening:
            start(at)
        signal.signal(signal.SIGTERM, _end)
        print(json.dumps([at.getsockname()[1] for at in listening]), flush=True)  # noqa: T201 - its answer
        while True:
            signal.sigwaitinfo([signal.SIGCHLD])
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                at, code = serving.pop(ended[0]), os.waitstatus_to_exitcode(ended[1])
                if code != -signal.SIGKILL:
                    raise SystemExit(f"a service ended with {code}")
                start(at)
    except _Over:
        pass
    finally:
        for pid in serving:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
