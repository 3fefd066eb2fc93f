-- Statements of durable execution, SQLite. The PostgreSQL file has the same names, parameters and columns.

-- Appends of an owner: run by the writer, one row of values at a time here, arrays there.

-- name: executions.create(pk, id, uid, kind, status, generation, chapter, available_at, input, input_hash, seed, owner_id, fence, deadline_at, code_version, created_at, updated_at, claimed_at)
INSERT INTO durable_executions (pk, id, uid, kind, status, generation, chapter, available_at, input, input_hash, seed,
                                owner_id, fence, deadline_at, code_version, created_at, updated_at, claimed_at)
VALUES (:pk, :id, :uid, :kind, :status, :generation, :chapter, :available_at, :input, :input_hash, :seed,
        :owner_id, :fence, :deadline_at, :code_version, :created_at, :updated_at, :claimed_at)
ON CONFLICT DO NOTHING

-- name: executions.held(pk, fence)
-- columns: pk, fence, request
SELECT pk, fence, request FROM durable_executions
WHERE pk = :pk AND fence = :fence AND status IN ('running', 'waiting')

-- name: generations.close(closed_at, closed_as, report, execution_pk, generation)
UPDATE durable_generations SET closed_at = :closed_at, closed_as = :closed_as, report = :report
WHERE execution_pk = :execution_pk AND generation = :generation

-- name: generations.open(execution_pk, generation, chapter, cause, input, code_version, opened_at)
INSERT INTO durable_generations (execution_pk, generation, chapter, cause, input, code_version, opened_at)
VALUES (:execution_pk, :generation, :chapter, :cause, :input, :code_version, :opened_at)

-- name: trail.add(execution_pk, generation, status, reason, owner_id, fence, at)
INSERT INTO durable_trail (execution_pk, generation, status, reason, owner_id, fence, at)
VALUES (:execution_pk, :generation, :status, :reason, :owner_id, :fence, :at)

-- name: trail.add.recorded(execution_pk, generation, status, reason, owner_id, fence, at)
-- columns: pk, fence, request
SELECT e.pk, e.fence, e.request FROM durable_trail t JOIN durable_executions e ON e.pk = t.execution_pk
WHERE t.execution_pk = :execution_pk AND t.generation = :generation AND t.status = :status
  AND t.reason IS :reason AND t.owner_id IS :owner_id AND t.fence = :fence AND t.at = :at
LIMIT 1

