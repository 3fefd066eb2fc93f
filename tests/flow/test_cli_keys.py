"""`holdfast keys`: what an operator sees of a key, and what he can decide."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.flow.commandline import ask, command, tell

from holdfast.cli.main import invoke
from holdfast.core.clock import SystemClock
from holdfast.core.keyring import KeyRing
from holdfast.idempotency import Idempotency, IdempotencyConfig, Principal, RouteRule, keys, shared_principal
from holdfast.idempotency.errors import KeyReused, OutcomeUnknown
from holdfast.store import Tx, open_database

T = TypeVar("T")

SECRET = b"k" * 32
WHO = Principal("ann@example.com", "acme")
KEY = "a-key-nobody-may-see"
SECRETS = base64.b64encode(SECRET).decode()


SEALING = b"s" * 32
CIPHER = f"2:{base64.b64encode(SEALING).decode()}"


def guard(ledger: str, **rule: Any) -> Idempotency:
    rule.setdefault("path", None)
    settings = {name: rule.pop(name) for name in ("cipher", "key_format", "secrets") if name in rule}
    settings.setdefault("secrets", [SECRET])
    return Idempotency(ledger, IdempotencyConfig(principal=shared_principal("x"), rule=RouteRule(**rule), **settings))


def once(
    ledger: str, op: Callable[[], bytes], *, key: str = KEY, name: str = "charge", **rule: Any
) -> tuple[bytes, bool]:
    """Run an operation under a key, as an application does."""

    async def run() -> tuple[bytes, bool]:
        async with guard(ledger, **rule) as it:

            async def work(_: object) -> bytes:
                return op()

            done = await it.once(key, b"payload", work, principal=WHO, name=name)
            return done.value, done.replayed

    return asyncio.run(run())


def paid() -> bytes:
    return b"a receipt nobody may see"


def lost() -> bytes:
    raise RuntimeError("the power failed")


@pytest.fixture
def ref(ledger: str) -> str:
    """A ledger with one settled key; its ref."""
    assert once(ledger, paid) == (paid(), False)
    (item,) = tell("keys", "list", "--db", ledger)["items"]
    return str(item["ref"])


@pytest.fixture
def unknown(ledger: str) -> str:
    """A ledger with one key whose outcome nobody knows; its ref."""
    with pytest.raises(RuntimeError):
        once(ledger, lost, on_5xx="ambiguous")
    (item,) = tell("keys", "list", "--state", "unknown", "--db", ledger)["items"]
    return str(item["ref"])


def test_keys_are_listed_newest_first_by_pages(ledger: str) -> None:
    for number in range(5):
        once(ledger, paid, key=f"key-number-{number}-of-five", name=f"route{number}")
    first = tell("keys", "list", "--limit", "3", "--db", ledger)
    rest = tell("keys", "list", "--limit", "3", "--cursor", first["next"], "--db", ledger)
    assert [item["route"] for item in first["items"] + rest["items"]] == [f"route{n}" for n in (4, 3, 2, 1, 0)]
    assert rest["next"] is None
    assert [item["method"] for item in rest["items"]] == ["CALL", "CALL"]


def test_a_list_can_be_narrowed(ref: str, ledger: str) -> None:
    once(ledger, paid, key="another-key-altogether", name="refund")
    for options, count in (
        (["--state", "completed"], 2), (["--state", "reserved"], 0), (["--route", "refund"], 1), (["--since", "1h"], 2),
        (["--since", "2999-01-01"], 0),
    ):  # fmt: skip
        assert len(tell("keys", "list", *options, "--db", ledger)["items"]) == count
    assert ask("keys", "list", "--state", "reserved", "--db", ledger).out == "no keys\n"


def test_a_key_is_shown_without_its_secrets(ref: str, ledger: str) -> None:
    """By the real command."""
    shown = command("keys", "show", ref, "--db", ledger)
    listed = command("keys", "list", "--db", ledger)
    as_json = command("keys", "show", ref, "--json", "--db", ledger)
    assert (shown.code, listed.code, as_json.code) == (0, 0, 0)
    assert as_json.json["state"] == "completed"
    assert as_json.json["attempt"] == 1
    for said in (shown, listed, as_json):
        for secret in (KEY, WHO.subject, WHO.tenant, "receipt", SECRETS):
            assert secret not in said.out + said.err


def test_a_key_is_found_by_itself(ref: str, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ("--principal", WHO.subject, "--tenant", WHO.tenant, "--key", KEY)
    assert ask("keys", "show", *named, "--db", ledger).code == 2, "without secrets"
    monkeypatch.setenv("HOLDFAST_IDEMPOTENCY_SECRETS", f"{base64.b64encode(b'n' * 32).decode()},{SECRETS}")
    assert tell("keys", "show", *named, "--db", ledger)["ref"] == ref
    assert ask("keys", "show", *named[:-1], "another-key", "--db", ledger).code == 1


def test_a_key_is_found_as_the_guard_has_read_it(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In quotes, a UUID in any case, and under an older secret."""
    monkeypatch.setenv("HOLDFAST_IDEMPOTENCY_SECRETS", f"{base64.b64encode(b'n' * 32).decode()},{SECRETS}")
    uuid = "C9B421E1-0130-7A6F-9C2B-346A3B0D935C"
    once(ledger, paid, key=uuid, key_format="uuid", name="of a uuid")
    once(ledger, paid, key='the "first" key', name="of one with quotes")
    for key, name in (
        (uuid, "of a uuid"), (f'"{uuid.lower()}"', "of a uuid"), ('the "first" key', "of one with quotes"),
        (r'"the \"first\" key"', "of one with quotes"),
    ):  # fmt: skip
        shown = tell("keys", "show", "--principal", WHO.subject, "--tenant", WHO.tenant, "--key", key, "--db", ledger)
        assert shown["route"] == name


