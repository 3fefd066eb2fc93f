"""Take a hook call that needs a client, or whose configuration nobody has read yet. `cli.entry` comes here.

Imported by a process that a harness waits for: nothing here draws in the command line's own machinery.

Invariants:
    - Nothing is printed: whoever called prints the reply, once.
    - Whatever fails is a reply; only one that has to block exits with 2.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.lifecycle.config import LifecycleConfig

__all__ = ["warm"]

Reply = tuple[int, bytes, str]


def warm(
    row: tuple[Any, ...],
    *,
    appended: bool,
    db: str | None,
    config: str | None,
    closes: Callable[[bool], None] = lambda _: None,
    head: str = "",
) -> Reply:
    """Take a hook call, and say what its process ends with: exit code, standard output, and a line for people.

    Args:
        row: The call: the parameters of `hooks.append`.
        appended: Whether the ledger, or a spool file, has it already.
        db: `--db`, or None.
        config: `--config`, or None.
        closes: Is told whether a failure has to block the harness, as soon as the configuration says so.
        head: What a plan for the next call depends on, as it was before the configuration is read; empty: make none.

    Raises:
        HoldfastError: The configuration makes no sense, or the ledger cannot be opened.
    """
    import asyncio

    from holdfast.core import points
    from holdfast.core.config import config_path, ledger_target, prepare_folder, state_directory
    from holdfast.lifecycle import hooks as _  # noqa: F401 - registers the crash points that may be asked for
    from holdfast.lifecycle.config import LifecycleConfig

    points.verify()
    path = config_path(config, os.environ)
    settings = LifecycleConfig.load(path)
    closes(settings.on_error == "closed" and _blocks(row))
    target = ledger_target(db, path, os.environ)
    prepare_folder(target, os.environ)
    state = str(state_directory(path, os.environ))
    return asyncio.run(_taken(row, settings, target, state, appended=appended, head=head))


def _blocks(row: tuple[Any, ...]) -> bool:
    from holdfast.lifecycle.deliveries import Delivery, glance
    from holdfast.lifecycle.harness.known import HARNESSES, blocks

    delivery = Delivery(*row)
    event = glance(HARNESSES[delivery.harness], delivery)
    return blocks(delivery.harness, delivery.event_hint if event is None else event.hook)


async def _taken(
    row: tuple[Any, ...], settings: LifecycleConfig, target: str, state: str, *, appended: bool, head: str
) -> Reply:
    from holdfast.core.clock import SystemClock
    from holdfast.lifecycle import plan
    from holdfast.lifecycle.deliveries import Delivery
    from holdfast.lifecycle.hooks import Hooks
    from holdfast.store.opening import open_database

    clock = SystemClock()
    database = await open_database(target, clock=clock)
    try:
        async with Hooks(database, config=settings, clock=clock, spools=plan.spools(state, os.environ)) as hooks:
            reply = await hooks.receive(Delivery(*row), appended=appended)
        if head:
            from holdfast.lifecycle import planning

            planning.refresh(head, config=settings, database=database, target=target, state_dir=state)
    finally:
        await database.close()
    return reply.exit_code, reply.stdout, reply.stderr
