"""Captured calls for tests: the recorded session as calls, small made-up ones, and a look at all rows of a ledger."""

from __future__ import annotations

import base64
import functools
import json
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import asyncpg
from tests.unit.sessions_data import FIXTURES

from holdfast.core.errors import ConfigError
from holdfast.sessions import headers, instants
from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.facade import Archive
from holdfast.sessions.values import Call, Envelope, Upstream
from holdfast.store import Database

CARDS = FIXTURES / "rates" / "sonnet-4-6.json"
AT = datetime(2026, 1, 1, tzinfo=UTC)


@functools.cache
def recording() -> tuple[Call, ...]:
    """Each call of the recorded session, as a proxy would tell it."""
    found = []
    for each in json.loads((FIXTURES / "expected" / "recording.json").read_bytes())["calls"]:
        [folder] = FIXTURES.glob(f"recordings/*/{each['call']}")
        sent, meta = (json.loads((folder / name).read_bytes()) for name in ("request.json", "meta.json"))
        who = headers.identity([tuple(pair) for pair in sent["headers"]], trusted=False)
        began, ended = (instants.parse(meta[name]) for name in ("ts_request", "ts_complete"))
        if began is None or ended is None:
            raise ConfigError("the recording has no times")
        found.append(
            Call(
                "anthropic",
                base64.b64decode(sent["body_b64"]),
                (folder / "response.sse").read_bytes(),
                capture_id=each["call"],
                endpoint="/v1/messages",
                response_type=meta["content_type"],
                response_encoding=meta["content_encoding"] or "",
                captured_at=instants.moment(began),
                started_at=instants.moment(began),
                ended_at=instants.moment(ended),
                session=who.envelope,
                thread_id=who.thread_id,
                upstream=Upstream(200, request_id=each["request_id"]),
            )
        )
    return tuple(found)


def call(name: str, text: str = "hi", *, session: str = "s", **more: Any) -> Call:
    """A small call with a capture id, of a session."""
    asked = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": text}]}
    said = {
        "id": f"msg-{name}", "model": "claude-sonnet-4-6", "content": [{"type": "text", "text": "done"}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 2},
    }  # fmt: skip
    made = Call(
        more.pop("provider", "anthropic"),
        json.dumps(asked).encode(),
        json.dumps(said).encode(),
        capture_id=name,
        session=Envelope(harness_id="claude", harness_session_id=session) if session else None,
        captured_at=AT,
    )
    return replace(made, **more)


@functools.cache
def secrets() -> Path:
    """A folder for the secrets of ledgers that lie in no file; they must not end up in the user's home."""
    return Path(tempfile.mkdtemp(prefix="holdfast-secrets-"))


def archive(database: Database, **more: Any) -> Archive:
    """An archive with the rates of the recorded session."""
    config = more.pop("config", None) or SessionsConfig(prices=Prices(cards=CARDS, package=False))
    if config.secret_file is None and database.dialect == "postgres":
        config = replace(config, secret_file=secrets() / database.namespace.hex())
    return Archive(database, config=config, **more)


async def rows(target: str) -> dict[str, list[str]]:
    """Every row of every table of the slice."""
    if not target.startswith("postgres"):
        with closing(apsw.Connection(target)) as ledger:  # another SQLite of this process would drop its locks
            names = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE name GLOB 'session_*'")]
            tables = [name for name in names if ledger.execute(f"PRAGMA table_info({name})").fetchall()]
            return {
                name: sorted(map(repr, ledger.execute(f"SELECT * FROM {name}")))  # noqa: S608 - our own tables
                for name in tables
            }
    connection = await asyncpg.connect(target)
    try:
        tables = [
            row[0]
            for row in await connection.fetch(
                "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE 'session_%'"
            )
        ]
        return {
            name: sorted(row[0] for row in await connection.fetch(f'SELECT t::text FROM "{name}" AS t'))  # noqa: S608 - ours
            for name in tables
        }
    finally:
        await connection.close()
