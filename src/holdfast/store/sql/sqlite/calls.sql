-- Statements of a client's journal, SQLite. The PostgreSQL file has the same names, parameters and columns.

-- name: calls.claim(call_id, name, claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format)
-- columns: claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format
-- The row that is there, or this one. A row that somebody else comes to as well is shared from then on.
INSERT INTO idem_calls (call_id, name, claim_id, key, method, url, headers, body, cipher_key,
                        first_sent_at, expires_at, format)
VALUES (:call_id, :name, :claim_id, :key, :method, :url, :headers, :body, :cipher_key,
        :first_sent_at, :expires_at, :format)
ON CONFLICT (call_id) DO UPDATE
SET shared = CASE WHEN idem_calls.claim_id = excluded.claim_id THEN idem_calls.shared ELSE 1 END
RETURNING claim_id, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format

-- name: calls.settle(call_id, claim_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = :call_id AND claim_id = :claim_id
RETURNING name

-- name: calls.release(call_id, claim_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = :call_id AND claim_id = :claim_id AND shared = 0
RETURNING name

-- name: calls.drop(call_id)
-- columns: name
DELETE FROM idem_calls WHERE call_id = :call_id
RETURNING name

-- name: calls.list(limit)
-- columns: call_id, name, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format
SELECT call_id, name, key, method, url, headers, body, cipher_key, first_sent_at, expires_at, format FROM idem_calls
ORDER BY first_sent_at, claim_id LIMIT :limit
