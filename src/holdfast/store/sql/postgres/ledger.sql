-- What every slice shares: the ledger's own facts, and its owners.

-- name: ledger.exists()
-- columns: one
SELECT 1 AS one WHERE to_regclass('holdfast_ledger') IS NOT NULL

-- name: ledger.get(name)
-- columns: value
SELECT value FROM holdfast_ledger WHERE name = $1

-- name: ledger.put(name, value)
INSERT INTO holdfast_ledger (name, value)
SELECT * FROM unnest($1::text[], $2::bytea[])
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: ledger.named(prefix)
-- columns: name, value
SELECT name, value FROM holdfast_ledger WHERE substr(name, 1, length($1::text)) = $1::text ORDER BY name

-- name: ledger.drop(name)
DELETE FROM holdfast_ledger WHERE name IN (SELECT * FROM unnest($1::text[]))

-- name: ledger.add(name, value)
INSERT INTO holdfast_ledger (name, value)
SELECT * FROM unnest($1::text[], $2::bytea[])
ON CONFLICT (name) DO NOTHING

-- A renewal brings back a row that somebody removed: fences, not owner rows, carry safety.
-- name: owners.renew(owner_id, host, machine_id, pid, lock_path, lease_until, started_at)
INSERT INTO holdfast_owners (owner_id, host, machine_id, pid, lock_path, lease_until, started_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[])
ON CONFLICT (owner_id) DO UPDATE SET lease_until = excluded.lease_until

-- name: owners.list()
-- columns: owner_id, host, machine_id, pid, lock_path, lease_until, started_at
SELECT owner_id, host, machine_id, pid, lock_path, lease_until, started_at
FROM holdfast_owners ORDER BY owner_id COLLATE "C"

-- Whoever holds a dead owner's lock ends its lease; all it owned is free from then on.
-- name: owners.end(owner_id)
UPDATE holdfast_owners SET lease_until = 0 WHERE owner_id = ANY($1::text[])

-- name: owners.delete(owner_id)
DELETE FROM holdfast_owners WHERE owner_id = ANY($1::text[])
