"""The demo's agent: an ordinary program whose turns Holdfast makes durable.

A turn asks a model that costs money, lets two tools work at once, takes a payment and asks the model for
its last word. What a harness would say of it, that its frame opens and ends, is said through hook
processes, and every call of the model is captured. Nothing in it prepares for being killed but the effect
that each step declares; `main` is what any such program does when it starts: recover what a dead
predecessor left, then ask for everything again by id and let the ledger tell what is new.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx

import holdfast
from holdfast.cli.demo.book import Tally
from holdfast.cli.demo.capture import MODEL, capture
from holdfast.cli.demo.hooks import Harness
from holdfast.cli.demo.orders import LARGE_CENTS, PRICES_CENTS, Order, plan
from holdfast.cli.demo.wire import HOST, AnswerLost, Refused, call, die_with_parent, events
from holdfast.core.clock import SystemClock
from holdfast.idempotency.client import AsyncIdempotentTransport
from holdfast.idempotency.errors import KeyInFlight

__all__ = ["Answer", "Receipt", "TurnReport", "turn"]

_IN_FLIGHT = 3
_PATIENT = holdfast.Retry(
    max_attempts=200,
    initial=timedelta(milliseconds=60),
    factor=1.5,
    maximum=timedelta(milliseconds=400),
    retry_on=(Refused,),
)
"""A service that is down was not called at all: a known failure, worth trying again until it is back."""

_DECISION_SECONDS = 0.2
"""How often a turn that waits for an operator is tried again."""

_EFFECT_TIMEOUT = timedelta(seconds=20)
_TOOLS: list[dict[str, Any]] = [
    {
        "name": "look_up_stock",
        "description": "Say in which warehouse an item lies.",
        "input_schema": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]},
    },
    {
        "name": "quote_price",
        "description": "Say what a number of items costs, in cents.",
        "input_schema": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["item", "count"],
        },
    },
]

Message = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A message of the model, whole."""

    id: str
    content: list[dict[str, Any]]
    stop_reason: str
    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, message: dict[str, Any]) -> Answer:
        """The answer that a message is."""
        usage = message["usage"]
        return cls(
            message["id"], message["content"], message["stop_reason"], usage["input_tokens"], usage["output_tokens"]
        )

    @property
    def message(self) -> dict[str, Any]:
        """The message as the model's API tells it."""
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": MODEL, "content": self.content,
            "stop_reason": self.stop_reason, "stop_sequence": None,
            "usage": {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens},
        }  # fmt: skip

    def tool_input(self, name: str) -> dict[str, Any]:
        """Return what the model wants a tool to be given."""
        return next(block["input"] for block in self.content if block["type"] == "tool_use" and block["name"] == name)

    @property
    def text(self) -> str:
        """What the model says."""
        return "".join(block["text"] for block in self.content if block["type"] == "text")


