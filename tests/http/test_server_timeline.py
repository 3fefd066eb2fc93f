"""One timeline of what all slices know of an agent's session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from tests.flow.commandline import tell
from tests.http.backends import server
from tests.http.captured import ANSWER, REQUEST, call, post

import holdfast
from holdfast import Holdfast
from holdfast.lifecycle import LifecycleConfig, deliveries
from holdfast.lifecycle.deliveries import Delivery
from holdfast.lifecycle.hooks import Hooks

SESSION = "s-1"
WAIT = {"prefer": "wait=10"}
NAMED = {"harness_id": "claude", "harness_session_id": SESSION}
USED = {"type": "tool_use", "id": "toolu_1", "name": "pay", "input": {"order": 1}}
ANSWERED = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "paid", "is_error": False}


async def _work(hf: Holdfast) -> None:
    """Do what the model asked for: one step that looks, and one that pays."""
    money = holdfast.exactly_once("money", on_ambiguous=holdfast.fail())
    looked = holdfast.StepDescriptor("look", holdfast.idempotent(), result_type=str)
    paid = holdfast.StepDescriptor("pay", money, result_type=str)

    async def do(_: Any) -> str:
        return "a value that nobody shows"

    for id in (SESSION, f"{SESSION}/turn-2", f"{SESSION}0", "another"):
        async with hf.execution(id, kind="turn") as context:
            await context.step(looked, do)
            await context.step(paid, do)


async def _announce(hf: Holdfast) -> None:
    """Let two harnesses announce a session each, under one and the same id."""
    body = {"session_id": SESSION, "hook_event_name": "SessionStart", "source": "startup"}
    data = json.dumps(body).encode()
    clock = hf.database.clock
    async with hf.database.write() as tx:
        for harness in ("claude", "codex"):
            await deliveries.append(tx, Delivery(harness, harness, "", data, len(data), None, clock.now(), None, 0))
    async with Hooks(hf.database, config=LifecycleConfig(), clock=clock) as hooks:
        while await hooks.derive(call_clients=True):
            pass


@pytest.fixture(scope="module")
def clients(module_ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """An operator, and one who may only read, of a ledger where all slices have worked on one session."""
    keys = {
        scopes: tell("access", "create", "--db", module_ledger, *(f"--scope={each}" for each in scopes.split()))
        for scopes in ("read", "ingest read admin")
    }
    secret = tmp_path_factory.mktemp("secret") / "secret"
    with server(module_ledger, secret_file=secret) as at:
        made = {
            scopes.split()[-1]: httpx.Client(base_url=at.client.base_url, headers={"x-api-key": key["access_key"]})
            for scopes, key in keys.items()
        }
        talk = [*REQUEST["messages"], {"role": "assistant", "content": [USED]}, {"role": "user", "content": [ANSWERED]}]
        first = call(
            "t1", session=NAMED, captured_at="2026-11-21T12:00:00Z", ended_at="2026-11-21T12:00:02Z",
            response={**ANSWER, "id": "m1", "content": [USED]},
        )  # fmt: skip
        second = call(
            "t2", session=NAMED, captured_at="2026-11-21T12:00:05Z", request={**REQUEST, "messages": talk},
            thread_id="helper",
        )  # fmt: skip
        for each in (second, first):
            assert post(made["admin"], each, **WAIT)[0] == 202
        at.do(_work)
        at.do(_announce)
        yield made
        for client in made.values():
            client.close()


def _timeline(client: httpx.Client) -> Any:
    [session] = client.get("/v1/sessions").json()["items"]
    answer = client.get(f"/v1/sessions/{session['id']}/timeline")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_turns_tools_steps_effects_and_receipts_stand_in_one_order(clients: dict[str, httpx.Client]) -> None:
    told = _timeline(clients["admin"])
    items = told["items"]
    assert (told["slices"], told["truncated"]) == (["sessions", "durable", "lifecycle"], False)
    assert all(before["at"] <= after["at"] for before, after in pairwise(items))
    turn, tool, other = items[:3]
    assert [each["kind"] for each in items[:3]] == ["turn", "tool_use", "turn"]
    assert (turn["name"], turn["outcome"], turn["ended_at"]) == ("m-1", "ok", "2026-11-21T12:00:02.000000Z")
    assert (tool["id"], tool["name"], tool["outcome"], tool["turn_id"]) == ("toolu_1", "pay", "ok", turn["id"])
    assert (tool["at"], tool["ended_at"]) == ("2026-11-21T12:00:02.000000Z", "2026-11-21T12:00:05.000000Z")
    assert (other["thread_id"], other["id"]) == ("helper", other["turn_id"])
    steps = [each for each in items if each["execution_id"] is not None]
    assert [(each["execution_id"], each["kind"], each["name"], each["outcome"]) for each in steps] == [
        (execution, kind, name, "value")
        for execution in (SESSION, f"{SESSION}/turn-2")
        for kind, name in (("step", "look"), ("effect", "pay"))
    ]
    assert all(each["ended_at"] is not None for each in steps)
    receipts = [each for each in items if each["kind"] == "receipt"]
    assert [each["name"] for each in receipts] == ["session.starting", "session.started"], "and none of the other one"
    assert "nobody shows" not in json.dumps(told)


def test_what_belongs_to_no_org_is_shown_to_operators_only(clients: dict[str, httpx.Client]) -> None:
    told = _timeline(clients["read"])
    assert (told["slices"], {each["kind"] for each in told["items"]}) == (["sessions"], {"turn", "tool_use"})
