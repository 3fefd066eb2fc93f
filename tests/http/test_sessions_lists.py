"""Lists over HTTP, page by page, while others write; and a store that cannot be written to."""

from __future__ import annotations

import itertools
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import tell
from tests.http.backends import Server, server
from tests.http.conftest import problems
from tests.http.orgs import Org, asked, event, join, named, priced, said
from tests.http.processes import running

from holdfast.testing.postgres import PostgresServer

SORTS = ("last_seen", "started", "turns", "cost", "tokens")
SHOWN = {
    "last_seen": lambda each: each["last_seen_at"], "started": lambda each: each["started_at"],
    "turns": lambda each: each["turn_count"], "cost": lambda each: each["cost"]["usd"],
    "tokens": lambda each: each["tokens"]["input"] + each["tokens"]["output"],
}  # fmt: skip


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


def some(first: int, count: int) -> list[dict[str, Any]]:
    """Calls of as many sessions, of few different times and amounts, so that many are equal."""
    return [
        event(f"c{at}", at % 7, session=named(f"s{at:05}"), response=said(id=f"m{at}", used=(10_000 + at % 5, 3)))
        for at in range(first, first + count)
    ]


@pytest.mark.parametrize(
    ("count", "limit"),
    [(24, 7), pytest.param(10_000, 200, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])],
)
def test_pages_neither_repeat_nor_skip_while_others_insert(org: Org, count: int, limit: int) -> None:
    """SA-51, SX-130: in each order; and a cursor fits its own list only."""
    for first in range(0, count, 1000):
        org.batch(*some(first, min(1000, count - first)))
    old = {f"s{at:05}" for at in range(count)}
    numbers = itertools.count(count)
    for sort in (*SORTS, *(f"-{each}" for each in SORTS)):
        seen, cursor = [], ""
        while cursor is not None:
            page = org.get("/v1/sessions", sort=sort, limit=limit, **({"cursor": cursor} if cursor else {}))
            seen += page["items"]
            org.take(*some(next(numbers), 1))
            for wrong in ({"sort": "-cost" if sort == "cost" else "cost"}, {"sort": sort, "tag": "t"}):
                if page["next"] is not None:
                    refused = org.ask("/v1/sessions", limit=limit, cursor=page["next"], **wrong)
                    assert (refused.status_code, refused.json()["code"]) == (400, "cursor_mismatch")
            cursor = page["next"]
        keys = [each["harness_session_id"] for each in seen]
        assert len(set(keys)) == len(keys), sort
        assert old <= set(keys), sort
        values = [SHOWN[sort.removeprefix("-")](each) for each in seen]
        assert values == sorted(values, reverse=sort.startswith("-")), sort


def test_turns_are_paged_in_the_order_of_their_capture(org: Org) -> None:
    """SX-130: ties go by id, and what comes in meanwhile moves nothing that was passed."""
    org.batch(*(event(f"c{at}", at // 4) for at in range(20)))
    session = org.only()
    seen, cursor = [], ""
    for number in itertools.count():
        page = org.get(f"/v1/sessions/{session['id']}/turns", limit=6, **({"cursor": cursor} if cursor else {}))
        seen += page["items"]
        org.take(event(f"early{number}", -5))
        if (cursor := page["next"]) is None:
            break
    names = [each["evidence"][0]["capture_id"] for each in seen]
    assert sorted(names) == sorted(f"c{at}" for at in range(20))
    assert [each["captured_at"] for each in seen] == sorted(each["captured_at"] for each in seen)


# --- a store that cannot


@contextmanager
def postgres_server(ledger: PostgresServer, folder: Path) -> Iterator[Server]:
    with server(ledger.fresh_schema(), secret_file=folder / "secret") as made:
        yield made


def test_what_cannot_be_stored_is_not_acknowledged(tmp_path: Path) -> None:
    """SX-1: while the database is away, calls are refused with when to come again; then they are taken, once."""
    with PostgresServer() as database, postgres_server(database, tmp_path) as at:
        org = join(at)
        org.take(event("before"))
        database.kill()
        status, told = org.post(event("during"))
        assert (status, told["code"]) == (503, "store_unavailable")
        batch = org.post({"items": [event("during")]}, "/v1/ingest/batch")
        assert (batch[0], batch[1].get("accepted", 0)) in ((503, 0), (207, 0))
        assert at.client.get("/ready").status_code == 503
        assert at.client.get("/live").status_code == 200
        database.restart()
        while (answer := org.post(event("during"), prefer="wait=10"))[0] == 503:
            pass
        assert answer[0] in (200, 202)
        org.settle()
        assert org.only()["turn_count"] == 2
        assert problems(at) == ()


def test_a_disk_that_is_full_is_got_over(tmp_path: Path) -> None:
    """SX-1: nothing is acknowledged that did not fit, and what is sent again afterwards is one turn."""
    ledger = tmp_path / "ledger.db"
    with running(str(ledger), tmp_path) as one:
        keep = {"content-type": "application/json", "prefer": "wait=10"}
        assert one.client.post("/v1/ingest", json=event("before"), headers=keep).status_code == 202
        most = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        large = event("during", request=asked(random.Random(1).randbytes(most).hex()))  # noqa: S311 - no secret
        refused = one.client.post("/v1/ingest", json=large, headers=keep)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert refused.json()["code"] in ("disk_full", "store_unavailable")
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        del keep["prefer"]  # whoever waits, waits through the backoff of what could not be derived
        while (answer := one.client.post("/v1/ingest", json=large, headers=keep)).status_code == 503:
            pass
        assert answer.status_code in (200, 202), "what was refused may have got in all the same, and is in once"
        while one.client.get("/v1/raw", params={"state": "pending"}).json()["items"]:
            pass
        assert [each["turn_count"] for each in one.client.get("/v1/sessions").json()["items"]] == [2]
    assert tell("verify", "--slice", "sessions", "--db", ledger)["problems"] == []
