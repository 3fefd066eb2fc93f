"""Calls that outlive the process that made them: journaled, found again, sent under their old key."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import apsw
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.flow.callers import KINDS, Caller, Kind, Patient
from tests.flow.origin import Hang, Origin, Reply, Reset, Seen, Torn, Turn, problem
from tests.flow.served import Served

import holdfast
import holdfast.sync
from holdfast import Closed, ConfigError, LimitError, StoreError, Unavailable, WrongLoop
from holdfast.core.clock import SystemClock
from holdfast.core.keyring import KeyRing
from holdfast.idempotency import Idempotency, IdempotencyConfig, IdempotencyMiddleware, errors, shared_principal
from holdfast.idempotency.client import IdempotentTransport, KeyJournal, RetryPolicy, call_info
from holdfast.store import Database, StoreSettings, open_database
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase

ROOT = Path(__file__).parents[2]
CREATED = Reply(201, {}, b'{"charge":1}')
NAMED = {"extensions": {"holdfast.call": "charge-1"}}
ONCE = RetryPolicy(attempts_max=1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast("Kind", request.param)


@pytest.fixture
async def database(ledger: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(ledger, tmp_path) as database:
        yield database


@asynccontextmanager
async def opened(target: str, folder: Path) -> AsyncIterator[Database]:
    """Open a ledger as a process that just started would."""
    settings = StoreSettings(owner_dir=folder / "owners")
    database = await open_database(target, clock=SystemClock(), settings=settings)
    try:
        yield database
    finally:
        await database.close()


async def names(journal: KeyJournal) -> list[str]:
    return [call.name for call in await journal.pending()]


# Processes that die


class Shop:
    """Takes a charge once for each key, and kills the client that asks for the first time."""

    def __init__(self, *, kill: str) -> None:
        self.charges: dict[str, bytes] = {}
        self._kill = kill

    def __call__(self, seen: Seen) -> Turn:
        assert seen.key is not None
        replayed = seen.key in self.charges
        self.charges.setdefault(seen.key, seen.body)
        kill, self._kill = self._kill, ""
        pid = int(seen.get("x-pid") or 0)
        match kill:
            case "received":
                os.kill(pid, signal.SIGKILL)
                return Hang()
            case "answering":
                return Torn(CREATED, lambda: os.kill(pid, signal.SIGKILL))
        return Reply(201, {"Idempotency-Replayed": "true"} if replayed else {}, CREATED.body)


def run(kind: Kind, target: str, url: str, folder: Path, *, at: str = "") -> subprocess.CompletedProcess[str]:
    variables = {"HOLDFAST_TESTING": "1", "HOLDFAST_TEST_CRASH": at, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.crash.calling", kind, target, url],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "death"),
    [("async", "received"), ("sync", "answering"), ("async", "answering"), ("sync", "journal.written")],
)
async def test_a_call_whose_process_was_killed_is_made_again_under_its_old_key(
    kind: Kind, death: str, ledger: str, tmp_path: Path
) -> None:
    """HA-68: one business row."""
    shop = Shop(kill=death)
    with Origin(script=shop) as origin:
        at = death if "." in death else ""
        killed = await asyncio.to_thread(run, kind, ledger, origin.url, tmp_path, at=at)
        assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, ""), killed.stderr
        async with opened(ledger, tmp_path) as database:
            (left,) = await KeyJournal(database).pending()
        again = await asyncio.to_thread(run, kind, ledger, origin.url, tmp_path)
        assert again.returncode == 0, again.stderr
        after = await asyncio.to_thread(run, kind, ledger, origin.url, tmp_path)
    sent = len(origin.seen) - 1
    assert sent == (1 if at else 2)
    assert origin.keys[:sent] == [left.key] * sent
    assert len({seen.get("idempotency-first-sent") for seen in origin.seen[:sent]}) == 1
    assert json.loads(again.stdout) == {"status": 201, "body": {"charge": 1}, "key": left.key}
    assert shop.charges[left.key] == b'{"cents":478}'
    assert json.loads(after.stdout)["key"] != left.key  # the call was settled: this is another one
    assert len(shop.charges) == 2


async def test_a_guarded_service_charges_once_for_a_client_that_was_killed(
    kind: Kind, ledger: str, tmp_path: Path
) -> None:
    """HA-68, with a guard of ours on the other side."""
    charges: list[bytes] = []

    async def charge(request: Request) -> Response:
        charges.append(await request.body())
        os.kill(int(request.headers["x-pid"]), signal.SIGKILL)
        return Response(CREATED.body, 201)

    config = IdempotencyConfig(principal=shared_principal("all"), secrets=[bytes(range(32))], allow_memory=True)
    app = Starlette(routes=[Route("/", charge, methods=["POST"])])
    with Served(IdempotencyMiddleware(app, Idempotency(":memory:", config))) as served:
        killed = await asyncio.to_thread(run, kind, ledger, served.url, tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = await asyncio.to_thread(run, kind, ledger, served.url, tmp_path)
    assert json.loads(again.stdout)["body"] == {"charge": 1}
    assert charges == [b'{"cents":478}']


async def test_a_call_is_durable_before_its_first_byte(kind: Kind, database: Database) -> None:
    journal, written = KeyJournal(database), []
    loop = asyncio.get_running_loop()

    async def script(seen: Seen) -> Turn:
        asked = asyncio.run_coroutine_threadsafe(journal.pending(), loop)
        written.extend(await asyncio.wrap_future(asked))
        return CREATED

    with Origin(script=script) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            response = await caller.post("/charges?dry=1", json={"cents": 478}, **NAMED)
    (call,) = written
    assert (call.name, call.method, call.url) == ("charge-1", "POST", f"{origin.url}/charges?dry=1")
    assert (call.key, call.body) == (origin.keys[0], b'{"cents":478}')
    assert call.first_sent_at == call_info(response).first_sent_at
    assert call.expires_at - call.first_sent_at == timedelta(hours=24)
    assert await journal.pending() == []


async def test_a_process_that_dies_at_the_point_has_sent_nothing(kind: Kind, ledger: str, tmp_path: Path) -> None:
    clock = Patient()
    with Origin(CREATED) as origin:
        async with (
            opened(ledger, tmp_path) as database,
            Caller(kind, origin.url, journal=KeyJournal(database), clock=clock) as caller,
        ):
            with crash("journal.written", action="raise"), pytest.raises(Crashed):
                await caller.post(**NAMED)
        assert origin.seen == []
        began = clock.now()
        clock.advance(timedelta(hours=1))
        async with opened(ledger, tmp_path) as database:
            journal = KeyJournal(database)
            (left,) = await journal.pending()
            async with Caller(kind, origin.url, journal=journal, clock=clock) as caller:
                await caller.post(**NAMED)
                assert await names(journal) == []
    assert origin.keys == [left.key]
    assert origin.seen[0].get("idempotency-first-sent") == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert began == Patient().now()


async def test_wherever_the_ledger_dies_a_program_that_notes_outcomes_charges_once(
    kind: Kind, ledger: str, tmp_path: Path
) -> None:
    """The program makes the call, notes its outcome, then settles it; started again, it goes on from its note."""
    died = 0
    for n in itertools.count(1):
        name, shop, noted = f"charge-{n}", Shop(kill=""), False
        with Origin(script=shop) as origin:
            for dies_at in (n, None):
                async with opened(ledger, tmp_path) as inner:
                    database = CrashingDatabase(inner, dies_at)
                    journal = KeyJournal(database, settle_on_read=False)
                    async with Caller(kind, origin.url, journal=journal) as caller:
                        try:
                            if not noted:
                                await caller.post(json={"cents": 478}, extensions={"holdfast.call": name})
                                noted = True
                            await journal.settle(name)
                        except Crashed:
                            died += 1
            async with opened(ledger, tmp_path) as database:
                assert await names(KeyJournal(database)) == []
        assert (list(shop.charges.values()), noted) == ([b'{"cents":478}'], True)
        if died < n:
            break
    assert died >= 4


# What a name stands for


@pytest.mark.parametrize(
    "change",
    [
        {"content": b"two"},
        {"method": "PUT"},
        {"target": "/other"},
        {"target": "/charges?dry=1"},
        {"headers": {"If-Match": '"v2"'}},
        {"headers": {"Content-Type": "text/plain"}},
        {"headers": {"Api-Version": "2"}},
    ],
    ids=str,
)
async def test_another_request_under_the_name_is_refused(database: Database, change: dict[str, Any]) -> None:
    journal = KeyJournal(database, headers=["Api-Version"])
    asked = {"method": "POST", "target": "/charges", "content": b"one", **NAMED}
    with Origin(Reset(), CREATED) as origin:
        async with Caller("async", origin.url, journal=journal) as caller:
            with crash("journal.written", action=_give_up), pytest.raises(Gone):
                await caller.request(**asked)
            with pytest.raises(errors.CallChanged, match="charge-1"):
                await caller.request(**{**asked, **change})
            assert origin.seen == []
            await caller.request(**asked)
    assert len(set(origin.keys)) == 1


class Gone(Exception):
    """A program gives up at a point."""


def _give_up() -> None:
    raise Gone


async def test_what_may_differ_from_life_to_life_is_not_compared(database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(Reset(), CREATED) as origin:
        for headers in ({"User-Agent": "v1", "Authorization": "Bearer old"}, {"User-Agent": "v2", "Accept": "*/json"}):
            async with Caller("async", origin.url, journal=journal, policy=ONCE) as caller:
                try:
                    await caller.post(headers=headers, **NAMED)
                except httpx.TransportError:
                    assert await names(journal) == ["charge-1"]
    assert len(set(origin.keys)) == 1
    assert await names(journal) == []


async def test_an_old_call_is_not_sent_until_somebody_settles_it(kind: Kind, database: Database) -> None:
    clock = Patient()
    journal = KeyJournal(database, lifetime=timedelta(hours=2))
    with Origin(Reply(500), CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal, clock=clock, policy=ONCE) as caller:
            await caller.post(**NAMED)
            clock.advance(timedelta(hours=2))
            for _ in range(2):
                with pytest.raises(errors.KeyWindowPassed):
                    await caller.post(**NAMED)
            assert len(origin.seen) == 1
            assert await journal.settle("charge-1")
            assert not await journal.settle("charge-1")
            await caller.post(**NAMED)
    assert len(set(origin.keys)) == 2


async def test_a_settled_name_gets_a_new_key(kind: Kind, database: Database) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=KeyJournal(database)) as caller:
            for _ in range(2):
                await caller.post(**NAMED)
    assert len(set(origin.keys)) == 2


async def test_the_old_key_goes_before_a_key_source(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    keys = iter(["first", "second", "third"])
    with Origin(Reply(500), CREATED) as origin:
        async with Caller(
            kind, origin.url, journal=journal, policy=ONCE, key_source=lambda request: next(keys)
        ) as caller:
            for _ in range(3):
                await caller.post(**NAMED)
    assert origin.keys == ["first", "first", "third"]


async def test_a_callers_own_key_must_be_the_one_of_its_call(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(Reply(500), CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal, policy=ONCE) as caller:
            await caller.post(headers={"Idempotency-Key": "mine"}, **NAMED)
            with pytest.raises(errors.CallChanged):
                await caller.post(headers={"Idempotency-Key": "another"}, **NAMED)
            await caller.post(headers={"Idempotency-Key": "mine"}, **NAMED)
    assert origin.keys == ["mine", "mine"]
    assert await names(journal) == []


async def test_calls_of_one_name_at_the_same_time_are_one(kind: Kind, database: Database) -> None:
    """And a refusal of one of them does not set the name free while another is under way."""
    journal = KeyJournal(database)
    asked, both = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def script(seen: Seen) -> Turn:
        if len(origin.seen) > 1:
            both.set()
            return Reply(401)
        loop.call_soon_threadsafe(asked.set)
        await both.wait()
        return Reset()

    with Origin(script=script) as origin:
        async with Caller(kind, origin.url, journal=journal, policy=ONCE) as caller, asyncio.TaskGroup() as group:
            first = group.create_task(outcome_of(caller.post(**NAMED)))
            await asked.wait()
            assert await outcome_of(caller.post(**NAMED)) == 401
            assert await first == "failed"
            assert await names(journal) == ["charge-1"]
    assert len(set(origin.keys)) == 1


async def outcome_of(call: Any) -> int | str:
    try:
        response: httpx.Response = await call
    except httpx.TransportError:
        return "failed"
    return response.status_code


# When a call is over


@pytest.mark.parametrize(
    ("turns", "over"),
    [
        ([CREATED], True),
        ([Reply(204)], True),
        ([Reply(404)], True),
        ([Reply(422)], True),
        ([Reply(303, {"Location": "/charges/1"})], True),
        ([Reply(503, {"Idempotency-Replayed": "true"})], True),
        ([problem(409, "executed", Idempotency_Replayed="true")], True),
        ([Reply(401)], True),
        ([Reply(429)], True),
        ([Reply(500)], False),
        ([Reset()], False),
        ([Torn(CREATED)], False),
        ([problem(409, "in_flight")], False),
        ([problem(409, "outcome_unknown")], False),
        ([problem(412, "key_window_passed")], False),
        ([Reply(503), Reply(401)], False),
        ([Reset(), Reply(403)], False),
        ([Reset(), problem(422, "key_reused")], False),
        ([Reset(), CREATED], True),
    ],
    ids=str,
)
async def test_a_call_is_over_when_its_outcome_is_known_or_nothing_happened(
    kind: Kind, database: Database, turns: list[Turn], over: bool
) -> None:
    journal = KeyJournal(database)
    policy = RetryPolicy(attempts_max=len(turns))
    with Origin(*turns) as origin:
        async with Caller(kind, origin.url, journal=journal, policy=policy) as caller:
            with suppress(httpx.TransportError, errors.IdempotencyError):
                await caller.post(**NAMED)
    assert len(origin.seen) == len(turns)
    assert await names(journal) == ([] if over else ["charge-1"])


async def test_a_response_that_nobody_reads_leaves_its_call_open(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            response = await caller.send(caller.build(**NAMED), stream=True)
            await caller.close(response)
            assert await names(journal) == ["charge-1"]
            response = await caller.send(caller.build(**NAMED), stream=True)
            assert await names(journal) == ["charge-1"]
            assert await caller.read(response) == CREATED.body
            assert await names(journal) == []
    assert len(set(origin.keys)) == 1


async def test_a_response_that_comes_read_ends_its_call(kind: Kind, database: Database) -> None:
    """As those of test doubles and caches do."""
    journal = KeyJournal(database)
    inner = httpx.MockTransport(lambda request: httpx.Response(201, content=CREATED.body))
    async with Caller(kind, "http://shop.example", journal=journal, inner=inner) as caller:
        assert (await caller.post(**NAMED)).content == CREATED.body
    assert await names(journal) == []


async def test_challenges_and_redirects_are_part_of_the_call(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    challenge = Reply(401, {"WWW-Authenticate": 'Digest realm="shop", nonce="n", qop="auth", algorithm=SHA-256'})
    with Origin(challenge, Reply(308, {"Location": "/v2"}), CREATED) as origin:
        auth = httpx.DigestAuth("me", "secret")
        async with Caller(kind, origin.url, journal=journal, client={"auth": auth, "follow_redirects": True}) as caller:
            response = await caller.post("/v1", content=b"one", **NAMED)
    assert response.status_code == 201
    assert [(seen.target, seen.body) for seen in origin.seen] == [("/v1", b"one"), ("/v1", b"one"), ("/v2", b"one")]
    assert len(set(origin.keys)) == 1
    assert await names(journal) == []


async def test_a_request_sent_again_after_it_was_settled_keeps_its_key(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            request = caller.build(**NAMED)
            await caller.send(request)
            await caller.send(request)
    assert len(set(origin.keys)) == 1
    assert await names(journal) == []


async def test_a_request_that_only_reads_is_not_journaled(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(Reply(500)) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            await caller.request("GET", "/charges", **NAMED)
    assert await names(journal) == []


# Sending what is pending


async def test_a_pending_call_is_built_again_and_goes_under_its_old_key(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(Reply(500), Reply(500), CREATED) as origin:
        asked = {"headers": {"If-Match": '"v1"', "Authorization": "Bearer old"}, "params": {"b": "1", "a": "x y"}}
        async with Caller(kind, origin.url, journal=journal, policy=ONCE) as caller:
            await caller.request("PUT", "/charges/1", json={"cents": 478}, **asked, **NAMED)
            await caller.post("/other", extensions={"holdfast.call": "charge-2"})
        assert await names(journal) == ["charge-1", "charge-2"]
        assert [call.name for call in await journal.pending(limit=1)] == ["charge-1"]
        fresh = {"headers": {"Authorization": "Bearer new"}, "cookies": {"session": "s2"}, "params": {"c": "1"}}
        async with Caller(kind, origin.url, journal=journal, client=fresh) as caller:
            for call in await journal.pending():
                assert (await caller.send(call.request(caller.client))).status_code == 201
    assert await names(journal) == []
    first, second, again, _ = origin.seen
    assert (again.method, again.target, again.body) == (first.method, first.target, first.body)
    assert again.target == "/charges/1?b=1&a=x+y"
    assert [again.get(name) for name in ("if-match", "content-type")] == ['"v1"', "application/json"]
    assert [again.get(name) for name in ("authorization", "cookie")] == ["Bearer new", "session=s2"]
    assert origin.keys == [first.key, second.key] * 2


async def test_a_form_goes_out_again_with_its_first_boundary(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database)
    with Origin(Reply(500), Reply(500), CREATED) as origin:
        for _ in range(2):
            async with Caller(
                kind, origin.url, journal=journal, policy=ONCE, client={"follow_redirects": True}
            ) as caller:
                files = {"a": ("a.txt", io.BytesIO(b"bytes of a"))}
                await caller.post(data={"note": "n"}, files=files, **NAMED)
                origin.say(Reply(307, {"Location": "/v2"}), CREATED)
    assert len({(seen.body, seen.get("content-type")) for seen in origin.seen}) == 1
    assert len(set(origin.keys)) == 1
    assert await names(journal) == []


# What is never in it

SECRETS = {
    "Authorization": "Bearer sesame-header",
    "Proxy-Authorization": "Basic sesame-proxy",
    "Cookie": "id=sesame-cookie",
    "X-Api-Key": "sesame-custom",
}


@pytest.mark.parametrize("sealed", [False, True])
async def test_no_credential_is_in_the_ledger(kind: Kind, database: Database, ledger: str, sealed: bool) -> None:
    cipher = KeyRing(current=(1, os.urandom(32))) if sealed else None
    journal = KeyJournal(database, cipher=cipher)
    with Origin(Reply(500), CREATED) as origin:
        host = origin.url.removeprefix("http://")
        async with Caller(kind, "", journal=journal, policy=ONCE) as caller:
            url = f"http://sesame-user:sesame-pass@{host}/charges?x=1&Access_Token=sesame-query&key=sesame-key&y="
            await caller.post(url, headers={**SECRETS, "Prefer": "minimal"}, content=b"cents", **NAMED)
        async with database.read() as tx:
            (row,) = await tx.all("calls.list", limit=9)
        kept = b"|".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
        assert b"sesame" not in kept
        assert (b"cents" in kept, b"minimal" in kept) == (not sealed, not sealed)
        (call,) = await journal.pending()
        assert call.url == f"http://{host}/charges?x=1&Access_Token=&key=&y="
        assert (call.body, dict(call.headers)[b"prefer"]) == (b"cents", b"minimal")
        assert "sesame" not in repr(call) + repr(call.headers)
        assert call.key not in repr(call)
        params = {"access_token": "new token", "key": "new"}
        async with Caller(kind, "", journal=journal, client={"params": params}) as caller:
            await caller.send(call.request(caller.client))
    assert origin.seen[1].target == "/charges?x=1&Access_Token=new%20token&key=new&y="
    assert len(set(origin.keys)) == 1


def test_a_header_that_carries_a_credential_is_not_kept_by_request() -> None:
    for name in ("Authorization", "Cookie", "X-Api-Key", "X-Auth-Token", "X-Amz-Security-Token", "a b", ""):
        with pytest.raises(ConfigError):
            KeyJournal(cast("Database", None), headers=[name])


@pytest.mark.parametrize("wrong", [{"lifetime": timedelta(0)}, {"body_bytes_max": -1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        KeyJournal(cast("Database", None), **wrong)


# What goes wrong


class Failing:
    """A ledger that is out of reach for some statements."""

    def __init__(self, database: Database, *statements: str) -> None:
        self._database = database
        self._statements = statements

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def submit(self, statement: str, /, **params: object) -> Any:
        if statement in self._statements:
            raise Unavailable("the ledger is out of reach")
        return await self._database.submit(statement, **params)


async def test_nothing_is_sent_without_the_ledger(kind: Kind, database: Database) -> None:
    journal = KeyJournal(cast("Database", Failing(database, "calls.claim")))
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            with pytest.raises(StoreError):
                await caller.post(**NAMED)
    assert origin.seen == []


@pytest.mark.parametrize("reply", [CREATED, Reply(401)], ids=str)
async def test_an_answer_is_worth_more_than_its_row(
    kind: Kind, database: Database, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    journal = KeyJournal(cast("Database", Failing(database, "calls.settle", "calls.release")))
    with Origin(reply) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            assert (await caller.post(**NAMED)).status_code == reply.status
    assert await names(journal) == ["charge-1"]
    assert [record.getMessage() for record in caplog.records if record.name == "holdfast.idempotency"] == [
        "call charge-1 stays in the journal: store.unavailable"
    ]


async def test_a_body_that_cannot_be_sent_again_cannot_be_journaled(kind: Kind, database: Database) -> None:
    def pieces() -> Any:
        yield b"one"

    async def pieces_later() -> Any:
        yield b"one"

    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=KeyJournal(database)) as caller:
            with pytest.raises(ConfigError, match="open-ended"):
                await caller.post(content=pieces() if kind == "sync" else pieces_later(), **NAMED)
    assert origin.seen == []


async def test_a_body_over_the_limit_is_refused(kind: Kind, database: Database) -> None:
    journal = KeyJournal(database, body_bytes_max=3)
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=journal) as caller:
            await caller.post(content=b"one", **NAMED)
            with pytest.raises(LimitError) as caught:
                await caller.post(content=b"four", **NAMED)
    assert (caught.value.limit, caught.value.maximum, caught.value.actual) == ("body_bytes_max", 3, 4)
    assert len(origin.seen) == 1


@pytest.mark.parametrize("name", ["", 7, "x" * 256, None])
async def test_a_name_is_a_text(kind: Kind, database: Database, name: object) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, journal=KeyJournal(database)) as caller:
            with pytest.raises(ConfigError, match="name of a call"):
                await caller.post(extensions={"holdfast.call": name})
    assert origin.seen == []


async def test_a_synchronous_call_in_the_ledgers_own_loop_is_refused(database: Database) -> None:
    """It would wait for itself for ever."""
    with IdempotentTransport(journal=KeyJournal(database)) as transport, pytest.raises(WrongLoop):
        transport.handle_request(httpx.Request("POST", "http://127.0.0.1:9/", **NAMED))


def test_a_synchronous_program_journals_through_the_synchronous_face(tmp_path: Path) -> None:
    with Origin(Reset(), CREATED) as origin:
        with holdfast.sync.open(tmp_path / "ledger.db") as hf:
            journal = KeyJournal(hf.database)
            with httpx.Client(transport=IdempotentTransport(journal=journal, policy=ONCE)) as client:
                with pytest.raises(httpx.TransportError):
                    client.post(origin.url, **NAMED)
                (call,) = journal.call(journal.pending())
                assert client.send(call.request(client)).status_code == 201
                assert journal.call(journal.pending()) == []
        with pytest.raises(Closed):
            journal.call(journal.pending())
    assert len(set(origin.keys)) == 1


async def test_a_call_sealed_with_a_key_that_is_not_here_is_not_sent(kind: Kind, database: Database) -> None:
    with Origin(Reply(500)) as origin:
        ring = KeyRing(current=(1, os.urandom(32)))
        async with Caller(kind, origin.url, journal=KeyJournal(database, cipher=ring), policy=ONCE) as caller:
            await caller.post(**NAMED)
        for cipher in (None, KeyRing(current=(1, os.urandom(32))), KeyRing(current=(2, os.urandom(32)))):
            journal = KeyJournal(database, cipher=cipher)
            async with Caller(kind, origin.url, journal=journal) as caller:
                with pytest.raises(errors.RecordUnreadable):
                    await caller.post(**NAMED)
            with pytest.raises(errors.RecordUnreadable):
                await journal.pending()
    assert len(origin.seen) == 1


async def test_a_call_of_a_newer_holdfast_is_not_sent(kind: Kind, tmp_path: Path) -> None:
    target = str(tmp_path / "ledger.db")
    with Origin(Reply(500)) as origin:
        async with (
            opened(target, tmp_path) as database,
            Caller(kind, origin.url, journal=KeyJournal(database), policy=ONCE) as caller,
        ):
            await caller.post(**NAMED)
        connection = apsw.Connection(target)
        connection.execute("UPDATE idem_calls SET format = 2")
        connection.close()
        async with (
            opened(target, tmp_path) as database,
            Caller(kind, origin.url, journal=KeyJournal(database)) as caller,
        ):
            with pytest.raises(errors.RecordUnreadable) as caught:
                await caller.post(**NAMED)
    assert caught.value.code == "idempotency.record_newer"
    assert len(origin.seen) == 1
