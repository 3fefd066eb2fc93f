"""What a checker infers of declarations: durable functions, steps, effects, policies, values. Checked, never run."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, assert_type

import holdfast


@dataclass
class Page:
    """Something of the user's own."""

    title: str


class CardDeclined(Exception):
    """An exception of the user's own."""


# --- effects and policies ---

assert_type(holdfast.idempotent(), holdfast.Effect)
assert_type(holdfast.at_least_once(), holdfast.Effect)
assert_type(holdfast.exactly_once("cost_bearing"), holdfast.Effect)
holdfast.exactly_once("money", on_ambiguous=holdfast.fail(), unknown_on=(TimeoutError, ConnectionError))
holdfast.exactly_once("monetary")  # type: ignore[arg-type]  # kinds are literals
holdfast.exactly_once("money", on_ambiguous="fail")  # type: ignore[arg-type]  # policies are values, not names

policies: list[holdfast.Policy] = [
    holdfast.skip(),
    holdfast.skip(Page("none")),
    holdfast.fail(),
    holdfast.rerun(),
    holdfast.rerun_with_key(),
]


async def ask(handle: holdfast.StepHandle) -> holdfast.Verdict:
    """An asynchronous probe."""
    return holdfast.happened(handle.position) if handle.attempt else holdfast.unknown()


def look(handle: holdfast.StepHandle) -> holdfast.Verdict:
    """A plain probe."""
    return holdfast.not_happened()


def guess(handle: holdfast.StepHandle) -> bool:
    """No probe: it answers with something else than a verdict."""
    return True


assert_type(holdfast.reconcile(ask), holdfast.Policy)
assert_type(holdfast.reconcile(look), holdfast.Policy)
holdfast.reconcile(guess)  # type: ignore[arg-type]  # a probe answers with a verdict
assert_type(holdfast.abort(), holdfast.Verdict)

holdfast.Retry(max_attempts=3, initial=timedelta(seconds=1), retry_on=(OSError,), give_up_on=(PermissionError,))
holdfast.Retry(initial=5)  # type: ignore[arg-type]  # durations are timedeltas


# --- steps ---


@holdfast.step(effect=holdfast.idempotent())
async def fetch(url: str, *, depth: int = 1) -> Page:
    """An asynchronous step."""
    return Page(url)


@holdfast.step(effect=holdfast.at_least_once(), fingerprint=("text",), version="2", retry=holdfast.Retry(3))
def compress(text: str) -> bytes:
    """A plain step."""
    return text.encode()


@holdfast.step(effect=holdfast.idempotent(), fingerprint=lambda page: b"")
async def index(page: Page) -> None:
    """A step with a fingerprint of its own."""


@holdfast.step(effect=holdfast.idempotent(), fingerprint="arguments")  # type: ignore[arg-type]  # the only text is "args"
async def wrong_fingerprint() -> None:
    """A step that cannot be declared."""


@holdfast.step()  # type: ignore[call-arg]  # a step says what it does to the world
async def no_effect() -> None:
    """A step that cannot be declared."""


class Shop:
    """Steps may be methods."""

    @holdfast.step(effect=holdfast.idempotent())
    async def price(self, item: str) -> int:
        """A step of an object."""
        return len(item)


async def steps_keep_their_signatures() -> None:
    """As functions of their own, with `call` and `recorded` beside the call."""
    step: holdfast.Step[..., Page] = fetch
    assert_type(await step("a"), Page)
    calls: list[Coroutine[object, object, Page]] = [fetch("a"), fetch.call("b")]
    assert_type([await call for call in calls], list[Page])
    assert_type(await fetch("a", depth=2), Page)
    assert_type(await fetch.call("a"), Page)
    assert_type(await fetch.recorded("a"), holdfast.StepRecord[Page])
    await fetch(3)  # type: ignore[arg-type]  # the url is text
    await fetch("a", 2)  # type: ignore[call-arg]  # depth is given by name
    await fetch.recorded("a", deep=2)  # type: ignore[call-arg]  # there is no such parameter

    plain: holdfast.PlainStep[..., bytes] = compress
    assert_type(plain("a"), bytes)
    assert_type(compress("a"), bytes)
    assert_type(await compress.call("a"), bytes)
    assert_type(await compress.recorded("a"), holdfast.StepRecord[bytes])
    await compress("a")  # type: ignore[misc]  # a plain step is awaited by .call
    compress.call(b"a")  # type: ignore[arg-type, unused-coroutine]  # the text is text, and the call is to be awaited