@dataclass(frozen=True, slots=True)
class Receipt:
    """The payment service's word that it has taken a payment."""

    id: str
    order: str
    amount_cents: int


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What a turn has to show in the end."""

    order: str
    model_answers: list[str]
    payment: str
    amount_cents: int
    reply: str


@dataclass(frozen=True, slots=True)
class _Site:
    """Where this process finds everything outside it."""

    model_port: int
    payments: httpx.AsyncClient
    server: httpx.AsyncClient
    harness: Harness
    tally: Tally
    clock: SystemClock


_site: ContextVar[_Site] = ContextVar("site")


async def _answer_given_before(handle: holdfast.StepHandle) -> holdfast.Verdict:
    """Ask the model server, for free, whether it has answered this very call."""
    status, message = await call(_site.get().model_port, "GET", f"/v1/answers/{handle.idempotency_key.hex()}")
    match status:
        case 200:
            return holdfast.happened(Answer.of(message))
        case 404:
            return holdfast.not_happened()
        case _:
            return holdfast.unknown()


@holdfast.step(
    effect=holdfast.exactly_once("cost_bearing", on_ambiguous=holdfast.reconcile(_answer_given_before)),
    retry=_PATIENT,
    timeout=_EFFECT_TIMEOUT,
)
async def ask_model(order: str, talk: list[Message]) -> Answer:
    """Make a paid call and put the streamed answer together."""
    site = _site.get()
    site.tally.mark("ran")
    request = _request(order, talk)
    key = holdfast.current_step().idempotency_key.hex()
    message: dict[str, Any] = {}
    whole = False
    content: list[dict[str, Any]] = []
    pieces: list[str] = []
    try:
        async for event in events(site.model_port, "/v1/messages", key=key, value=request):
            match event["type"]:
                case "message_start":
                    message = event["message"]
                case "content_block_start":
                    content.append(event["content_block"])
                    pieces = []
                case "content_block_delta":
                    delta = event["delta"]
                    pieces.append(delta["text"] if delta["type"] == "text_delta" else delta["partial_json"])
                case "content_block_stop" if content[-1]["type"] == "text":
                    content[-1]["text"] = "".join(pieces)
                case "content_block_stop":
                    content[-1]["input"] = json.loads("".join(pieces))
                case "message_delta":
                    message["stop_reason"] = event["delta"]["stop_reason"]
                    message["usage"] |= event["usage"]
                case "message_stop":
                    whole = True
    except AnswerLost as error:
        raise holdfast.OutcomeUnknown(str(error)) from error
    if not whole:
        raise holdfast.OutcomeUnknown("the model's answer broke off")
    return Answer.of({**message, "content": content})


def _request(order: str, talk: list[Message]) -> dict[str, Any]:
    """What the model's API is asked."""
    return {
        "model": MODEL,
        "max_tokens": 1024,
        "stream": True,
        "metadata": {"user_id": order},
        "tools": _TOOLS,
        "messages": talk,
    }


@holdfast.step(effect=holdfast.idempotent())
async def look_up_stock(item: str) -> str:
    """A tool that only reads: running it again harms nobody."""
    site = _site.get()
    site.tally.mark("ran")
    await site.clock.sleep(0.1)
    return f"warehouse {len(item) % 3 + 1}"


@holdfast.step(effect=holdfast.at_least_once())
async def quote_price(item: str, count: int) -> int:
    """A tool whose answer, once it is recorded, is the one that holds."""
    site = _site.get()
    site.tally.mark("ran")
    await site.clock.sleep(0.15)
    return PRICES_CENTS[item] * count


async def _pay(order: str, amount_cents: int) -> Receipt:
    site = _site.get()
    site.tally.mark("ran")
    payment = {"order": order, "amount_cents": amount_cents}
    try:
        # The transport sends the step's own key, and again after a lost answer: the service knows what it has done.
        answer = await site.payments.post("/v1/payments", json=payment)
    except httpx.ConnectError as error:
        raise Refused("nobody takes payments") from error
    except (httpx.TransportError, KeyInFlight) as error:
        raise holdfast.OutcomeUnknown(str(error)) from error
    if answer.status_code != 201:
        raise RuntimeError(f"the payment service answered {answer.status_code}: {answer.text}")
    return Receipt(**answer.json())


def _key_of_the_step(_: httpx.Request) -> str:
    return holdfast.current_step().idempotency_key.hex()


def _client(port: int) -> httpx.AsyncClient:
    transport = AsyncIdempotentTransport(key_source=_key_of_the_step)
    return httpx.AsyncClient(
        base_url=f"http://{HOST}:{port}", transport=transport, timeout=_EFFECT_TIMEOUT.total_seconds()
    )


@holdfast.step(
    effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key()),
    retry=_PATIENT,
    timeout=_EFFECT_TIMEOUT,
)
async def charge(order: str, amount_cents: int) -> Receipt:
    """Take a payment; in doubt ask again under the same key, for the service applies a key once."""
    return await _pay(order, amount_cents)


