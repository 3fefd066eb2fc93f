-- Statements of HTTP idempotency, SQLite. The PostgreSQL file has the same names, parameters and columns.
-- Fences are issued by triggers: whoever writes a row with the next number raises the number.

-- name: keys.claim(key_id, scope_id, record_id, fingerprint, fp_version, method, route, claim_id, owner, lease_until, mode, on_lapse, irreversible, execution_id, now, expires_at, first_sent_at, in_flight_max)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Makes the row, and gives it, or nothing when the key has one already or the principal too many claims.
INSERT INTO idem_keys (key_id, scope_id, record_id, state, fingerprint, fp_version, method, route, fence,
                       claim_id, attempt, owner, lease_until, mode, on_lapse,
                       irreversible, codec, execution_id, created_at, claimed_at,
                       expires_at, first_sent_at, format)
SELECT :key_id, :scope_id, :record_id, 1, :fingerprint, :fp_version, :method, :route, (SELECT value + 1 FROM
       holdfast_ledger WHERE name = 'idem_fence'), :claim_id, 1, :owner, :lease_until, :mode, :on_lapse,
       :irreversible, 0, :execution_id, :now, :now, :expires_at, :first_sent_at, 1
WHERE (:in_flight_max IS NULL OR (SELECT count(*) FROM idem_keys
           WHERE scope_id = :scope_id AND state = 1 AND lease_until > :now) < :in_flight_max)
ON CONFLICT DO NOTHING
RETURNING key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
          attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body,
          body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at,
          claimed_at, settled_at, expires_at, first_sent_at, format

-- name: keys.make(key_id, scope_id, record_id, fingerprint, fp_version, method, route, claim_id, owner, lease_until, mode, on_lapse, irreversible, execution_id, now, expires_at, first_sent_at, in_flight_max)
-- columns: fence
-- Makes the row of a key that is taken to be new; nothing when it has one already, or the principal too many claims.
-- One row of values, which is ignored for its null where there are too many claims: less work than a SELECT with a condition.
INSERT OR IGNORE INTO idem_keys (key_id, scope_id, record_id, state, fingerprint, fp_version, method, route, fence,
                                 claim_id, attempt, owner, lease_until, mode, on_lapse,
                                 irreversible, codec, execution_id, created_at, claimed_at,
                                 expires_at, first_sent_at, format)
VALUES (:key_id, :scope_id, :record_id, 1, :fingerprint, :fp_version, :method, :route, (SELECT value + 1 FROM
        holdfast_ledger WHERE name = 'idem_fence'), :claim_id, 1, :owner, :lease_until, :mode, :on_lapse,
        :irreversible, 0, :execution_id, :now, :now, :expires_at, :first_sent_at,
        CASE WHEN :in_flight_max IS NULL OR (SELECT count(*) FROM idem_keys
             WHERE scope_id = :scope_id AND state = 1 AND lease_until > :now) < :in_flight_max THEN 1 END)
RETURNING fence

-- name: keys.get(key_id)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE key_id = :key_id

-- name: keys.live(scope_id, now, most)
-- columns: live
-- How many live claims a principal has, counted up to a number.
SELECT count(*) AS live FROM (
    SELECT 1 FROM idem_keys WHERE scope_id = :scope_id AND state = 1 AND lease_until > :now LIMIT :most) AS claims

-- name: keys.take(scope_id, record_id, fingerprint, fp_version, method, route, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, execution_id, created_at, now, expires_at, first_sent_at, key_id, was_fence, was_state, was_until, was_irreversible, in_flight_max)
-- columns: fence, attempt, record_id
-- A lapsed, released or expired row becomes a new claim, unless anything about its claim has changed since it was read.
UPDATE idem_keys
SET scope_id = :scope_id, alias_of = NULL, record_id = :record_id, state = 1, fingerprint = :fingerprint, fp_version = :fp_version,
    method = :method, route = :route, fence = (SELECT value + 1 FROM holdfast_ledger WHERE name = 'idem_fence'),
    claim_id = :claim_id, attempt = :attempt, owner = :owner, lease_until = :lease_until, mode = :mode, on_lapse = :on_lapse,
    irreversible = :irreversible, status = NULL, headers = NULL, body = NULL, body_bytes = NULL, body_digest = NULL,
    block_sum = NULL, codec = 0, cipher_key = NULL, reason = NULL, execution_id = :execution_id,
    created_at = :created_at, claimed_at = :now, settled_at = NULL, expires_at = :expires_at, first_sent_at = :first_sent_at, format = 1
