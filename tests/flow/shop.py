"""A user's program, for the command line to run: as a module of functions, and as applications to open."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import date

import holdfast

SECRET = "correct-horse-battery-staple"


@dataclass
class Item:
    name: str
    count: int = 1


class CardDeclined(Exception):
    """What the user's program raises as itself."""


@holdfast.step(effect=holdfast.idempotent())
async def look_up(item: str) -> str:
    return f"{item} {SECRET}"


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
async def charge(cents: int) -> str:
    if cents > 0 and holdfast.current_step().attempt == 1:
        raise holdfast.OutcomeUnknown("the line broke")
    return f"receipt {holdfast.current_step().attempt}"


@holdfast.step(effect=holdfast.idempotent())
async def changed() -> str:
    return "changed"


@holdfast.step(effect=holdfast.idempotent())
def hear() -> str:
    """Say that it runs, and wait for a line from outside."""
    sys.stderr.write("listening\n")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


@holdfast.durable(kind="shop.buy")
async def buy(item: str, cents: int = 0) -> list[str]:
    """Goes wrong in doubt when it costs anything."""
    return [await look_up(item), await charge(cents)]


@holdfast.durable(kind="shop.typed")
async def typed(item: Item, due: date, *, tags: set[str] | None = None) -> tuple[str, int, str, list[str]]:
    return item.name, item.count, due.isoformat(), sorted(tags or ())


@holdfast.durable(kind="shop.many")
async def many(first: int, *rest: int, **named: int) -> int:
    return first + sum(rest) + sum(named.values())


@holdfast.durable(kind="shop.plain")
def plain(item: str) -> str:
    return item.upper()


@holdfast.durable(kind="shop.fail")
async def fail() -> None:
    await look_up("nothing")
    raise ValueError("out of stock")


@holdfast.durable(kind="shop.decline", raises=(CardDeclined,))
async def decline() -> None:
    raise CardDeclined("no credit")


@holdfast.durable(kind="shop.listen")
async def listen() -> str:
    await look_up("ear")
    return await hear.call()


@holdfast.durable(kind="shop.shift")
async def shift() -> str:
    """Fails in its first version; the second does something else first."""
    if os.environ.get("SHOP_VERSION") == "2":
        return await changed()
    await look_up("old")
    raise ValueError("first version")


@holdfast.durable(kind="shop.bytes")
async def raw() -> bytes:
    return b"\x00\xff"


def app() -> holdfast.Holdfast:
    """The application as a function that gives one."""
    return holdfast.open(os.environ["SHOP_LEDGER"])


async def slow_app() -> holdfast.Holdfast:
    """What cannot be called without a loop is no application."""
    return app()


not_an_app = 3