@holdfast.step(
    effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()),
    retry=_PATIENT,
    timeout=_EFFECT_TIMEOUT,
)
async def charge_large(order: str, amount_cents: int) -> Receipt:
    """Take a payment too large to repeat on suspicion: in doubt an operator finds out and decides."""
    return await _pay(order, amount_cents)


@holdfast.step(effect=holdfast.at_least_once())
async def announce(hook: str, order: str) -> None:
    """Tell of the turn as a harness does; said again after a crash, it is one and the same delivery."""
    site = _site.get()
    site.tally.mark("ran")
    await site.harness.call(hook, order)


@holdfast.step(effect=holdfast.at_least_once(), retry=_PATIENT)
async def keep(order: str, talk: list[Message], answer: Answer) -> None:
    """Have a model call captured; sent again after a crash, it is one and the same call."""
    site = _site.get()
    site.tally.mark("ran")
    await capture(site.server, order, _request(order, talk), answer.message)


def _seen(record: holdfast.StepRecord[_T]) -> _T:
    if isinstance(record.outcome, holdfast.Replayed):
        _site.get().tally.mark("replayed")
    return record.value


@holdfast.durable(kind="agent_turn")
async def turn(order: str, prompt: str) -> TurnReport:
    """Serve one customer."""
    _seen(await announce.recorded("agent:start", order))
    talk: list[Message] = [{"role": "user", "content": prompt}]
    first = _seen(await ask_model.recorded(order, talk))
    _seen(await keep.recorded(order, talk, first))
    stock, price = await asyncio.gather(
        look_up_stock.recorded(**first.tool_input("look_up_stock")),
        quote_price.recorded(**first.tool_input("quote_price")),
    )
    place, amount_cents = _seen(stock), _seen(price)
    take = charge_large if amount_cents >= LARGE_CENTS else charge
    receipt = _seen(await take.recorded(order, amount_cents))
    told = {"look_up_stock": place, "quote_price": f"{amount_cents} cents, paid with {receipt.id}"}
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": told[block["name"]]}
        for block in first.content
        if block["type"] == "tool_use"
    ]
    talk += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    last = _seen(await ask_model.recorded(order, talk))
    _seen(await keep.recorded(order, talk, last))
    _seen(await announce.recorded("agent:end", order))
    return TurnReport(order, [first.id, last.id], receipt.id, receipt.amount_cents, last.text)


async def _fulfil(hf: holdfast.Holdfast, order: Order, gate: asyncio.Semaphore) -> None:
    """See one order through, however long an operator takes over it."""
    while True:
        async with gate:
            try:
                handle = await hf.start(turn, order.id, order.prompt, id=order.id)
                await handle.result()
            except holdfast.NeedsDecision:
                pass
            else:
                return
        await _site.get().clock.sleep(_DECISION_SECONDS)


async def _main(ledger: str, tally: Tally, ports: tuple[int, int, int], seed: int, turns: int) -> None:
    dismissed = die_with_parent()
    model_port, payments_port, server_port = ports
    server = httpx.AsyncClient(base_url=f"http://{HOST}:{server_port}", timeout=_EFFECT_TIMEOUT.total_seconds())
    async with _client(payments_port) as payments, server, holdfast.open(ledger) as hf:
        harness = Harness(ledger)
        _site.set(_Site(model_port, payments, server, harness, tally, SystemClock()))
        await harness.call("session:start")
        await hf.recover()
        tally.mark("ready")
        gate = asyncio.Semaphore(_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            for order in plan(seed, turns):
                group.create_task(_fulfil(hf, order, gate))
        await harness.call("session:end")
        # Whoever wants to kill an agent that has nothing left to do finds one.
        await dismissed


if __name__ == "__main__":
    ledger, tally, *ports, seed, turns = sys.argv[1:]
    model_port, payments_port, server_port = map(int, ports)
    asyncio.run(_main(ledger, Tally(Path(tally)), (model_port, payments_port, server_port), int(seed), int(turns)))
