"""A guarded service in a process of its own, whose handler dies where it is told to.

    python -m tests.http.program TARGET FATE

It prints its port. A handler's first run in a database follows FATE:
`committed`   writes a row and sets its result in one transaction, which commits, and dies
`rolled-back` does the same, but dies before the commit
`effect`      marks its effect as irreversible, and dies
`entered`     dies before it does anything
Later runs answer. Every run appends a line to the file `runs` beside it, given by FATE@PATH.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from tests.flow.exchanges import config

from holdfast.idempotency import Idempotency, IdempotencyMiddleware, RouteRule, current


def service(guard: Idempotency, fate: str, runs: Path) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        idem = current()
        assert idem is not None
        with runs.open("a") as lines:
            lines.write(f"{idem.attempt} {idem.derived_key('charge')}\n")
        if idem.attempt == 1:
            if fate == "effect":
                await idem.mark_irreversible()
            elif fate in ("committed", "rolled-back"):
                async with guard.database.write() as tx:
                    await idem.set_result(202, [(b"content-type", b"text/plain")], b"set", tx=tx)
                    if fate == "rolled-back":
                        os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"ran"})

    return IdempotencyMiddleware(app, guard)


async def main(target: str, fate: str) -> None:
    fate, _, path = fate.partition("@")
    on_lapse: Any = "rerun" if fate in ("entered", "rolled-back", "committed") else "ambiguous"
    guard = Idempotency(target, config(rule=RouteRule(on_lapse=on_lapse)))
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    settings = uvicorn.Config(service(guard, fate, Path(path)), log_level="critical", lifespan="off", ws="none")
    await uvicorn.Server(settings).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
