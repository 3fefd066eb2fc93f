"""The demo's record of its model calls: the agent sends each to `holdfast serve`, which makes turns and sums of them.

Invariants:
    - A call is named after the model's message, so that it is captured once however often it is sent.
    - Nobody's own configuration is read: rate card and settings lie in the demo's folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from holdfast.cli.demo.hooks import HARNESS
from holdfast.cli.demo.wire import HOST, Refused

__all__ = ["Captured", "capture", "captured", "configure", "cost_usd"]

MODEL = "scripted-1"
INPUT_USD, OUTPUT_USD = Decimal(3), Decimal(15)
"""What a million tokens cost."""

_WAIT_SECONDS = 10
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Captured:
    """What the server has made of all that was captured.

    Attributes:
        turns: How many turns there are.
        input_tokens: What they read.
        output_tokens: What they wrote.
        cost_usd: What they cost, exactly.
        timelines: How many sessions have turns, tool uses, steps, effects and receipts on one timeline.
    """

    turns: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    timelines: int


def configure(folder: Path) -> None:
    """Write what the server is to know: what the model costs."""
    card = {
        "id": "demo", "provider": "anthropic", "model": MODEL,
        "per_million": {"input": str(INPUT_USD), "output": str(OUTPUT_USD)},
    }  # fmt: skip
    home = folder / "holdfast"
    home.mkdir()
    (home / "rates.json").write_text(json.dumps({"cards": [card]}))
    (home / "holdfast.toml").write_text('[sessions]\nprices.cards = "rates.json"\nprices.package = false\n')


def cost_usd(input_tokens: int, output_tokens: int) -> Decimal:
    """What so many tokens cost by the rate card."""
    return (input_tokens * INPUT_USD + output_tokens * OUTPUT_USD) / _MILLION


async def capture(client: httpx.AsyncClient, order: str, request: dict[str, Any], message: dict[str, Any]) -> None:
    """Send a call of the model; when this returns its turn is in the ledger.

    Raises:
        Refused: The server is not there, or too busy.
    """
    call = {
        "capture_id": message["id"], "provider": "anthropic", "endpoint": "/v1/messages", "agent_name": "demo",
        "request": request, "response": message,
        "session": {"harness_id": HARNESS, "harness_session_id": order},
    }  # fmt: skip
    try:
        answer = await client.post("/v1/ingest", json=call, headers={"Prefer": f"wait={_WAIT_SECONDS}"})
    except httpx.TransportError as error:
        raise Refused("nobody takes captured calls") from error
    if answer.status_code in (429, 503):
        raise Refused(f"the server takes no call now: {answer.text}")
    if answer.status_code not in (200, 202):
        raise RuntimeError(f"the server answered {answer.status_code}: {answer.text}")


async def captured(port: int) -> Captured:
    """Ask the server for its sums and timelines; a server that is not there has none."""
    try:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client:
            groups = (await client.get("/v1/stats")).raise_for_status().json()["items"]
            timelines = await _timelines(client)
    except httpx.HTTPError:
        groups = []
    if not groups:
        return Captured(0, 0, 0, "0", 0)
    [all_of_it] = groups
    tokens, cost = all_of_it["tokens"], all_of_it["cost"]
    return Captured(all_of_it["turns"], tokens["input"], tokens["output"], cost["usd"], timelines)


async def _timelines(client: httpx.AsyncClient) -> int:
    """Count the sessions of which one timeline shows what each slice knows."""
    count, cursor = 0, ""
    while cursor is not None:
        page = (await client.get("/v1/sessions", params={"cursor": cursor})).raise_for_status().json()
        cursor = page["next"]
        for session in page["items"]:
            answer = await client.get(f"/v1/sessions/{session['id']}/timeline")
            kinds = {each["kind"] for each in answer.raise_for_status().json()["items"]}
            count += kinds == {"turn", "tool_use", "step", "effect", "receipt"}
    return count


def _end_with_parent() -> None:
    """Stop in order once standard input ends: only the supervisor holds its other side."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from holdfast.cli.main import invoke

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(invoke(["serve", "--port", "0", "--json"]))
