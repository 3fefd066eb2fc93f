"""Arize Phoenix: its own server on its default SQLite, sent the same calls as spans by OpenTelemetry's exporter.

    python bench/phoenix.py JOB       the client: a process of its own, prints a sample as its last line

A span is acknowledged when the exporter has the server's answer. Whether it is in the database is asked of the
database: how many rows there are, and how many there are after the server was killed at the last acknowledgement.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import apsw
import calls

HERE = Path(__file__)
START_SECONDS_MAX = 120
INSERT_SECONDS_MAX = 120


@dataclass(frozen=True)
class Job:
    """What is sent: so many calls from the first on, by a processor ("batch" or "simple"), from so many threads."""

    port: int
    processor: str
    count: int
    threads: int
    first: int


@dataclass
class Phoenix:
    """The server while it runs."""

    port: int
    database: Path
    process: Popen[bytes]

    def rows(self) -> int:
        """How many spans can be read from its database."""
        with closing(apsw.Connection(str(self.database), flags=apsw.SQLITE_OPEN_READONLY)) as found:
            found.set_busy_timeout(10_000)
            return int(found.execute("SELECT count(*) FROM spans").get)

    def wait(self, rows: int) -> None:
        """Wait until so many spans are in the database."""
        until = time.perf_counter() + INSERT_SECONDS_MAX
        while self.rows() < rows:
            if time.perf_counter() > until:
                raise SystemExit(f"Phoenix has {self.rows()} rows instead of {rows}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def phoenix() -> Iterator[Phoenix]:
    """Run the server with its defaults, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="phoenix-bench-"))
    port, grpc = _free_port(), _free_port()
    environment = os.environ | {
        "PHOENIX_WORKING_DIR": str(folder), "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc), "PHOENIX_TELEMETRY_ENABLED": "false", "HOME": str(folder),
    }  # fmt: skip
    command = [str(Path(sys.executable).parent / "phoenix"), "serve"]
    process = Popen(command, cwd=folder, env=environment, stdout=DEVNULL, stderr=DEVNULL)
    try:
        _wait_for(port, process)
        yield Phoenix(port, folder / "phoenix.db", process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: Popen[bytes]) -> None:
    until = time.perf_counter() + START_SECONDS_MAX
    while time.perf_counter() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("Phoenix did not come up")


def send(job: Job) -> tuple[float, float]:
    """Send what a job says from a process of its own.

    Returns:
        Seconds until all was acknowledged, and when the first was sent.
    """
    with Popen([sys.executable, str(HERE), json.dumps(asdict(job))], stdout=PIPE, text=True) as process:
        told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the client of Phoenix ended with {process.returncode}")
    found = json.loads(told.splitlines()[-1])
    return float(found["seconds"]), float(found["began"])


def _send(job: Job) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{job.port}/v1/traces")
    provider = TracerProvider()
    # A queue that holds all of it: what overflows would be dropped.
    made = (
        SimpleSpanProcessor(exporter)
        if job.processor == "simple"
        else BatchSpanProcessor(exporter, max(job.count, 2048))
    )
    provider.add_span_processor(made)
    tracer = provider.get_tracer("bench")
    spans = [_attributes(number) for number in range(job.first, job.first + job.count)]
    turns = iter(spans)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                attributes = next(turns, None)
            if attributes is None:
                return
            with tracer.start_as_current_span("messages.create", attributes=attributes):
                pass

    threads = [threading.Thread(target=work) for _ in range(job.threads)]
    at, began = time.time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.force_flush(INSERT_SECONDS_MAX * 1000)
    print(json.dumps({"seconds": time.perf_counter() - began, "began": at}), flush=True)


def _attributes(number: int) -> dict[str, str | int]:
    """A call as OpenInference's instrumentation of a provider's client tells it."""
    call = json.loads(calls.made(number))
    usage = call["response"]["usage"]
    return {
        "openinference.span.kind": "LLM", "llm.provider": "anthropic", "llm.model_name": call["request"]["model"],
        "session.id": call["session"]["harness_session_id"],
        "input.value": json.dumps(call["request"]), "input.mime_type": "application/json",
        "output.value": json.dumps(call["response"]), "output.mime_type": "application/json",
        "llm.token_count.prompt": usage["input_tokens"], "llm.token_count.completion": usage["output_tokens"],
    }  # fmt: skip


if __name__ == "__main__":
    _send(Job(**json.loads(sys.argv[1])))
