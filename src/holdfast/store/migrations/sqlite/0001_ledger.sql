-- The tables every slice shares: what this ledger is, and who is at work on it.

CREATE TABLE holdfast_ledger (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE holdfast_owners (
    owner_id    TEXT PRIMARY KEY,
    host        TEXT NOT NULL,
    machine_id  TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    lock_path   TEXT,
    lease_until INTEGER NOT NULL,
    started_at  INTEGER NOT NULL
) WITHOUT ROWID;
