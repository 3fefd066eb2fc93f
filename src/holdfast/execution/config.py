"""The settings of durable execution: section `[durable]`, `HOLDFAST_DURABLE_<KEY>`, `DurableConfig(…)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from holdfast.core.config import DAY_MS, TIME_MS_MAX, check, load, setting
from holdfast.core.errors import ConfigError

__all__ = ["DurableConfig"]

MIB = 1 << 20
GIB = 1 << 30

# A value travels as one database parameter, and SQLite refuses texts and blobs of a thousand million bytes.
PAYLOAD_BYTES_MAX = 512 * MIB


@dataclass(frozen=True, kw_only=True)
class DurableConfig:
    """How durable execution behaves; every key changes what can be observed.

    Attributes:
        enabled: False: nothing is written anywhere; steps are ordinary calls, and what needs a ledger
            raises `DurabilityDisabled`.
        allow_unsafe_storage: True: open a PostgreSQL server that runs with `fsync=off`.
        ack: `each`: a step returns when its result is on disk. `pipelined`: results of steps that are
            not `exactly_once` ride with a later commit of the same execution.
        carry: Which classes keep their outcomes in the next generation: `effects` (at_least_once and
            exactly_once) or `all`.
        shifted_effect: What a new generation does before an effect that may be an earlier one in another
            place: `decide` asks an operator, `run` runs it.
        ack_timeout_ms: Milliseconds an append may take, waiting for room included, before its fate
            counts as unknown.
        batch_items_max: Appends in one commit.
        batch_bytes_max: Bytes in one commit.
        queue_items_max: Appends that may wait for the writer; callers wait for room beyond.
        queue_bytes_max: Bytes that may wait for the writer, and bytes of outcomes kept while the
            journal is unavailable.
        payload_bytes_max: Bytes of one encoded value.
        spill_bytes_max: Bytes of one encoded value of a step declared with `spill=True`.
        steps_live_max: Positions of one generation that are live (not folded).
        fold_at_percent: Per cent of `steps_live_max` at which settled positions are folded.
        segment_rows: Journal rows read at once on replay.
        generations_max: Generations in one chapter.
        ambiguous_attempts_max: Reruns of one key after an ambiguity; then every policy is `fail`.
        poll_ms: Milliseconds between looks at the ledger while waiting without a hint.
        probe_timeout_ms: Milliseconds a `reconcile` probe may take.
        cancel_grace_ms: Milliseconds an owner has to acknowledge a cancellation.
        drain_ms: Milliseconds that steps in flight get to end, at close and at a divergence.
        lease_ms: Milliseconds an owner counts as alive after it renewed.
        renew_ms: Milliseconds between renewals; at most a third of `lease_ms`.
        owner_dir: Folder of the owner files. None: `<ledger>.owners`; with PostgreSQL, `holdfast` in
            the user's runtime directory.
        recover_every_ms: Milliseconds between recoveries by an opener that recovers.
        stalled_recoveries_max: Recoveries in a row without a new journal entry before an execution is
            aborted as a crash loop.
        orphan_after_ms: Milliseconds nobody could take an execution before it is aborted as orphaned;
            0: never.
        failure_message: What is recorded of a failure's message: `full`, `redacted` or `none`.
        failure_message_chars_max: Characters kept of it.
        code_version: Label of the program, stored with every claim.
        accept_versions: Labels that recovery takes; empty: any.
    """

    enabled: bool = setting(default=True)
    allow_unsafe_storage: bool = setting(default=False)
    ack: Literal["each", "pipelined"] = setting("each")
    carry: Literal["effects", "all"] = setting("effects")
    shifted_effect: Literal["decide", "run"] = setting("decide")
    ack_timeout_ms: int = setting(5_000, minimum=1, maximum=DAY_MS)
    batch_items_max: int = setting(512, minimum=1, maximum=100_000)
    batch_bytes_max: int = setting(8 * MIB, minimum=1, maximum=GIB)
    queue_items_max: int = setting(4_096, minimum=1, maximum=10_000_000)
    queue_bytes_max: int = setting(64 * MIB, minimum=1, maximum=64 * GIB)
    payload_bytes_max: int = setting(MIB, minimum=1, maximum=PAYLOAD_BYTES_MAX)
    spill_bytes_max: int = setting(64 * MIB, minimum=1, maximum=PAYLOAD_BYTES_MAX)
    steps_live_max: int = setting(10_000, minimum=1, maximum=10_000_000)
    fold_at_percent: int = setting(90, minimum=1, maximum=100)
    segment_rows: int = setting(256, minimum=1, maximum=100_000)
    generations_max: int = setting(16, minimum=1, maximum=1_000_000)
    ambiguous_attempts_max: int = setting(10, minimum=0, maximum=1_000_000)
    poll_ms: int = setting(1_000, minimum=1, maximum=DAY_MS)
    probe_timeout_ms: int = setting(30_000, minimum=1, maximum=DAY_MS)
    cancel_grace_ms: int = setting(30_000, minimum=0, maximum=DAY_MS)
    drain_ms: int = setting(10_000, minimum=0, maximum=DAY_MS)
    lease_ms: int = setting(30_000, minimum=3, maximum=DAY_MS)
    renew_ms: int = setting(10_000, minimum=1, maximum=DAY_MS)
    owner_dir: Path | None = setting(None)
    recover_every_ms: int = setting(5_000, minimum=1, maximum=DAY_MS)
    stalled_recoveries_max: int = setting(20, minimum=1, maximum=1_000_000)
    orphan_after_ms: int = setting(7 * DAY_MS, minimum=0, maximum=TIME_MS_MAX)
    failure_message: Literal["full", "redacted", "none"] = setting("full")
    failure_message_chars_max: int = setting(2_000, minimum=0, maximum=1_000_000)
    code_version: str | None = setting(None)
    accept_versions: tuple[str, ...] = setting(())

    def __post_init__(self) -> None:
        check(self)
        if self.renew_ms * 3 > self.lease_ms:
            raise ConfigError(
                f"renew_ms is {self.renew_ms}, more than a third of lease_ms, {self.lease_ms}",
                "an owner must be able to miss two renewals and live: lower renew_ms or raise lease_ms",
                code="config.out_of_range",
                keys=("renew_ms", "lease_ms"),
            )

    @classmethod
    def load(
        cls, path: Path | None = None, environ: Mapping[str, str] = os.environ, **overrides: object
    ) -> DurableConfig:
        """Read `[durable]` from a file, then `HOLDFAST_DURABLE_<KEY>`, then keywords; the later wins.

        Raises:
            ConfigError: A key is unknown, or a value has a wrong type or is out of range.
        """
        return load(cls, "durable", path=path, environ=environ, **overrides)
