"""Write down for the next hook calls what the configuration says about them.

Invariants:
    - Only a ledger that is open, and so has the newest schema, is planned for.
    - A plan that cannot be written is no failure: the next call finds its way without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

from holdfast.core.config import in_memory
from holdfast.lifecycle import plan
from holdfast.lifecycle.config import LifecycleConfig
from holdfast.lifecycle.harness.known import HARNESSES, blocks, events_of, known_hooks
from holdfast.store import Database, migrate

__all__ = ["is_dispatched", "refresh"]

_log = logging.getLogger(__name__)


def refresh(
    head: str,
    *,
    config: LifecycleConfig,
    database: Database,
    target: str,
    state_dir: str,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Put a plan in the place of the one there is.

    Args:
        head: What it is for, from `plan.head` before the configuration was read.
        config: The configuration.
        database: The ledger, open for writing.
        target: Its path or URL, as it is configured.
        state_dir: The configured state directory.
        environ: The environment.
    """
    if in_memory(target):
        return
    text = plan.compose(
        head,
        ledger=os.path.abspath(target) if database.dialect == "sqlite" else None,
        schema=len(migrate.load(database.dialect)),
        state_dir=os.path.abspath(state_dir),
        lock_wait_ms=config.lock_wait_ms,
        hooks=_hooks(config),
    )
    if text is None:
        return
    try:
        plan.write(plan.state_directory(environ), text)
    except OSError as error:
        _log.debug("the plan of hooks is not written: %s", error.strerror)


def is_dispatched(config: LifecycleConfig, harness: str, hook: str) -> bool:
    """Say whether a client is to be asked about any event that a hook may tell of; `harness` is a canonical id."""
    return any(config.bound(harness, event) for event in events_of(harness, hook))


def _hooks(config: LifecycleConfig) -> Iterator[str]:
    for harness in HARNESSES:
        for hook in known_hooks(harness):
            asked = is_dispatched(config, harness, hook)
            closed = config.on_error == "closed" and blocks(harness, hook)
            yield f"{harness} {hook} {'dispatch' if asked else 'observe'}{' closed' if closed else ''}"
