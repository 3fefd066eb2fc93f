"""What headers tell, and what an envelope may hold."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any
from uuid import UUID

import pytest
from tests.unit.sessions_data import FIXTURES, SHARED, cases, recorded

from holdfast.sessions.envelope import checked
from holdfast.sessions.errors import InvalidField, OrgMismatch
from holdfast.sessions.headers import identity, kept, without_secrets
from holdfast.sessions.values import Envelope

ORG = UUID("00000000-0000-4000-8000-000000000001")


def said(headers: dict[str, str], **more: Any) -> Any:
    return identity(list(headers.items()), trusted=more.get("trusted", False))


def coded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


# --- the recorded cases


@SHARED
@pytest.mark.parametrize("folder", ["envelope", "thread"])
def test_the_recorded_cases_are_sealed(folder: str) -> None:
    paths = sorted((FIXTURES / folder / "cases").glob("*.json"))
    lines = "".join(f"{path.name}  {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths)
    seal = (FIXTURES / folder / "DIGEST").read_text().strip()
    assert seal == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


@SHARED
def test_every_recorded_envelope_is_read_as_it_states() -> None:
    """SA-35."""
    found = cases("envelope")
    assert len(found) == 23
    for case in found:
        if case.get("error", {}).get("disposition") == "reject-400":
            with pytest.raises(InvalidField) as caught:
                said(case["headers"], trusted=True)
            assert caught.value.field == f"/session/{case['error']['field']}"
            continue
        envelope = said(case["headers"], trusted=True).envelope
        given = {name: value for name, value in dataclasses.asdict(envelope).items() if value}
        assert given == case["envelope"], case["name"]


@SHARED
def test_every_recorded_thread_is_read_as_it_states() -> None:
    """SA-35."""
    found = cases("thread")
    assert len(found) == 8
    assert [said(case["headers"]).thread_id for case in found] == [case["thread_id"] for case in found]


@SHARED
def test_the_recorded_session_is_one_session_with_two_threads() -> None:
    found = [identity(call.headers, trusted=False) for call in recorded()]
    wanted = json.loads((FIXTURES / "expected" / "recording.json").read_bytes())["session"]
    for each in found:
        envelope = dataclasses.asdict(each.envelope)
        assert {name: envelope[name] for name in wanted} == wanted
        assert (envelope["auth_subject"], each.flags) == ("", frozenset())
    assert [each.thread_id for each in found] == [call.expected["thread_id"] for call in recorded()]


# --- headers


def test_ours_come_before_the_references_before_the_harnesss_own() -> None:
    """SA-58."""
    own = {
        "User-Agent": "claude-cli/2.1.0 (external)",
        "x-claude-code-session-id": "own",
        "x-claude-code-agent-id": "agent",
    }
    found = said(own)
    assert found.envelope == Envelope(harness_id="claude", harness_session_id="own", harness_version="2.1.0")
    assert found.thread_id == "agent"
    theirs = own | {"x-tapes-harness-session-id": "theirs", "x-tapes-harness-version": "9"}
    assert said(theirs).envelope.harness_session_id == "theirs"
    ours = theirs | {
        "x-holdfast-harness-session-id": "ours",
        "x-holdfast-thread-id": "t",
        "x-holdfast-harness-id": "pi",
    }
    found = said(ours)
    assert found.envelope == Envelope(harness_id="pi", harness_session_id="ours", harness_version="9")
    assert found.thread_id == "t"
    codex = {"user-agent": "codex_cli_rs/0.139.0", "session-id": "s", "thread-id": "t"}
    found = said(codex)
    assert found.envelope == Envelope(harness_id="codex", harness_session_id="s", harness_version="0.139.0")
    assert said({"session-id": "s"}).envelope == Envelope(harness_id="unknown")


def test_what_only_we_say() -> None:
    found = said(
        {
            "x-holdfast-agent-name": "scout",
            "x-holdfast-tags": "a, b,,a",
            "x-holdfast-capture": "Metadata",
            "x-holdfast-parent-harness-session-id": "p",
            "x-holdfast-parent-harness-id": "codex",
        }
    )
    assert (found.agent_name, found.tags, found.capture) == ("scout", {"a", "b"}, "metadata")
    assert (found.envelope.parent_harness_id, found.envelope.parent_harness_session_id) == ("codex", "p")
    assert said({"x-holdfast-capture": "never"}).capture == "full"
    assert said({"x-holdfast-parent-harness-id": "codex"}).envelope.parent_harness_id == ""


def test_who_speaks_for_others_must_be_trusted() -> None:
    headers = {"x-paper-auth-org-id": str(ORG).upper(), "x-paper-auth-subject": "u"}
    assert said(headers).envelope == Envelope(harness_id="unknown")
    assert said(headers, trusted=True).envelope == Envelope(harness_id="unknown", org_id=str(ORG), auth_subject="u")


def test_paths_are_decoded_as_paths() -> None:
    assert said({"x-tapes-cwd": "/a+b%20c%C3%A9"}).envelope.cwd == "/a+b cé"
    assert said({"x-tapes-cwd": "/a%zz%20"}).envelope.cwd == "/a%zz%20"
    assert said({"x-tapes-cwd": "/é".encode().decode("latin-1")}).envelope.cwd == "/é"
    assert said({"x-tapes-cwd": "/日"}).envelope.cwd == "/日"
    dropped = said({"x-tapes-session-name": "a%00b"})
    assert (dropped.envelope.name, dropped.flags) == ("", {"name_control_characters"})


@pytest.mark.parametrize(
    ("metadata", "flag"),
    [
        ("!!!", "metadata_undecodable"),
        (coded(b"{nope"), "metadata_undecodable"),
        (coded(b'{"a":1}') + "=", "metadata_undecodable"),
        (coded(b'{"a":1e999}'), "metadata_undecodable"),
        (coded(json.dumps({"a": "x" * 4096}).encode()), "metadata_too_large"),
    ],
)
def test_metadata_that_cannot_be_read_is_dropped(metadata: str, flag: str) -> None:
    found = said({"x-tapes-harness-metadata": metadata})
    assert (found.envelope.harness_metadata, found.flags) == ({}, {flag})


def test_headers_have_limits() -> None:
    big = said({"x-holdfast-cwd": "/" + "x" * 4000, "x-tapes-session-name": "y" * 4200, "x-tapes-harness-id": "pi"})
    assert big.envelope == Envelope(harness_id="pi")
    assert "identity_headers_too_large" in big.flags
    long = said({"x-holdfast-agent-name": "x" * 257, "x-holdfast-tags": ",".join(["t" * 65, *map(str, range(40))])})
    assert (long.agent_name, len(long.tags), long.flags) == ("", 32, {"identity_dropped", "tags_dropped"})


def test_no_credential_is_kept() -> None:
    """SA-24."""
    given = [
        ("Authorization", "Bearer s"),
        ("X-Api-Key", "s"),
        ("Cookie", "s"),
        ("set-cookie", "s"),
        ("x-paper-auth", "s"),
        ("accept", "x"),
        ("User-Agent", "u"),
        ("anthropic-ratelimit-requests-limit", "1"),
        ("x-ratelimit-reset", "2"),
        ("x-holdfast-cwd", "/"),
        ("traceparent", "t"),
    ]
    assert [name for name, _ in kept(given)] == [
        "user-agent",
        "anthropic-ratelimit-requests-limit",
        "x-ratelimit-reset",
        "x-holdfast-cwd",
        "traceparent",
    ]
    assert without_secrets("/v1/x?beta=true&KEY=s&%6Bey=s&token&a=b=c") == "/v1/x?beta=true&KEY=&%6Bey=&token&a=b=c"
    assert without_secrets("/v1/x") == "/v1/x"


# --- envelopes


def test_an_envelope_says_what_was_said_and_whose_it_is() -> None:
    flags: set[str] = set()
    given = {
        "org_id": str(ORG).upper(),
        "harness_id": "claude",
        "harness_session_id": "s",
        "name": "ก" * 100,
        "cwd": None,
        "harness_metadata": {"a": 1},
    }
    found = checked(given, flags, org=ORG)
    assert found == Envelope(
        org_id=str(ORG), harness_id="claude", harness_session_id="s", name="ก" * 85, harness_metadata={"a": 1}
    )
    assert flags == {"name_cut"}
    assert checked({}, flags, org=ORG) == Envelope(harness_id="unknown", org_id=str(ORG))
    assert checked({"auth_subject": "a\x00"}, flags, org=None).auth_subject == "a\ufffd"
    assert checked({"cwd": "a\nb"}, flags, org=None).cwd == ""
    assert flags == {"name_cut", "scrubbed", "cwd_control_characters"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"org_id": "acme"}, "org_id"),
        ({"harness_id": "a b"}, "harness_id"),
        ({"harness_id": "x" * 65}, "harness_id"),
        ({"harness_id": 5}, "harness_id"),
        ({"harness_session_id": " s"}, "harness_session_id"),
        ({"harness_session_id": "a\x85b"}, "harness_session_id"),
        ({"harness_session_id": "syn-0"}, "harness_session_id"),
        ({"harness_session_id": "x" * 257}, "harness_session_id"),
        ({"parent_harness_session_id": ""}, "parent_harness_session_id"),
        ({"parent_harness_session_id": " "}, "parent_harness_session_id"),
        ({"parent_harness_session_id": 5}, "parent_harness_session_id"),
        ({"parent_harness_session_id": "syn-1"}, "parent_harness_session_id"),
        ({"parent_harness_id": "claude"}, "parent_harness_id"),
        ({"auth_subject": "x" * 257}, "auth_subject"),
        ({"cwd": "x" * 4097}, "cwd"),
        ({"harness_metadata": None}, "harness_metadata"),
        ({"harness_metadata": [1]}, "harness_metadata"),
        ({"harness_metadata": {"a": json.loads("[" * 20 + "]" * 20)}}, "harness_metadata"),
        ({"harness_metadata": {"a": 10**400}}, "harness_metadata"),
        ({"harness_metadata": {"a": "x" * 65536}}, "harness_metadata"),
    ],
)
def test_a_member_that_breaks_its_rule_is_named(given: dict[str, object], field: str) -> None:
    """SA-33."""
    with pytest.raises(InvalidField) as caught:
        checked(given, set(), org=None)
    assert caught.value.field == f"/session/{field}"


def test_another_org_is_refused() -> None:
    """SA-22."""
    with pytest.raises(OrgMismatch):
        checked({"org_id": str(UUID(int=5))}, set(), org=ORG)
