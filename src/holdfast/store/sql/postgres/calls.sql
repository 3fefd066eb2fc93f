-- Statements of a client's journal, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- name: calls.claim(call_id, name, claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format)
-- columns: claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format
-- The row that is there, or this one. A row that somebody else comes to as well is shared from then on.
INSERT INTO idem_calls (call_id, name, claim_id, key, method, url, headers, body, cipher_key,
                        first_sent_at, expires_at, format)
VALUES ($1::bytea, $2::text, $3::bytea, $4::text, $5::text, $6::text, $7::bytea, $8::bytea, $9::bigint,
        $10::bigint, $11::bigint, $12::integer)
ON CONFLICT (call_id) DO UPDATE
SET shared = CASE WHEN idem_calls.claim_id = excluded.claim_id THEN idem_calls.shared ELSE 1 END
RETURNING claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format

-- name: calls.settle(call_id, claim_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = $1::bytea AND claim_id = $2::bytea
RETURNING name

-- name: calls.release(call_id, claim_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = $1::bytea AND claim_id = $2::bytea AND shared = 0
RETURNING name

-- name: calls.drop(call_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = $1::bytea
RETURNING name

-- name: calls.list(limit)
-- columns: call_id, name, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format
SELECT call_id, name, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format FROM idem_calls
ORDER BY first_sent_at, claim_id LIMIT $1::bigint
