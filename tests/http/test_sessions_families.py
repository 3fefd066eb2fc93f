"""Which session a call is in, and where sessions come from: whatever comes first, over HTTP."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.http.backends import Server
from tests.http.orgs import Org, asked, event, join, named, priced, said


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


def child(name: str, parent: str, at: float = 0, harness: str = "claude", **more: Any) -> dict[str, Any]:
    """A call of a session that names its parent."""
    hint = {"parent_harness_session_id": parent, **more}
    return event(f"{harness}-{name}-{at}", at, session=named(name, harness, **hint))


def first(name: str, at: float = 0, harness: str = "claude") -> dict[str, Any]:
    """A call of a session that has no parent."""
    return event(f"{harness}-{name}-{at}", at, session=named(name, harness))


def every(org: Org) -> dict[str, Any]:
    return org.sessions(include_placeholders=True)


# --- calls without a session id


def test_runs_without_a_session_id_do_not_mix(org: Org) -> None:
    """SA-9: two unrelated runs begin with the same word; the last follow-up of one comes before anything else."""
    calls = {
        "a1": event("a1", 1, session=None, response=said("red", "ma1")),
        "b1": event("b1", 2, session=None, response=said("blue", "mb1")),
        "a2": event("a2", 3, session=None, request=asked("hi", "red", "go"), response=said("redder", "ma2")),
        "b2": event("b2", 4, session=None, request=asked("hi", "blue", "go"), response=said("bluer", "mb2")),
        "a3": event("a3", 5, session=None, request=asked("hi", "red", "go", "redder", "on"), response=said("x", "ma3")),
    }
    org.take(*(calls[name] for name in ("a3", "b1", "b2", "a1", "a2")))
    found = sorted(org.sessions().values(), key=lambda each: -each["turn_count"])
    assert [(each["turn_count"], each["is_synthetic"]) for each in found] == [(3, True), (2, True)]
    held = [[turn["evidence"][0]["capture_id"] for turn in org.turns(each)] for each in found]
    assert held == [["a1", "a2", "a3"], ["b1", "b2"]]


def test_who_calls_keeps_runs_apart_too(org: Org) -> None:
    """SA-9: an answer is gone on from by its own agent only, and within a day."""
    start = event("1", 0, session=None, agent_name="a", response=said("red", "m1"))
    more = asked("hi", "red", "go")
    org.take(
        start,
        event("2", 1, session=None, agent_name="b", request=more),
        event("3", 24 * 60 + 1, session=None, agent_name="a", request=more),
        event("4", 24 * 60, session=None, agent_name="a", request=more),
    )
    assert sorted(each["turn_count"] for each in org.sessions().values()) == [1, 1, 2]


# --- parents


def test_a_parent_that_is_there_is_linked_at_once(org: Org) -> None:
    """SA-12."""
    [parent, _] = org.take(first("top"), child("kid", "top"))
    kid = org.sessions()["kid"]
    assert (kid["parent"]["state"], kid["parent"]["session_id"]) == ("resolved", parent["session_id"])


def test_a_parent_that_comes_later_is_one_row_and_its_own(org: Org) -> None:
    """SA-12, SA-17: what stands in for it knows nothing, and what it says itself comes with its own first turn."""
    hint = {"parent_harness_session_id": "top"}
    org.take(event("k", session=named("kid", name="the kid's", auth_subject="kid", cwd="/kid", **hint)))
    before = every(org)["top"]
    assert (before["is_placeholder"], before["turn_count"], before["started_at"]) == (True, 0, None)
    assert {before[name] for name in ("name", "auth_subject", "cwd", "harness_version", "outcome")} == {None}
    assert before["tokens"]["input"] is None
    assert set(org.sessions()) == {"kid"}, "nobody has seen it"
    org.take(event("t", session=named("top", name="the top's", auth_subject="top", cwd="/top")))
    after = every(org)
    assert set(after) == {"kid", "top"}
    assert (after["top"]["id"], after["top"]["is_placeholder"]) == (before["id"], False)
    assert (after["top"]["turn_count"], after["top"]["tokens"]["input"]) == (1, 7)
    assert [after["top"][name] for name in ("name", "auth_subject", "cwd")] == ["the top's", "top", "/top"]
    assert (after["kid"]["parent"]["state"], after["kid"]["parent"]["session_id"]) == ("resolved", before["id"])
    tree = org.get(f"/v1/sessions/{before['id']}/tree")
    assert [each["session"]["harness_session_id"] for each in tree["descendants"]] == ["kid"]
    assert (tree["own"]["turns"], tree["subtree"]["turns"]) == (1, 2)


def test_a_parent_of_a_harness_that_was_named(org: Org) -> None:
    """SA-13: it is linked when it comes, nothing else is, and no row is left over."""
    org.take(child("kid", "top", parent_harness_id="codex"), first("top"))
    assert every(org)["kid"]["parent"]["state"] == "pending", "an explicit harness matches no other"
    [told] = org.take(first("top", 1, "codex"))
    found = list(org.pages("/v1/sessions", include_placeholders=True))
    assert sorted((each["harness_id"], each["harness_session_id"]) for each in found) == [
        ("claude", "kid"), ("claude", "top"), ("codex", "top"),
    ]  # fmt: skip
    kid = org.sessions(harness_session_id="kid")["kid"]
    assert (kid["parent"]["state"], kid["parent"]["session_id"]) == ("resolved", told["session_id"])


def test_a_parent_that_turns_up_under_another_harness(org: Org) -> None:
    """SA-14."""
    org.take(child("kid", "top"))
    assert (every(org)["top"]["harness_id"], every(org)["kid"]["parent"]["flag"]) == ("claude", "harness_assumed")
    [told] = org.take(first("top", harness="codex"))
    found = every(org)
    assert {name: each["harness_id"] for name, each in found.items()} == {"kid": "claude", "top": "codex"}
    assert (found["kid"]["parent"]["state"], found["kid"]["parent"]["session_id"]) == ("resolved", told["session_id"])
    org.take(first("top", 1, "gemini"))
    kid = org.sessions(parent_state="ambiguous")["kid"]
    assert kid["parent"]["session_id"] is None
    org.take(first("top", 2))
    assert org.sessions(harness_session_id="kid")["kid"]["parent"]["state"] == "resolved", "its own harness's is exact"


def test_many_children_share_what_stands_in_for_their_parent(org: Org) -> None:
    """SA-15."""
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda n: org.post(child(f"kid{n}", "top")), range(20)))
    assert [status for status, _ in answers] == [202] * 20
    org.settle()
    found = every(org)
    assert [name for name, each in found.items() if each["is_placeholder"]] == ["top"]
    assert {each["parent"]["session_id"] for name, each in found.items() if name != "top"} == {found["top"]["id"]}
    assert len(found) == 21


def test_a_circle_is_never_closed(at: Server) -> None:
    """SA-16: in whichever order, it is the latest hint that is refused."""
    above = {"a": "b", "b": "c", "c": "a"}
    for order in itertools.permutations("abc"):
        org = join(at)
        org.take(*(child(name, above[name], "abc".index(name)) for name in order))
        found = every(org)
        assert {name: each["parent"]["state"] for name, each in found.items()} == {
            "a": "resolved", "b": "resolved", "c": "rejected_cycle",
        }, order  # fmt: skip
        tree = org.get(f"/v1/sessions/{found['a']['id']}/tree")
        assert [each["harness_session_id"] for each in tree["ancestors"]] == ["b", "c"]


def test_nobody_is_its_own_parent(org: Org) -> None:
    """SA-16."""
    org.take(child("me", "me"), child("me", "me", harness="codex", parent_harness_id="claude"))
    found = {each["harness_id"]: each for each in org.pages("/v1/sessions", include_placeholders=True)}
    assert (found["claude"]["parent"]["state"], found["claude"]["parent"]["session_id"]) == ("rejected_self", None)
    assert found["codex"]["parent"]["session_id"] == found["claude"]["id"]
    assert org.get(f"/v1/sessions/{found['codex']['id']}/tree")["truncated"] is False


# --- what later calls say


def test_what_is_not_said_again_stays(org: Org) -> None:
    """SA-18."""
    told = {
        "name": "n",
        "cwd": "/c",
        "harness_version": "1",
        "auth_subject": "me",
        "harness_metadata": {"a": 1, "b": 1},
    }
    org.take(event("1", 1, session=named("s", **told)))
    empty = dict.fromkeys(("name", "cwd", "harness_version", "auth_subject"), "")
    org.take(event("2", 2, session=named("s", **empty)))
    session = org.only()
    assert {name: session[name] for name in told} == told
    assert session["conflicts"] == {}
    changed = {"name": "m", "auth_subject": "you", "harness_metadata": {"b": 2, "c": [3]}}
    org.take(event("3", 3, session=named("s", **changed)), event("0", 0, session=named("s", name="old", cwd="/old")))
    session = org.only()
    assert (session["name"], session["cwd"], session["auth_subject"]) == ("m", "/c", "me")
    assert session["harness_metadata"] == {"a": 1, "b": 2, "c": [3]}
    assert session["conflicts"].keys() == {"auth_subject"}
    assert "you" in str(session["conflicts"])


def test_the_earliest_hint_counts(org: Org) -> None:
    """SA-19: a later one moves nothing, an earlier one that comes later does; the same ends the same."""
    org.take(first("one"), first("two"), first("three"), child("kid", "two", 10))
    found = org.sessions()

    def parent() -> Any:
        return org.sessions()["kid"]["parent"]["session_id"]

    assert parent() == found["two"]["id"]
    org.take(child("kid", "three", 20))
    assert parent() == found["two"]["id"]
    assert org.sessions()["kid"]["conflicts"].keys() >= {"parent"}
    org.take(child("kid", "one", 5))
    assert parent() == found["one"]["id"]


def test_the_end_is_the_same_whichever_hint_came_first(at: Server, org: Org) -> None:
    """SA-19, SX-3."""
    calls = [first("one"), first("two", 1), child("kid", "two", 10), child("kid", "one", 5), child("kid", "gone", 7)]
    org.take(*calls)
    other = join(at)
    other.take(*reversed(calls))
    assert org.projection() == other.projection()


# --- what is deleted


def test_children_outlive_a_parent_that_is_deleted(org: Org) -> None:
    """SA-20, SX-161: nodes that others hold stay, under their form; what nobody holds goes."""
    shared = asked("hi", "yes", "more")
    top = event("t", 0, request=shared, response=said("only the top's", "mt"), session=named("top"))
    below = named("kid", parent_harness_session_id="top")
    kid = event("k", 1, request=shared, response=said("the kid's", "mk"), session=below)
    org.take(top, kid)
    found = org.sessions()
    [turn] = org.turns(found["top"], payload="full")
    kept, gone = turn["head_hash"], turn["response_hash"]
    assert set(org.get(f"/v1/nodes/{kept}")["sessions"]) == {found["top"]["id"], found["kid"]["id"]}
    answer = org.ask(f"/v1/sessions/{found['top']['id']}", "DELETE", reason="asked for")
    assert answer.status_code == 204
    assert set(every(org)) == {"kid"}
    kid_now = org.sessions()["kid"]
    assert (kid_now["parent"]["state"], kid_now["parent"]["session_id"]) == ("deleted", None)
    assert org.get(f"/v1/nodes/{kept}")["sessions"] == [found["kid"]["id"]]
    assert org.ask(f"/v1/nodes/{gone}").status_code == 404
    [left] = org.turns(kid_now, payload="full")
    assert [each["content"][0]["text"] for each in left["messages"]] == ["hi", "yes", "more", "the kid's"]
    for path in (f"sessions/{found['top']['id']}", f"turns/{turn['id']}", f"raw/{turn['evidence'][0]['event_id']}"):
        assert org.ask(f"/v1/{path}").status_code == 404, path
    status, told = org.post(event("t2", 2, session=named("top")))
    assert (status, told["code"]) == (410, "session_deleted")
    assert [each["capture_id"] for each in org.events()] == ["k"]
