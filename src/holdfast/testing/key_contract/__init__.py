"""What the records of idempotency keys must do in every database, as verdicts that anybody can have on theirs.

    verdicts = await key_contract(lambda: my_database_opened())
    assert all(verdict.ok for verdict in verdicts)

There is a verdict for every cell of the table of a record's ways (`cells`), and one for each of the laws the table
does not show (`laws`). The functions of `holdfast.idempotency.keys` are driven as a guard drives them; no statement
is run here that they do not run.

Invariants:
    - What is expected is written down here, and asked of neither the machine nor the store.
    - A verdict uses keys and principals of its own, so a ledger that holds other things serves too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from holdfast.store.database import Database
from holdfast.testing.key_contract.bench import Bench
from holdfast.testing.key_contract.cells import cells
from holdfast.testing.key_contract.laws import laws
from holdfast.testing.verdicts import Verdict

__all__ = ["Verdict", "key_contract"]


async def key_contract(open_database: Callable[[], AbstractAsyncContextManager[Database]]) -> list[Verdict]:
    """Try everything a database must do with keys.

    Args:
        open_database: Opens the database for a block: `store.opened` of a `store_contract.LocalStore`, or your own.

    Returns:
        The verdicts, in the order of the table and then of the laws.
    """
    async with open_database() as database:
        bench = Bench(database)
        return [*await cells(bench), *await laws(bench)]
