"""`holdfast sessions`, what changes something: shown before it is done, done with `--yes`, refused with a reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import archive, call
from tests.flow.commandline import ask, tell

from holdfast.sessions.config import Derive, Prices, SessionsConfig
from holdfast.sessions.pricing import PriceQuery
from holdfast.sessions.values import Call, Cost
from holdfast.testing.store_contract import LocalStore


class Poison:
    """A source of prices that fails about every call."""

    def quote(self, query: PriceQuery) -> Cost | None:
        raise RuntimeError("poison")


async def _capture(target: str, folder: Path, calls: tuple[Call, ...], **more: Any) -> None:
    config = SessionsConfig(secret_file=folder / "secret", prices=Prices(package=False), derive=Derive(attempts_max=1))
    async with LocalStore(target, folder / "owners").opened() as db:
        books = archive(db, config=config, **more)
        await books.ingest_many(calls)
        await books.derive()


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., None]:
    """Put calls into a ledger, and derive them."""
    return lambda target, *calls, **more: asyncio.run(_capture(target, tmp_path, calls, **more))


@pytest.fixture
def rates(tmp_path: Path) -> str:
    """A configuration with rate cards, and without the package."""
    one = {"input": "1", "output": "1"}
    card = {"id": "list", "provider": "anthropic", "model": "claude-sonnet-4-6", "per_million": one}
    (tmp_path / "cards.json").write_text(json.dumps({"cards": [card]}))
    (tmp_path / "with.toml").write_text(f'[sessions.prices]\ncards = "{tmp_path}/cards.json"\npackage = false\n')
    (tmp_path / "without.toml").write_text("[sessions.prices]\npackage = false\n")
    return str(tmp_path)


def hashed(ledger: str) -> str:
    found: str = tell("sessions", "verify", "--projection-hash", "--db", ledger)["projection_hash"]
    return found


def keys(ledger: str) -> list[tuple[str, int]]:
    listed = tell("sessions", "list", "--db", ledger)["items"]
    return sorted((each["harness_session_id"], each["turn_count"]) for each in listed)


def test_a_session_is_put_into_another_and_back(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, call("a"), call("b", session="lost"), call("c", session="lost", thread_id="t"))
    before = hashed(ledger)
    wanted = ["sessions", "attribute", "claude/lost", "--to", "claude/s", "--parent", "p", "--reason", "split"]
    said, tried = tell(*wanted, "--db", ledger), ask(*wanted, "--db", ledger)
    assert (tried.code, "2 events, 2 turns would be moved (--yes does it)" in tried.out) == (0, True)
    assert "claude/s" in tried.out
    assert hashed(ledger) == before
    done = tell(*wanted, "--yes", "--db", ledger)
    assert {**done, "dry_run": True, "attribution_id": ""} == said
    assert keys(ledger) == [("s", 3)]
    found = tell("sessions", "show", "claude/s", "--db", ledger)
    assert (found["parent"]["state"], found["parent"]["hint"]["harness_session_id"]) == ("pending", "p")
    assert done["attribution_id"] in ask("sessions", "attributions", "--db", ledger).out
    undo = ["sessions", "undo-attribution", done["attribution_id"], "--db", ledger]
    assert "would be moved" in ask(*undo).out
    assert keys(ledger) == [("s", 3)]
    assert "moved: att_" in ask(*undo, "--yes").out
    assert hashed(ledger) == before
    assert ask(*undo, "--yes").code == 1
    [kept] = tell("sessions", "attributions", "--db", ledger)["items"]
    assert (kept["reason"], kept["selector"], kept["undone_at"] is None) == (
        "split",
        {"session": ["claude", "lost"]},
        False,
    )
    assert tell("sessions", "verify", "--db", ledger)["ok"]


def test_one_event_is_put_into_a_thread(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, call("a"), call("b"))
    turns = tell("sessions", "show", "claude/s", "--turns", "--db", ledger)["turns"]
    event = turns[0]["evidence"][0]["event_id"]
    wanted = ["--event", event, "--to-harness", "codex", "--to-thread", "t", "--reason", "r", "--yes"]
    tell("sessions", "attribute", *wanted, "--db", ledger)
    [turn] = tell("sessions", "show", "codex/s", "--turns", "--db", ledger)["turns"]
    assert (turn["id"], turn["thread_id"]) == (turns[0]["id"], "t")


def test_turns_are_priced_again_by_the_cards_there_are(ledger: str, rates: str, capture: Callable[..., None]) -> None:
    """SA-44."""
    capture(ledger, call("a"), call("b", session="t"), call("c", session="t"))
    wanted = ["sessions", "reprice", "--reason", "cards at last", "--db", ledger, "--config"]
    tried = ask(*wanted, f"{rates}/with.toml")
    assert tried.out == "3 of 3 turns would have another price (--yes does it): unpriced -> $0.000021\n"
    done = tell(*wanted, f"{rates}/with.toml", "--session", "claude/t", "--model", "claude-sonnet-4-6", "--yes")
    assert (done["repriced"], done["before"]["state"], done["after"]["usd"]) == (2, "unpriced", "0.000014000000")
    assert ask(*wanted, f"{rates}/with.toml", "--yes").out.startswith("1 of 3 turns have another price: ≥ $0.000014")
    assert ask(*wanted, f"{rates}/without.toml").code == 2
    assert tell("sessions", "verify", "--db", ledger, "--config", f"{rates}/with.toml")["ok"]


def test_sessions_are_derived_anew(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, call("a"), call("b"), call("c", session="t"))
    before = hashed(ledger)
    assert ask("sessions", "rebuild", "--db", ledger).out == "3 events would be derived anew (--yes does it)\n"
    assert tell("sessions", "rebuild", "claude/s", "--db", ledger)["pending"] == 2
    assert tell("sessions", "rebuild", "claude/s", "--yes", "--db", ledger)["derived"] == 2
    rebuilt = ask("sessions", "rebuild", "--yes", "--db", ledger).out
    assert rebuilt == "3 derived, 0 unparsed, 0 refused, 0 dead, 0 pending\n"
    assert hashed(ledger) == before


def test_what_was_set_aside_is_listed_and_tried_again(ledger: str, capture: Callable[..., None]) -> None:
    """SX-83."""
    capture(ledger, call("a"), call("b"), prices=Poison())
    listed = tell("sessions", "dead", "--db", ledger)["items"]
    assert [(each["capture_id"], each["attempts"], each["reason"]) for each in listed] == [
        ("a", 1, "RuntimeError"), ("b", 1, "RuntimeError"),
    ]  # fmt: skip
    assert listed[0]["event_id"] in ask("sessions", "dead", "--db", ledger).out
    assert tell("replay", listed[0]["event_id"], "--db", ledger)["derived"] == 1
    assert ask("replay", "--all", "--db", ledger).out.startswith("1 derived, 0 unparsed")
    assert keys(ledger) == [("s", 2)]
    assert tell("sessions", "dead", "--db", ledger)["items"] == []


def test_a_session_gets_a_name_and_its_own_again(ledger: str, capture: Callable[..., None]) -> None:
    capture(ledger, call("a", "first words"))
    assert tell("sessions", "rename", "claude/s", "the one", "--db", ledger)["display_name"] == "the one"
    assert ask("sessions", "rename", "claude/s", "--db", ledger).out.endswith("is first words\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["sessions", "attribute", "claude/s", "--to", "t", "--reason", "r"], 2),
        (["sessions", "attribute", "claude/s", "--to", "a/t", "--to-harness", "b", "--reason", "r"], 2),
        (["sessions", "attribute", "claude/s", "--reason", "r"], 2),
        (["sessions", "attribute", "--to", "a/t", "--reason", "r"], 2),
        (["sessions", "attribute", "claude/s", "--to", "a/t"], 2),
        (["sessions", "attribute", "claude/s", "--parent", "s", "--reason", "r"], 1),
        (["sessions", "attribute", "--event", "cap_1", "--to", "a/t", "--reason", "r"], 1),
        (["sessions", "attribute", "ses_1", "--to", "a/t", "--reason", "r"], 1),
        (["sessions", "undo-attribution", "att_1", "--yes"], 1),
        (["sessions", "rebuild", "claude/nobody"], 1),
        (["sessions", "rename", "claude/nobody", "x"], 1),
        (["sessions", "rename", "claude/s", "x" * 201], 2),
        (["replay"], 2),
        (["replay", "cap_1", "--all"], 2),
        (["replay", "cap_1"], 1),
    ],
)
def test_what_cannot_be_done_ends_with_its_code(
    arguments: list[str], code: int, tmp_path: Path, capture: Callable[..., None]
) -> None:
    target = str(tmp_path / "ledger.db")
    capture(target, call("a"))
    answer = ask(*arguments, "--db", target)
    assert (answer.code, answer.out) == (code, "")
    assert "error:" in answer.err or code == 2


def test_a_ledger_that_is_none_is_unreadable(tmp_path: Path) -> None:
    assert ask("sessions", "rebuild", "--yes", "--db", tmp_path / "none.db").code == 3
