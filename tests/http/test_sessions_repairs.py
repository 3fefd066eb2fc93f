"""What was captured is put elsewhere, priced again and derived anew over HTTP, beside whoever writes and reads."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import rows
from tests.http.backends import server
from tests.http.orgs import MODEL, Org, asked, event, join, minute, named, said

from holdfast.sessions import instants
from holdfast.sessions.config import Prices

CARD = {"provider": "anthropic", "model": MODEL, "per_million": {"input": "3", "output": "15"}}


def card(path: Path, *cards: dict[str, Any]) -> Prices:
    """A file of rate cards for one model."""
    path.write_text(json.dumps([{**CARD, **each} for each in cards]))
    return Prices(cards=path, package=False)


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    dear = {"input": "30", "output": "0"}
    later = {"id": "later", "effective_from": instants.written(minute(60)), "per_million": dear}
    return {"prices": card(tmp_path_factory.mktemp("cards") / "cards.json", {"id": "first"}, later)}


def admin(org: Org, what: str, **said: Any) -> Any:
    """Ask for a repair; it has to be done."""
    status, told = org.post(said, f"/v1/admin/{what}")
    assert status == 200, told
    return told


def group(org: Org) -> Any:
    [found] = [each for each in org.sessions().values() if each["is_synthetic"]]
    return found


def test_a_group_is_put_into_its_session_and_taken_out_again(org: Org) -> None:
    """SA-61, SX-162: the dry run says what is done, undoing undoes all, and what comes later is as it was."""
    org.take(
        event("real", 1),
        event("1", 2, session=None, response=said("red", "m1")),
        event("2", 3, session=None, request=asked("hi", "red", "go"), response=said("redder", "m2")),
    )
    before, raw = org.projection(), org.events()
    given = {
        "selector": {"session": {"id": group(org)["id"]}}, "reason": "the proxy had no headers",
        "change": {"harness_id": "claude", "harness_session_id": "s"},
    }  # fmt: skip
    dry = admin(org, "attributions", **given)
    assert (dry["dry_run"], dry["events"], len(dry["turns"])) == (True, 2, 2)
    assert (org.projection(), org.get("/v1/admin/attributions")["items"]) == (before, [])
    done = admin(org, "attributions", **given, dry_run=False)
    assert {**done, "attribution_id": dry["attribution_id"], "dry_run": True} == dry
    session = org.only()
    assert (session["turn_count"], session["tokens"]["input"], session["is_synthetic"]) == (3, 21, False)
    [effect] = [each for each in dry["sessions"] if each["harness_session_id"] == "s"]
    assert (effect["before"]["turn_count"], effect["after"]["turn_count"]) == (1, 3)
    assert (effect["after"]["tokens"]["input"], effect["after"]["cost"]["usd"]) == (21, session["cost"]["usd"])
    assert org.events() == raw, "what was sent is untouched"
    undone = org.ask(f"/v1/admin/attributions/{done['attribution_id']}", "DELETE")
    assert undone.status_code == 200, undone.text
    assert org.projection() == before
    assert group(org)["turn_count"] == 2
    own = {"selector": {"session": {"harness_id": "claude", "harness_session_id": "s"}}, "reason": "x",
           "change": {"parent_harness_session_id": "s"}}  # fmt: skip
    status, told = org.post({**own, "dry_run": False}, "/v1/admin/attributions")
    assert (status, told["code"]) == (409, "attribution_refused")
    assert org.projection() == before


def test_a_price_holds_until_somebody_prices_again(org: Org, module_ledger: str, tmp_path: Path) -> None:
    """SA-44, SX-65: a card of a later date prices later calls; another file changes nothing until it is asked to."""
    org.take(event("early", 59, started_at=minute(59)), event("late", 61, started_at=minute(61)))

    def prices() -> list[tuple[str, str]]:
        return [
            (each["cost"]["usd"], each["cost"]["price_version"].partition("@")[0]) for each in org.turns(org.only())
        ]

    old = [("0.000066000000", "card:first"), ("0.000210000000", "card:later")]
    assert prices() == old
    dearer = card(tmp_path / "cards.json", {"id": "first", "per_million": {"input": "6", "output": "30"}})
    with server(module_ledger, secret_file=tmp_path / "secret", prices=dearer) as other:
        elsewhere = Org(other, org.id, org.keys)
        admin(elsewhere, "rebuild", dry_run=False)
        assert prices() == old, "deriving anew is no new price"
        asked_for = {"reason": "the bill says so", "since": instants.written(minute(0))}
        dry = admin(elsewhere, "reprice", **asked_for)
        assert (dry["turns"], dry["repriced"], prices()) == (2, 2, old)
        assert (dry["before"]["usd"], dry["after"]["usd"]) == ("0.000276000000", "0.000264000000")
        done = admin(elsewhere, "reprice", **asked_for, dry_run=False)
        assert {**done, "dry_run": True} == dry
        assert prices() == [("0.000132000000", "card:first")] * 2
        assert org.only()["cost"]["usd"] == "0.000264000000"
        again = admin(elsewhere, "reprice", **asked_for, dry_run=False)
        assert (again["turns"], again["repriced"]) == (2, 0)
    kept = asyncio.run(rows(module_ledger))["session_cost_ledger"]
    mine = [each for each in kept if org.id.bytes.hex() in each or repr(org.id.bytes) in each]
    assert (len(mine), sum("reprice" in each for each in mine)) == (4, 2), "each price that was is kept"
    assert sum("the bill says so" in each for each in mine) == 2


def test_deriving_anew_disturbs_nobody(org: Org) -> None:
    """SA-52, SX-163, SX-24: beside calls that come in and readers that look; it ends like one that saw all at once."""
    first = [event(f"a{at}", at, session=named(f"s{at % 3}")) for at in range(30)]
    more = [event(f"b{at}", 100 + at, session=named(f"s{at % 3}")) for at in range(30)]
    org.batch(*first)
    ids = {key: each["id"] for key, each in org.sessions().items()}
    seen: list[list[int]] = []

    def read() -> None:
        seen.append([each["turn_count"] for each in org.sessions().values()])

    with ThreadPoolExecutor(4) as threads:
        rebuilt = threads.submit(admin, org, "rebuild", dry_run=False)
        sent = [threads.submit(org.post, each) for each in more]
        while not rebuilt.done():
            read()
        assert {each.result()[0] for each in sent} == {202}
    org.settle()
    read()
    assert rebuilt.result()["derived"] >= 30
    assert all(len(counts) == 3 and min(counts) >= 10 for counts in seen), "there is never less than there was"
    assert seen[-1] == [20, 20, 20]
    assert {key: each["id"] for key, each in org.sessions().items()} == ids
    fresh = join(org.at)
    fresh.batch(*first, *more)
    assert org.projection() == fresh.projection()