WHERE key_id = :key_id AND fence = :was_fence AND state = :was_state AND lease_until = :was_until
  AND irreversible = :was_irreversible
  AND (:in_flight_max IS NULL OR (SELECT count(*) FROM idem_keys
           WHERE scope_id = :scope_id AND state = 1 AND lease_until > :now) < :in_flight_max)
RETURNING fence, attempt, record_id

-- name: keys.alias(key_id, alias_of, now)
-- columns: key_id
-- A pointer row; nothing when there is a row, be it a rival's.
INSERT INTO idem_keys (key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
                       attempt, owner, lease_until, mode, on_lapse, irreversible, codec, created_at, claimed_at, format)
VALUES (:key_id, zeroblob(0), :alias_of, zeroblob(0), 0, zeroblob(0), 0, '', '', 0, zeroblob(0), 0, '', 0, '', '', 0, 0, :now, :now, 1)
ON CONFLICT (key_id) DO NOTHING
RETURNING key_id

-- name: keys.move(key_id, old_id)
-- columns: key_id
-- A record goes to the key id of the secret that writes now.
UPDATE idem_keys SET key_id = :key_id WHERE key_id = :old_id
RETURNING key_id

-- name: keys.repoint(alias_of, old_id)
UPDATE idem_keys SET alias_of = :alias_of WHERE alias_of = :old_id

-- name: keys.redirect(alias_of, key_id)
UPDATE idem_keys SET alias_of = :alias_of WHERE key_id = :key_id AND state = 0

-- name: keys.unalias(alias_of)
DELETE FROM idem_keys WHERE alias_of = :alias_of

-- name: keys.delete(key_id)
DELETE FROM idem_keys WHERE key_id = :key_id

-- name: keys.renew(lease_until, key_id, fence, now)
UPDATE idem_keys SET lease_until = :lease_until
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND (lease_until > :now OR expires_at > :now)

-- name: keys.held(key_id, fence, lease_until)
-- columns: key_id
SELECT key_id FROM idem_keys
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND lease_until = :lease_until

-- name: keys.settle(state, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, now, expires_at, key_id, fence)
-- columns: changed
UPDATE idem_keys
SET state = :state, status = :status, headers = :headers, body = :body, body_bytes = :body_bytes, body_digest = :body_digest,
    block_sum = :block_sum, codec = :codec, cipher_key = :cipher_key, reason = :reason, settled_at = :now,
    expires_at = :expires_at
WHERE key_id = :key_id AND fence = :fence AND (state = 4 OR (state = 1 AND (lease_until > :now OR expires_at > :now)))

-- name: keys.release(expires_at, key_id, fence, now)
-- columns: state
UPDATE idem_keys
SET state = CASE irreversible WHEN 0 THEN 5 ELSE 4 END, reason = CASE irreversible WHEN 0 THEN NULL ELSE 'raised' END,
    expires_at = CASE irreversible WHEN 0 THEN :expires_at END
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND (lease_until > :now OR expires_at > :now)
RETURNING state

-- name: keys.mark_irreversible(key_id, fence, now)
-- columns: fence
UPDATE idem_keys SET irreversible = 1
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND (:now IS NULL OR lease_until > :now OR expires_at > :now)
RETURNING fence

-- name: keys.mark_unknown(reason, key_id, fence, now)
-- columns: fence
UPDATE idem_keys SET state = 4, reason = :reason, expires_at = NULL
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND (lease_until > :now OR expires_at > :now)
RETURNING fence

-- name: keys.lapse(reason, key_id, fence, lease_until)
-- columns: fence
-- A lapsed claim becomes unknown, unless its owner has renewed it meanwhile.
UPDATE idem_keys SET state = 4, reason = :reason, expires_at = NULL
WHERE key_id = :key_id AND fence = :fence AND state = 1 AND lease_until = :lease_until
RETURNING fence

-- name: keys.claimed(claim_id)
-- columns: key_id, fence, attempt
-- Claims under way are few, and have an index of their own.
SELECT key_id, fence, attempt FROM idem_keys WHERE state = 1 AND claim_id = :claim_id

