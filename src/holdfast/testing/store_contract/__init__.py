"""What every store must do, as tests that anybody can run on theirs.

A store is a `Database` behind which the statements of Holdfast's slices work. To test one, derive a class of
each of these in a test module, and provide two fixtures (with pytest-asyncio in mode `auto`):

    store   a `Store`: opens handles on one fresh ledger, each as another process would have it
    db      one open handle of it, closed after the test

For example:

    import pytest
    from holdfast.testing import store_contract

    @pytest.fixture
    def store(tmp_path):
        return store_contract.LocalStore(str(tmp_path / "ledger.db"))

    @pytest.fixture
    async def db(store):
        async with store.opened() as database:
            yield database

    class TestTransactions(store_contract.Transactions): ...
    class TestClaims(store_contract.Claims): ...

`Sharing` and `Processes` open the same ledger several times and in several processes: they do not apply to a
store in memory. Everything else applies to all. The tests use the tables of durable execution, and no
statement that the engine does not use.
"""

from holdfast.testing.store_contract.appends import Appends, Fencing, Submits
from holdfast.testing.store_contract.ledgers import LocalStore, Store
from holdfast.testing.store_contract.sharing import Processes, Sharing
from holdfast.testing.store_contract.transactions import Claims, Errors, Pagination, Transactions, Values, Wakeups
from holdfast.testing.store_contract.writing import Limits, Outages

__all__ = [
    "Appends",
    "Claims",
    "Errors",
    "Fencing",
    "Limits",
    "LocalStore",
    "Outages",
    "Pagination",
    "Processes",
    "Sharing",
    "Store",
    "Submits",
    "Transactions",
    "Values",
    "Wakeups",
]
