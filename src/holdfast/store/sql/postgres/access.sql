-- Statements of the access keys, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- name: access_keys.put(org, key_id, secret_hash, scopes, label, created_at, expires_at)
INSERT INTO session_access_keys (org, key_id, secret_hash, scopes, label, created_at, expires_at)
VALUES ($1::bytea, $2::text, $3::bytea, $4::text, $5::text, $6::bigint, $7::bigint)

-- name: access_keys.get(key_id)
-- columns: org, key_id, secret_hash, scopes, label, created_at, expires_at, revoked_at, last_used_at
-- The org is what the key is asked for, so it cannot be named.
SELECT org, key_id, secret_hash, scopes, label, created_at, expires_at, revoked_at, last_used_at
FROM session_access_keys WHERE key_id = $1::text

-- name: access_keys.list(org, after, most)
-- columns: org, key_id, secret_hash, scopes, label, created_at, expires_at, revoked_at, last_used_at
-- Of one org, or where that is null of all: whoever may ask so reads the ledger itself.
SELECT org, key_id, secret_hash, scopes, label, created_at, expires_at, revoked_at, last_used_at
FROM session_access_keys WHERE ($1::bytea IS NULL OR org = $1::bytea) AND key_id > $2::text ORDER BY key_id LIMIT $3::bigint

-- name: access_keys.revoke(now, key_id)
-- columns: key_id
UPDATE session_access_keys SET revoked_at = $1::bigint WHERE key_id = $2::text AND revoked_at IS NULL
RETURNING key_id

-- name: access_keys.use(now, key_id)
-- columns: key_id
UPDATE session_access_keys SET last_used_at = $1::bigint
WHERE key_id = $2::text AND (last_used_at IS NULL OR last_used_at < $1::bigint)
RETURNING key_id

-- name: access_keys.exist()
-- columns: count
-- Whether there is, or was, any.
SELECT count(*) AS count FROM (SELECT 1 FROM session_access_keys LIMIT 1) AS found