def test_a_key_of_a_route_is_found(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `key_scope="route"` the method and the route are part of what it is found by."""
    monkeypatch.setenv("HOLDFAST_IDEMPOTENCY_SECRETS", SECRETS)
    named = ("--principal", WHO.subject, "--tenant", WHO.tenant, "--key", KEY, "--db", ledger)
    once(ledger, paid, name="charge", key_scope="route")
    once(ledger, paid, name="refund", key="another-key-altogether")
    shown = tell("keys", "show", *named)
    assert shown["route"] == "charge"
    once(ledger, paid, name="refund", key_scope="route")
    several = ask("keys", "show", *named)
    assert (several.code, several.out) == (2, "")
    assert "CALL charge" in several.err
    assert shown["ref"] in several.err
    assert "CALL refund" in several.err


def test_a_body_is_written_and_that_is_audited(ref: str, ledger: str) -> None:
    shown = command("keys", "show", ref, "--body", "--actor", "ann", "--db", ledger)
    assert (shown.code, shown.out) == (0, paid().decode())
    assert ("show", "ann") in audit(ledger)


def test_an_expired_key_is_new(ref: str, ledger: str) -> None:
    answer = ask("keys", "expire", ref, "--reason", "the customer asked", "--actor", "ann", "--db", ledger)
    assert answer.code == 0, answer
    assert once(ledger, paid) == (paid(), False)
    assert ("expire", "ann") in audit(ledger)


def test_what_a_state_refuses_is_a_no(ref: str, ledger: str) -> None:
    for verb in (["release"], ["decide", "--rerun"]):
        answer = ask("keys", verb[0], ref, *verb[1:], "--reason", "why not", "--db", ledger)
        assert (answer.code, answer.out) == (1, "")
        assert "completed" in answer.err


def test_an_operator_lets_a_retry_run(unknown: str, ledger: str) -> None:
    with pytest.raises(OutcomeUnknown):
        once(ledger, paid)
    answer = ask("keys", "decide", unknown, "--rerun", "--reason", "the bank has nothing", "--db", ledger)
    assert (answer.code, answer.out) == (0, f"{unknown} was unknown, and is released\n")
    assert once(ledger, paid) == (paid(), False)


def test_an_operator_gives_the_answer(unknown: str, ledger: str, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"status": 200, "headers": [["X-Found", "yes"]], "body": "found at the bank"}))
    shown = tell("keys", "decide", unknown, "--result", file, "--reason", "the bank has it", "--db", ledger)
    assert (shown["state"], shown["status"]) == ("completed", 200)
    assert once(ledger, lost) == (b"found at the bank", True)


def test_an_operators_answer_is_sealed_as_the_guard_seals(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HX-18: with a cipher the tables hold no body in clear, whoever wrote it."""
    sealing = {"cipher": KeyRing(current=(2, SEALING))}
    once(ledger, paid, key="a-key-that-is-settled", **sealing)
    with pytest.raises(RuntimeError):
        once(ledger, lost, on_5xx="ambiguous", **sealing)
    (item,) = tell("keys", "list", "--state", "unknown", "--db", ledger)["items"]
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"status": 200, "headers": [["X-Found", "yes"]], "body": "found at the bank"}))
    decide = ("keys", "decide", item["ref"], "--result", file, "--reason", "the bank has it", "--db", ledger)
    for wrong in ("", f"2:{base64.b64encode(b'w' * 32).decode()}", f"1:{base64.b64encode(SEALING).decode()}"):
        monkeypatch.setenv("HOLDFAST_IDEMPOTENCY_CIPHER", wrong)
        refused = ask(*decide)
        assert refused.code == 2, "no cipher, or not the guard's"
        assert "cipher" in refused.err
    monkeypatch.setenv("HOLDFAST_IDEMPOTENCY_CIPHER", CIPHER)
    assert tell(*decide)["state"] == "completed"
    assert [b"bank" in each for each in bodies(ledger)] == [False, False]
    assert once(ledger, lost, **sealing) == (b"found at the bank", True)
    out = io.TextIOWrapper(io.BytesIO())
    with redirect_stdout(out):
        assert invoke(["keys", "show", item["ref"], "--body", "--db", ledger]) == 0
    assert out.buffer.getvalue() == b"found at the bank"


