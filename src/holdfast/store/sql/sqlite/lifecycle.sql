-- Statements of the lifecycle slice's receipts, SQLite. The PostgreSQL file has the same names, parameters and columns.

-- name: chains.hold(chains, now)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
-- Locks the rows of chains, given as JSON: [[chain_id, run_id], ...]. Those that it leaves out must be made, and held then.
SELECT c.chain_id, c.run_id, c.last_sequence, c.head_index, c.head_hash, c.base_index, c.base_hash, c.pruned_at,
       c.updated_at
FROM json_each(:chains) AS w CROSS JOIN lifecycle_chains c ON c.chain_id = json_extract(w.value, '$[0]')
WHERE :now IS NOT NULL

-- name: chains.make(chain_id, run_id, updated_at)
INSERT INTO lifecycle_chains (chain_id, run_id, updated_at) VALUES (:chain_id, :run_id, :updated_at)
ON CONFLICT DO NOTHING

-- name: chains.move(last_sequence, head_index, head_hash, updated_at, chain_id)
UPDATE lifecycle_chains
SET last_sequence = :last_sequence, head_index = :head_index, head_hash = :head_hash, updated_at = :updated_at
WHERE chain_id = :chain_id

-- name: chains.drop(chain_id)
-- A chain that was made for a receipt that did not come.
DELETE FROM lifecycle_chains WHERE chain_id = :chain_id AND head_index = 0 AND last_sequence = 0

-- name: chains.get(chain_id)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
FROM lifecycle_chains WHERE chain_id = :chain_id

-- name: chains.list(after, most)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
FROM lifecycle_chains WHERE chain_id > :after ORDER BY chain_id LIMIT :most

-- name: chains.peek(run_id)
-- columns: last_sequence
SELECT last_sequence
FROM lifecycle_chains WHERE run_id = :run_id

-- name: chains.idle(before, most)
-- columns: chain_id, run_id
-- For operators: it looks at every chain.
SELECT chain_id, run_id
FROM lifecycle_chains WHERE updated_at < :before AND head_index > base_index
ORDER BY chain_id LIMIT :most

-- name: chains.prune(pruned_at, chain_id)
UPDATE lifecycle_chains SET base_index = head_index, base_hash = head_hash, pruned_at = :pruned_at
WHERE chain_id = :chain_id

-- name: receipts.add(chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash)
INSERT INTO lifecycle_receipts (chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence,
    event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest,
    request_digest, response, origin, recorded_at, prev_hash, hash)
VALUES (:chain_id, :chain_index, :receipt_id, :client_id, :adapter_id, :idempotency_key, :run_id, :session_id,
        :sequence, :event, :status, :failure_class, :label, :at_epoch_s, :body, :annotations,
        :full_digest, :semantic_digest, :request_digest, :response, :origin, :recorded_at, :prev_hash,
        :hash)

-- name: receipts.find(keys)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Receipts by what makes them unique, as JSON: [[client_id, adapter_id, idempotency_key, receipt_id], ...].
SELECT r.id, r.chain_id, r.chain_index, r.receipt_id, r.client_id, r.adapter_id, r.idempotency_key, r.run_id,
       r.sequence, r.event, r.origin, r.recorded_at, r.body, r.annotations, r.request_digest, r.response,
       r.hash
FROM json_each(:keys) AS w CROSS JOIN lifecycle_receipts r
  ON r.client_id = json_extract(w.value, '$[0]') AND r.adapter_id = json_extract(w.value, '$[1]')
 AND r.idempotency_key = json_extract(w.value, '$[2]')
UNION ALL
SELECT r.id, r.chain_id, r.chain_index, r.receipt_id, r.client_id, r.adapter_id, r.idempotency_key, r.run_id,
       r.sequence, r.event, r.origin, r.recorded_at, r.body, r.annotations, r.request_digest, r.response,
       r.hash
FROM json_each(:keys) AS w CROSS JOIN lifecycle_receipts r
  ON r.client_id = json_extract(w.value, '$[0]') AND r.adapter_id = json_extract(w.value, '$[1]')
 AND r.receipt_id = json_extract(w.value, '$[3]') AND r.idempotency_key IS NULL
WHERE json_extract(w.value, '$[2]') IS NULL

-- name: receipts.place(run_id, sequence)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = :run_id AND sequence = :sequence

