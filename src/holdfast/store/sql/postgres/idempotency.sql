-- Statements of HTTP idempotency, PostgreSQL. The SQLite file has the same names, parameters and columns.
-- Writing a row takes the next number of a sequence as its fence.

-- name: keys.claim(key_id, scope_id, record_id, fingerprint, fp_version, method, route, claim_id, owner, lease_until, mode, on_lapse, irreversible, execution_id, now, expires_at, first_sent_at, in_flight_max)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Gives the row of the key, found or made; nothing when a rival has just made it, or the principal has too many claims.
WITH found AS MATERIALIZED (
    SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence,
           claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers,
           body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id,
           created_at, claimed_at, settled_at, expires_at, first_sent_at, format
    FROM idem_keys WHERE key_id = $1::bytea),
made AS (
    INSERT INTO idem_keys (key_id, scope_id, record_id, state, fingerprint, fp_version, method, route, fence,
                           claim_id, attempt, owner, lease_until, mode, on_lapse,
                           irreversible, codec, execution_id, created_at, claimed_at,
                           expires_at, first_sent_at, format)
    SELECT $1::bytea, $2::bytea, $3::bytea, 1, $4::bytea, $5::integer, $6::text, $7::text, nextval('idem_fence'),
           $8::bytea, 1, $9::text, $10::bigint, $11::text, $12::text, $13::integer, 0, $14::text, $15::bigint, $15::bigint,
           $16::bigint, $17::bigint, 1
    WHERE NOT EXISTS (SELECT 1 FROM found)
      AND ($18::bigint IS NULL OR (SELECT count(*) FROM (
               SELECT 1 FROM idem_keys WHERE scope_id = $2::bytea AND state = 1 AND lease_until > $15::bigint LIMIT $18::bigint) AS live) < $18::bigint)
    ON CONFLICT DO NOTHING
    RETURNING key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence,
              claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status,
              headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason,
              execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format)
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM found
UNION ALL
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM made

-- name: keys.make(key_id, scope_id, record_id, fingerprint, fp_version, method, route, claim_id, owner, lease_until, mode, on_lapse, irreversible, execution_id, now, expires_at, first_sent_at, in_flight_max)
-- columns: fence
-- Makes the row of a key that is taken to be new; nothing when it has one already, or the principal too many claims.
INSERT INTO idem_keys (key_id, scope_id, record_id, state, fingerprint, fp_version, method, route, fence,
                       claim_id, attempt, owner, lease_until, mode, on_lapse,
                       irreversible, codec, execution_id, created_at, claimed_at,
                       expires_at, first_sent_at, format)
SELECT $1::bytea, $2::bytea, $3::bytea, 1, $4::bytea, $5::integer, $6::text, $7::text, nextval('idem_fence'),
       $8::bytea, 1, $9::text, $10::bigint, $11::text, $12::text, $13::integer, 0, $14::text, $15::bigint, $15::bigint,
       $16::bigint, $17::bigint, 1
WHERE ($18::bigint IS NULL OR (SELECT count(*) FROM (
           SELECT 1 FROM idem_keys WHERE scope_id = $2::bytea AND state = 1 AND lease_until > $15::bigint LIMIT $18::bigint) AS live) < $18::bigint)
ON CONFLICT DO NOTHING
RETURNING fence

-- name: keys.get(key_id)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE key_id = $1::bytea

-- name: keys.live(scope_id, now, most)
-- columns: live
-- How many live claims a principal has, counted up to a number.
SELECT count(*) AS live FROM (
    SELECT 1 FROM idem_keys WHERE scope_id = $1::bytea AND state = 1 AND lease_until > $2::bigint LIMIT $3::bigint) AS claims

-- name: keys.take(scope_id, record_id, fingerprint, fp_version, method, route, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, execution_id, created_at, now, expires_at, first_sent_at, key_id, was_fence, was_state, was_until, was_irreversible, in_flight_max)
-- columns: fence, attempt, record_id
-- A lapsed, released or expired row becomes a new claim, unless anything about its claim has changed since it was read.
UPDATE idem_keys
SET scope_id = $1::bytea, alias_of = NULL, record_id = $2::bytea, state = 1, fingerprint = $3::bytea, fp_version = $4::integer,
    method = $5::text, route = $6::text, fence = nextval('idem_fence'),
    claim_id = $7::bytea, attempt = $8::integer, owner = $9::text, lease_until = $10::bigint, mode = $11::text, on_lapse = $12::text,
    irreversible = $13::integer, status = NULL, headers = NULL, body = NULL, body_bytes = NULL, body_digest = NULL,
    block_sum = NULL, codec = 0, cipher_key = NULL, reason = NULL, execution_id = $14::text,
    created_at = $15::bigint, claimed_at = $16::bigint, settled_at = NULL, expires_at = $17::bigint, first_sent_at = $18::bigint, format = 1