def outcomes_are_a_closed_union(record: holdfast.StepRecord[Page]) -> str:
    """Each of its members holds the value."""
    assert_type(record.value, Page)
    assert_type(record.idempotency_key, bytes)
    assert_type(record.attempt, int)
    match record.outcome:
        case holdfast.Live(value):
            assert_type(value, Page)
            return "live"
        case holdfast.Replayed(value):
            assert_type(value, Page)
            return "replayed"
        case holdfast.Assumed(value, by):
            assert_type(value, Page)
            assert_type(by, Literal["policy", "probe", "operator"])
            return by


def a_handle_knows_its_step() -> None:
    """What `current_step` returns."""
    handle = holdfast.current_step()
    assert_type(handle, holdfast.StepHandle)
    assert_type(handle.idempotency_key, bytes)
    assert_type(handle.execution_id, str)
    assert_type(handle.name, str)
    handle.idempotency_key = b""  # type: ignore[misc]  # a key is not chosen


holdfast.StepDescriptor("tool", holdfast.idempotent(), fingerprint=b"1", result_type=str, raises=(CardDeclined,))
holdfast.StepDescriptor("tool", holdfast.idempotent(), b"1")  # type: ignore[call-arg]  # options are given by name


# --- durable functions ---


@holdfast.durable(kind="agent_turn", raises=(CardDeclined,))
async def turn(prompt: str, retries: int = 0) -> Page:
    """An asynchronous durable function."""
    return await fetch(prompt)


@holdfast.durable(kind="plain_turn")
def plain_turn(prompt: str) -> bytes:
    """A plain durable function."""
    return compress(prompt)


async def durable_functions_bind_their_arguments() -> None:
    """Exactly; and called by themselves they are the functions they decorate."""
    any_turn: holdfast.Durable[..., Page] = turn
    assert_type(any_turn.kind, str)
    assert_type(turn.bind("buy milk"), holdfast.Call[Page])
    assert_type(turn.bind("buy milk", retries=2), holdfast.Call[Page])
    assert_type(plain_turn.bind("buy milk"), holdfast.Call[bytes])
    assert_type(turn.bind("buy milk").arguments(), dict[str, Any])
    assert_type(await turn("buy milk"), Page)
    assert_type(plain_turn("buy milk"), bytes)
    turn.bind(3)  # type: ignore[arg-type]  # the prompt is text
    turn.bind()  # type: ignore[call-arg]  # the prompt is missing
    plain_turn.bind("buy milk", 2)  # type: ignore[call-arg]  # one argument too many


@holdfast.durable("agent_turn")  # type: ignore[call-arg]  # the kind is given by name
async def no_kind() -> None:
    """A durable function that cannot be declared."""


# --- steps that are methods ---


class Counter:
    """Steps of an object: what a call takes and gives is what the method does, without `self`."""

    @holdfast.step(effect=holdfast.idempotent())
    async def quote(self, item: str, count: int = 1) -> Page:
        """An asynchronous step."""
        return Page(item * count)

    @holdfast.step(effect=holdfast.idempotent())
    def weigh(self, item: str) -> float:
        """A plain step."""
        return float(len(item))


async def steps_that_are_methods_keep_their_types(counter: Counter) -> None:
    """Bound to their object, by every way to call them."""
    assert_type(await counter.quote("milk"), Page)
    assert_type(await counter.quote("milk", count=2), Page)
    assert_type(await counter.quote.call("milk"), Page)
    assert_type(await counter.quote.recorded("milk"), holdfast.StepRecord[Page])
    assert_type(counter.weigh("milk"), float)
    assert_type(await counter.weigh.call("milk"), float)
    assert_type(await holdfast.gather(counter.quote("a"), counter.weigh.call("b")), tuple[Page, float])
    assert_type(Counter.quote.name, str)
    assert_type(await Counter.quote(counter, "milk"), Page)
    await counter.quote(1)  # type: ignore[arg-type]  # an item is text
    await counter.quote("milk", "two")  # type: ignore[arg-type]  # a count is a number
    counter.weigh()  # type: ignore[call-arg]  # it takes an item


raise holdfast.OutcomeUnknown("the line broke")