-- name: keys.withdraw(key_id, fence)
-- columns: key_id
-- A first claim that never ran: the key is as if nobody had come.
DELETE FROM idem_keys WHERE key_id = :key_id AND fence = :fence AND state = 1
RETURNING key_id

-- name: keys.retreat(attempt, key_id, fence)
-- columns: key_id
-- A takeover that never ran: the key is as a released one was.
UPDATE idem_keys SET state = 5, attempt = :attempt
WHERE key_id = :key_id AND fence = :fence AND state = 1
RETURNING key_id

-- name: keys.rival(key_id)
-- columns: key_id, fence, owner_id, lease_until, mode, host, machine_id, pid, lock_path, owner_lease_until
SELECT k.key_id, k.fence, k.owner AS owner_id, k.lease_until, k.mode, o.host, o.machine_id, o.pid, o.lock_path,
       o.lease_until AS owner_lease_until
FROM idem_keys k LEFT JOIN holdfast_owners o ON o.owner_id = k.owner
WHERE k.key_id = :key_id AND k.state = 1

-- name: keys.owners()
-- columns: owner_id, claims_count, host, machine_id, pid, lock_path, owner_lease_until
SELECT k.owner AS owner_id, k.claims_count, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until AS owner_lease_until
FROM (SELECT owner, count(*) AS claims_count FROM idem_keys WHERE state = 1 GROUP BY owner) k
LEFT JOIN holdfast_owners o ON o.owner_id = k.owner ORDER BY k.owner