-- name: journal.append(execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
INSERT INTO durable_journal (execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind,
                             policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
VALUES (:execution_pk, :generation, :scope, :idx, :part, :attempt, :kind, :name, :effect, :effect_kind,
        :policy, :shape, :key, :outcome, :payload, :carried_from, :due_at, :fence, :created_at)

-- name: journal.append.recorded(execution_pk, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, carried_from, due_at, fence, created_at)
-- columns: pk, fence, request
-- The row that is there under the same fence is this append's own.
SELECT e.pk, e.fence, e.request FROM durable_journal j JOIN durable_executions e ON e.pk = j.execution_pk
WHERE j.execution_pk = :execution_pk AND j.generation = :generation AND j.scope = :scope AND j.idx = :idx
  AND j.part = :part AND j.attempt = :attempt AND j.kind = :kind AND j.name = :name AND j.effect IS :effect
  AND j.effect_kind IS :effect_kind AND j.policy IS :policy AND j.shape = :shape AND j.key IS :key
  AND j.outcome IS :outcome AND j.payload IS :payload AND j.carried_from IS :carried_from AND j.due_at IS :due_at
  AND j.fence = :fence AND j.created_at = :created_at

-- name: blobs.add(blob_pk, execution_pk, part, bytes)
INSERT INTO durable_blobs (blob_pk, execution_pk, part, bytes) VALUES (:blob_pk, :execution_pk, :part, :bytes)

-- name: decisions.open(execution_pk, generation, position, reason, key, opened_at)
INSERT INTO durable_decisions (execution_pk, generation, position, reason, key, opened_at)
VALUES (:execution_pk, :generation, :position, :reason, :key, :opened_at)

-- name: audit.add(execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail)
INSERT INTO durable_audit (execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail)
VALUES (:execution_id, :at, :generation, :position, :event, :effect, :key_prefix, :policy, :actor, :detail)

-- name: executions.degrade(pk)
UPDATE durable_executions SET degraded = 1 WHERE pk = :pk

-- name: executions.move(status, waiting_on, reason, generation, chapter, release, release_request, bytes, now, pk)
UPDATE durable_executions
SET status = :status, waiting_on = :waiting_on, reason = :reason, generation = :generation, chapter = :chapter,
    owner_id = CASE WHEN :release THEN NULL ELSE owner_id END,
    request = CASE WHEN :release_request THEN NULL ELSE request END,
    bytes = :bytes, updated_at = :now
WHERE pk = :pk

-- name: executions.settle(status, reason, output, failure, bytes, finished_at, updated_at, pk)
UPDATE durable_executions
SET status = :status, reason = :reason, output = :output, failure = :failure, bytes = :bytes,
    waiting_on = NULL, owner_id = NULL, request = NULL, request_at = NULL,
    finished_at = :finished_at, updated_at = :updated_at
WHERE pk = :pk

-- Claims and what operators do: transactions of their own.

-- name: executions.reserve()
-- columns: first
UPDATE holdfast_ledger SET value = value + 256 WHERE name = 'durable_execution_pk' RETURNING value - 256 AS first

-- name: executions.get(id)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, e.output, e.failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.id = :id

-- name: executions.list(status, kind, queue, before, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL AS output, NULL AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE (:status IS NULL OR e.status = :status) AND (:kind IS NULL OR e.kind = :kind)
  AND (:queue IS NULL OR e.queue = :queue) AND (:before IS NULL OR e.pk < :before)
ORDER BY e.pk DESC LIMIT :most

-- name: executions.under(id, low, high, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL AS output, NULL AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.id = :id OR (e.id > :low AND e.id < :high)
ORDER BY e.pk LIMIT :most

-- name: executions.takeable(after, most)
-- columns: pk, id, uid, kind, status, waiting_on, reason, generation, chapter, queue, priority, available_at, input_hash, seed, output, failure, parent_pk, owner_id, fence, request, request_at, deadline_at, code_version, degraded, recoveries, bytes, created_at, updated_at, claimed_at, finished_at, host, machine_id, pid, lock_path, lease_until, started_at
SELECT e.pk, e.id, e.uid, e.kind, e.status, e.waiting_on, e.reason, e.generation, e.chapter, e.queue, e.priority,
       e.available_at, e.input_hash, e.seed, NULL AS output, NULL AS failure, e.parent_pk, e.owner_id, e.fence, e.request,
       e.request_at, e.deadline_at, e.code_version, e.degraded, e.recoveries, e.bytes, e.created_at, e.updated_at,
       e.claimed_at, e.finished_at, o.host, o.machine_id, o.pid, o.lock_path, o.lease_until, o.started_at
FROM durable_executions e LEFT JOIN holdfast_owners o ON o.owner_id = e.owner_id
WHERE e.finished_at IS NULL AND e.status IN ('pending', 'running', 'waiting') AND e.pk > :after
ORDER BY e.pk LIMIT :most

-- name: executions.requests(owner_id)
-- columns: id, request, request_at
SELECT id, request, request_at FROM durable_executions
WHERE owner_id = :owner_id AND request IS NOT NULL AND finished_at IS NULL

-- name: executions.tally()
-- columns: status, count
SELECT status, count(*) AS count FROM durable_executions GROUP BY status

-- name: executions.owned(owner_id)
-- columns: pk
SELECT pk FROM durable_executions WHERE owner_id = :owner_id AND finished_at IS NULL LIMIT 1

-- name: executions.claim(owner_id, now, code_version, recoveries, pk, fence)
-- columns: fence
UPDATE durable_executions
SET owner_id = :owner_id, fence = durable_executions.fence + 1, status = 'running', waiting_on = NULL, reason = NULL,
    claimed_at = :now, updated_at = :now, code_version = :code_version, recoveries = :recoveries
WHERE pk = :pk AND durable_executions.fence = :fence AND status IN ('pending', 'running', 'waiting')
  AND (waiting_on IS NULL OR waiting_on <> 'paused')
  AND (owner_id = :owner_id
       OR NOT EXISTS (SELECT 1 FROM holdfast_owners o
                  WHERE o.owner_id = durable_executions.owner_id AND o.lease_until > :now))
RETURNING fence

-- name: executions.reopened(pk)
-- columns: input, last_now, last_fence
-- What a claim must know beyond the row: today's input, the latest recorded time, and the fence of the last entry.
SELECT coalesce(g.input, e.input) AS input,
       (SELECT max(j.created_at) FROM durable_journal j WHERE j.execution_pk = e.pk AND j.kind = 'now') AS last_now,
       (SELECT max(j.fence) FROM durable_journal j WHERE j.execution_pk = e.pk) AS last_fence
FROM durable_executions e JOIN durable_generations g ON g.execution_pk = e.pk AND g.generation = e.generation
WHERE e.pk = :pk

-- name: executions.shift(status, waiting_on, reason, generation, failure, deadline_at, finished_at, now, pk, fence, was)
-- columns: fence
-- A change of status from outside the owner: it raises the fence, so that the owner, if there is one, stops.
UPDATE durable_executions
SET status = :status, waiting_on = :waiting_on, reason = :reason, generation = :generation, failure = :failure,
    deadline_at = :deadline_at, finished_at = :finished_at, updated_at = :now,
    owner_id = NULL, request = NULL, request_at = NULL, recoveries = 0, fence = durable_executions.fence + 1
WHERE pk = :pk AND durable_executions.fence = :fence AND status = :was
RETURNING fence

-- name: executions.request(request, request_at, pk, fence)
-- columns: fence
UPDATE durable_executions SET request = :request, request_at = :request_at
WHERE pk = :pk AND fence = :fence AND finished_at IS NULL
RETURNING fence

-- name: executions.lock(pk)
-- columns: pk, id, status, generation, chapter, fence
SELECT pk, id, status, generation, chapter, fence FROM durable_executions WHERE pk = :pk

-- name: executions.counts(pk, generation)
-- columns: positions_count, entries_count
SELECT (SELECT count(DISTINCT hex(scope) || ':' || idx) FROM durable_journal
        WHERE execution_pk = :pk AND generation = :generation AND idx >= 0) AS positions_count,
       (SELECT count(*) FROM durable_journal WHERE execution_pk = :pk) AS entries_count

-- name: generations.claimed(code_version, execution_pk, generation)
UPDATE durable_generations SET code_version = :code_version
WHERE execution_pk = :execution_pk AND generation = :generation

-- name: generations.list(execution_pk)
-- columns: generation, chapter, cause, code_version, opened_at, closed_at, closed_as, report
SELECT generation, chapter, cause, code_version, opened_at, closed_at, closed_as, report
FROM durable_generations WHERE execution_pk = :execution_pk ORDER BY generation

-- name: generations.input(execution_pk, chapter)
-- columns: input
SELECT input FROM durable_generations
WHERE execution_pk = :execution_pk AND chapter = :chapter ORDER BY generation LIMIT 1

-- name: trail.list(execution_pk)
-- columns: seq, generation, status, reason, owner_id, fence, at
SELECT seq, generation, status, reason, owner_id, fence, at
FROM durable_trail WHERE execution_pk = :execution_pk ORDER BY seq

-- name: journal.segment(execution_pk, generation, scope, start, most)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal
WHERE execution_pk = :execution_pk AND generation = :generation AND scope = :scope AND idx >= :start
ORDER BY idx, part, CASE part WHEN 2 THEN 0 ELSE attempt END LIMIT :most

-- name: journal.position(execution_pk, generation, scope, idx)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal
WHERE execution_pk = :execution_pk AND generation = :generation AND scope = :scope AND idx = :idx
ORDER BY part, attempt

-- name: journal.row(seq)
-- columns: idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
SELECT idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from,
       due_at, seq
FROM durable_journal WHERE seq = :seq

-- name: journal.earlier(execution_pk, chapter, generation)
-- columns: generation, idx, part, attempt, shape, outcome, payload, kind, name, effect, effect_kind, policy, key, carried_from, due_at, seq
-- What earlier generations of the chapter hold under a key, latest generation first, without its values.
SELECT j.generation, j.idx, j.part, j.attempt, j.shape, j.outcome, NULL AS payload, j.kind, j.name, j.effect,
       j.effect_kind, j.policy, j.key, j.carried_from, j.due_at, j.seq
FROM durable_journal j JOIN durable_generations g
     ON g.execution_pk = j.execution_pk AND g.generation = j.generation
WHERE j.execution_pk = :execution_pk AND g.chapter = :chapter AND j.generation < :generation
  AND j.key IS NOT NULL AND j.kind IN ('step', 'now')
ORDER BY j.generation DESC, j.seq

-- name: journal.carried(execution_pk, generation)
-- columns: seq
-- Entries of earlier generations that this one has taken over; a question about one (part 0, attempt 0) has not.
SELECT carried_from AS seq FROM durable_journal
WHERE execution_pk = :execution_pk AND generation = :generation AND carried_from IS NOT NULL AND NOT (part = 0 AND attempt = 0)

-- name: journal.intents(execution_pk, generation)
-- columns: scope, idx, attempt, name, effect, effect_kind, policy, key, shape, outcome_value, seq
-- Intents of one generation that neither an outcome nor a failed attempt has closed.
SELECT i.scope, i.idx, i.attempt, i.name, i.effect, i.effect_kind, i.policy, i.key, i.shape,
       NULL AS outcome_value, i.seq
FROM durable_journal i
WHERE i.execution_pk = :execution_pk AND i.generation = :generation AND i.part = 0 AND i.kind = 'step'
  AND NOT EXISTS (SELECT 1 FROM durable_journal o
                  WHERE o.execution_pk = i.execution_pk AND o.generation = i.generation AND o.scope = i.scope
                    AND o.idx = i.idx
                    AND (o.part = 2 OR (o.part = 1 AND o.attempt >= i.attempt)
                         OR (o.part = 0 AND o.attempt > i.attempt)))
ORDER BY i.seq

-- name: journal.list(execution_pk, generation, after, most)
-- columns: seq, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome, payload, payload_bytes, carried_from, due_at, folded, fence, created_at
SELECT seq, generation, scope, idx, part, attempt, kind, name, effect, effect_kind, policy, shape, key, outcome,
       payload, length(payload) AS payload_bytes, carried_from, due_at, folded, fence, created_at
FROM durable_journal
WHERE execution_pk = :execution_pk AND (:generation IS NULL OR generation = :generation) AND seq > :after
ORDER BY seq LIMIT :most

-- name: executions.strays(most)
-- columns: place, name, pk
-- Rows of every table that belong to no execution.
SELECT s.place, s.name, s.pk
FROM (SELECT 'durable_journal' AS place, CAST(seq AS TEXT) AS name, execution_pk AS pk FROM durable_journal
      UNION ALL
      SELECT 'durable_generations', CAST(generation AS TEXT), execution_pk FROM durable_generations
      UNION ALL
      SELECT 'durable_trail', CAST(seq AS TEXT), execution_pk FROM durable_trail
      UNION ALL
      SELECT 'durable_decisions', position, execution_pk FROM durable_decisions
      UNION ALL
      SELECT 'durable_blobs', CAST(blob_pk AS TEXT), execution_pk FROM durable_blobs) s
WHERE NOT EXISTS (SELECT 1 FROM durable_executions e WHERE e.pk = s.pk)
ORDER BY s.place, s.name LIMIT :most

-- name: journal.rearm(seq)
-- A failed or lost outcome becomes a failed attempt, so that the next one may run.
UPDATE durable_journal SET part = 1, due_at = NULL WHERE seq = :seq AND part = 2

-- name: journal.assume(payload, policy, seq)
-- An outcome whose value was lost takes the value an operator knows.
UPDATE durable_journal SET outcome = 'assumed', payload = :payload, policy = :policy
WHERE seq = :seq AND part = 2 AND outcome = 'no_value'

-- name: journal.reopen(seq)
-- An operator's value that does not fit the program's type gives way to the question it answered.
DELETE FROM durable_journal WHERE seq = :seq AND part = 2 AND outcome = 'assumed' AND policy = 'operator'

-- name: journal.lost(execution_pk, generation)
-- columns: scope, idx, outcome, effect, seq
SELECT scope, idx, outcome, effect, seq FROM durable_journal
WHERE execution_pk = :execution_pk AND generation = :generation AND part = 2 AND kind = 'step'
  AND outcome IN ('failed', 'no_value')
ORDER BY seq

-- name: blobs.get(blob_pk)
-- columns: part, bytes
SELECT part, bytes FROM durable_blobs WHERE blob_pk = :blob_pk ORDER BY part

-- name: decisions.list(execution_pk)
-- columns: generation, position, reason, key, opened_at, decision, decided_by, note, decided_at
SELECT generation, position, reason, key, opened_at, decision, decided_by, note, decided_at
FROM durable_decisions WHERE execution_pk = :execution_pk ORDER BY opened_at, position

-- name: decisions.decide(decision, decided_by, note, decided_at, execution_pk, generation, position)
-- columns: reason
UPDATE durable_decisions SET decision = :decision, decided_by = :decided_by, note = :note, decided_at = :decided_at
WHERE execution_pk = :execution_pk AND generation = :generation AND position = :position AND decided_at IS NULL
RETURNING reason

-- name: decisions.close(decision, decided_at, execution_pk)
UPDATE durable_decisions SET decision = :decision, decided_at = :decided_at
WHERE execution_pk = :execution_pk AND decided_at IS NULL

-- name: audit.list(execution_id, after, most)
-- columns: seq, execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail
SELECT seq, execution_id, at, generation, position, event, effect, key_prefix, policy, actor, detail
FROM durable_audit
WHERE (:execution_id IS NULL OR execution_id = :execution_id) AND seq > :after
ORDER BY seq LIMIT :most
