-- Statements of the lifecycle slice's continuations, SQLite. The PostgreSQL file has the same names, parameters and columns.

-- name: continuations.hold(thread)
-- columns: thread
-- Lets nobody else change a thread until the transaction ends. Here nobody else can write anyway.
SELECT :thread AS thread

-- name: continuations.put(thread, name, body, byte_size, digest, version, created_at, expires_at)
INSERT INTO lifecycle_continuations (thread, name, body, byte_size, digest, version, created_at, expires_at)
VALUES (:thread, :name, :body, :byte_size, :digest, :version, :created_at, :expires_at)
ON CONFLICT (thread, name) DO UPDATE
SET body = excluded.body, byte_size = excluded.byte_size, digest = excluded.digest, version = excluded.version,
    created_at = excluded.created_at, expires_at = excluded.expires_at

-- name: continuations.get(thread, name, now)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at, body
SELECT thread, name, byte_size, digest, version, created_at, expires_at, body
FROM lifecycle_continuations WHERE thread = :thread AND name = :name AND expires_at > :now

-- name: continuations.list(thread, now)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at
SELECT thread, name, byte_size, digest, version, created_at, expires_at
FROM lifecycle_continuations WHERE thread = :thread AND expires_at > :now
ORDER BY name

-- name: continuations.page(after_thread, after_name, now, most)
-- columns: thread, name, byte_size, digest, version, created_at, expires_at
-- Of all threads.
SELECT thread, name, byte_size, digest, version, created_at, expires_at
FROM lifecycle_continuations WHERE (thread, name) > (:after_thread, :after_name) AND expires_at > :now
ORDER BY thread, name LIMIT :most

-- name: continuations.drop(thread, name, now)
-- columns: version
DELETE FROM lifecycle_continuations WHERE thread = :thread AND name = :name AND expires_at > :now
RETURNING version

-- name: continuations.drop_thread(thread)
-- columns: expires_at
DELETE FROM lifecycle_continuations WHERE thread = :thread
RETURNING expires_at

-- name: continuations.prune(now, most)
DELETE FROM lifecycle_continuations WHERE (thread, name) IN (
    SELECT thread, name FROM lifecycle_continuations WHERE expires_at <= :now ORDER BY expires_at LIMIT :most)