WHERE key_id = $19::bytea AND fence = $20::bigint AND state = $21::integer AND lease_until = $22::bigint
  AND irreversible = $23::integer
  AND ($24::bigint IS NULL OR (SELECT count(*) FROM (
           SELECT 1 FROM idem_keys WHERE scope_id = $1::bytea AND state = 1 AND lease_until > $16::bigint LIMIT $24::bigint) AS live) < $24::bigint)
RETURNING fence, attempt, record_id

-- name: keys.alias(key_id, alias_of, now)
-- columns: key_id
-- A pointer row; nothing when there is a row, be it a rival's.
INSERT INTO idem_keys (key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
                       attempt, owner, lease_until, mode, on_lapse, irreversible, codec, created_at, claimed_at, format)
VALUES ($1::bytea, ''::bytea, $2::bytea, ''::bytea, 0, ''::bytea, 0, '', '', 0, ''::bytea, 0, '', 0, '', '', 0, 0, $3::bigint, $3::bigint, 1)
ON CONFLICT (key_id) DO NOTHING
RETURNING key_id

-- name: keys.move(key_id, old_id)
-- columns: key_id
-- A record goes to the key id of the secret that writes now.
UPDATE idem_keys SET key_id = $1::bytea WHERE key_id = $2::bytea
RETURNING key_id

-- name: keys.repoint(alias_of, old_id)
UPDATE idem_keys SET alias_of = $1::bytea WHERE alias_of = $2::bytea

-- name: keys.redirect(alias_of, key_id)
UPDATE idem_keys SET alias_of = $1::bytea WHERE key_id = $2::bytea AND state = 0

-- name: keys.unalias(alias_of)
DELETE FROM idem_keys WHERE alias_of = ANY($1::bytea[])

-- name: keys.delete(key_id)
DELETE FROM idem_keys WHERE key_id = ANY($1::bytea[])

-- name: keys.renew(lease_until, key_id, fence, now)
-- A row whose outcome somebody is writing does not hold up the others.
UPDATE idem_keys k SET lease_until = w.lease_until
FROM (SELECT r.key_id, v.lease_until
      FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[]) AS v (lease_until, key_id, fence, now)
      JOIN idem_keys r ON r.key_id = v.key_id AND r.fence = v.fence
      WHERE r.state = 1 AND (r.lease_until > v.now OR r.expires_at > v.now)
      FOR UPDATE OF r SKIP LOCKED) w
WHERE k.key_id = w.key_id

-- name: keys.held(key_id, fence, lease_until)
-- columns: key_id
SELECT key_id FROM idem_keys
WHERE key_id = $1::bytea AND fence = $2::bigint AND state = 1 AND lease_until = $3::bigint

-- name: keys.settle(state, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, now, expires_at, key_id, fence)
-- columns: changed
UPDATE idem_keys
SET state = $1::integer, status = $2::integer, headers = $3::bytea, body = $4::bytea, body_bytes = $5::bigint, body_digest = $6::bytea,
    block_sum = $7::bytea, codec = $8::integer, cipher_key = $9::bigint, reason = $10::text, settled_at = $11::bigint,
    expires_at = $12::bigint
WHERE key_id = $13::bytea AND fence = $14::bigint AND (state = 4 OR (state = 1 AND (lease_until > $11::bigint OR expires_at > $11::bigint)))
RETURNING 1 AS changed

-- name: keys.release(expires_at, key_id, fence, now)
-- columns: state
UPDATE idem_keys
SET state = CASE irreversible WHEN 0 THEN 5 ELSE 4 END, reason = CASE irreversible WHEN 0 THEN NULL ELSE 'raised' END,
    expires_at = CASE irreversible WHEN 0 THEN $1::bigint END
WHERE key_id = $2::bytea AND fence = $3::bigint AND state = 1 AND (lease_until > $4::bigint OR expires_at > $4::bigint)
RETURNING state

-- name: keys.mark_irreversible(key_id, fence, now)
-- columns: fence
UPDATE idem_keys SET irreversible = 1
WHERE key_id = $1::bytea AND fence = $2::bigint AND state = 1 AND ($3::bigint IS NULL OR lease_until > $3::bigint OR expires_at > $3::bigint)
RETURNING fence

-- name: keys.mark_unknown(reason, key_id, fence, now)
-- columns: fence
UPDATE idem_keys SET state = 4, reason = $1::text, expires_at = NULL
WHERE key_id = $2::bytea AND fence = $3::bigint AND state = 1 AND (lease_until > $4::bigint OR expires_at > $4::bigint)
RETURNING fence

