-- The spool file: hook calls that the ledger could not take when they came. Its table has the columns that `hooks.append`
-- writes, under the same name, so that one statement serves both.

-- name: hooks.make()
CREATE TABLE IF NOT EXISTS lifecycle_hooks (
    id          TEXT PRIMARY KEY,
    harness     TEXT NOT NULL,
    event_hint  TEXT NOT NULL,
    body        BLOB,
    body_bytes  INTEGER NOT NULL,
    body_digest BLOB,
    received_at INTEGER NOT NULL,
    cwd         TEXT,
    lease_until INTEGER NOT NULL,
    state       TEXT NOT NULL
)

-- name: hooks.waiting(most)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until
FROM lifecycle_hooks ORDER BY received_at, id LIMIT :most

-- name: hooks.forget(id)
DELETE FROM lifecycle_hooks WHERE id = :id
