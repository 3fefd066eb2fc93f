-- Statements of the lifecycle slice's continuations, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- name: continuations.hold(thread)
-- columns: thread
-- Lets nobody else change a thread until the transaction ends: its limits are over all of its names. 7 is ours.
SELECT $1::text AS thread FROM (SELECT pg_advisory_xact_lock(7, hashtext($1::text))) AS held

-- name: continuations.put(thread, name, body, byte_size, digest, version, created_at, expires_at)
INSERT INTO lifecycle_continuations (thread, name, body, byte_size, digest, version, created_at, expires_at)
VALUES ($1::text, $2::text, $3::bytea, $4::bigint, $5::bytea, $6::bigint, $7::bigint, $8::bigint)
ON CONFLICT (thread, name) DO UPDATE
SET body = excluded.body, byte_size = excluded.byte_size, digest = excluded.digest, version = excluded.version,
    created_at = excluded.created_at, expires_at = excluded.expires_at

-- name: continuations.get(thread, name, now)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at, body
SELECT thread, name, byte_size, digest, version, created_at, expires_at, body
FROM lifecycle_continuations WHERE thread = $1::text AND name = $2::text AND expires_at > $3::bigint

-- name: continuations.list(thread, now)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at
SELECT thread, name, byte_size, digest, version, created_at, expires_at
FROM lifecycle_continuations WHERE thread = $1::text AND expires_at > $2::bigint
ORDER BY name

-- name: continuations.page(after_thread, after_name, now, most)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at
-- Of all threads.
SELECT thread, name, byte_size, digest, version, created_at, expires_at
FROM lifecycle_continuations WHERE (thread, name) > ($1::text, $2::text) AND expires_at > $3::bigint
ORDER BY thread, name LIMIT $4::bigint

-- name: continuations.drop(thread, name, now)
-- columns: version
DELETE FROM lifecycle_continuations WHERE thread = $1::text AND name = $2::text AND expires_at > $3::bigint
RETURNING version

-- name: continuations.drop_thread(thread)
-- columns: expires_at
DELETE FROM lifecycle_continuations WHERE thread = $1::text
RETURNING expires_at

-- name: continuations.prune(now, most)
-- Rows that another transaction is at are left to it.
DELETE FROM lifecycle_continuations WHERE (thread, name) IN (
    SELECT thread, name FROM lifecycle_continuations WHERE expires_at <= $1::bigint
    ORDER BY expires_at LIMIT $2::bigint FOR UPDATE SKIP LOCKED)
