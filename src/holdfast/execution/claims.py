"""Find out whether an execution may be claimed: is its owner dead, and is nothing of ours still on its way.

The kernel's word on a lock file comes first, the lease's end where there is none. The claim itself is one
statement of `journal`, and fences make it safe whatever is found here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.core.lease import is_over
from holdfast.core.loops import spawn
from holdfast.execution import journal
from holdfast.execution.context import unavailable
from holdfast.store.owners import Alive, Dead, Lock, probe

if TYPE_CHECKING:
    from holdfast.execution.engine import Holdfast
    from holdfast.store.database import Row, Tx


def owner_alive(engine: Holdfast, row: Row) -> bool:
    """Say whether the recorded owner of a row is alive, without disturbing it."""
    if row.owner_id is None:
        return False
    match probe(row):
        case Alive():
            return True
        case Dead(lock):
            lock.release()
            return False
    return not is_over(row.lease_until, engine.clock.now())


def owner_dead(engine: Holdfast, row: Row) -> tuple[Lock | None, bool]:
    """Say whether the owner of a row is dead; with the lock that proves it, if one does."""
    if row.owner_id is None:
        return None, False
    if row.owner_id == engine.database.owner.id:
        return None, row.pk not in engine.flying
    match probe(row):
        case Alive():
            return None, False
        case Dead(lock):
            return lock, True
    return None, is_over(row.lease_until, engine.clock.now())


async def settle_kept(engine: Holdfast, id: str, pk: int) -> bool:
    """Wait for outcomes that this process still keeps for an execution it has given up; say whether it had to.

    A claim raises the fence: what was accepted before must be on disk first.

    Raises:
        JournalUnavailable: They cannot be written now.
    """
    if pk in engine.flying or not engine.database.writer.pending(pk):
        return False
    drained = spawn(engine.database.writer.drained(pk), "holdfast.drained")
    try:
        if not await engine.clock.wait(drained, engine.config.ack_timeout_ms / 1000):
            raise unavailable(id, engine.config)
    finally:
        drained.cancel()
    return True


async def audit_claim(tx: Tx, row: Row, now: int, version: str | None) -> None:
    """Audit a takeover, and a change of the program's label."""
    if row.owner_id is not None:
        detail = {"owner": row.owner_id, "host": row.host, "pid": row.pid}
        await journal.audit(tx, row.id, row.generation, now, "takeover", detail=detail)
    if row.code_version != version:
        detail = {"was": row.code_version, "is": version}
        await journal.audit(tx, row.id, row.generation, now, "advisory_change", detail=detail)
