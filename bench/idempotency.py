"""HTTP idempotency side by side: bare applications, Holdfast's middleware, idemkit, asgi-idempotency-header.

    python bench/idempotency.py [--json] [--quick] [--write]

All contenders are called in one process without a socket, one after the other, round after round. Holdfast runs
in memory, on a SQLite file and on PostgreSQL; the peers on the stores they offer that need no other server. The
results go to standard output as Markdown, progress to standard error. With `--json` the last line of the output
is one object with the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ledgers import Postgres, Sqlite
from report import _spread, _version
from results import write_into

from holdfast.cli.bench.apps import App, Caller, fastapi_app, starlette_app
from holdfast.cli.bench.gates import Gate, guarded, measure, raw_statements
from holdfast.cli.bench.trials import Sizes, rate, rounds

REPLAYS = 1_000
FLUSH_SECONDS = 1.5
"""How long a server's session may keep its statistics to itself."""
Call = Callable[[], Awaitable[object]]


@dataclass
class Found:
    """What was measured: microseconds of one request alone, requests a second with 64 in flight, counts, gates."""

    alone: dict[str, float] = field(default_factory=dict)
    crowd: dict[str, list[float]] = field(default_factory=dict)
    statements: dict[str, float] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)

    def over(self, one: str, other: str) -> float:
        """How much longer one request takes than another."""
        return self.alone[one] / self.alone[other]

    def faster(self, one: str, other: str) -> float:
        """How many times as many requests a second."""
        return statistics.median(self.crowd[one]) / statistics.median(self.crowd[other])

    def ratios(self) -> dict[str, float]:
        found = {
            "keyless": self.over("holdfast memory keyless", "starlette"),
            "first_over_starlette": self.over("holdfast memory first", "starlette"),
            "first_over_fastapi": self.over("holdfast memory first, fastapi", "fastapi"),
            "replay_memory": self.over("holdfast memory replay", "holdfast memory first"),
            "replay_file": self.over("holdfast file replay", "holdfast file first"),
            "file_over_raw": self.faster("holdfast file", "raw group commit"),
            "over_idemkit": self.faster("holdfast file", "idemkit postgres"),
            "postgres_over_idemkit": self.faster("holdfast postgres", "idemkit postgres"),
        }
        growth = {gate.store: gate.figure for gate in self.gates if gate.what.startswith("first run with")}
        return {
            name: round(ratio, 3) for name, ratio in (found | {f"growth_{k}": v for k, v in growth.items()}).items()
        }


GOALS = {
    "keyless": ("<=", 1.1), "first_over_starlette": ("<=", 4.0), "first_over_fastapi": ("<=", 2.5),
    "replay_memory": ("<=", 0.6), "replay_file": ("<=", 0.6), "file_over_raw": (">=", 0.3),
    "over_idemkit": (">=", 5.0), "growth_memory": ("<=", 1.2), "growth_file": ("<=", 1.2),
    "growth_postgres": ("<=", 1.2),
}  # fmt: skip


@asynccontextmanager
async def contenders(file: str, url: str) -> AsyncIterator[tuple[dict[str, Caller], Any]]:
    """Every middleware over the Starlette application; and the guard on the file."""
    async with AsyncExitStack() as stack:
        guards = {
            name: await stack.enter_async_context(guarded(target))
            for name, target in (("memory", ":memory:"), ("file", file), ("postgres", url))
        }
        found = {f"holdfast {name}": Caller(starlette_app(), guard) for name, guard in guards.items()}
        for name, backend in (("idemkit memory", None), ("idemkit postgres", url)):
            found[name] = Caller(await _idemkit(stack, backend))
        found["asgi-idempotency-header memory"] = Caller(_asgi_idempotency_header())
        yield found, guards["file"]


async def _idemkit(stack: AsyncExitStack, url: str | None) -> App:
    from idemkit import HttpConfig, IdempotencyMiddleware, InMemoryBackend
    from idemkit.backends.postgres import PostgresBackend

    backend: Any = InMemoryBackend(max_size=10**9)
    if url is not None:
        await PostgresBackend.init_schema(url) if hasattr(PostgresBackend, "init_schema") else _init_idemkit(url)
        backend = PostgresBackend.from_url(url)
    await stack.enter_async_context(backend)
    config = HttpConfig(scope=lambda request: "bench")
    return IdempotencyMiddleware(starlette_app(), backend=backend, config=config, manage_backend=False)


def _init_idemkit(url: str) -> None:
    import subprocess

    subprocess.run([sys.executable, "-m", "idemkit.cli", "init-pg", url], check=True, stdout=subprocess.DEVNULL)


def _asgi_idempotency_header() -> App:
    from idempotency_header_middleware import IdempotencyHeaderMiddleware
    from idempotency_header_middleware.backends import MemoryBackend

    middleware: App = IdempotencyHeaderMiddleware(starlette_app(), backend=MemoryBackend())
    return middleware


