"""Captured sessions: calls taken in and on disk a second, turns made of them, and what reading and keeping them costs.

    python bench/sessions.py [--json] [--quick] [--write] [--only accept|load|derive|list|keep|peer]...

Calls are sent to `holdfast serve`, a process of its own, by a client that is one too, and set against raw group commit
of the same bytes. Arize Phoenix is sent the same calls as spans. The results go to standard output as Markdown,
progress to standard error. With `--json` the last line of the output is one object with the ratios and figures.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import calls
import generator
import psycopg
from generator import Job
from ledgers import Ledgers, Postgres, Sqlite
from promises import Found, report
from raw import Table, written
from results import write_into
from served import Server, serving
from traced import Job as Spans
from traced import phoenix
from traced import send as send_spans

from holdfast.cli.bench.trials import rate
from holdfast.core.clock import SystemClock
from holdfast.core.ids import uuid7_bytes
from holdfast.sessions import Archive, SessionsConfig
from holdfast.sessions.archive import Body
from holdfast.sessions.config import Derive
from holdfast.store import Database, open_database

IN_FLIGHT = 64
EVENTS = Table("session_raw_events", "seq")
PARTS = ("accept", "load", "derive", "list", "keep", "peer")
LARGE_BYTES = 45_000_000
SUSTAINED = 250
"""Calls a second that a server is to take in and derive for ever."""
CAUGHT_UP_S_MAX = 120
PAGE = "/v1/sessions?limit=50"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    crowd: int = 2_560
    """Calls of a turn with 64 in flight."""
    alone: int = 300
    recorded: int = 136
    burst: int = 10_000
    sustained_s: int = 8
    derived: int = 640
    turns: int = 2_000
    """Of the session that grows."""
    few: int = 1_000
    many: int = 100_000
    pages: int = 400
    spans: int = 512

    @classmethod
    def quick(cls) -> Sizes:
        """Sizes that only show that it runs."""
        return cls(
            rounds=1, crowd=128, alone=10, recorded=17, burst=256, sustained_s=1, derived=64, turns=60, few=50,
            many=1_000, pages=20, spans=64,
        )  # fmt: skip


# --- calls come in ------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(target: str, workers: int = 2) -> AsyncIterator[tuple[Database, Archive]]:
    """A ledger and an archive of it that derives only when asked."""
    database = await open_database(target, clock=SystemClock())
    secret = Path(os.environ["HOLDFAST_SESSIONS_SECRET_FILE"])
    try:
        yield database, Archive(database, config=SessionsConfig(derive=Derive(workers=workers), secret_file=secret))
    finally:
        await database.close()


class GroupCommit:
    """Raw group commit: the rows of calls that were taken in once, written again under other ids by the same statement.

    They share commits as those of the archive do; nothing is read, hashed, packed or looked for secrets.
    """

    def __init__(self, database: Database, rows: Sequence[dict[str, Any]]) -> None:
        self._database = database
        self._rows = rows

    async def write(self) -> None:
        number = next(_numbers)
        row = self._rows[number % len(self._rows)]
        event_id = uuid7_bytes(self._database.clock.now())
        ids = {"event_id": event_id, "capture_id": f"raw-{number:010d}"}
        taken = await self._database.submit("raw_events.accept", **(row | ids))
        assert taken is not None


_numbers = itertools.count()


def as_posted(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose bodies are the bytes that were sent."""
    found = dict(row)
    for name in ("request", "response"):
        found[name] = Body(row[name], row[f"{name}_storage"], b"", 0).data()
        found[f"{name}_storage"] = "plain"
    return found


class _Seen:
    """A database that remembers what it was given to store."""

    def __init__(self, inner: Database, rows: list[dict[str, Any]]) -> None:
        self._inner = inner
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def submit(self, statement: str, /, **params: object) -> Any:
        self._rows.append(params)
        return await self._inner.submit(statement, **params)


