-- Statements of the lifecycle slice's receipts, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- name: chains.hold(chains, now)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
-- Locks the rows of chains, given as JSON: [[chain_id, run_id], ...]. Those that it leaves out must be made, and held then.
WITH wanted AS MATERIALIZED (
    SELECT w.value->>0 AS chain_id, w.value->>1 AS run_id FROM jsonb_array_elements($1::jsonb) AS w (value)),
made AS (
    INSERT INTO lifecycle_chains (chain_id, run_id, updated_at)
    SELECT chain_id, run_id, $2::bigint FROM wanted
    WHERE NOT EXISTS (SELECT 1 FROM lifecycle_chains c WHERE c.chain_id = wanted.chain_id)
    ORDER BY chain_id COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at,
              updated_at),
held AS MATERIALIZED (
    SELECT c.chain_id, c.run_id, c.last_sequence, c.head_index, c.head_hash, c.base_index, c.base_hash,
           c.pruned_at, c.updated_at
    FROM lifecycle_chains c WHERE c.chain_id = ANY(ARRAY(SELECT chain_id FROM wanted))
    ORDER BY c.chain_id FOR UPDATE)
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at FROM made
UNION ALL
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at FROM held

-- name: chains.make(chain_id, run_id, updated_at)
INSERT INTO lifecycle_chains (chain_id, run_id, updated_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
ON CONFLICT DO NOTHING

-- name: chains.move(last_sequence, head_index, head_hash, updated_at, chain_id)
UPDATE lifecycle_chains c
SET last_sequence = w.last_sequence, head_index = w.head_index, head_hash = w.head_hash, updated_at = w.updated_at
FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::text[])
     AS w (last_sequence, head_index, head_hash, updated_at, chain_id)
WHERE c.chain_id = w.chain_id

-- name: chains.drop(chain_id)
-- A chain that was made for a receipt that did not come.
DELETE FROM lifecycle_chains WHERE chain_id = ANY($1::text[]) AND head_index = 0 AND last_sequence = 0

-- name: chains.get(chain_id)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
FROM lifecycle_chains WHERE chain_id = $1::text

-- name: chains.list(after, most)
-- columns: chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
SELECT chain_id, run_id, last_sequence, head_index, head_hash, base_index, base_hash, pruned_at, updated_at
FROM lifecycle_chains WHERE chain_id > $1::text ORDER BY chain_id LIMIT $2::bigint

-- name: chains.peek(run_id)
-- columns: last_sequence
SELECT last_sequence
FROM lifecycle_chains WHERE run_id = $1::text

-- name: chains.idle(before, most)
-- columns: chain_id, run_id
-- For operators: it looks at every chain.
SELECT chain_id, run_id
FROM lifecycle_chains WHERE updated_at < $1::bigint AND head_index > base_index
ORDER BY chain_id LIMIT $2::bigint

-- name: chains.prune(pruned_at, chain_id)
UPDATE lifecycle_chains c SET base_index = head_index, base_hash = head_hash, pruned_at = w.pruned_at
FROM unnest($1::bigint[], $2::text[]) AS w (pruned_at, chain_id) WHERE c.chain_id = w.chain_id

-- name: receipts.add(chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash)
INSERT INTO lifecycle_receipts (chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence,
    event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest,
    request_digest, response, origin, recorded_at, prev_hash, hash)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::bigint[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[],
            $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[], $19::bytea[], $20::bytea[],
            $21::text[], $22::bigint[], $23::bytea[], $24::bytea[])

-- name: receipts.find(keys)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Receipts by what makes them unique, as JSON: [[client_id, adapter_id, idempotency_key, receipt_id], ...].
SELECT r.id, r.chain_id, r.chain_index, r.receipt_id, r.client_id, r.adapter_id, r.idempotency_key, r.run_id,
       r.sequence, r.event, r.origin, r.recorded_at, r.body, r.annotations, r.request_digest, r.response,
       r.hash
FROM jsonb_array_elements($1::jsonb) AS w (value) CROSS JOIN LATERAL (
    SELECT * FROM lifecycle_receipts k
    WHERE k.client_id = w.value->>0 AND k.adapter_id = w.value->>1 AND k.idempotency_key = w.value->>2
    LIMIT 1) AS r