async def compare(found: Found, file: str, url: str, sizes: Sizes) -> None:
    """Measure every contender alone, then with 64 in flight."""
    async with contenders(file, url) as (callers, guard), guarded(":memory:") as typed:
        calls: dict[str, Call] = {
            "starlette": Caller(starlette_app()).keyless,
            "fastapi": Caller(fastapi_app()).keyless,
        }
        calls["holdfast memory keyless"] = callers["holdfast memory"].keyless
        calls["holdfast memory first, fastapi"] = Caller(fastapi_app(), typed).first
        for name, caller in callers.items():
            await caller.again()
            calls[f"{name} first"], calls[f"{name} replay"] = caller.first, caller.again
        found.alone = {name: seconds * 1e6 for name, seconds in (await rounds(calls, sizes)).items()}
        _say("one at a time: done")
        crowd: dict[str, Call] = {"raw group commit": raw_statements(guard.database)}
        crowd |= {name: caller.first for name, caller in callers.items()}
        for _ in range(3):
            for name, call in crowd.items():
                found.crowd.setdefault(name, []).append(await rate(call, sizes.crowd))
        _say("64 in flight: done")


async def count_statements(found: Found, url: str) -> None:
    """Ask the server itself: transactions ended, and bytes of log written, by so many requests."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as server:

        def ask(statement: bytes) -> float:
            row = server.execute(statement).fetchone()
            return float(row[0]) if row else 0.0

        async def transactions(call: Call) -> float:
            time.sleep(FLUSH_SECONDS)  # noqa: ASYNC251 - nothing else runs
            before = ask(b"SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            for _ in range(REPLAYS):
                await call()
            time.sleep(FLUSH_SECONDS)  # noqa: ASYNC251 - nothing else runs
            after = ask(b"SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            return round((after - before) / REPLAYS, 2)

        async with guarded(url) as guard:
            caller = Caller(starlette_app(), guard)
            await caller.again()
            found.statements["first"] = await transactions(caller.first)
            found.statements["replay"] = await transactions(caller.again)
            written = []
            for _ in range(3):  # the server itself writes a little now and then
                before = ask(b"SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
                for _ in range(REPLAYS):
                    await caller.again()
                written.append(ask(b"SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn") - before)
            found.statements["replay_wal_bytes"] = min(written)


def report(found: Found, about: str) -> list[str]:
    """Return the lines of the results."""
    versions = ", ".join(
        f"{name} {_version(name)}"
        for name in ("holdfast", "idemkit", "asgi-idempotency-header", "starlette", "fastapi")
    )
    machine = f"Python {platform.python_version()}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    lines = [f"{versions}; {machine}; {about}. Load {os.getloadavg()[0]:.1f} at the end.", ""]
    lines += ["| one request at a time | microseconds |", "| --- | --- |"]
    lines += [f"| {name} | {micros:,.0f} |" for name, micros in found.alone.items()]
    lines += ["", "| first runs, 64 in flight | requests a second |", "| --- | --- |"]
    lines += [f"| {name} | {_spread(rates)} |" for name, rates in found.crowd.items()]
    lines += ["", "| ratio | figure | goal |", "| --- | --- | --- |"]
    for name, ratio in found.ratios().items():
        lines.append(f"| {name} | {ratio:.2f} | {_verdict(name, ratio)} |")
    lines += ["", "| promise | store | figure | goal |", "| --- | --- | --- | --- |"]
    for gate in found.gates:
        sign, kept = (">=" if gate.at_least else "<="), ("kept" if gate.kept else "**missed**")
        lines.append(f"| {gate.what} | {gate.store} | {gate.figure:.3g} | {sign} {gate.limit:g}: {kept} |")
    lines += ["", f"PostgreSQL, as the server counts: {json.dumps(found.statements)}"]
    return lines


def _verdict(name: str, ratio: float) -> str:
    if name not in GOALS:
        return ""
    sign, bound = GOALS[name]
    reached = ratio <= bound if sign == "<=" else ratio >= bound
    return f"{sign} {bound:g}: {'reached' if reached else '**missed**'}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(sizes: Sizes) -> tuple[Found, str]:
    found = Found()
    with Sqlite() as files, Postgres() as server:
        await compare(found, files.fresh(), server.fresh(), sizes)
        await count_statements(found, server.fresh())
        found.gates = await measure(sizes, server.fresh())
        return found, f"{files.about()}; {server.about()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="show that it runs, not how fast")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found, about = asyncio.run(_run(Sizes.quick() if options.quick else Sizes()))
    lines = report(found, about)
    print("\n".join(lines))
    if options.write:
        write_into("idempotency", "\n".join(lines))
    if options.json:
        print(json.dumps({"ratios": found.ratios(), "statements": found.statements}))


if __name__ == "__main__":
    main()