async def accept(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Send calls to a server that derives nothing, and write the same bytes without it, in turns."""
    name, target = ledgers.name, ledgers.fresh()
    bodies = [calls.made(number) for number in range(10**8, 10**8 + sizes.crowd)]
    async with opened(ledgers.fresh()) as (_, archive), opened(ledgers.fresh()) as (bare, _):
        rows: list[dict[str, Any]] = []
        seen = Archive(_Seen(bare, rows), config=archive.config)  # type: ignore[arg-type]  # does what a database does
        for body in bodies[:IN_FLIGHT]:
            await seen.receive(body)
        raw, packed = GroupCommit(bare, [as_posted(row) for row in rows]), GroupCommit(bare, rows)
        with serving(target, workers=0) as server:
            acknowledged = await asyncio.to_thread(_send, server, "made", sizes.alone, 8, 10**9)
            for each in range(sizes.rounds):
                found.note(name, "raw", await rate(raw.write, sizes.crowd))
                found.note(name, "raw packed", await rate(packed.write, sizes.crowd))
                fresh = iter([body.replace(b'"made-', b'"%d-' % each) for body in bodies])

                async def receive(fresh: Any = fresh) -> None:
                    await archive.receive(next(fresh))

                found.note(name, "receive", await rate(receive, sizes.crowd))
                for case, kind, count, clients in (
                    ("http", "made", sizes.crowd, IN_FLIGHT),
                    ("http alone", "made", sizes.alone, 1),
                    ("http recorded", "recorded", sizes.recorded, IN_FLIGHT),
                ):
                    acknowledged += await asyncio.to_thread(_timed, found, name, server, (case, kind, count, clients))
            server.kill()
        for _ in range(sizes.rounds):
            found.note(name, "driver", (await written(target, EVENTS, IN_FLIGHT, 1, sizes.crowd)).rate)
        kept = _count(target, "SELECT count(*) FROM session_raw_events")
    assert kept == acknowledged, f"{acknowledged} calls were acknowledged, and {kept} are there after a kill"
    _say(f"accept on {name}: done")


_firsts = itertools.count(1)


def _timed(found: Found, name: str, server: Server, case: tuple[str, str, int, int]) -> int:
    """Send calls nobody has sent yet, and note what it took."""
    title, kind, count, clients = case
    if kind not in calls.makers((kind,)):
        return 0
    cpu = server.cpu_s()
    sent = generator.send(Job(server.port, kind, count, clients, next(_firsts) * 10**6))
    assert sent.statuses == {"202": count}, sent.statuses
    found.note(name, title, sent.rate)
    found.figure(f"{name}_{title.replace(' ', '_')}_server_ms", (server.cpu_s() - cpu) / count * 1e3)
    if title == "http":
        found.figure("client_ms", sent.cpu_s / count * 1e3)
    return count


def _send(server: Server, kind: str, count: int, clients: int, first: int) -> int:
    sent = generator.send(Job(server.port, kind, count, clients, first))
    assert sent.statuses == {"202": count}, sent.statuses
    return count


def nobody(found: Found, sizes: Sizes) -> None:
    """Measure the client against a server that does nothing."""
    with generator.nobody() as port:
        for _ in range(sizes.rounds):
            found.note("", "nobody", generator.send(Job(port, "made", 4 * sizes.crowd, IN_FLIGHT)).rate)


def load(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Send a burst to a server with its defaults, and to another one as much a second as it should always bear."""
    with serving(ledgers.fresh()) as server:
        _send(server, "made", IN_FLIGHT, 8, 10**9)
        sent = generator.send(Job(server.port, "made", sizes.burst, IN_FLIGHT))
        assert sent.statuses == {"202": sizes.burst}, sent.statuses
        found.note(ledgers.name, "burst", sent.rate)
    target = ledgers.fresh()
    with serving(target) as server:
        _send(server, "made", IN_FLIGHT, 8, 10**9)
        _caught_up(target)
        job = Job(server.port, "made", SUSTAINED * sizes.sustained_s, IN_FLIGHT, rate=SUSTAINED)
        sent = generator.send(job)
        ended = time.perf_counter()
        assert sent.statuses == {"202": job.count}, sent.statuses
        found.figure("sustained_p50_ms", sent.p50_ms)
        found.figure("sustained_p99_ms", sent.p99_ms)
        _caught_up(target)
        found.figure("sustained_behind_s", time.perf_counter() - ended)
    _say(f"load on {ledgers.name}: done")


def _caught_up(target: str) -> None:
    until = time.perf_counter() + CAUGHT_UP_S_MAX
    while _count(target, "SELECT count(*) FROM session_raw_events WHERE derive_state = 'pending'"):
        if time.perf_counter() > until:
            return
        time.sleep(0.02)


def _count(target: str, query: str) -> int:
    if target.startswith("postgresql"):
        with psycopg.connect(target) as found:
            row = found.execute(query.encode()).fetchone()
            return int(row[0]) if row else 0
    with closing(apsw.Connection(target, flags=apsw.SQLITE_OPEN_READWRITE)) as ledger:
        ledger.set_busy_timeout(10_000)
        return int(ledger.execute(query).get)


# --- turns are made of them ---------------------------------------------------------------------------


async def derive(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Take calls in without deriving, then derive all of them."""
    for _ in range(sizes.rounds):
        for kind, make in calls.makers().items():
            for workers in (1, 2):
                count = calls.RECORDED if kind == "recorded" else sizes.derived
                case = f"derive {kind} {workers}"
                seconds = await _derived(ledgers, workers, [make(number) for number in range(count)])
                found.note(ledgers.name, case, count / seconds)
                if kind == "recorded" and workers == 2:
                    found.figure(f"{ledgers.name}_recorded_s", seconds)
    _say(f"derive on {ledgers.name}: done")


async def _derived(ledgers: Ledgers, workers: int, bodies: Sequence[bytes]) -> float:
    target = ledgers.fresh()
    async with opened(target, workers) as (_, archive):
        await asyncio.gather(*(archive.receive(body) for body in bodies))
        began = time.perf_counter()
        report = await archive.derive(limit=len(bodies))
        seconds = time.perf_counter() - began
        assert (report.derived, report.pending) == (len(bodies), 0), report
    ledgers.drop(target)
    return seconds


async def growing(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Derive a session of many turns, of which every twentieth says all that was said before it.

    So the last ones, which do so too, find nearly all of their messages known, as in a session that never forgets.
    """
    early, late = range(18, 23), range(sizes.turns - 4, sizes.turns + 1)
    per_byte: dict[int, float] = {}
    async with opened(ledgers.fresh(), 1) as (_, archive):
        for turn in range(1, sizes.turns + 1):
            whole = turn <= early.stop or turn >= late.start or turn % 20 == 0
            body = calls.growing(turn) if whole else calls.lonely(turn)
            await archive.receive(body)
            began = time.perf_counter()
            report = await archive.derive(limit=1)
            per_byte[turn] = (time.perf_counter() - began) / len(body)
            assert report.derived == 1, report
        [page] = (await archive.list()).items
        assert page.turn_count == sizes.turns, page
    cost = [statistics.median(per_byte[turn] for turn in some) for some in (early, late)]
    found.figure("growth", cost[1] / cost[0])
    _say("growth: done")


# --- they are read and kept ---------------------------------------------------------------------------


async def pages(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Read the first page of sessions, of few and of many."""
    target = ledgers.fresh()
    async with opened(target) as (_, archive):
        # One call of each session.
        bodies = [calls.made(number * calls.TURNS) for number in range(sizes.few)]
        await asyncio.gather(*(archive.receive(body) for body in bodies))
        while (await archive.derive()).pending:
            pass
    for name, path in (
        ("page", PAGE),
        ("by_cost", f"{PAGE}&sort=-cost"),
        ("of_model", f"{PAGE}&model=claude-sonnet-4-6"),
    ):
        found.figure(f"{name}_few_ms", _p99(target, path, sizes))
    _multiply(target, sizes.many // sizes.few - 1)
    assert _count(target, "SELECT count(*) FROM session_sessions") == sizes.many
    for name, path in (
        ("page", PAGE),
        ("by_cost", f"{PAGE}&sort=-cost"),
        ("of_model", f"{PAGE}&model=claude-sonnet-4-6"),
    ):
        found.figure(f"{name}_many_ms", _p99(target, path, sizes))
    _say("list: done")


def _p99(target: str, path: str, sizes: Sizes) -> float:
    with serving(target, workers=0) as server:
        generator.send(Job(server.port, "get", 20, 1, path=path))
        sent = generator.send(Job(server.port, "get", sizes.pages, 1, path=path))
        assert sent.statuses == {"200": sizes.pages}, sent.statuses
        return sent.p99_ms


_CLONED = """
WITH RECURSIVE clones (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM clones WHERE number < ?)
INSERT INTO {table} ({columns}) SELECT {values} FROM {table}, clones
"""


def _multiply(target: str, clones: int) -> None:
    """Clone sessions and their turns under ids of their own, each a little later; messages stay where they are."""
    with closing(apsw.Connection(target)) as ledger:
        ledger.execute("PRAGMA synchronous=OFF; BEGIN")
        for table in ("session_turns", "session_ids", "session_sessions"):
            columns = [str(row[1]) for row in ledger.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(_as_clone(column) for column in columns)
            ledger.execute(_CLONED.format(table=table, columns=", ".join(columns), values=values), (clones,))
        ledger.execute("COMMIT; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize").fetchall()


def _as_clone(column: str) -> str:
    match column:
        case "session_id" | "turn_id":
            # The end is what is random in it.
            return f"CAST(unhex(printf('%016x', number)) || substr({column}, 9) AS BLOB)"
        case "harness_session_id":
            return "harness_session_id || '-' || number"
        case "started_at" | "last_seen_at" | "captured_at":
            return f"{column} + number"
        case _:
            return column


async def keep(found: Found, ledgers: Ledgers, sizes: Sizes) -> None:
    """Keep the recorded session; and take in one call that is as large as may be."""
    if (make := calls.makers().get("recorded")) is not None:
        target = ledgers.fresh()
        async with opened(target):
            pass
        empty = _vacuumed(target)
        async with opened(target) as (database, archive):
            for number in range(calls.RECORDED):
                await archive.receive(make(number))
            await archive.derive()
        query = "SELECT sum(request_bytes + response_bytes) FROM session_raw_events"
        captured = _count(target, query)
        found.figure("stored", (_vacuumed(target) - empty) / captured)
        async with opened(target) as (database, archive):
            ready = Archive(database, config=SessionsConfig(pack_after_ms=0, secret_file=archive.config.secret_file))
            assert (await ready.pack()).events == calls.RECORDED
        found.figure("stored_packed", (_vacuumed(target) - empty) / captured)
        bodies = "SELECT sum(coalesce(length(request), 0) + coalesce(length(response), 0)) FROM session_raw_events"
        found.figure("stored_bodies_packed", _count(target, bodies) / captured)
    _large(found, ledgers.fresh(), LARGE_BYTES if sizes.rounds > 1 else LARGE_BYTES // 15)
    _say("keep: done")


def _vacuumed(target: str) -> int:
    """Return how large a ledger is that nobody has open, without pages that are free."""
    with closing(apsw.Connection(target)) as ledger:
        ledger.execute("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return Path(target).stat().st_size


def _large(found: Found, target: str, size: int) -> None:
    """Post one large call, and wait for its turn."""
    with serving(target) as server:
        _send(server, "made", IN_FLIGHT, 8, 10**9)
        _caught_up(target)
        before = server.held_bytes()
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        length = sum(len(part) for part in calls.large(size))
        head = {"Content-Type": "application/json", "Content-Length": str(length), "Prefer": "wait=10"}
        line.request("POST", "/v1/ingest", body=calls.large(size), headers=head)
        answer = line.getresponse()
        assert answer.status == 202, (answer.status, answer.read())
        line.close()
        _caught_up(target)
        found.figure("large", (server.peak_bytes() - before) / length)


# --- somebody else's ----------------------------------------------------------------------------------


def peer(found: Found, sizes: Sizes) -> None:
    """Send calls as spans to Phoenix; count what its database holds, and what it holds after a kill."""
    rows, firsts = 0, itertools.count(0, 10**5)
    with phoenix() as server:
        send_spans(Spans(server.port, "batch", 32, 4, 10**9))
        server.wait(rows := 32)
        for _ in range(sizes.rounds):
            for processor, count in (("batch", sizes.spans), ("simple", sizes.spans // 4)):
                seconds, began = send_spans(Spans(server.port, processor, count, IN_FLIGHT, next(firsts)))
                found.note("phoenix", f"acknowledged {processor}", count / seconds)
                server.wait(rows := rows + count)
                found.note("phoenix", f"rows {processor}", count / (time.time() - began))
        send_spans(Spans(server.port, "batch", sizes.spans, IN_FLIGHT, next(firsts)))
        server.kill()
        found.figure("phoenix_lost", 1 - (server.rows() - rows) / sizes.spans)
    _say("peer: done")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(found: Found, sizes: Sizes, parts: Sequence[str]) -> str:
    with Sqlite() as files, Postgres() as server:
        # No secret is left in anybody's home.
        os.environ["HOLDFAST_SESSIONS_SECRET_FILE"] = str(Path(files.fresh()).parent / "secret")
        for ledgers in (files, server):
            if "accept" in parts:
                await accept(found, ledgers, sizes)
            if "derive" in parts:
                await derive(found, ledgers, sizes)
        if "accept" in parts:
            nobody(found, sizes)
        if "load" in parts:
            await asyncio.to_thread(load, found, files, sizes)
        if "derive" in parts:
            await growing(found, files, sizes)
        if "list" in parts:
            await pages(found, files, sizes)
        if "keep" in parts:
            await keep(found, files, sizes)
        if "peer" in parts:
            await asyncio.to_thread(peer, found, sizes)
        return f"{files.about()}; {server.about()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="show that it runs, not how fast")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only that; may be repeated")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sizes, found = Sizes.quick() if options.quick else Sizes(), Found()
    about = asyncio.run(_run(found, sizes, options.only or PARTS))
    lines = report(found, about)
    print("\n".join(lines))
    if options.write:
        write_into("sessions", "\n".join(lines))
    if options.json:
        print(json.dumps({"ratios": found.ratios(), "figures": found.told()}))


if __name__ == "__main__":
    main()
