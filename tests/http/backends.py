"""The server of this repository over a real socket, in a thread of its own, on a ledger that a test looks into."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import httpx
import pytest

import holdfast
from holdfast import Holdfast
from holdfast.server.serving import Serving, listen
from holdfast.sessions.config import SessionsConfig
from holdfast.testing import ManualClock

T = TypeVar("T")
PATIENCE_S = 30
SECRET = "only-by-name"
"""What a step of `in_doubt` gave."""


class Server:
    """The server while it runs.

    Attributes:
        hf: Its ledger, open in the server's loop.
        serving: The server itself.
        client: Speaks to it.
        port: Where it listens.
    """

    hf: Holdfast
    serving: Serving
    client: httpx.Client
    port: int

    def __init__(self, target: str, config: SessionsConfig, clock: ManualClock | None) -> None:
        self.target = target
        self._config = config
        self._clock = clock
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="the server of a test", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        if self._failed is not None:
            raise self._failed
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def stop(self) -> None:
        self.client.close()
        self._loop.call_soon_threadsafe(self.serving.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[Holdfast], Coroutine[Any, Any, T]]) -> T:
        """Do something with the ledger in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(self.hf), self._loop).result(PATIENCE_S)

    def advance(self, duration: timedelta) -> None:
        """Move the server's clock."""
        assert self._clock is not None
        self._loop.call_soon_threadsafe(self._clock.advance, duration)
        self.do(_nothing)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with holdfast.open(self.target, recover=True, clock=self._clock) as self.hf:
            self.serving = Serving(self.hf, self._config)
            with listen("127.0.0.1", 0) as listening:
                self.port = listening.getsockname()[1]
                await self.serving.run(listening, self._ready.set)


async def _nothing(_: Holdfast) -> None:
    """Return after what was asked for before."""


async def in_doubt(hf: Holdfast, id: str) -> None:
    """Leave an execution with one result, and one effect of which nobody knows whether it happened."""

    async def see(_: Any) -> str:
        return SECRET

    async def pay(_: Any) -> str:
        raise holdfast.OutcomeUnknown("the line broke")

    looked = holdfast.StepDescriptor("look", holdfast.idempotent(), result_type=str)
    money = holdfast.exactly_once("money", on_ambiguous=holdfast.fail())
    paid = holdfast.StepDescriptor("pay", money, result_type=str)

    async def run() -> None:
        async with hf.execution(id, kind="errand") as context:
            await context.step(looked, see)
            await context.step(paid, pay)

    with pytest.raises(holdfast.NeedsDecision):
        await run()


@contextmanager
def server(target: str, clock: ManualClock | None = None, **config: Any) -> Iterator[Server]:
    """Serve a ledger, and stop at the end."""
    made = Server(target, SessionsConfig(**config), clock)
    made.start()
    try:
        yield made
    finally:
        made.stop()
