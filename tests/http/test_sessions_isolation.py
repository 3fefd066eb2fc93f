"""What is another org's is not there: over every route of the server's own document, with the other's real ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.http.backends import Server
from tests.http.orgs import Org, asked, event, join, named, priced, said

SECRET = "only-theirs"
OURS = ("sessions", "turns", "nodes", "raw", "dead-letters", "stats", "admin", "ingest")
"""The parts of the routes that are of an org; executions and keys are the whole ledger's."""


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


@dataclass(frozen=True)
class Two:
    """Two orgs that have captured the same, and one of them more.

    Attributes:
        mine: Who asks.
        theirs: Whose rows are not to be seen.
        ids: What only the other has, by what a path calls it.
        values: What only the other has, by the name of a parameter or member.
    """

    mine: Org
    theirs: Org
    ids: dict[str, list[str]]
    values: dict[str, list[Any]]

    def shows(self, text: str) -> list[str]:
        """What of the other's stands in an answer, but for what was asked with."""
        marks = [SECRET, *(each for found in self.ids.values() for each in found)]
        return [mark for mark in marks if mark in text]


def calls(whose: str) -> list[dict[str, Any]]:
    """Sessions with a parent, a branch, a synthetic one, and one that nobody can read; equal in every org."""
    return [
        event(f"{whose}-1", 1),
        event(f"{whose}-2", 2, request=asked("hi", "yes", "more"), tags=["night"], thread_id="side"),
        event(f"{whose}-3", 3, session=named("kid", parent_harness_session_id="s")),
        event(f"{whose}-4", 4, session=None),
        event(f"{whose}-5", 5, provider="carrier-pigeon"),
    ]


@pytest.fixture(scope="module")
def two(at: Server) -> Iterator[Two]:
    mine, theirs = join(at), join(at)
    for org, whose in ((mine, "m"), (theirs, SECRET)):
        org.batch(*calls(whose))
    theirs.batch(
        event(f"{SECRET}-6", 6, request=asked(SECRET), response=said(SECRET, f"msg_{SECRET}"), agent_name=SECRET,
              tags=[SECRET], session=named(SECRET, "codex", auth_subject=SECRET, name=SECRET)),
        event(f"{SECRET}-7", 7, session=named(f"{SECRET}-kid", parent_harness_session_id="nobody")),
    )  # fmt: skip
    found = list(theirs.pages("/v1/sessions", include_placeholders=True))
    turns = [each for session in found for each in theirs.turns(session, payload="full")]
    common = {node["hash"] for session in mine.sessions().values() for turn in mine.turns(session, payload="full")
              for node in turn["messages"]}  # fmt: skip
    hashes = sorted({node["hash"] for turn in turns for node in turn["messages"]} - common)
    events = [each["event_id"] for each in theirs.events()]
    ids = {"sessions": [each["id"] for each in found], "turns": [each["id"] for each in turns], "raw": events,
           "nodes": hashes}  # fmt: skip
    assert all(ids.values())
    busy = theirs.sessions(harness_session_id="s")["s"]["id"]
    cursors = [theirs.get(path, limit=1)["next"] for path in ("/v1/sessions", f"/v1/sessions/{busy}/turns", "/v1/raw")]
    assert all(cursors)
    values = {
        "harness_id": ["codex", "claude"], "harness_session_id": [SECRET, "s"], "auth_subject": [SECRET],
        "agent_name": [SECRET], "tag": [SECRET, "night"], "cursor": cursors,
        "a": hashes, "b": hashes, "event_id": events, "event_ids": [events], "session_id": ids["sessions"],
        "session": ids["sessions"], "parent_session_id": ids["sessions"], "turn_id": ids["turns"],
        "org_id": [str(theirs.id)], "org": [str(theirs.id)],
    }  # fmt: skip
    before = theirs.projection(), theirs.sessions(include_placeholders=True), theirs.events()
    yield Two(mine, theirs, ids, values)
    assert (theirs.projection(), theirs.sessions(include_placeholders=True), theirs.events()) == before


def operations(at: Server) -> list[tuple[str, str, dict[str, Any]]]:
    """The operations on rows of an org, as the document has them."""
    paths = at.client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path, operation)
        for path, item in sorted(paths.items())
        for method, operation in sorted(item.items())
        if path.split("/")[2:3] and path.split("/")[2] in OURS
    ]


def addressed(two: Two, path: str) -> list[str]:
    """The other's ids that fit a path."""
    kind = path.split("/")[2]
    return {"turns": two.ids["turns"] + two.ids["raw"], "dead-letters": two.ids["raw"]}.get(kind) or two.ids.get(
        kind, []
    )


def test_no_id_of_another_org_leads_anywhere(two: Two, at: Server) -> None:
    """SA-21, SX-102: every route that takes an id, with every id that the other has."""
    tried = 0
    for method, path, operation in operations(at):
        if "{" not in path or path.startswith("/v1/admin"):
            continue
        needed = {"part": "request", "a": two.ids["nodes"][0], "b": two.ids["nodes"][0], "reason": "mine"}
        query = {each["name"]: needed[each["name"]] for each in operation["parameters"] if each["name"] in needed}
        for id in addressed(two, path):
            at_id = path[: path.index("{")] + id + path[path.index("}") + 1 :]
            body = {"display_name": "mine"} if "requestBody" in operation else None
            answer = two.mine.client.request(method, at_id, params=query, json=body, headers=two.mine.headers)
            nobody = at_id.replace(id, id[:-8] + "0" * 8)
            absent = two.mine.client.request(method, nobody, params=query, json=body, headers=two.mine.headers)
            assert (answer.status_code, answer.json()) == (404, absent.json()), (method, at_id)
            tried += 1
    assert tried > 40


