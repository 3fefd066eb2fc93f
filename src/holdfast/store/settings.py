"""What a ledger's store can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.core.errors import ConfigError

__all__ = ["StoreSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Limits and times of the store.

    Attributes:
        batch_items_max: Appends in one commit.
        batch_bytes_max: Bytes in one commit; a single append that is larger goes alone.
        queue_items_max: Appends accepted and not yet settled.
        queue_bytes_max: Their bytes; whoever brings more waits.
        ack_timeout_ms: How long an append may go unacknowledged.
        lease_ms: How long an owner counts as alive after a renewal.
        renew_ms: How often it renews; at most a third of the lease.
        owner_dir: Where lock files live; None: `<ledger>.owners`, or the user's runtime directory for PostgreSQL.
        allow_unsafe_storage: Open a PostgreSQL whose server does not flush (`fsync=off`).
    """

    batch_items_max: int = 512
    batch_bytes_max: int = 8 * 1024 * 1024
    queue_items_max: int = 4096
    queue_bytes_max: int = 64 * 1024 * 1024
    ack_timeout_ms: int = 5000
    lease_ms: int = 30_000
    renew_ms: int = 10_000
    owner_dir: Path | None = None
    allow_unsafe_storage: bool = False

    def __post_init__(self) -> None:
        for key in (
            "batch_items_max", "batch_bytes_max", "queue_items_max", "queue_bytes_max",
            "ack_timeout_ms", "lease_ms", "renew_ms",
        ):  # fmt: skip
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}", "it must be at least 1", keys=(key,))
        if self.renew_ms * 3 > self.lease_ms:
            raise ConfigError(
                f"renew_ms is {self.renew_ms} with a lease_ms of {self.lease_ms}",
                "renew at least three times per lease",
                keys=("renew_ms", "lease_ms"),
            )