-- name: keys.lapse(reason, key_id, fence, lease_until)
-- columns: fence
-- A lapsed claim becomes unknown, unless its owner has renewed it meanwhile.
UPDATE idem_keys SET state = 4, reason = $1::text, expires_at = NULL
WHERE key_id = $2::bytea AND fence = $3::bigint AND state = 1 AND lease_until = $4::bigint
RETURNING fence

-- name: keys.claimed(claim_id)
-- columns: key_id, fence, attempt
-- Claims under way are few, and have an index of their own.
SELECT key_id, fence, attempt FROM idem_keys WHERE state = 1 AND claim_id = $1::bytea

-- name: keys.withdraw(key_id, fence)
-- columns: key_id
-- A first claim that never ran: the key is as if nobody had come.
DELETE FROM idem_keys WHERE key_id = $1::bytea AND fence = $2::bigint AND state = 1
RETURNING key_id

-- name: keys.retreat(attempt, key_id, fence)
-- columns: key_id
-- A takeover that never ran: the key is as a released one was.
UPDATE idem_keys SET state = 5, attempt = $1::integer
WHERE key_id = $2::bytea AND fence = $3::bigint AND state = 1
RETURNING key_id

-- name: keys.rival(key_id)
-- columns: key_id, fence, owner_id, lease_until, mode, host, machine_id, pid, lock_path, owner_lease_until
SELECT k.key_id, k.fence, k.owner AS owner_id, k.lease_until, k.mode, o.host, o.machine_id, o.pid, o.lock_path,
       o.lease_until AS owner_lease_until
FROM idem_keys k LEFT JOIN holdfast_owners o ON o.owner_id = k.owner
WHERE k.key_id = $1::bytea AND k.state = 1

-- name: keys.owners()
-- columns: owner_id, claims_count, host, machine_id, pid, lock_path, owner_lease_until
SELECT k.owner AS owner_id, k.claims_count, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until AS owner_lease_until
FROM (SELECT owner, count(*) AS claims_count FROM idem_keys WHERE state = 1 GROUP BY owner) k
LEFT JOIN holdfast_owners o ON o.owner_id = k.owner ORDER BY k.owner