-- name: receipts.named(receipt_id, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE receipt_id = :receipt_id ORDER BY id DESC LIMIT :most

-- name: receipts.list(client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first. For people: it may look at every row.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE (:client_id IS NULL OR client_id = :client_id)
  AND (:event IS NULL OR event = :event)
  AND (:status IS NULL OR status = :status)
  AND (:since IS NULL OR recorded_at >= :since) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :most

-- name: receipts.of_run(run_id, session_id, client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = :run_id
  AND (:session_id IS NULL OR session_id = :session_id)
  AND (:client_id IS NULL OR client_id = :client_id)
  AND (:event IS NULL OR event = :event)
  AND (:status IS NULL OR status = :status)
  AND (:since IS NULL OR recorded_at >= :since) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :most

-- name: receipts.of_session(session_id, client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE session_id = :session_id
  AND (:client_id IS NULL OR client_id = :client_id)
  AND (:event IS NULL OR event = :event)
  AND (:status IS NULL OR status = :status)
  AND (:since IS NULL OR recorded_at >= :since) AND (:before IS NULL OR id < :before)
ORDER BY id DESC LIMIT :most

-- name: receipts.chain(chain_id, after, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id,
       sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest,
       semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash
FROM lifecycle_receipts WHERE chain_id = :chain_id AND chain_index > :after ORDER BY chain_index LIMIT :most

-- name: receipts.strays(most)
-- columns: chain_id, chain_index, receipt_id, body
-- Receipts whose chain has no row.
SELECT chain_id, chain_index, receipt_id, body
FROM lifecycle_receipts 
WHERE NOT EXISTS (SELECT 1 FROM lifecycle_chains c WHERE c.chain_id = lifecycle_receipts.chain_id)
ORDER BY id LIMIT :most

-- name: receipts.prune(chain_id)
DELETE FROM lifecycle_receipts WHERE chain_id = :chain_id

-- name: receipts.gaps(run_id)
-- columns: run_id, first_sequence, last_sequence
-- Numbers that no receipt has, up to the run's counter. What came before a pruning is not missed.
SELECT g.run_id, g.first_sequence, g.last_sequence
FROM (
    SELECT r.run_id, r.sequence - 1 AS last_sequence,
           lag(r.sequence, 1, CASE WHEN c.pruned_at IS NULL THEN 0 ELSE r.sequence - 1 END)
               OVER (PARTITION BY r.run_id ORDER BY r.sequence) + 1 AS first_sequence
    FROM lifecycle_receipts r JOIN lifecycle_chains c ON c.run_id = r.run_id
    WHERE r.sequence >= 1 AND (:run_id IS NULL OR r.run_id = :run_id)
    UNION ALL
    SELECT c.run_id, c.last_sequence, coalesce(
               (SELECT max(r.sequence) FROM lifecycle_receipts r WHERE r.run_id = c.run_id),
               CASE WHEN c.pruned_at IS NULL THEN 0 ELSE c.last_sequence END) + 1
    FROM lifecycle_chains c WHERE c.run_id IS NOT NULL AND (:run_id IS NULL OR c.run_id = :run_id)
) AS g
WHERE g.first_sequence <= g.last_sequence ORDER BY g.run_id, g.first_sequence

-- name: receipts.following(run_id, sequence)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = :run_id AND sequence > :sequence ORDER BY sequence LIMIT 1

-- name: intents.add(id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, created_at)
INSERT INTO lifecycle_intents (id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
    lease_until, attempts, state, created_at)
VALUES (:id, :client_id, :adapter_id, :claim_key, :request, :context, :negotiated, :request_digest, :owner,
        :fence, :lease_until, :attempts, :state, :created_at)

-- name: intents.hold(ids)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
-- Locks intents, whose ids are given as JSON.
SELECT i.id, i.client_id, i.adapter_id, i.claim_key, i.request, i.context, i.negotiated, i.request_digest,
       i.owner, i.fence, i.lease_until, i.attempts, i.state, i.receipt_row, i.late, i.created_at,
       i.settled_at
FROM json_each(:ids) AS w CROSS JOIN lifecycle_intents i ON i.id = w.value

-- name: intents.get(id)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE id = :id

-- name: intents.again(request, context, negotiated, request_digest, owner, fence, lease_until, attempts, id, was_fence)
-- A dead or forgotten claim is made again, under the next fence.
UPDATE lifecycle_intents
SET request = :request, context = :context, negotiated = :negotiated, request_digest = :request_digest, owner =
    :owner, fence = :fence, lease_until = :lease_until, attempts = :attempts, state = 'pending',
    receipt_row = NULL, settled_at = NULL
WHERE id = :id AND fence = :was_fence

-- name: intents.end(state, chain_id, chain_index, settled_at, id, fence)
UPDATE lifecycle_intents
SET state = :state,
    receipt_row = (SELECT r.id FROM lifecycle_receipts r WHERE r.chain_id = :chain_id AND r.chain_index = :chain_index),
    settled_at = :settled_at
WHERE id = :id AND fence = :fence AND state = 'pending'

-- name: intents.late(late, id)
UPDATE lifecycle_intents SET late = :late WHERE id = :id

-- name: intents.renew(lease_until, id, fence)
-- columns: lease_until
UPDATE lifecycle_intents SET lease_until = :lease_until WHERE id = :id AND fence = :fence AND state = 'pending'
RETURNING lease_until

-- name: intents.expire(owner)
UPDATE lifecycle_intents SET lease_until = 0 WHERE owner = :owner AND state = 'pending'

-- name: intents.dead(now, most)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE state = 'pending' AND lease_until <= :now ORDER BY lease_until, id LIMIT :most

-- name: intents.pending(most)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE state = 'pending' ORDER BY lease_until, id LIMIT :most

-- name: intents.ended(after, most)
-- columns: id, context, client_id, adapter_id, claim_key, receipt_row, row_client_id, row_adapter_id, idempotency_key, receipt_id, chain_id, chain_index, intent_digest, request_digest
-- Intents that have ended, with the receipt each leads to.
SELECT i.id, i.context, i.client_id, i.adapter_id, i.claim_key, i.receipt_row, r.client_id AS row_client_id,
       r.adapter_id AS row_adapter_id, r.idempotency_key, r.receipt_id, r.chain_id, r.chain_index,
       i.request_digest AS intent_digest, r.request_digest
FROM lifecycle_intents i LEFT JOIN lifecycle_receipts r ON r.id = i.receipt_row
WHERE i.state <> 'pending' AND i.id > :after ORDER BY i.id LIMIT :most

-- name: intents.prune(chain_id)
DELETE FROM lifecycle_intents WHERE receipt_row IN (SELECT id FROM lifecycle_receipts WHERE chain_id = :chain_id)
