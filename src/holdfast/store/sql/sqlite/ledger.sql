-- What every slice shares: the ledger's own facts, and its owners.

-- name: ledger.exists()
-- columns: one
SELECT 1 AS one FROM sqlite_schema WHERE type = 'table' AND name = 'holdfast_ledger'

-- name: ledger.get(name)
-- columns: value
SELECT value FROM holdfast_ledger WHERE name = :name

-- name: ledger.put(name, value)
INSERT INTO holdfast_ledger (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: ledger.named(prefix)
-- columns: name, value
SELECT name, value FROM holdfast_ledger WHERE substr(name, 1, length(:prefix)) = :prefix ORDER BY name

-- name: ledger.drop(name)
DELETE FROM holdfast_ledger WHERE name = :name

-- name: ledger.add(name, value)
INSERT INTO holdfast_ledger (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO NOTHING

-- A renewal brings back a row that somebody removed: fences, not owner rows, carry safety.
-- name: owners.renew(owner_id, host, machine_id, pid, lock_path, lease_until, started_at)
INSERT INTO holdfast_owners (owner_id, host, machine_id, pid, lock_path, lease_until, started_at)
VALUES (:owner_id, :host, :machine_id, :pid, :lock_path, :lease_until, :started_at)
ON CONFLICT (owner_id) DO UPDATE SET lease_until = excluded.lease_until

-- name: owners.list()
-- columns: owner_id, host, machine_id, pid, lock_path, lease_until, started_at
SELECT owner_id, host, machine_id, pid, lock_path, lease_until, started_at
FROM holdfast_owners ORDER BY owner_id

-- Whoever holds a dead owner's lock ends its lease; all it owned is free from then on.
-- name: owners.end(owner_id)
UPDATE holdfast_owners SET lease_until = 0 WHERE owner_id = :owner_id

-- name: owners.delete(owner_id)
DELETE FROM holdfast_owners WHERE owner_id = :owner_id
