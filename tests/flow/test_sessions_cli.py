"""`holdfast sessions`: what was captured is listed, shown, summed, proved and taken away from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.flow.captured import CARDS, archive, call, recording
from tests.flow.commandline import ask, command, tell
from tests.unit.sessions_data import SHARED

from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.values import Call
from holdfast.testing.store_contract import LocalStore

NIL = "00000000-0000-0000-0000-000000000000"


async def _capture(target: str, folder: Path, calls: tuple[Call, ...]) -> None:
    config = SessionsConfig(secret_file=folder / "secret", prices=Prices(cards=CARDS, package=False))
    async with LocalStore(target, folder / "owners").opened() as db:
        books = archive(db, config=config)
        await books.ingest_many(calls)
        await books.derive()


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., None]:
    """Put calls into a ledger, and derive them."""
    return lambda target, *calls: asyncio.run(_capture(target, tmp_path, calls))


@SHARED
def test_the_recorded_session_is_listed_shown_and_summed(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, *recording())
    listed = tell("sessions", "list", "--db", ledger)
    [session] = listed["items"]
    assert (session["turn_count"], session["cost"]["usd"], listed["next"]) == (17, "0.525090750000", None)
    shown = tell("sessions", "show", session["id"], "--turns", "--tree", "--db", ledger)
    assert (shown["name"], len(shown["turns"]), shown["tree"]["descendants"]) == ("tapes-fixture-run-7c", 17, [])
    text = ask(
        "sessions", "show", f"{session['harness_id']}/{session['harness_session_id']}", "--turns", "--db", ledger
    )
    assert "$0.525091" in text.out
    assert text.out.count("turn_") == 17
    [row] = tell("sessions", "stats", "--db", ledger)["items"]
    assert (row["key"], row["turns"], row["tokens"]["input"]) == ("claude-sonnet-4-6", 17, 565_318)
    assert "565,318" in ask("sessions", "list", "--db", ledger).out
    assert "565,318" in ask("sessions", "stats", "--by", "harness", "--db", ledger).out
    assert session["id"] in ask("sessions", "show", session["id"], "--tree", "--db", ledger).out
    report = tell("sessions", "verify", "--db", ledger)
    assert (report["ok"], report["checked_count"], report["problems"]) == (True, 17, [])
    assert ask("sessions", "verify", "--db", ledger).out == "17 events checked, no problem found\n"
    hashed = ask("sessions", "verify", "--projection-hash", "--db", ledger).out.strip()
    assert tell("sessions", "verify", "--projection-hash", "--db", ledger) == {"projection_hash": hashed}
    assert len(hashed) == 64
    whole = ask("verify", "--db", ledger).out
    assert whole == "0 executions and 17 captured events checked, no problem found\n"
    only = ask("verify", NIL, "--slice", "sessions", "--db", ledger)
    assert only.out == "17 captured events checked, no problem found\n"
    assert ask("verify", NIL, "--projection-hash", "--db", ledger).out.strip() == hashed
    assert len(tell("verify", "--projection-hash", "--db", ledger)["projection_hash"]) == 64


def test_what_has_no_price_is_no_zero(ledger: str, capture: Callable[..., None]) -> None:
    """SX-9, SA-43."""
    unknown = call("b", session="s")
    said = (unknown.response or b"").replace(b"claude-sonnet-4-6", b"nobody-knows")
    capture(ledger, call("a", session="s"), replace(unknown, response=said))
    listed = ask("sessions", "list", "--db", ledger).out
    assert "≥ $0.000045" in listed
    stats = ask("sessions", "stats", "--db", ledger).out
    assert "unpriced" in stats
    assert "$0.000000" not in stats


def test_a_session_is_deleted_only_when_that_is_said(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, call("a", session="s"), call("b", session="t"))
    tried = ask("sessions", "delete", "claude/s", "--reason", "asked", "--db", ledger)
    assert "1 event and 1 turn would be deleted" in tried.out
    assert len(tell("sessions", "list", "--db", ledger)["items"]) == 2
    gone = tell("sessions", "delete", "claude/s", "--reason", "asked", "--yes", "--db", ledger)
    assert (gone["deleted"], gone["report"]["events"]) == (True, 1)
    assert [each["harness_session_id"] for each in tell("sessions", "list", "--db", ledger)["items"]] == ["t"]
    assert tell("sessions", "verify", "--db", ledger)["ok"]
    again = ask("sessions", "delete", "claude/s", "--reason", "asked", "--yes", "--db", ledger)
    assert (again.code, "no such session" in again.err) == (1, True)
    assert ask("sessions", "undelete-key", "claude/s", "--db", ledger).code == 0
    assert ask("sessions", "undelete-key", "claude/s", "--db", ledger).code == 1


def test_a_body_comes_out_as_it_was(make_target: Callable[[str], str], capture: Callable[..., None]) -> None:
    target, given = make_target("sqlite-file"), call("a")
    capture(target, given)
    [turn] = tell("sessions", "show", "claude/s", "--turns", "--db", target)["turns"]
    answer = command("sessions", "show", "claude/s", "--raw", f"{turn['id']}:response", "--db", target)
    assert answer.out.encode() == given.response


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "claude/nobody"], 1),
        (["show", "claude/s", "--raw", "turn_1:request"], 1),
        (["show", "claude/s", "--raw", "turn_1"], 2),
        (["stats", "--by", "colour"], 2),
        (["list", "--min-cost", "much"], 2),
        (["list", "--org", "us"], 2),
        (["list", "--since", "once"], 2),
        (["undelete-key", "ses_1"], 2),
        ([], 2),
    ],
)
def test_a_wrong_question_ends_with_its_code(
    arguments: list[str], code: int, make_target: Callable[[str], str], capture: Callable[..., None]
) -> None:
    target = make_target("sqlite-file")
    capture(target)
    assert ask("sessions", *arguments, "--db", target).code == code


def test_an_org_that_is_none_is_wrong_usage(make_target: Callable[[str], str], capture: Callable[..., None]) -> None:
    target = make_target("sqlite-file")
    capture(target)
    assert ask("verify", "us", "--slice", "sessions", "--db", target).code == 2


def test_another_org_sees_nothing(make_target: Callable[[str], str], capture: Callable[..., None]) -> None:
    """SA-21."""
    target = make_target("sqlite-file")
    capture(target, call("a"))
    org = "00000000-0000-0000-0000-000000000009"
    assert tell("sessions", "list", "--org", org, "--db", target)["items"] == []
    assert ask("sessions", "show", "claude/s", "--org", org, "--db", target).code == 1
