-- Statements of durable execution, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- Appends of an owner: run by the writer, arrays here, one row of values at a time there.

-- name: executions.create(pk, id, uid, kind, status, generation, chapter, available_at, input, input_hash, seed, owner_id, fence, deadline_at, code_version, created_at, updated_at, claimed_at)
INSERT INTO durable_executions (pk, id, uid, kind, status, generation, chapter, available_at, input, input_hash, seed,
                                owner_id, fence, deadline_at, code_version, created_at, updated_at, claimed_at)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::integer[], $7::integer[],
            $8::bigint[], $9::bytea[], $10::bytea[], $11::bytea[], $12::text[], $13::bigint[], $14::bigint[],
            $15::text[], $16::bigint[], $17::bigint[], $18::bigint[])
ON CONFLICT DO NOTHING

-- name: executions.held(pk, fence)
-- columns: pk, fence, request
SELECT e.pk, e.fence, e.request
FROM unnest($1::bigint[], $2::bigint[]) AS w (pk, fence)
JOIN durable_executions e ON e.pk = w.pk AND e.fence = w.fence AND e.status IN ('running', 'waiting')
ORDER BY e.pk FOR SHARE OF e

-- name: generations.close(closed_at, closed_as, report, execution_pk, generation)
UPDATE durable_generations e SET closed_at = w.closed_at, closed_as = w.closed_as, report = w.report
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::integer[])
     AS w (closed_at, closed_as, report, execution_pk, generation)
WHERE e.execution_pk = w.execution_pk AND e.generation = w.generation

-- name: generations.open(execution_pk, generation, chapter, cause, input, code_version, opened_at)
INSERT INTO durable_generations (execution_pk, generation, chapter, cause, input, code_version, opened_at)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::text[], $5::bytea[], $6::text[], $7::bigint[])

-- name: trail.add(execution_pk, generation, status, reason, owner_id, fence, at)
INSERT INTO durable_trail (execution_pk, generation, status, reason, owner_id, fence, at)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])

-- name: trail.add.recorded(execution_pk, generation, status, reason, owner_id, fence, at)
-- columns: pk, fence, request
SELECT e.pk, e.fence, e.request FROM durable_trail t JOIN durable_executions e ON e.pk = t.execution_pk
WHERE t.execution_pk = $1::bigint AND t.generation = $2::integer AND t.status = $3::text
  AND t.reason IS NOT DISTINCT FROM $4::text AND t.owner_id IS NOT DISTINCT FROM $5::text AND t.fence = $6::bigint AND t.at = $7::bigint
LIMIT 1

-- name: journal.append(execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
INSERT INTO durable_journal (execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind,
                             policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bytea[], $4::bigint[], $5::smallint[], $6::integer[], $7::text[],
            $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::text[],
            $15::bytea[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[])

-- name: journal.append.recorded(execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
-- columns: pk, fence, request
-- The row that is there under the same fence is this append's own.
SELECT e.pk, e.fence, e.request FROM durable_journal j JOIN durable_executions e ON e.pk = j.execution_pk
WHERE j.execution_pk = $1::bigint AND j.generation = $2::integer AND j.scope = $3::bytea AND j.idx = $4::bigint
  AND j.part = $5::smallint AND j.attempt = $6::integer AND j.kind = $7::text AND j.name = $8::text AND j.effect IS NOT DISTINCT FROM $9::text
  AND j.effect_kind IS NOT DISTINCT FROM $10::text AND j.policy IS NOT DISTINCT FROM $11::text AND j.shape = $12::bytea AND j.key IS NOT DISTINCT FROM $13::bytea
  AND j.outcome IS NOT DISTINCT FROM $14::text AND j.payload IS NOT DISTINCT FROM $15::bytea AND j.carried_from IS NOT DISTINCT FROM $16::bigint AND j.due_at IS NOT DISTINCT FROM $17::bigint
  AND j.fence = $18::bigint AND j.created_at = $19::bigint

-- name: blobs.add(blob_pk, execution_pk, part, bytes)
INSERT INTO durable_blobs (blob_pk, execution_pk, part, bytes)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::bytea[])

-- name: decisions.open(execution_pk, generation, position, reason, key, opened_at)
INSERT INTO durable_decisions (execution_pk, generation, position, reason, key, opened_at)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::bytea[], $6::bigint[])

-- name: audit.add(execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail)
INSERT INTO durable_audit (execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[])

-- name: executions.degrade(pk)
UPDATE durable_executions e SET degraded = TRUE
FROM unnest($1::bigint[]) AS w (pk)
WHERE e.pk = w.pk

-- name: executions.move(status, waiting_on, reason, generation, chapter, release, release_request, bytes, now, pk)
UPDATE durable_executions e
SET status = w.status, waiting_on = w.waiting_on, reason = w.reason, generation = w.generation, chapter = w.chapter,
    owner_id = CASE WHEN w.release THEN NULL ELSE e.owner_id END,
    request = CASE WHEN w.release_request THEN NULL ELSE e.request END,
    bytes = w.bytes, updated_at = w.now
-- Of several changes of one execution in one batch the last one counts.
FROM (SELECT DISTINCT ON (u.pk) u.*
      FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::boolean[], $7::boolean[],
                  $8::bigint[], $9::bigint[], $10::bigint[])
           WITH ORDINALITY
           AS u (status, waiting_on, reason, generation, chapter, release, release_request, bytes, now, pk, place)
      ORDER BY u.pk, u.place DESC) AS w
