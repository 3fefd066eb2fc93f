"""The command line, asking a server: the same answers as from the ledger behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.flow.commandline import ask, command, tell
from tests.http.backends import server
from tests.http.captured import REQUEST, call, post

ORG = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
WAIT = {"prefer": "wait=10"}


@pytest.fixture(scope="module")
def asked(module_ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The options that name a server with three sessions, the last one the fork of the first."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    scopes = [f"--scope={each}" for each in ("ingest", "read", "admin")]
    key = tell("access", "create", "--db", module_ledger, "--org", ORG, *scopes)["access_key"]
    with server(module_ledger, secret_file=secret) as at:
        forked = {"harness_id": "claude-code", "harness_session_id": "c", "parent_harness_session_id": "a"}
        with httpx.Client(base_url=at.client.base_url, headers={"x-api-key": key}) as client:
            for each in (call("a"), call("b", agent_name="helper", thread_id="side"), call("c", session=forked)):
                assert post(client, each, **WAIT)[0] == 202
        yield "--url", f"http://127.0.0.1:{at.port}", "--access-key", key


@pytest.mark.parametrize(
    "command",
    [
        ("list", "--agent", "helper"),
        ("list", "--parent-state", "resolved", "--since", "2026-11-21T11:00:00Z"),
        ("list", "--sort", "started", "--thread", ""),
        ("list", "--thread", "side"),
        ("show", "claude-code/a", "--turns", "--tree"),
        ("stats", "--by", "session"),
    ],
    ids=" ".join,
)
def test_a_server_and_its_ledger_give_one_answer(
    asked: tuple[str, ...], module_ledger: str, command: tuple[str, ...]
) -> None:
    ledger = ("--db", module_ledger, "--org", ORG)
    assert tell("sessions", *command, *asked) == tell("sessions", *command, *ledger)
    assert ask("sessions", *command, *asked).out == ask("sessions", *command, *ledger).out


def test_pages_are_followed_and_bodies_come_as_they_were_captured(asked: tuple[str, ...]) -> None:
    first = tell("sessions", "list", "--limit", 2, *asked)
    second = tell("sessions", "list", "--limit", 2, "--cursor", first["next"], *asked)
    assert len({each["id"] for page in (first, second) for each in page["items"]}) == 3
    [turn] = tell("sessions", "show", "claude-code/a", "--turns", *asked)["turns"]
    raw = command("sessions", "show", "claude-code/a", "--raw", f"{turn['id']}:request", *asked)
    assert raw.out == json.dumps(REQUEST), raw.err


def test_what_a_server_refuses_ends_as_it_does_here(asked: tuple[str, ...], tmp_path: Path) -> None:
    url, key = asked[:2], asked[2:]

    def code(*command: Any) -> tuple[int, str]:
        answer = ask("sessions", *command)
        return answer.code, answer.err

    assert code("show", "claude-code/nobody", *asked)[0] == 1
    assert code("show", "ses_../../live", *asked)[0] == 1
    assert code("list", *url) == (1, "error: there is no access key\nhint: send one: Authorization: Bearer hfk_…\n")
    assert code("list", "--limit", 500, *asked)[0] == code("list", "--cursor", "forged", *asked)[0] == 2
    assert code("list", "--db", tmp_path / "l.db", *asked)[0] == code("list", "--org", ORG, *asked)[0] == 2
    assert code("list", "--url", "http://127.0.0.1:1", *key)[0] == 3
    assert code("list", "--url", "http://127.0.0.1:port", *key)[0] == 2


def test_a_session_is_deleted_through_a_server_only_when_that_is_said(asked: tuple[str, ...]) -> None:
    would = tell("sessions", "delete", "claude-code/b", "--reason", "asked for", *asked)
    assert (would["deleted"], would["report"]["turns"]) == (False, 1)
    assert ask("sessions", "show", "claude-code/b", *asked).code == 0
    did = tell("sessions", "delete", "claude-code/b", "--reason", "asked for", "--yes", *asked)
    assert (did["deleted"], did["report"]) == (True, would["report"])
    assert ask("sessions", "show", "claude-code/b", *asked).code == 1
