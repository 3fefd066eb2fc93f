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

from holdfast.sessions.evidence import TurnFacts

KEPT_ELSEWHERE = (
    "turn_id", "usage", "cost_pusd", "cost_state", "price_version", "provided_pusd", "computed_pusd", "usage_event",
    "usage_key", "capture_id", "evidence_key", "harness_id", "harness_session_id", "harness_version",
    "harness_metadata", "auth_subject", "cwd", "name", "parent_harness_id", "parent_harness_session_id", "first_text",
    "synthetic",
)  # fmt: skip
"""What a turn knows, and its cost, tokens, evidence or session shows."""
ORGS = ("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b811-9dad-41d1-80b4-00c04fd430c8")
WAIT = {"prefer": "wait=10"}


@pytest.fixture(scope="module")
def clients(module_ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    """A client of each of two orgs."""
    scopes = ("--scope", "ingest", "--scope", "read", "--scope", "admin")
    made = [tell("access", "create", "--db", module_ledger, "--org", org, *scopes) for org in ORGS]
    with server(module_ledger, secret_file=tmp_path_factory.mktemp("secret") / "secret") as at:
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


def test_what_is_absent_is_null_and_nothing_is_left_out(clients: list[httpx.Client]) -> None:
    silent = {"model": "m-9", "messages": [{"role": "user", "content": []}]}
    told = stored(clients[0], "bare", request=silent, response=None)
    session = get(clients[0], f"/v1/sessions/{told['session_id']}")
    absent = {"name", "display_name", "auth_subject", "cwd", "harness_version"}
    assert {name for name, value in session.items() if value is None} == absent
    assert session["parent"] == {"session_id": None, "state": "none", "hint": None, "flag": None}
    assert session["title"] == session["id"]
    assert session["outcome"] == {"status": "incomplete", "stop_reason": None}
    assert (session["started_at"], session["live"]) == ("2026-11-21T12:00:00.000000Z", False)
    turn = get(clients[0], f"/v1/turns/{told['turn_id']}")
    columns = {name for name in TurnFacts.__struct_fields__ if name not in KEPT_ELSEWHERE}
    assert columns <= turn.keys(), columns - turn.keys()
    assert "" not in {value for name, value in turn.items() if name != "thread_id" and isinstance(value, str)}
    assert set(turn["tokens"].values()) == {None}
    assert len(turn["tokens"]) == 9
    assert (turn["thread_id"], turn["message_id"], turn["service_tier"], turn["evidence_count"]) == ("", None, None, 1)
    [seen] = turn["evidence"]
    assert (seen["source"], seen["capture_id"], seen["request_id"]) == ("wire", "bare", None)


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ({"harness_id": "Filtered"}, False), ({"harness_session_id": "f-1 "}, False), ({"auth_subject": "ada"}, True),
        ({"auth_subject": "Ada"}, False), ({"model": "m-1"}, True), ({"provider": "anthropic"}, True),
        ({"provider": "openai"}, False), ({"agent_name": "scout"}, True), ({"tag": "night"}, True),
        ({"tag": "nigh"}, False), ({"parent_state": "pending"}, True), ({"parent_state": "resolved"}, False),
        ({"thread": "t-1"}, True), ({"thread": ""}, False), ({"since": "2026-11-21T12:00:00Z"}, True),
        ({"since": "2026-11-21T12:00:00.000001Z"}, False), ({"until": "2026-11-21T12:00:00Z"}, False),
        ({"until": "2026-11-21T12:00:01Z"}, True), ({"min_cost": "0.25"}, True), ({"min_cost": "0.2500001"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_a_filter_fits_exactly_or_not(clients: list[httpx.Client], query: dict[str, str], *, fits: bool) -> None:
    parent = {"parent_harness_session_id": "nobody"}
    named = {"harness_id": "filtered", "harness_session_id": "f-1", "auth_subject": "ada", **parent}
    more: Any = {"agent_name": "scout", "tags": ["night"], "thread_id": "t-1", "cost": {"usd": "0.25", "source": "me"}}
    post(clients[0], call("filtered", session=named, **more), **WAIT)
    listed = get(clients[0], "/v1/sessions", **({"harness_id": "filtered"} | query))["items"]
    assert [each["harness_session_id"] for each in listed] == (["f-1"] if fits else [])
    if fits:
        [listed] = listed
        assert listed["parent"]["hint"] == {"harness_id": None, "harness_session_id": "nobody"}
        assert listed["cost"] == {
            "usd": "0.250000000000", "state": "priced", "unpriced_turns": 0, "partial_turns": 0, "provided_turns": 1,
        }  # fmt: skip
        everybody = get(clients[0], "/v1/sessions", harness_id="filtered", include_placeholders=True)["items"]
        assert [each["is_placeholder"] for each in everybody] == [False, True]


def test_an_etag_is_the_row_s_hash_as_far_as_that_says_all(clients: list[httpx.Client]) -> None:
    told = stored(clients[0], "hashed")
    turn = clients[0].get(f"/v1/turns/{told['turn_id']}")
    assert turn.headers["etag"] == f'"{turn.json()["row_hash"]}"'
    session = clients[0].get(f"/v1/sessions/{told['session_id']}")
    assert session.headers["etag"].startswith(f'"{session.json()["row_hash"]}-')
    whole = clients[0].get(f"/v1/turns/{told['turn_id']}", params={"payload": "full"})
    assert whole.headers["etag"] != turn.headers["etag"]
    paths = ["", "/turns", "/timeline", "/tree", "/branches"]
    for path in ("/v1/sessions", "/v1/stats", *(f"/v1/sessions/{told['session_id']}{each}" for each in paths)):
        tag = clients[0].get(path).headers["etag"]
        again = clients[0].get(path, headers={"if-none-match": f'"other", W/{tag}', "accept-encoding": "identity"})
        assert (again.status_code, again.headers["etag"]) == (304, tag), path


def test_what_is_long_is_cut_unless_it_is_asked_for(clients: list[httpx.Client]) -> None:
    asked = {"model": "m-1", "messages": [{"role": "user", "content": "x" * 1_100_000}]}
    told = stored(clients[0], "long", request=asked)
    path = f"/v1/turns/{told['turn_id']}"
    assert get(clients[0], path)["messages"] is None
    cut, _ = get(clients[0], path, payload="preview")["messages"]
    whole, _ = get(clients[0], path, payload="full")["messages"]
    assert (len(cut["content"][0]["text"]), cut["preview"]) == (512, True)
    assert (len(whole["content"][0]["text"]), whole["preview"]) == (1_100_000, False)
    node = f"/v1/nodes/{whole['hash']}"
    assert get(clients[0], node)["content"] == cut["content"]
    assert get(clients[0], node, payload="full")["content"] == whole["content"]
    assert get(clients[0], f"{node}/ancestry")["items"][0]["preview"]
    packed = clients[0].get(f"{node}?payload=full", headers={"accept-encoding": "gzip"})
    assert (packed.headers["content-encoding"], int(packed.headers["content-length"]) < 10_000) == ("gzip", True)


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