def test_lists_and_totals_have_only_what_is_ones_own(two: Two) -> None:
    """SA-21: what both have captured is each one's own."""
    for org, count in ((two.mine, 4), (two.theirs, 6)):
        stats = org.get("/v1/stats", group_by="session")["items"]
        assert sum(each["turns"] for each in stats) == count
        listed = {each["id"] for each in org.pages("/v1/sessions")}
        assert {each["key"] for each in stats} == listed
        shared = org.turns(org.sessions(harness_session_id="s")["s"], payload="full")[0]["messages"][0]["hash"]
        assert set(org.get(f"/v1/nodes/{shared}")["sessions"]) <= listed
    for path in ("/v1/sessions", "/v1/raw", "/v1/stats", "/v1/dead-letters", "/v1/sessions?include_placeholders=true"):
        assert two.shows(two.mine.ask(path).text) == [], path
    for name in ("harness_session_id", "auth_subject", "agent_name", "tag"):
        assert two.mine.get("/v1/sessions", **{name: SECRET})["items"] == []
    sessions, turns, events = two.values["cursor"]
    mine = two.mine.sessions(harness_session_id="s")["s"]["id"]
    for path, cursor in (("/v1/sessions", sessions), (f"/v1/sessions/{mine}/turns", turns)):
        answer = two.mine.ask(path, limit=1, cursor=cursor)
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_mismatch")
    assert two.shows(two.mine.ask("/v1/raw", cursor=events).text) == [], "a place in the order of coming is no secret"


def test_a_body_that_names_another_org_is_refused(two: Two) -> None:
    """SA-22."""
    before = two.mine.events()
    for spelt in (str(two.theirs.id), two.theirs.id.urn, f"{{{two.theirs.id}}}", two.theirs.id.hex.upper()):
        status, told = two.mine.post(event("x", session=named("s", org_id=spelt)))
        assert (status, told["code"]) == (403, "org_mismatch")
    told = two.mine.batch(event("x", session=named("s", org_id=str(two.theirs.id))))
    assert (told["results"][0]["http_status"], told["results"][0]["code"]) == (403, "org_mismatch")
    assert two.mine.events() == before
    status, told = two.mine.post(event("m-1", 1, session=named("s", org_id=two.mine.id.hex.upper())))
    assert (status, told["code"]) == (409, "capture_conflict"), "its own org may be named, in any form"


def test_scopes_are_asked_for_by_every_route(two: Two, at: Server) -> None:
    """SA-23: no key, and a key for something else, get nowhere."""
    unopened = []
    for method, path, operation in operations(at):
        where = path.replace("{id}", two.ids["sessions"][0]).replace("{hash}", two.ids["nodes"][0])
        body = b"{}" if "requestBody" in operation else None
        headers = {"content-type": "application/json"} if body else {}
        bare = at.client.request(method, where, content=body, headers=headers)
        assert (bare.status_code, bare.json()["code"]) == (401, "unauthenticated"), (method, path)
        opens = []
        for scope in ("ingest", "read", "admin"):
            key = {"x-api-key": two.mine.keys[scope]}
            answer = at.client.request(method, where, content=body, headers={**headers, **key})
            if answer.status_code != 403:
                opens.append(scope)
        wanted = "ingest" if "/ingest" in path else "read" if method == "GET" else "admin"
        if path.startswith(("/v1/raw", "/v1/dead-letters", "/v1/admin")):
            wanted = "admin"
        if opens != [wanted]:
            unopened.append((method, path, opens))
    assert unopened == []


def steered(two: Two, value: Any, rng: random.Random) -> Any:
    """Some JSON with what only the other has in the members that may name it."""
    if isinstance(value, dict):
        return {
            name: rng.choice(two.values[name]) if name in two.values else steered(two, each, rng)
            for name, each in value.items()
        }
    return [steered(two, each, rng) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=[pytest.mark.torture, pytest.mark.timeout(1200)])])
def test_no_request_shows_or_changes_another_org(two: Two, at: Server, examples: int) -> None:
    """SX-7, SX-102: whatever the document allows to be asked, with the other's ids, hashes, filters and cursors."""
    import schemathesis  # a second's worth, which the other tests of a worker need not wait for

    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{at.port}/openapi.json")
    tried = 0
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path.split("/")[2:3] and operation.path.split("/")[2] not in OURS:
            continue
        if operation.path.count("/") < 2:
            continue
        tried += 1

        @given(case=operation.as_strategy(), rng=st.randoms(use_true_random=False))
        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def is_blind(case: Any, rng: random.Random) -> None:
            ids = addressed(two, case.path)
            sent = [rng.choice(ids) for _ in case.path_parameters] if ids else []
            case.path_parameters = dict(zip(case.path_parameters, sent, strict=True)) if ids else case.path_parameters
            case.query = {
                name: rng.choice(two.values[name]) if name in two.values else each for name, each in case.query.items()
            }
            if isinstance(case.body, dict):
                case.body = steered(two, case.body, rng)
            answer = case.call(headers=two.mine.headers)
            assert answer.status_code < 500, answer.text
            asked_with = json.dumps([sent, case.query, str(case.body)])
            shown = [mark for mark in two.shows(answer.text) if mark not in asked_with]
            assert shown == [], (case.method, case.path, answer.text)
            if sent and "admin" not in case.path:
                assert answer.status_code >= 400, (case.method, case.path, sent)

        is_blind()
    assert tried > 12