WHERE e.pk = w.pk

-- name: executions.settle(status, reason, output, failure, bytes, finished_at, updated_at, pk)
UPDATE durable_executions e SET status = w.status, reason = w.reason, output = w.output, failure = w.failure, bytes = w.bytes,
    waiting_on = NULL, owner_id = NULL, request = NULL, request_at = NULL,
    finished_at = w.finished_at, updated_at = w.updated_at
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[])
     AS w (status, reason, output, failure, bytes, finished_at, updated_at, pk)
WHERE e.pk = w.pk

-- Claims and what operators do: transactions of their own.

-- name: executions.reserve()
-- columns: first
SELECT nextval('durable_execution_pk') AS first

-- name: executions.get(id)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, e.output, e.failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.id = $1::text

-- name: executions.list(status, kind, queue, before, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL::bytea AS output, NULL::bytea AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE ($1::text IS NULL OR e.status = $1::text) AND ($2::text IS NULL OR e.kind = $2::text)
  AND ($3::text IS NULL OR e.queue = $3::text) AND ($4::bigint IS NULL OR e.pk < $4::bigint)
ORDER BY e.pk DESC LIMIT $5::bigint

-- name: executions.under(id, low, high, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL::bytea AS output, NULL::bytea AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.id = $1::text OR (e.id > $2::text AND e.id < $3::text)
ORDER BY e.pk LIMIT $4::bigint

-- name: executions.takeable(after, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL::bytea AS output, NULL::bytea AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.finished_at IS NULL AND e.status IN ('pending', 'running', 'waiting') AND e.pk > $1::bigint
ORDER BY e.pk LIMIT $2::bigint

-- name: executions.requests(owner_id)
-- columns: id, request, request_at
SELECT id, request, request_at FROM durable_executions
WHERE owner_id = $1::text AND request IS NOT NULL AND finished_at IS NULL

-- name: executions.tally()
-- columns: status, count
SELECT status, count(*) AS count FROM durable_executions GROUP BY status

-- name: executions.owned(owner_id)
-- columns: pk
SELECT pk FROM durable_executions WHERE owner_id = $1::text AND finished_at IS NULL LIMIT 1

-- name: executions.claim(owner_id, now, code_version, recoveries, pk, fence)
-- columns: fence
UPDATE durable_executions
SET owner_id = $1::text, fence = durable_executions.fence + 1, status = 'running', waiting_on = NULL, reason = NULL,
    claimed_at = $2::bigint, updated_at = $2::bigint, code_version = $3::text, recoveries = $4::integer
WHERE pk = $5::bigint AND durable_executions.fence = $6::bigint AND status IN ('pending', 'running', 'waiting')
  AND (waiting_on IS NULL OR waiting_on <> 'paused')
  AND (owner_id = $1::text
       OR NOT EXISTS (SELECT 1 FROM holdfast_owners o
                  WHERE o.owner_id = durable_executions.owner_id AND o.lease_until > $2::bigint))
RETURNING fence

-- name: executions.reopened(pk)
-- columns: input, last_now, last_fence
-- What a claim must know beyond the row: today's input, the latest recorded time, and the fence of the last entry.
SELECT coalesce(g.input, e.input) AS input,
       (SELECT max(j.created_at) FROM durable_journal j WHERE j.execution_pk = e.pk AND j.kind = 'now') AS last_now,
       (SELECT max(j.fence) FROM durable_journal j WHERE j.execution_pk = e.pk) AS last_fence
FROM durable_executions e JOIN durable_generations g ON g.execution_pk = e.pk AND g.generation = e.generation
WHERE e.pk = $1::bigint

-- name: executions.shift(status, waiting_on, reason, generation, failure, deadline_at, finished_at, now, pk, fence, was)
-- columns: fence
-- A change of status from outside the owner: it raises the fence, so that the owner, if there is one, stops.
UPDATE durable_executions
SET status = $1::text, waiting_on = $2::text, reason = $3::text, generation = $4::integer, failure = $5::bytea,
    deadline_at = $6::bigint, finished_at = $7::bigint, updated_at = $8::bigint,
    owner_id = NULL, request = NULL, request_at = NULL, recoveries = 0, fence = durable_executions.fence + 1
WHERE pk = $9::bigint AND durable_executions.fence = $10::bigint AND status = $11::text
RETURNING fence

-- name: executions.request(request, request_at, pk, fence)
-- columns: fence
UPDATE durable_executions SET request = $1::text, request_at = $2::bigint
WHERE pk = $3::bigint AND fence = $4::bigint AND finished_at IS NULL
RETURNING fence

-- name: executions.lock(pk)
-- columns: pk, id, status, generation, chapter, fence
SELECT pk, id, status, generation, chapter, fence FROM durable_executions WHERE pk = $1::bigint FOR UPDATE

-- name: executions.counts(pk, generation)
-- columns: positions_count, entries_count
SELECT (SELECT count(DISTINCT encode(scope, 'hex') || ':' || idx) FROM durable_journal
        WHERE execution_pk = $1::bigint AND generation = $2::integer AND idx >= 0) AS positions_count,
       (SELECT count(*) FROM durable_journal WHERE execution_pk = $1::bigint) AS entries_count

-- name: generations.claimed(code_version, execution_pk, generation)
UPDATE durable_generations SET code_version = $1::text
WHERE execution_pk = $2::bigint AND generation = $3::integer

-- name: generations.list(execution_pk)
-- columns: generation, chapter, cause, code_version, opened_at, closed_at, closed_as, report
SELECT generation, chapter, cause, code_version, opened_at, closed_at, closed_as, report
FROM durable_generations WHERE execution_pk = $1::bigint ORDER BY generation

-- name: generations.input(execution_pk, chapter)
-- columns: input
SELECT input FROM durable_generations
WHERE execution_pk = $1::bigint AND chapter = $2::integer ORDER BY generation LIMIT 1

-- name: trail.list(execution_pk)
-- columns: seq, generation, status, reason, owner_id, fence, at
SELECT seq, generation, status, reason, owner_id, fence, at
FROM durable_trail WHERE execution_pk = $1::bigint ORDER BY seq

-- name: journal.segment(execution_pk, generation, scope, start, most)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal
WHERE execution_pk = $1::bigint AND generation = $2::integer AND scope = $3::bytea AND idx >= $4::bigint
ORDER BY idx, part, CASE part WHEN 2 THEN 0 ELSE attempt END LIMIT $5::bigint

-- name: journal.position(execution_pk, generation, scope, idx)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal
WHERE execution_pk = $1::bigint AND generation = $2::integer AND scope = $3::bytea AND idx = $4::bigint
ORDER BY part, attempt

-- name: journal.row(seq)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal WHERE seq = $1::bigint

-- name: journal.earlier(execution_pk, chapter, generation)
-- columns: generation, idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
-- What earlier generations of the chapter hold under a key, latest generation first, without its values.
SELECT j.generation, j.idx, j.part, j.attempt, j.shape, j.outcome, NULL::bytea AS payload, j.kind, j.name, j.effect,
       j.effect_kind, j.policy, j.key, j.carried_from, j.due_at, j.seq
FROM durable_journal j JOIN durable_generations g
     ON g.execution_pk = j.execution_pk AND g.generation = j.generation
WHERE j.execution_pk = $1::bigint AND g.chapter = $2::integer AND j.generation < $3::integer
  AND j.key IS NOT NULL AND j.kind IN ('step', 'now')
ORDER BY j.generation DESC, j.seq

-- name: journal.carried(execution_pk, generation)
-- columns: seq
-- Entries of earlier generations that this one has taken over; a question about one (part 0, attempt 0) has not.
SELECT carried_from AS seq FROM durable_journal
WHERE execution_pk = $1::bigint AND generation = $2::integer AND carried_from IS NOT NULL AND NOT (part = 0 AND attempt = 0)

-- name: journal.intents(execution_pk, generation)
-- columns: scope, idx, attempt, name, effect, effect_kind, policy, key, shape, outcome_value, seq
-- Intents of one generation that neither an outcome nor a failed attempt has closed.
SELECT i.scope, i.idx, i.attempt, i.name, i.effect, i.effect_kind, i.policy, i.key, i.shape,
       NULL::bytea AS outcome_value, i.seq
FROM durable_journal i
WHERE i.execution_pk = $1::bigint AND i.generation = $2::integer AND i.part = 0 AND i.kind = 'step'
  AND NOT EXISTS (SELECT 1 FROM durable_journal o
                  WHERE o.execution_pk = i.execution_pk AND o.generation = i.generation AND o.scope = i.scope
                    AND o.idx = i.idx
                    AND (o.part = 2 OR (o.part = 1 AND o.attempt >= i.attempt)
                         OR (o.part = 0 AND o.attempt > i.attempt)))
ORDER BY i.seq

-- name: journal.list(execution_pk, generation, after, most)
-- columns: seq, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, payload_bytes, carried_from, due_at, folded, fence, created_at
SELECT seq, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome,
       payload, octet_length(payload) AS payload_bytes, carried_from, due_at, folded, fence, created_at
FROM durable_journal
WHERE execution_pk = $1::bigint AND ($2::integer IS NULL OR generation = $2::integer) AND seq > $3::bigint
ORDER BY seq LIMIT $4::bigint

-- name: executions.strays(most)
-- columns: place, name, pk
-- Rows of every table that belong to no execution.
SELECT s.place, s.name, s.pk
FROM (SELECT 'durable_journal' AS place, CAST(seq AS text) AS name, execution_pk AS pk FROM durable_journal
      UNION ALL
      SELECT 'durable_generations', CAST(generation AS text), execution_pk FROM durable_generations
      UNION ALL
      SELECT 'durable_trail', CAST(seq AS text), execution_pk FROM durable_trail
      UNION ALL
      SELECT 'durable_decisions', position, execution_pk FROM durable_decisions
      UNION ALL
      SELECT 'durable_blobs', CAST(blob_pk AS text), execution_pk FROM durable_blobs) s
WHERE NOT EXISTS (SELECT 1 FROM durable_executions e WHERE e.pk = s.pk)
ORDER BY s.place, s.name LIMIT $1::bigint

-- name: journal.rearm(seq)
-- A failed or lost outcome becomes a failed attempt, so that the next one may run.
UPDATE durable_journal SET part = 1, due_at = NULL WHERE seq = $1::bigint AND part = 2

-- name: journal.assume(payload, policy, seq)
-- An outcome whose value was lost takes the value an operator knows.
UPDATE durable_journal SET outcome = 'assumed', payload = $1::bytea, policy = $2::text
WHERE seq = $3::bigint AND part = 2 AND outcome = 'no_value'

-- name: journal.reopen(seq)
-- An operator's value that does not fit the program's type gives way to the question it answered.
DELETE FROM durable_journal WHERE seq = $1::bigint AND part = 2 AND outcome = 'assumed' AND policy = 'operator'

-- name: journal.lost(execution_pk, generation)
-- columns: scope, idx, outcome, effect, seq
SELECT scope, idx, outcome, effect, seq FROM durable_journal
WHERE execution_pk = $1::bigint AND generation = $2::integer AND part = 2 AND kind = 'step'
  AND outcome IN ('failed', 'no_value')
ORDER BY seq

-- name: blobs.get(blob_pk)
-- columns: part, bytes
SELECT part, bytes FROM durable_blobs WHERE blob_pk = $1::bigint ORDER BY part

-- name: decisions.list(execution_pk)
-- columns: generation, position, reason, key, opened_at, decision, decided_by, note, decided_at
SELECT generation, position, reason, key, opened_at, decision, decided_by, note, decided_at
FROM durable_decisions WHERE execution_pk = $1::bigint ORDER BY opened_at, position

-- name: decisions.decide(decision, decided_by, note, decided_at, execution_pk, generation, position)
-- columns: reason
UPDATE durable_decisions SET decision = $1::text, decided_by = $2::text, note = $3::text, decided_at = $4::bigint
WHERE execution_pk = $5::bigint AND generation = $6::integer AND position = $7::text AND decided_at IS NULL
RETURNING reason

-- name: decisions.close(decision, decided_at, execution_pk)
UPDATE durable_decisions SET decision = $1::text, decided_at = $2::bigint
WHERE execution_pk = $3::bigint AND decided_at IS NULL

-- name: audit.list(execution_id, after, most)
-- columns: seq, execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail
SELECT seq, execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail
FROM durable_audit
WHERE ($1::text IS NULL OR execution_id = $1::text) AND seq > $2::bigint
ORDER BY seq LIMIT $3::bigint
