-- The tables every slice shares: what this ledger is, and who is at work on it.

CREATE TABLE holdfast_ledger (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE holdfast_owners (
    owner_id    TEXT PRIMARY KEY,
    host        TEXT NOT NULL,
    machine_id  TEXT NOT NULL,
    pid         BIGINT NOT NULL,
    lock_path   TEXT,
    lease_until BIGINT NOT NULL,
    started_at  BIGINT NOT NULL
);
