"""The recorded session, posted call by call: the same turns, totals and rows in any order, by any number of servers."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import archive, recording
from tests.http.backends import Server, server
from tests.http.orgs import Org, join, priced
from tests.unit.sessions_data import FIXTURES, SHARED

from holdfast.core.clock import SystemClock
from holdfast.sessions import instants
from holdfast.sessions.config import Derive
from holdfast.sessions.values import Call
from holdfast.store import StoreSettings
from holdfast.store.sqlite import open_sqlite

pytestmark = SHARED
EXPECTED = json.loads((FIXTURES / "expected" / "recording.json").read_bytes()) if FIXTURES.is_dir() else {}
NEIGHBOURS = [at ^ 1 if at < 16 else at for at in range(17)]


def posted(call: Call) -> bytes:
    """A recorded call as a proxy posts it."""
    assert call.request is not None
    assert call.response is not None
    assert call.session is not None
    assert call.upstream is not None
    given = {
        "capture_id": call.capture_id, "provider": call.provider, "endpoint": call.endpoint,
        "captured_at": _written(call.captured_at), "started_at": _written(call.started_at),
        "ended_at": _written(call.ended_at), "thread_id": call.thread_id,
        "request": {"base64": base64.b64encode(call.request).decode(), "content_type": "application/json"},
        "response": {
            "base64": base64.b64encode(call.response).decode(), "content_type": call.response_type,
            "content_encoding": call.response_encoding,
        },
        "upstream": {"status": 200, "request_id": call.upstream.request_id},
        "session": {name: value for name, value in asdict(call.session).items() if value},
    }  # fmt: skip
    return json.dumps(given).encode()


def _written(at: Any) -> str:
    return instants.written(instants.micros(at))


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    return [posted(call) for call in recording()]


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {**priced(), "derive": Derive(workers=1)}


@pytest.fixture(scope="module")
def expected() -> str:
    """What is derived where the calls come in order, to nobody but a ledger in memory."""

    async def derived() -> str:
        database = await open_sqlite(":memory:", clock=SystemClock(), settings=StoreSettings())
        books = archive(database)
        await books.ingest_many(recording())
        await books.derive()
        found = await books.projection_hash()
        await database.close()
        return found

    return asyncio.run(derived())


@pytest.fixture(scope="module")
def three(at: Server, module_ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two more servers on the module's ledger, which derive as well."""
    with ExitStack() as stack:
        yield [at, *(stack.enter_context(another(module_ledger, tmp_path_factory.mktemp("secret"))) for _ in range(2))]


def another(ledger: str, folder: Path) -> Any:
    return server(ledger, secret_file=folder / "secret", **priced())


def check(org: Org, expected: str) -> None:
    """See that everything is there, once."""
    session = org.only()
    tokens = EXPECTED["totals"]["tokens"]
    assert session["turn_count"] == 17
    assert {name: session["tokens"][name] for name in tokens} == tokens
    assert (tokens["input"], tokens["output"]) == (565_318, 3_827)
    assert (session["cost"]["usd"], session["cost"]["state"]) == ("0.525090750000", "priced")
    assert org.projection() == expected


@pytest.mark.parametrize("order", ["in order", "reversed", "neighbours swapped"])
def test_the_order_of_coming_leaves_no_trace(org: Org, bodies: list[bytes], expected: str, order: str) -> None:
    """SA-7, SA-41: one worker."""
    at = {"in order": range(17), "reversed": range(16, -1, -1), "neighbours swapped": NEIGHBOURS}[order]
    assert {org.post(bodies[number])[0] for number in at} == {202}
    org.settle()
    check(org, expected)


