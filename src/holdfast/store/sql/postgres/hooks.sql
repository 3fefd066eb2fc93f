-- Statements of the lifecycle slice's hook deliveries and sessions, PostgreSQL. The SQLite file has the same names,
-- parameters and columns.

-- name: hooks.append(id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until)
-- columns: id
-- A delivery that is there already stays as it is, and gives no row.
INSERT INTO lifecycle_hooks (id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state)
VALUES ($1::text, $2::text, $3::text, $4::bytea, $5::bigint, $6::bytea, $7::bigint, $8::text, $9::bigint, 'pending')
ON CONFLICT (id) DO NOTHING RETURNING id

-- name: hooks.hold(id)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id, material, occurrence, decided, reply
-- Locks a delivery.
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id,
       material, occurrence, decided, reply
FROM lifecycle_hooks WHERE id = $1::text FOR UPDATE

-- name: hooks.get(id)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id, material, occurrence, decided, reply
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, state, error, session_id,
       material, occurrence, decided, reply
FROM lifecycle_hooks WHERE id = $1::text

-- name: hooks.pending(now, after_at, after_id, most)
-- columns: id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, session_id
-- Those whose own call has ended, or its time is over.
SELECT id, harness, event_hint, body, body_bytes, body_digest, received_at, cwd, lease_until, session_id
FROM lifecycle_hooks
WHERE state = 'pending' AND lease_until <= $1::bigint
  AND (received_at > $2::bigint OR (received_at = $2::bigint AND id > $3::text))
ORDER BY received_at, id LIMIT $4::bigint

-- name: hooks.waiting(now)
-- columns: id
-- Whether anything is pending that nobody sees to.
SELECT id FROM lifecycle_hooks WHERE state = 'pending' AND lease_until <= $1::bigint LIMIT 1

-- name: hooks.unfinished(most)
-- columns: id, harness, event_hint, received_at, lease_until, session_id
SELECT id, harness, event_hint, received_at, lease_until, session_id
FROM lifecycle_hooks WHERE state = 'pending' ORDER BY received_at, id LIMIT $1::bigint

-- name: hooks.alike(material, id, since, until)
-- columns: id, occurrence, received_at, state, reply
-- The delivery of the same material that stands for its moment, nearest to the end of a span.
SELECT id, occurrence, received_at, state, reply FROM lifecycle_hooks
WHERE material = $1::bytea AND id <> $2::text AND received_at >= $3::bigint AND received_at <= $4::bigint
ORDER BY received_at DESC, id DESC LIMIT 1

-- name: hooks.newest(material)
-- columns: occurrence
SELECT max(occurrence) AS occurrence FROM lifecycle_hooks WHERE material = $1::bytea

-- name: hooks.first(material, occurrence)
-- columns: id, state, reply
-- The delivery that the answer to its moment comes from.
SELECT id, state, reply FROM lifecycle_hooks
WHERE material = $1::bytea AND occurrence = $2::bigint AND decided IS NOT NULL ORDER BY received_at, id LIMIT 1

-- name: hooks.decide(session_id, material, occurrence, decided, id)
UPDATE lifecycle_hooks
SET session_id = $1::text, material = $2::bytea, occurrence = $3::bigint, decided = $4::bytea
WHERE id = $5::text AND state = 'pending'

-- name: hooks.settle(state, error, body, body_digest, reply, derived_at, id)
-- columns: id
UPDATE lifecycle_hooks
SET state = $1::text, error = $2::text, body = $3::bytea, body_digest = $4::bytea, reply = $5::bytea, derived_at = $6::bigint
WHERE id = $7::text AND state = 'pending' RETURNING id

-- name: hooks.lease(lease_until, id)
UPDATE lifecycle_hooks SET lease_until = $1::bigint WHERE id = $2::text AND state = 'pending'

-- name: hooks.blank(before, most)
-- columns: id
UPDATE lifecycle_hooks SET body = NULL
WHERE id IN (SELECT h.id FROM lifecycle_hooks h WHERE h.body IS NOT NULL AND h.derived_at < $1::bigint
             ORDER BY h.derived_at LIMIT $2::bigint)
RETURNING id

-- name: sessions.hold(harness, session_id)
-- columns: frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
-- Makes a session that is new, and locks it.
INSERT INTO lifecycle_sessions (harness, session_id, frame_ordinal) VALUES ($1::text, $2::text, 0)
ON CONFLICT (harness, session_id) DO UPDATE SET frame_ordinal = lifecycle_sessions.frame_ordinal
RETURNING frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at

-- name: sessions.get(harness, session_id)
-- columns: frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
SELECT frame_ordinal, turn_id, ended_turn_id, compacted_by, compacted_at, pressure, ended_at
FROM lifecycle_sessions WHERE harness = $1::text AND session_id = $2::text

-- name: sessions.move(frame_ordinal, turn_id, compacted_by, compacted_at, harness, session_id)
UPDATE lifecycle_sessions
SET frame_ordinal = $1::bigint, turn_id = $2::text, compacted_by = $3::text, compacted_at = $4::bigint
WHERE harness = $5::text AND session_id = $6::text

-- name: sessions.turn(ended_turn_id, harness, session_id)
UPDATE lifecycle_sessions SET ended_turn_id = $1::text WHERE harness = $2::text AND session_id = $3::text

-- name: sessions.end(ended_at, harness, session_id)
UPDATE lifecycle_sessions SET ended_at = $1::bigint, pressure = NULL
WHERE harness = $2::text AND session_id = $3::text

-- name: sessions.press(harness, session_id, pressure)
INSERT INTO lifecycle_sessions (harness, session_id, frame_ordinal, pressure)
VALUES ($1::text, $2::text, 0, $3::bytea)
ON CONFLICT (harness, session_id) DO UPDATE SET pressure = excluded.pressure
