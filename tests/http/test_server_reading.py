"""What was captured, read over HTTP: by its own org, and by nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.flow.commandline import tell
from tests.http.backends import server
from tests.http.captured import REQUEST, call, post

ORGS = ("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b811-9dad-41d1-80b4-00c04fd430c8")
WAIT = {"prefer": "wait=10"}


@pytest.fixture(scope="module")
def clients(module_ledger: str) -> Iterator[list[httpx.Client]]:
    """A client of each of two orgs."""
    scopes = ("--scope", "ingest", "--scope", "read", "--scope", "admin")
    made = [tell("access", "create", "--db", module_ledger, "--org", org, *scopes) for org in ORGS]
    with server(module_ledger) as at:
        base = at.client.base_url
        found = [httpx.Client(base_url=base, timeout=30, headers={"x-api-key": key["access_key"]}) for key in made]
        yield found
        for each in found:
            each.close()


def stored(client: httpx.Client, name: str, **more: Any) -> Any:
    status, told = post(client, call(name, **more), **WAIT)
    assert (status, told["derived"]) == (202, True), told
    return told


def get(client: httpx.Client, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_session_is_shown_with_its_totals_turns_and_messages(clients: list[httpx.Client]) -> None:
    told = stored(clients[0], "shown", tags=["night"])
    session = get(clients[0], f"/v1/sessions/{told['session_id']}")
    assert (session["harness_session_id"], session["turn_count"], session["tokens"]["input"]) == ("shown", 1, 7)
    assert session["cost"] == {
        "usd": None, "state": "unpriced", "unpriced_turns": 1, "partial_turns": 0, "provided_turns": 0,
    }  # fmt: skip
    [turn] = get(clients[0], f"/v1/sessions/{told['session_id']}/turns", payload="full")["items"]
    assert (turn["id"], turn["tokens"]["output"], turn["tags"]) == (told["turn_id"], 3, ["night"])
    assert [each["role"] for each in turn["messages"]] == ["user", "assistant"]
    assert get(clients[0], f"/v1/turns/{told['event_id']}")["id"] == told["turn_id"]
    leaf = turn["messages"][-1]["hash"]
    assert told["session_id"] in get(clients[0], f"/v1/nodes/{leaf}")["sessions"]
    assert [each["role"] for each in get(clients[0], f"/v1/nodes/{leaf}/ancestry")["items"]] == ["assistant", "user"]
    assert get(clients[0], f"/v1/sessions/{told['session_id']}/branches")["leaves"][0]["hash"] == leaf
    diff = get(clients[0], f"/v1/sessions/{told['session_id']}/branches/diff", a=leaf, b=leaf)
    assert (len(diff["common"]), diff["a"]) == (2, [])
    tree = get(clients[0], f"/v1/sessions/{told['session_id']}/tree")
    assert (tree["session"]["id"], tree["descendants"]) == (told["session_id"], [])


def test_a_body_comes_back_as_it_was_captured(clients: list[httpx.Client]) -> None:
    told = stored(clients[0], "bodies")
    answer = clients[0].get(f"/v1/turns/{told['turn_id']}/raw", params={"part": "request"})
    assert answer.content == json.dumps(REQUEST).encode()
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_pages_follow_each_other_and_a_cursor_fits_one_list_only(clients: list[httpx.Client]) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        stored(clients[1], name, agent_name="pager")
    seen, cursor = [], ""
    while cursor is not None:
        page = get(clients[1], "/v1/sessions", agent_name="pager", sort="started", limit=2, cursor=cursor)
        seen += [each["harness_session_id"] for each in page["items"]]
        first, cursor = cursor or page["next"], page["next"]
    assert sorted(seen) == names
    for other in ({"sort": "-started"}, {"agent_name": "other"}, {"cursor": first[:-1]}):
        query = {"agent_name": "pager", "sort": "started", "limit": 2, "cursor": first, **other}
        answer = clients[1].get("/v1/sessions", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_mismatch")
    foreign = {"agent_name": "pager", "sort": "started", "limit": 2, "cursor": first}
    assert clients[0].get("/v1/sessions", params=foreign).status_code == 400


def test_who_has_an_answer_is_not_sent_it_again(clients: list[httpx.Client]) -> None:
    path = f"/v1/sessions/{stored(clients[0], 'tagged')['session_id']}"
    answer = clients[0].get(path)
    again = clients[0].get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    post(clients[0], call("tagged-more", session={"harness_id": "claude-code", "harness_session_id": "tagged"}), **WAIT)
    assert clients[0].get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 200


def test_another_org_s_rows_are_not_there(clients: list[httpx.Client]) -> None:
    mine, theirs = (stored(client, "equal") for client in clients)
    assert mine["turn_id"] != theirs["turn_id"]
    node = get(clients[0], f"/v1/turns/{mine['turn_id']}", payload="preview")["messages"][-1]
    for path in (
        f"/v1/sessions/{mine['session_id']}", f"/v1/sessions/{mine['session_id']}/turns",
        f"/v1/sessions/{mine['session_id']}/tree", f"/v1/sessions/{mine['session_id']}/branches",
        f"/v1/turns/{mine['turn_id']}", f"/v1/turns/{mine['event_id']}",
        f"/v1/turns/{mine['turn_id']}/raw?part=request",
    ):  # fmt: skip
        answer = clients[1].get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    held = get(clients[1], f"/v1/nodes/{node['hash']}")
    assert theirs["session_id"] in held["sessions"]
    assert mine["session_id"] not in held["sessions"]
    keys = {each["harness_session_id"] for each in get(clients[0], "/v1/sessions", limit=200)["items"]}
    assert "page-0" not in keys
    turns = {each["key"]: each["turns"] for each in get(clients[0], "/v1/stats", group_by="harness")["items"]}
    assert turns["claude-code"] >= 1


def test_an_operator_names_and_deletes_sessions(clients: list[httpx.Client]) -> None:
    path = f"/v1/sessions/{stored(clients[0], 'named')['session_id']}"
    assert clients[1].patch(path, json={"display_name": "theirs"}).status_code == 404
    named = clients[0].patch(path, json={"display_name": "the long night"})
    assert (named.status_code, named.json()["display_name"]) == (200, "the long night")
    assert clients[0].patch(path, json={"display_name": "x" * 201}).json()["field"] == "/display_name"
    assert clients[0].patch(path, json={}).status_code == 400
    assert clients[1].delete(path).status_code == 404
    gone = clients[0].delete(path, params={"reason": "asked for"})
    assert (gone.status_code, gone.content) == (204, b"")
    assert clients[0].get(path).status_code == 404
    status, told = post(clients[0], call("named"))
    assert (status, told["code"]) == (410, "session_deleted")


def test_events_are_listed_by_their_state(clients: list[httpx.Client]) -> None:
    unread = post(clients[0], call("odd", provider="carrier-pigeon"), **WAIT)[1]
    listed = get(clients[0], "/v1/raw", state="unparsed", limit=200)["items"]
    assert unread["event_id"] in {each["event_id"] for each in listed}
    first = get(clients[0], "/v1/raw", limit=1)
    second = get(clients[0], "/v1/raw", limit=1, cursor=first["next"])
    assert first["items"][0]["event_id"] != second["items"][0]["event_id"]
    assert get(clients[0], "/v1/dead-letters") == {"items": [], "next": None}
    assert clients[0].post("/v1/dead-letters/nobody/replay").status_code == 404
    again = clients[0].post(f"/v1/dead-letters/{unread['event_id']}/replay")
    assert (again.status_code, again.json()["dead"]) == (202, 0), again.text


def test_scopes_hold_for_ingest_too(clients: list[httpx.Client], module_ledger: str) -> None:
    key = tell("access", "create", "--db", module_ledger, "--scope", "read")["access_key"]
    status, told = post(clients[0], call("unscoped"), **{"x-api-key": key})
    assert (status, told["code"]) == (403, "forbidden")
    status, told = post(clients[0], call("elsewhere", session={"org_id": ORGS[1]}))
    assert (status, told["code"]) == (403, "org_mismatch")
