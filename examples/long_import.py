"""A long import that remembers where it was.

    python examples/long_import.py import.db orders.csv

Rows go to a service that takes a row any number of times (an upsert), so the steps are `at_least_once`. A page of
rows is one chapter: its journal is as long as the page, however long the file is, and a change of this program
concerns the page at hand. `Shop` stands for the service.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from itertools import islice
from pathlib import Path

import holdfast

PAGE_ROWS = 5
AT_ONCE = 2


class Shop:
    """Somebody else's service: a folder with a file for each order."""

    folder = Path("shop")

    def put(self, number: str, text: str) -> None:
        """Store an order, or store it again."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / number).write_text(text)


shop = Shop()


@holdfast.step(effect=holdfast.idempotent())
def read_page(path: str, start: int) -> list[tuple[str, str]]:
    """Read some rows of the file; reading is a step because files change."""
    with Path(path).open(newline="") as file:
        return [(row["number"], row["text"]) for row in islice(csv.DictReader(file), start, start + PAGE_ROWS)]


@holdfast.step(effect=holdfast.at_least_once(), retry=holdfast.Retry(max_attempts=5))
def put_order(number: str, text: str) -> None:
    """Store one order."""
    shop.put(number, text)


async def put_some(rows: list[tuple[str, str]]) -> int:
    """Store orders one after another; several of these run side by side."""
    for number, text in rows:
        await put_order.call(number, text)
    return len(rows)


@holdfast.durable(kind="examples.import")
async def import_orders(path: str, start: int = 0) -> int:
    """Import a page, then go on with the next one as a new chapter."""
    rows = await read_page.call(path, start)
    done = sum(await holdfast.gather(*(put_some(rows[lane::AT_ONCE]) for lane in range(AT_ONCE))))
    if done == PAGE_ROWS:
        holdfast.continue_as_new(path, start + done)
    return start + done


async def main(ledger: str, path: str) -> None:
    """Run, or resume, the import of a file."""
    async with holdfast.open(ledger) as hf:
        print(await hf.run(import_orders, path, id=f"import-{path}"), "orders imported")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