UNION ALL
SELECT r.id, r.chain_id, r.chain_index, r.receipt_id, r.client_id, r.adapter_id, r.idempotency_key, r.run_id,
       r.sequence, r.event, r.origin, r.recorded_at, r.body, r.annotations, r.request_digest, r.response,
       r.hash
FROM jsonb_array_elements($1::jsonb) AS w (value) CROSS JOIN LATERAL (
    SELECT * FROM lifecycle_receipts k
    WHERE k.client_id = w.value->>0 AND k.adapter_id = w.value->>1 AND k.receipt_id = w.value->>3
      AND k.idempotency_key IS NULL
    LIMIT 1) AS r
WHERE w.value->>2 IS NULL

-- name: receipts.place(run_id, sequence)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = $1::text AND sequence = $2::bigint

-- name: receipts.named(receipt_id, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE receipt_id = $1::text ORDER BY id DESC LIMIT $2::bigint

-- name: receipts.list(client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first. For people: it may look at every row.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE ($1::text IS NULL OR client_id = $1::text)
  AND ($2::text IS NULL OR event = $2::text)
  AND ($3::text IS NULL OR status = $3::text)
  AND ($4::bigint IS NULL OR recorded_at >= $4::bigint) AND ($5::bigint IS NULL OR id < $5::bigint)
ORDER BY id DESC LIMIT $6::bigint

-- name: receipts.of_run(run_id, session_id, client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = $1::text
  AND ($2::text IS NULL OR session_id = $2::text)
  AND ($3::text IS NULL OR client_id = $3::text)
  AND ($4::text IS NULL OR event = $4::text)
  AND ($5::text IS NULL OR status = $5::text)
  AND ($6::bigint IS NULL OR recorded_at >= $6::bigint) AND ($7::bigint IS NULL OR id < $7::bigint)
ORDER BY id DESC LIMIT $8::bigint

-- name: receipts.of_session(session_id, client_id, event, status, since, before, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
-- Newest first.
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE session_id = $1::text
  AND ($2::text IS NULL OR client_id = $2::text)
  AND ($3::text IS NULL OR event = $3::text)
  AND ($4::text IS NULL OR status = $4::text)
  AND ($5::bigint IS NULL OR recorded_at >= $5::bigint) AND ($6::bigint IS NULL OR id < $6::bigint)
ORDER BY id DESC LIMIT $7::bigint

-- name: receipts.chain(chain_id, after, most)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id, sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest, semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, session_id,
       sequence, event, status, failure_class, label, at_epoch_s, body, annotations, full_digest,
       semantic_digest, request_digest, response, origin, recorded_at, prev_hash, hash
FROM lifecycle_receipts WHERE chain_id = $1::text AND chain_index > $2::bigint ORDER BY chain_index LIMIT $3::bigint

-- name: receipts.strays(most)
-- columns: chain_id, chain_index, receipt_id, body
-- Receipts whose chain has no row.
SELECT chain_id, chain_index, receipt_id, body
FROM lifecycle_receipts 
WHERE NOT EXISTS (SELECT 1 FROM lifecycle_chains c WHERE c.chain_id = lifecycle_receipts.chain_id)
ORDER BY id LIMIT $1::bigint

-- name: receipts.prune(chain_id)
DELETE FROM lifecycle_receipts WHERE chain_id = ANY($1::text[])

-- name: receipts.gaps(run_id)
-- columns: run_id, first_sequence, last_sequence
-- Numbers that no receipt has, up to the run's counter. What came before a pruning is not missed.
SELECT g.run_id, g.first_sequence, g.last_sequence
FROM (
    SELECT r.run_id, r.sequence - 1 AS last_sequence,
           lag(r.sequence, 1, CASE WHEN c.pruned_at IS NULL THEN 0 ELSE r.sequence - 1 END)
               OVER (PARTITION BY r.run_id ORDER BY r.sequence) + 1 AS first_sequence
    FROM lifecycle_receipts r JOIN lifecycle_chains c ON c.run_id = r.run_id
    WHERE r.sequence >= 1 AND ($1::text IS NULL OR r.run_id = $1::text)
    UNION ALL
    SELECT c.run_id, c.last_sequence, coalesce(
               (SELECT max(r.sequence) FROM lifecycle_receipts r WHERE r.run_id = c.run_id),
               CASE WHEN c.pruned_at IS NULL THEN 0 ELSE c.last_sequence END) + 1
    FROM lifecycle_chains c WHERE c.run_id IS NOT NULL AND ($1::text IS NULL OR c.run_id = $1::text)
) AS g
WHERE g.first_sequence <= g.last_sequence ORDER BY g.run_id, g.first_sequence

-- name: receipts.following(run_id, sequence)
-- columns: id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event, origin, recorded_at, body, annotations, request_digest, response, hash
SELECT id, chain_id, chain_index, receipt_id, client_id, adapter_id, idempotency_key, run_id, sequence, event,
       origin, recorded_at, body, annotations, request_digest, response, hash
FROM lifecycle_receipts WHERE run_id = $1::text AND sequence > $2::bigint ORDER BY sequence LIMIT 1

-- name: intents.add(id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, created_at)
INSERT INTO lifecycle_intents (id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
    lease_until, attempts, state, created_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[],
            $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::bigint[])

-- name: intents.hold(ids)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
-- Locks intents, whose ids are given as JSON.
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE id = ANY(ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))
ORDER BY id FOR UPDATE

-- name: intents.get(id)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE id = $1::text

-- name: intents.again(request, context, negotiated, request_digest, owner, fence, lease_until, attempts, id, was_fence)
-- A dead or forgotten claim is made again, under the next fence.
UPDATE lifecycle_intents i
SET request = w.request, context = w.context, negotiated = w.negotiated, request_digest = w.request_digest,
    owner = w.owner, fence = w.fence, lease_until = w.lease_until, attempts = w.attempts, state = 'pending',
    receipt_row = NULL, settled_at = NULL
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[], $5::text[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::text[], $10::bigint[])
     AS w (request, context, negotiated, request_digest, owner, fence, lease_until, attempts, id, was_fence)
WHERE i.id = w.id AND i.fence = w.was_fence

-- name: intents.end(state, chain_id, chain_index, settled_at, id, fence)
UPDATE lifecycle_intents i
SET state = w.state, settled_at = w.settled_at,
    receipt_row = (SELECT r.id FROM lifecycle_receipts r WHERE r.chain_id = w.chain_id AND r.chain_index = w.chain_index)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[]) AS w (state, chain_id, chain_index, settled_at, id, fence)
WHERE i.id = w.id AND i.fence = w.fence AND i.state = 'pending'

-- name: intents.late(late, id)
UPDATE lifecycle_intents i SET late = w.late FROM unnest($1::bytea[], $2::text[]) AS w (late, id) WHERE i.id = w.id

-- name: intents.renew(lease_until, id, fence)
-- columns: lease_until
UPDATE lifecycle_intents SET lease_until = $1::bigint WHERE id = $2::text AND fence = $3::bigint AND state = 'pending'
RETURNING lease_until

-- name: intents.expire(owner)
UPDATE lifecycle_intents SET lease_until = 0 WHERE owner = ANY($1::text[]) AND state = 'pending'

-- name: intents.dead(now, most)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE state = 'pending' AND lease_until <= $1::bigint ORDER BY lease_until, id LIMIT $2::bigint

-- name: intents.pending(most)
-- columns: id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence, lease_until, attempts, state, receipt_row, late, created_at, settled_at
SELECT id, client_id, adapter_id, claim_key, request, context, negotiated, request_digest, owner, fence,
       lease_until, attempts, state, receipt_row, late, created_at, settled_at
FROM lifecycle_intents WHERE state = 'pending' ORDER BY lease_until, id LIMIT $1::bigint

-- name: intents.ended(after, most)
-- columns: id, context, client_id, adapter_id, claim_key, receipt_row, row_client_id, row_adapter_id, idempotency_key, receipt_id, chain_id, chain_index, intent_digest, request_digest
-- Intents that have ended, with the receipt each leads to.
SELECT i.id, i.context, i.client_id, i.adapter_id, i.claim_key, i.receipt_row, r.client_id AS row_client_id,
       r.adapter_id AS row_adapter_id, r.idempotency_key, r.receipt_id, r.chain_id, r.chain_index,
       i.request_digest AS intent_digest, r.request_digest
FROM lifecycle_intents i LEFT JOIN lifecycle_receipts r ON r.id = i.receipt_row
WHERE i.state <> 'pending' AND i.id > $1::text ORDER BY i.id LIMIT $2::bigint

-- name: intents.prune(chain_id)
DELETE FROM lifecycle_intents WHERE receipt_row IN (SELECT id FROM lifecycle_receipts WHERE chain_id = ANY($1::text[]))