-- name: keys.lapsed(now, after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Lapsed claims that somebody must decide about; the others wait for a retry, or expire.
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL AS headers, NULL AS body,
       body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at,
       claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state = 1 AND lease_until <= :now AND expires_at > :now AND +key_id > :after
  AND (on_lapse = 'ambiguous' OR irreversible = 1 OR mode <> 'separate')
ORDER BY +key_id LIMIT :most

-- name: keys.owned(owner, after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL AS headers, NULL AS body,
       body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at,
       claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state = 1 AND owner = :owner AND +key_id > :after
  AND (on_lapse = 'ambiguous' OR irreversible = 1 OR mode <> 'separate')
ORDER BY +key_id LIMIT :most

-- name: keys.unknown(after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL AS headers, NULL AS body,
       body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at,
       claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE state = 4 AND key_id > :after
ORDER BY key_id LIMIT :most

-- name: keys.unknowns()
-- columns: count
SELECT count(*) AS count FROM idem_keys WHERE state = 4

-- name: keys.usage(since, scope_id)
-- columns: keys_count, stored_bytes
SELECT count(CASE WHEN created_at >= :since THEN 1 END) AS keys_count, coalesce(sum(body_bytes), 0) AS stored_bytes
FROM (SELECT created_at, body_bytes FROM idem_keys WHERE scope_id = :scope_id AND state <> 1
      UNION ALL
      SELECT created_at, body_bytes FROM idem_keys WHERE scope_id = :scope_id AND state = 1)

-- name: keys.list(state, route, since, before_at, before_id, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
-- Newest first, without header blocks and bodies. For people: it looks at every row.
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, NULL AS headers, NULL AS body,
       body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at,
       claimed_at, settled_at, expires_at, first_sent_at, format
FROM idem_keys
WHERE state <> 0 AND (:state IS NULL OR state = :state) AND (:route IS NULL OR route = :route)
  AND (:since IS NULL OR created_at >= :since)
  AND (:before_at IS NULL OR created_at < :before_at OR (created_at = :before_at AND key_id < :before_id))
ORDER BY created_at DESC, key_id DESC LIMIT :most

-- name: keys.search(low, high, most)
-- columns: key_id
SELECT DISTINCT coalesce(alias_of, key_id) AS key_id FROM idem_keys
WHERE key_id BETWEEN :low AND :high ORDER BY 1 LIMIT :most

-- name: keys.routes(scope_id)
-- columns: method, route
-- What a principal has keys for. For people: it looks at every row.
SELECT DISTINCT method, route FROM idem_keys WHERE scope_id = :scope_id AND state <> 0 ORDER BY method, route

-- name: keys.last_sealed()
-- columns: key_id
-- The outcome that a cipher sealed last. For people: it looks at every row.
SELECT key_id FROM idem_keys WHERE cipher_key IS NOT NULL ORDER BY settled_at DESC LIMIT 1

-- name: keys.expired(now, most)
-- columns: key_id
-- What is under way is in no index of expiries: it is few rows, and most are settled long before.
SELECT key_id FROM idem_keys WHERE state <> 1 AND expires_at <= :now
UNION ALL
SELECT key_id FROM idem_keys WHERE state = 1 AND lease_until <= :now AND expires_at <= :now
LIMIT :most

-- name: keys.force(state, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, settled_at, expires_at, key_id, was_fence, was_state, was_until)
-- columns: fence
-- What an operator decided, unless the claim has changed since it was read. A forced row belongs to nobody.
UPDATE idem_keys
SET state = :state, fence = (SELECT value + 1 FROM holdfast_ledger WHERE name = 'idem_fence'), claim_id = zeroblob(16), owner = '',
    status = :status, headers = :headers, body = :body, body_bytes = :body_bytes, body_digest = :body_digest,
    block_sum = :block_sum, codec = :codec, cipher_key = :cipher_key, reason = :reason, settled_at = :settled_at,
    expires_at = :expires_at
WHERE key_id = :key_id AND fence = :was_fence AND state = :was_state AND lease_until = :was_until
RETURNING fence

-- name: keys.expire(expires_at, key_id, was_fence, was_state)
-- columns: fence
UPDATE idem_keys
SET fence = (SELECT value + 1 FROM holdfast_ledger WHERE name = 'idem_fence'), claim_id = zeroblob(16), owner = '', expires_at = :expires_at
WHERE key_id = :key_id AND fence = :was_fence AND state = :was_state
RETURNING fence

-- name: keys.audit(at, actor, action, key_ref, record_id, fence, state_before, state_after, reason)
INSERT INTO idem_audit (at, actor, action, key_ref, record_id, fence, state_before, state_after, reason)
VALUES (:at, :actor, :action, :key_ref, :record_id, :fence, :state_before, :state_after, :reason)

-- name: keys.audited(record_id)
-- columns: id, at, actor, action, key_ref, record_id, fence, state_before, state_after, reason
SELECT id, at, actor, action, key_ref, record_id, fence, state_before, state_after, reason
FROM idem_audit WHERE record_id = :record_id ORDER BY id

-- name: keys.scan(after, most)
-- columns: key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id, attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at, first_sent_at, format
SELECT key_id, scope_id, alias_of, record_id, state, fingerprint, fp_version, method, route, fence, claim_id,
       attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes,
       body_digest, block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at,
       settled_at, expires_at, first_sent_at, format
FROM idem_keys WHERE key_id > :after ORDER BY key_id LIMIT :most

-- name: keys.issued()
-- columns: fence
SELECT value AS fence FROM holdfast_ledger WHERE name = 'idem_fence'

-- name: secrets.touch(secret_ref, now, ttl_max)
INSERT INTO idem_secrets (secret_ref, first_used_at, last_used_at, ttl_max) VALUES (:secret_ref, :now, :now, :ttl_max)
ON CONFLICT (secret_ref) DO UPDATE SET last_used_at = max(idem_secrets.last_used_at, excluded.last_used_at),
                                       ttl_max = max(idem_secrets.ttl_max, excluded.ttl_max)

-- name: secrets.list()
-- columns: secret_ref, first_used_at, last_used_at, ttl_max
SELECT secret_ref, first_used_at, last_used_at, ttl_max FROM idem_secrets ORDER BY first_used_at, secret_ref

-- name: outbox.add(topic, payload, created_at)
INSERT INTO idem_outbox (order_token, topic, payload, created_at) VALUES (0, :topic, :payload, :created_at)

-- name: outbox.read(order_token, after_id, most)
-- columns: order_token, id, topic, payload, created_at
SELECT order_token, id, topic, payload, created_at FROM idem_outbox
WHERE order_token >= :order_token AND id > :after_id ORDER BY id LIMIT :most

-- name: outbox.prune(order_token, after_id, most)
DELETE FROM idem_outbox WHERE id IN (
    SELECT id FROM idem_outbox WHERE order_token <= :order_token AND id <= :after_id ORDER BY id LIMIT :most)