-- name: keys.lapsed(now, after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Lapsed claims that somebody must decide about; the others wait for a retry, or expire.
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL::bytea AS headers,
       NULL::bytea AS body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id,
       created_at, claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state = 1 AND lease_until <= $1::bigint AND expires_at > $1::bigint AND key_id > $2::bytea
  AND (on_lapse = 'ambiguous' OR irreversible = 1 OR mode <> 'separate')
ORDER BY key_id LIMIT $3::bigint

-- name: keys.owned(owner, after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL::bytea AS headers,
       NULL::bytea AS body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id,
       created_at, claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state = 1 AND owner = $1::text AND key_id > $2::bytea
  AND (on_lapse = 'ambiguous' OR irreversible = 1 OR mode <> 'separate')
ORDER BY key_id LIMIT $3::bigint

-- name: keys.unknown(after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL::bytea AS headers,
       NULL::bytea AS body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id,
       created_at, claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE state = 4 AND key_id > $1::bytea
ORDER BY key_id LIMIT $2::bigint

-- name: keys.unknowns()
-- columns: count
SELECT count(*) AS count FROM idem_keys WHERE state = 4

-- name: keys.usage(since, scope_id)
-- columns: keys_count, stored_bytes
SELECT count(CASE WHEN created_at >= $1::bigint THEN 1 END) AS keys_count, coalesce(sum(body_bytes), 0)::bigint AS stored_bytes
FROM (SELECT created_at, body_bytes FROM idem_keys WHERE scope_id = $2::bytea AND state <> 1
      UNION ALL
      SELECT created_at, body_bytes FROM idem_keys WHERE scope_id = $2::bytea AND state = 1) AS rows

-- name: keys.list(state, route, since, before_at, before_id, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Newest first, without header blocks and bodies. For people: it looks at every row.
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL::bytea AS headers,
       NULL::bytea AS body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id,
       created_at, claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state <> 0 AND ($1::integer IS NULL OR state = $1::integer) AND ($2::text IS NULL OR route = $2::text)
  AND ($3::bigint IS NULL OR created_at >= $3::bigint)
  AND ($4::bigint IS NULL OR created_at < $4::bigint OR (created_at = $4::bigint AND key_id < $5::bytea))
ORDER BY created_at DESC, key_id DESC LIMIT $6::bigint

-- name: keys.search(low, high, most)
-- columns: key_id
SELECT DISTINCT coalesce(alias_of, key_id) AS key_id FROM idem_keys
WHERE key_id BETWEEN $1::bytea AND $2::bytea ORDER BY 1 LIMIT $3::bigint

-- name: keys.routes(scope_id)
-- columns: method, route
-- What a principal has keys for. For people: it looks at every row.
SELECT DISTINCT method, route FROM idem_keys WHERE scope_id = $1 AND state <> 0 ORDER BY method, route

-- name: keys.last_sealed()
-- columns: key_id
-- The outcome that a cipher sealed last. For people: it looks at every row.
SELECT key_id FROM idem_keys WHERE cipher_key IS NOT NULL ORDER BY settled_at DESC LIMIT 1

-- name: keys.expired(now, most)
-- columns: key_id
SELECT key_id FROM idem_keys
WHERE expires_at <= $1::bigint AND NOT (state = 1 AND lease_until > $1::bigint) LIMIT $2::bigint
FOR UPDATE SKIP LOCKED

-- name: keys.force(state, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, settled_at, expires_at, key_id, was_fence, was_state, was_until)
-- columns: fence
-- What an operator decided, unless the claim has changed since it was read. A forced row belongs to nobody.
UPDATE idem_keys
SET state = $1::integer, fence = nextval('idem_fence'), claim_id = decode('00000000000000000000000000000000', 'hex'), owner = '',
    status = $2::integer, headers = $3::bytea, body = $4::bytea, body_bytes = $5::bigint, body_digest = $6::bytea,
    block_sum = $7::bytea, codec = $8::integer, cipher_key = $9::bigint, reason = $10::text, settled_at = $11::bigint,
    expires_at = $12::bigint
WHERE key_id = $13::bytea AND fence = $14::bigint AND state = $15::integer AND lease_until = $16::bigint
RETURNING fence

-- name: keys.expire(expires_at, key_id, was_fence, was_state)
-- columns: fence
UPDATE idem_keys
SET fence = nextval('idem_fence'), claim_id = decode('00000000000000000000000000000000', 'hex'), owner = '', expires_at = $1::bigint
WHERE key_id = $2::bytea AND fence = $3::bigint AND state = $4::integer
RETURNING fence

-- name: keys.audit(at, actor, action, key_ref, record_id, fence, state_before, state_after, reason)
INSERT INTO idem_audit (at, actor, action, key_ref, record_id, fence, state_before, state_after, reason)
VALUES ($1::bigint, $2::text, $3::text, $4::text, $5::bytea, $6::bigint, $7::text, $8::text, $9::text)

-- name: keys.audited(record_id)
-- columns: id, at, actor, action, key_ref, record_id, fence, state_before, state_after, reason
SELECT id, at, actor, action, key_ref, record_id, fence, state_before, state_after, reason
FROM idem_audit WHERE record_id = $1::bytea ORDER BY id

-- name: keys.scan(after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE key_id > $1::bytea ORDER BY key_id LIMIT $2::bigint

-- name: keys.issued()
-- columns: fence
SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS fence FROM idem_fence

-- name: secrets.touch(secret_ref, now, ttl_max)
INSERT INTO idem_secrets (secret_ref, first_used_at, last_used_at, ttl_max) VALUES ($1::text, $2::bigint, $2::bigint, $3::bigint)
ON CONFLICT (secret_ref) DO UPDATE SET last_used_at = greatest(idem_secrets.last_used_at, excluded.last_used_at),
                                       ttl_max = greatest(idem_secrets.ttl_max, excluded.ttl_max)

-- name: secrets.list()
-- columns: secret_ref, first_used_at, last_used_at, ttl_max
SELECT secret_ref, first_used_at, last_used_at, ttl_max FROM idem_secrets ORDER BY first_used_at, secret_ref

-- name: outbox.add(topic, payload, created_at)
INSERT INTO idem_outbox (order_token, topic, payload, created_at)
VALUES (pg_current_xact_id()::text::bigint, $1::text, $2::bytea, $3::bigint)

-- name: outbox.read(order_token, after_id, most)
-- columns: order_token, id, topic, payload, created_at
SELECT order_token, id, topic, payload, created_at FROM idem_outbox
WHERE (order_token, id) > ($1::bigint, $2::bigint) AND order_token < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
ORDER BY order_token, id LIMIT $3::bigint

-- name: outbox.prune(order_token, after_id, most)
DELETE FROM idem_outbox WHERE (order_token, id) IN (
    SELECT order_token, id FROM idem_outbox WHERE (order_token, id) <= ($1::bigint, $2::bigint)
    ORDER BY order_token, id LIMIT $3::bigint FOR UPDATE SKIP LOCKED)
