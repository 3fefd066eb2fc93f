-- Statements of the lifecycle slice's hook deliveries and sessions, SQLite. The PostgreSQL file has the same names,
-- parameters and columns.

-- name: hooks.append(id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until)
-- columns: id
-- A delivery that is there already stays as it is, and gives no row.
INSERT INTO lifecycle_hooks (id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state)
VALUES (:id, :harness, :event_hint, :body, :body_bytes, :body_digest, :received_at, :cwd, :lease_until, 'pending')
ON CONFLICT (id) DO NOTHING RETURNING id

-- name: hooks.hold(id)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id, material, occurrence, decided, reply
-- Locks a delivery.
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id,
       material, occurrence, decided, reply
FROM lifecycle_hooks WHERE id = :id

-- name: hooks.get(id)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id, material, occurrence, decided, reply
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id,
       material, occurrence, decided, reply
FROM lifecycle_hooks WHERE id = :id

-- name: hooks.pending(now, after_at, after_id, most)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, session_id
-- Those whose own call has ended, or its time is over.
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, session_id
FROM lifecycle_hooks
WHERE state = 'pending' AND lease_until <= :now
  AND (received_at > :after_at OR (received_at = :after_at AND id > :after_id))
ORDER BY received_at, id LIMIT :most

-- name: hooks.waiting(now)
-- columns: id
-- Whether anything is pending that nobody sees to.
SELECT id FROM lifecycle_hooks WHERE state = 'pending' AND lease_until <= :now LIMIT 1

-- name: hooks.unfinished(most)
-- columns: id, harness, event_hint, received_at, lease_until, session_id
SELECT id, harness, event_hint, received_at, lease_until, session_id
FROM lifecycle_hooks WHERE state = 'pending' ORDER BY received_at, id LIMIT :most

-- name: hooks.alike(material, id, since, until)
-- columns: id, occurrence, received_at, state, reply
-- The delivery of the same material that stands for its moment, nearest to the end of a span.
SELECT id, occurrence, received_at, state, reply FROM lifecycle_hooks
WHERE material = :material AND id <> :id AND received_at >= :since AND received_at <= :until
ORDER BY received_at DESC, id DESC LIMIT 1

-- name: hooks.newest(material)
-- columns: occurrence
SELECT max(occurrence) AS occurrence FROM lifecycle_hooks WHERE material = :material

-- name: hooks.first(material, occurrence)
-- columns: id, state, reply
-- The delivery that the answer to its moment comes from.
SELECT id, state, reply FROM lifecycle_hooks
WHERE material = :material AND occurrence = :occurrence AND decided IS NOT NULL ORDER BY received_at, id LIMIT 1

-- name: hooks.decide(session_id, material, occurrence, decided, id)
UPDATE lifecycle_hooks
SET session_id = :session_id, material = :material, occurrence = :occurrence, decided = :decided
WHERE id = :id AND state = 'pending'

-- name: hooks.settle(state, error, body, body_digest, reply, derived_at, id)
-- columns: id
UPDATE lifecycle_hooks
SET state = :state, error = :error, body = :body, body_digest = :body_digest, reply = :reply, derived_at = :derived_at
WHERE id = :id AND state = 'pending' RETURNING id

-- name: hooks.lease(lease_until, id)
UPDATE lifecycle_hooks SET lease_until = :lease_until WHERE id = :id AND state = 'pending'

-- name: hooks.blank(before, most)
-- columns: id
UPDATE lifecycle_hooks SET body = NULL
WHERE id IN (SELECT h.id FROM lifecycle_hooks h WHERE h.body IS NOT NULL AND h.derived_at < :before
             ORDER BY h.derived_at LIMIT :most)
RETURNING id

-- name: sessions.hold(harness, session_id)
-- columns: frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
-- Makes a session that is new, and locks it.
INSERT INTO lifecycle_sessions (harness, session_id, frame_ordinal) VALUES (:harness, :session_id, 0)
ON CONFLICT (harness, session_id) DO UPDATE SET frame_ordinal = lifecycle_sessions.frame_ordinal
RETURNING frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at

-- name: sessions.get(harness, session_id)
-- columns: frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
SELECT frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
FROM lifecycle_sessions WHERE harness = :harness AND session_id = :session_id

-- name: sessions.move(frame_ordinal, turn_id, compacted_by, compacted_at, harness, session_id)
UPDATE lifecycle_sessions
SET frame_ordinal = :frame_ordinal, turn_id = :turn_id, compacted_by = :compacted_by, compacted_at = :compacted_at
WHERE harness = :harness AND session_id = :session_id

-- name: sessions.turn(ended_turn_id, harness, session_id)
UPDATE lifecycle_sessions SET ended_turn_id = :ended_turn_id WHERE harness = :harness AND session_id = :session_id

-- name: sessions.end(ended_at, harness, session_id)
UPDATE lifecycle_sessions SET ended_at = :ended_at, pressure = NULL
WHERE harness = :harness AND session_id = :session_id

-- name: sessions.press(harness, session_id, pressure)
INSERT INTO lifecycle_sessions (harness, session_id, frame_ordinal, pressure)
VALUES (:harness, :session_id, 0, :pressure)
ON CONFLICT (harness, session_id) DO UPDATE SET pressure = excluded.pressure
