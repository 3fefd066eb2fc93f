"""The client of a benchmark: a process of its own that sends calls over sockets, as cheaply as Python can.

    python bench/generator.py JOB       sends what the job says, and prints a sample as its last line
    python bench/generator.py serve     answers 202 to everything: what the client itself costs

All requests are made before the clock starts. A connection sends its next request when it has the answer to the one
before; at a fixed rate, a request waits for a free connection, and its latency counts from when it was due.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen

import calls
from workload import quantile

HERE = Path(__file__)
SECONDS_MAX = 300


@dataclass(frozen=True)
class Job:
    """What is sent.

    Attributes:
        port: Whereto, on this machine.
        kind: Which calls, by the name of what makes them; "get": the path, again and again.
        count: How many.
        clients: Over how many connections.
        first: The number of the first.
        rate: How many a second; 0: as many as are answered.
    """

    port: int
    kind: str
    count: int
    clients: int
    first: int = 0
    rate: float = 0.0
    path: str = "/v1/ingest"


@dataclass
class Sent:
    """What became of it.

    Attributes:
        seconds: From the first request to the last answer.
        p50_ms: Of latencies; p99_ms is the same.
        cpu_s: What the client itself took.
        statuses: How many answers there were of each status.
    """

    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Calls a second that were taken in."""
        return (self.statuses.get("202", 0) + self.statuses.get("200", 0)) / self.seconds


class Client(asyncio.Protocol):
    """One connection, and one request at a time on it."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._got = b""
        self._began = 0.0
        self.busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, due: float) -> None:
        assert self._transport is not None
        self._began = due
        self.busy = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got = got = self._got + data if self._got else data
        head = got.find(b"\r\n\r\n")
        if head < 0:
            return
        at = got.find(b"content-length: ")
        if at < 0:
            at = got.lower().find(b"content-length: ")
        size = int(got[at + 16 : got.find(b"\r\n", at)])
        if len(got) < head + 4 + size:
            return
        self._got = b""
        self.busy = False
        self._crowd.answered(self, got[9:12].decode(), time.perf_counter() - self._began)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.left(self)


class Crowd:
    """All connections, and what is still to be sent."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: deque[bytes] = deque(_requests(job))
        self._due: deque[tuple[bytes, float]] = deque()
        self._free: deque[Client] = deque()
        self.latencies: list[float] = []
        self.statuses: dict[str, int] = {}
        self._done = asyncio.get_running_loop().create_future()

    async def run(self) -> Sent:
        job, loop = self._job, asyncio.get_running_loop()
        clients = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", job.port))[1] for _ in range(job.clients)
        ]
        gc.collect()
        gc.freeze()
        cpu, began = time.process_time(), time.perf_counter()
        if job.rate:
            self._free = deque(clients)
            await self._pace(began)
        else:
            for client in clients[: job.count]:
                client.send(self._waiting.popleft(), time.perf_counter())
        await asyncio.wait_for(self._done, SECONDS_MAX)
        seconds = time.perf_counter() - began
        ms = [latency * 1e3 for latency in self.latencies]
        return Sent(seconds, quantile(ms, 0.5), quantile(ms, 0.99), time.process_time() - cpu, self.statuses)

    async def _pace(self, began: float) -> None:
        for number in range(self._job.count):
            due = began + number / self._job.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._due.append((self._waiting.popleft(), due))
            if self._free:
                self._free.popleft().send(*self._due.popleft())
        # What is due and not sent is sent by whoever is answered next.

    def answered(self, client: Client, status: str, latency: float) -> None:
        self.latencies.append(latency)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if len(self.latencies) == self._job.count:
            self._done.set_result(None)
        elif self._due:
            client.send(*self._due.popleft())
        elif self._job.rate:
            self._free.append(client)
        elif self._waiting:
            client.send(self._waiting.popleft(), time.perf_counter())

    def left(self, client: Client) -> None:
        # A server lets connections go that have nothing more to say: at the end they wait for the slowest.
        if client.busy and not self._done.done():
            self._done.set_exception(ConnectionError(f"hung up after {len(self.latencies)} answers"))


def _requests(job: Job) -> Iterator[bytes]:
    if job.kind == "get":
        yield from [b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % job.path.encode()] * job.count
        return
    [make] = calls.makers((job.kind,)).values()
    head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % job.path.encode()
    for number in range(job.first, job.first + job.count):
        body = make(number)
        yield head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def send(job: Job) -> Sent:
    """Send what a job says, from a process of its own."""
    command = [sys.executable, str(HERE), json.dumps(asdict(job))]
    with Popen(command, stdout=PIPE, text=True) as process:
        told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the client ended with {process.returncode}")
    return Sent(**json.loads(told.splitlines()[-1]))


class Nobody(asyncio.Protocol):
    """A server that reads a request to its end and answers that it was taken."""

    ANSWER = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._left = 0

    def data_received(self, data: bytes) -> None:
        if not self._left:
            at = data.find(b"Content-Length: ")
            end = data.find(b"\r\n\r\n", at)
            self._left = int(data[at + 16 : end]) + end + 4
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            self._transport.write(self.ANSWER)


@contextmanager
def nobody() -> Iterator[int]:
    """Run that server in a process of its own, and give its port."""
    process = Popen([sys.executable, str(HERE), "serve"], stdout=PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Nobody, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _send(job: Job) -> None:
    print(json.dumps(asdict(await Crowd(job).run())), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve() if sys.argv[1] == "serve" else _send(Job(**json.loads(sys.argv[1]))))
