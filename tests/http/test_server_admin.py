"""Repairs and access keys over HTTP: operators only, typed answers, and effects that are what dry runs said."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.http.orgs import PATIENCE_S, Org, event, named, priced


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


def counts(org: Org) -> dict[str, int]:
    return {name: each["turn_count"] for name, each in org.sessions().items()}


def test_a_session_is_attributed_and_the_attribution_taken_back(org: Org) -> None:
    """SA-61."""
    told = org.take(event("a"), event("b", 1, session=None, thread_id="x"))
    before = org.projection()
    [loose] = [each for name, each in org.sessions().items() if name.startswith("syn-")]
    wanted = {
        "selector": {"session": {"id": loose["id"]}}, "reason": "its header was lost",
        "change": {"harness_id": "claude", "harness_session_id": "s", "thread_id": ""},
    }  # fmt: skip
    status, said = org.post(wanted, "/v1/admin/attributions")
    assert (status, said["dry_run"], said["attribution_id"], said["events"]) == (200, True, "", 1)
    assert org.projection() == before
    status, done = org.post({**wanted, "dry_run": False}, "/v1/admin/attributions")
    assert status == 200
    assert {**done, "dry_run": True, "attribution_id": ""} == said
    after = {each["harness_session_id"]: each["after"] for each in done["sessions"]}
    assert (after["s"]["turn_count"], after["s"]["tokens"]["input"], after[loose["harness_session_id"]]) == (
        2,
        14,
        None,
    )
    assert counts(org) == {"s": 2}
    moved = org.get(f"/v1/turns/{told[1]['event_id']}")
    assert (moved["session_id"], moved["thread_id"]) == (told[0]["session_id"], "")
    raw = org.get(f"/v1/raw/{told[1]['event_id']}")
    assert (raw["session_id"], raw["turn_id"], raw["state"]) == (told[0]["session_id"], moved["id"], "derived")
    assert (raw["told"]["thread_id"], raw["told"].get("session")) == ("x", None), "what was sent stays"
    [listed] = org.get("/v1/admin/attributions")["items"]
    assert (listed["attribution_id"], listed["undone_at"]) == (done["attribution_id"], None)
    path = f"/v1/admin/attributions/{done['attribution_id']}"
    assert org.ask(path, "DELETE", dry_run=True).json()["dry_run"] is True
    assert counts(org) == {"s": 2}
    assert org.ask(path, "DELETE").json()["turns"][0]["after"]["thread_id"] == "x"
    assert org.projection() == before
    assert org.ask(path, "DELETE").json()["code"] == "not_found"


def test_what_cannot_be_attributed_is_refused_with_a_reason(org: Org) -> None:
    org.take(event("a"))
    mine = {"harness_id": "claude", "harness_session_id": "s"}

    def ask(selector: Any, change: Any, **more: Any) -> tuple[int, str]:
        given = {"selector": selector, "change": change, "reason": "r", "dry_run": False, **more}
        status, answer = org.post(given, "/v1/admin/attributions")
        return status, answer["code"]

    chosen = {"session": mine}
    assert ask(chosen, {"parent_harness_session_id": "s"}) == (409, "attribution_refused")
    assert ask(chosen, {}) == (400, "invalid_field")
    assert ask({}, {"thread_id": "t"}) == (400, "invalid_field")
    assert ask({"session": {}}, {"thread_id": "t"}) == (400, "invalid_field")
    assert ask({"event_ids": ["cap_" + "0" * 32]}, {"thread_id": "t"}) == (404, "not_found")
    assert ask({"session": {"id": "ses_" + "0" * 32}}, {"thread_id": "t"}) == (404, "not_found")
    assert ask(chosen, {"thread_id": "t"}, reason="") == (400, "invalid_field")
    assert ask(chosen, {"thread_id": "t"}, more=1) == (400, "invalid_field")
    assert org.get("/v1/admin/attributions") == {"items": [], "next": None}


def test_turns_are_priced_again_and_sessions_derived_anew(org: Org) -> None:
    org.take(event("a", cost={"usd": "0.5"}), event("b", 1), event("c", 2, session=named("t")))
    before = org.projection()
    only = {"session": named("t"), "reason": "r", "since": "2020-01-01T00:00:00Z", "dry_run": False}
    status, said = org.post({"reason": "r"}, "/v1/admin/reprice")
    assert (status, said["turns"], said["repriced"], said["provided"], said["dry_run"]) == (200, 3, 0, 1, True)
    assert org.post(only, "/v1/admin/reprice")[1]["turns"] == 1
    assert org.post({"session": named("none"), "reason": "r"}, "/v1/admin/reprice")[0] == 404
    assert org.post({}, "/v1/admin/rebuild") == (
        200, {"derived": 0, "unparsed": 0, "refused": 0, "dead": 0, "pending": 3},
    )  # fmt: skip
    assert org.post({"dry_run": False}, "/v1/admin/rebuild")[1]["derived"] == 3
    assert org.post({"session": named("s"), "dry_run": False}, "/v1/admin/rebuild")[1]["derived"] == 2
    assert org.post({"session": named("none")}, "/v1/admin/rebuild")[0] == 404
    assert org.projection() == before


def test_keys_are_made_shown_once_and_taken_back(org: Org) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    wanted = {"scopes": ["read"], "label": "a dashboard", "expires_at": until.isoformat()}
    answer = org.client.post("/v1/admin/access-keys", json=wanted, headers=org.headers)
    made = answer.json()
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    assert (made["scopes"], made["label"], made["revoked_at"]) == (["read"], "a dashboard", None)
    reader = {"x-api-key": made["access_key"]}
    assert org.client.get("/v1/sessions", headers=reader).status_code == 200
    assert org.client.get("/v1/admin/access-keys", headers=reader).status_code == 403
    listed = org.get("/v1/admin/access-keys")
    assert made["access_key"][17:] not in str(listed)
    assert {each["id"] for each in listed["items"]} >= {made["id"]}
    assert all("access_key" not in each for each in listed["items"])
    for bad in (
        {"scopes": []}, {"scopes": ["all"]}, {"scopes": ["read"], "label": "\n"},
        {"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"},
    ):  # fmt: skip
        assert org.post(bad, "/v1/admin/access-keys")[0] in (400, 422), bad
    assert org.ask(f"/v1/admin/access-keys/{made['id']}", "DELETE").status_code == 204
    assert org.ask(f"/v1/admin/access-keys/{made['id']}", "DELETE").json()["code"] == "not_found"
    seen = time.monotonic() + PATIENCE_S
    while org.client.get("/v1/sessions", headers=reader).status_code != 401:
        assert time.monotonic() < seen


def test_no_other_org_and_no_other_scope_comes_near(org: Org, at: Any) -> None:
    from tests.http.orgs import join

    [told] = org.take(event("a"))
    other = join(at)
    [key] = [each for each in org.get("/v1/admin/access-keys")["items"] if each["scopes"] == ["ingest"]]
    assert other.ask(f"/v1/admin/access-keys/{key['id']}", "DELETE").status_code == 404
    assert other.ask(f"/v1/raw/{told['event_id']}").status_code == 404
    assert other.get("/v1/admin/attributions")["items"] == []
    chosen = {"selector": {"event_ids": [told["event_id"]]}, "change": {"thread_id": "t"}, "reason": "r"}
    assert other.post(chosen, "/v1/admin/attributions")[0] == 404
    mine = {"session": {"id": told["session_id"]}, "dry_run": False}
    assert other.post(mine, "/v1/admin/rebuild")[0] == 404
    assert other.post({}, "/v1/admin/rebuild")[1]["pending"] == 0
    reader = {"x-api-key": org.keys["read"]}
    for path, body in (("attributions", chosen), ("rebuild", {}), ("reprice", {"reason": "r"})):
        assert org.client.post(f"/v1/admin/{path}", json=body, headers=reader).json()["code"] == "forbidden"
    assert org.client.get(f"/v1/raw/{told['event_id']}", headers=reader).status_code == 403