def test_an_operator_says_it_happened(unknown: str, ledger: str) -> None:
    shown = tell("keys", "decide", unknown, "--tombstone", "201", "--reason", "the bank has it", "--db", ledger)
    assert (shown["state"], shown["status"], shown["reason"]) == ("tombstone", 201, "decided")


def test_a_released_claim_loses_its_handler(ledger: str) -> None:
    async def run() -> None:
        async with guard(ledger) as it:

            async def work(_: object) -> bytes:
                await asyncio.to_thread(release)
                return b"too late"

            with pytest.raises(OutcomeUnknown):
                await it.once(KEY, b"payload", work, principal=WHO, name="charge")

    def release() -> None:
        (item,) = command("keys", "list", "--state", "reserved", "--json", "--db", ledger).json["items"]
        answer = command("keys", "release", item["ref"], "--reason", "it hangs", "--db", ledger)
        assert answer.code == 0, answer

    asyncio.run(run())
    assert once(ledger, paid) == (paid(), False)
    with pytest.raises(KeyReused):
        asyncio.run(other(ledger))


async def other(ledger: str) -> None:
    async with guard(ledger) as it:

        async def work(_: object) -> bytes:
            return b""

        await it.once(KEY, b"another payload", work, principal=WHO, name="charge")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",), ("show", "xyz"), ("show", "abc"), ("show", "12345678", "--key", "k"), ("expire", "12345678"),
        ("expire", "12345678", "--reason", " "), ("decide", "12345678", "--reason", "r"),
        ("decide", "12345678", "--rerun", "--tombstone", "200", "--reason", "r"),
        ("decide", "12345678", "--tombstone", "99", "--reason", "r"), ("list", "--state", "lost"),
        ("list", "--since", "yesterday"), ("list", "--limit", "0"), ("list", "--limit", "501"),
        ("list", "--cursor", "x"),
    ],
)  # fmt: skip
def test_wrong_usage_says_so(ref: str, ledger: str, arguments: tuple[str, ...]) -> None:
    answer = ask("keys", *arguments, "--db", ledger)
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.err


def test_what_is_not_there_is_a_no(ref: str, ledger: str) -> None:
    assert ask("keys", "show", "00000000", "--db", ledger).code == 1


def test_what_cannot_be_read_is_told_apart(unknown: str, ledger: str, tmp_path: Path) -> None:
    for text in ("", "{", '{"status": 99}', '{"status": "x"}'):
        (tmp_path / "answer.json").write_text(text)
        answer = ask("keys", "decide", unknown, "--result", tmp_path / "answer.json", "--reason", "r", "--db", ledger)
        assert answer.code == 3, answer
    assert ask("keys", "decide", unknown, "--result", tmp_path / "none", "--reason", "r", "--db", ledger).code == 3
    assert ask("keys", "list", "--db", tmp_path / "none.db").code == 3


def test_a_lapse_is_seen_without_a_request(ledger: str) -> None:
    """HA-35: the sweep marks it."""

    async def run() -> int:
        async with guard(ledger, lease=timedelta(seconds=1)) as it:
            return (await it.sweep()).marked_unknown

    assert asyncio.run(run()) == 0


def audit(ledger: str) -> list[tuple[str, str]]:
    async def read(tx: Tx) -> list[tuple[str, str]]:
        page = await keys.list(tx)
        rows = [row for record in page.items for row in await keys.trail(tx, record.record_id)]
        return [(row.action, row.actor) for row in rows]

    return look(ledger, read)


def bodies(ledger: str) -> list[bytes]:
    """Header blocks and bodies as the tables hold them."""

    async def read(tx: Tx) -> list[bytes]:
        records = [await keys.get(tx, each.key_id) for each in (await keys.list(tx)).items]
        return [each.sealed.headers + (each.sealed.body or b"") for each in records if each is not None and each.sealed]

    return look(ledger, read)


def look(ledger: str, read: Callable[[Tx], Awaitable[T]]) -> T:
    async def run() -> T:
        database = await open_database(ledger, clock=SystemClock())
        try:
            async with database.read() as tx:
                return await read(tx)
        finally:
            await database.close()

    return asyncio.run(run())