def by_many(servers: list[Server], bodies: list[bytes], rng: random.Random) -> Org:
    """Send all calls in some order, several at once, each to one of the servers; return whose they are."""
    org = join(servers[0])
    keys = {"x-api-key": org.keys["all"], "content-type": "application/json"}

    def send(body: bytes) -> int:
        return rng.choice(servers).client.post("/v1/ingest", content=body, headers=keys).status_code

    with ThreadPoolExecutor(4) as senders:
        assert set(senders.map(send, rng.sample(bodies, len(bodies)))) == {202}
    org.settle()
    return org


@pytest.mark.parametrize("seed", [1, 2])
def test_who_derives_leaves_no_trace(three: list[Server], bodies: list[bytes], expected: str, seed: int) -> None:
    """SA-7: three servers at once, in some order."""
    check(by_many(three, bodies, random.Random(seed)), expected)  # noqa: S311 - an order, not a secret


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_eight_servers_end_where_one_does(
    three: list[Server], module_ledger: str, tmp_path: Path, bodies: list[bytes], expected: str
) -> None:
    """SA-7."""
    with ExitStack() as stack:
        more = [stack.enter_context(another(module_ledger, tmp_path)) for _ in range(5)]
        for seed in range(30):
            check(by_many([*three, *more], bodies, random.Random(seed)), expected)  # noqa: S311 - an order, no secret


def test_every_turn_is_shown_as_it_was(org: Org, bodies: list[bytes]) -> None:
    """SA-41, SA-57, SA-58: by the client's own headers one session with two threads; chains, hashes, prices."""
    assert {org.post(body)[0] for body in bodies} == {202}
    org.settle()
    session = org.only()
    assert {name: session[name] for name in EXPECTED["session"]} == EXPECTED["session"]
    assert (session["title"], session["outcome"]["status"], session["live"]) == ("tapes-fixture-run-7c", "ok", False)
    turns = {each["evidence"][0]["capture_id"]: each for each in org.turns(session, payload="preview")}
    for call in EXPECTED["calls"]:
        turn = turns.pop(call["call"])
        for name in ("model", "message_id", "thread_id", "chain_length", "root_hash", "head_hash", "response_hash",
                     "stop_reason"):  # fmt: skip
            assert turn[name] == call[name], (call["call"], name)
        assert turn["upstream_request_id"] == call["request_id"]
        assert {name: turn["tokens"][name] for name in call["tokens"]} == call["tokens"]
        assert Decimal(turn["cost"]["usd"]) == Decimal(call["cost_usd"])
        assert sum(Decimal(line["usd"]) for line in turn["cost"]["lines"]) == Decimal(turn["cost"]["usd"])
        assert turn["cost"]["price_version"].startswith("card:")
        assert (turn["status"], turn["usage_state"], len(turn["messages"])) == ("ok", "measured", call["chain_length"])
    assert turns == {}
    shown = org.turns(session, payload="preview")
    nodes = [node["hash"] for turn in shown for node in turn["messages"]]
    assert (len(nodes), len(set(nodes))) == (218, 34)
    assert {turn["thread_id"] for turn in shown} == {"", "a0c0778e223db598c"}
    branches = org.get(f"/v1/sessions/{session['id']}/branches")
    assert len({leaf["path"][0] for leaf in branches["leaves"]}) == 3
    tree = org.get(f"/v1/sessions/{session['id']}/tree")
    assert {each["thread_id"]: each["turns"] for each in tree["threads"]}["a0c0778e223db598c"] == 2
    for body, turn in zip(bodies, shown, strict=True):
        given = json.loads(body)
        for part in ("request", "response"):
            path = f"/v1/turns/{turn['id']}/raw?part={part}"
            with org.client.stream("GET", path, headers=org.headers) as answer:
                assert b"".join(answer.iter_raw()) == base64.b64decode(given[part]["base64"])
                assert answer.headers.get("content-encoding", "") == given[part].get("content_encoding", "")
    [row] = org.get("/v1/stats")["items"]
    assert (row["turns"], row["tokens"]["input"], row["cost"]["usd"]) == (17, 565_318, "0.525090750000")
