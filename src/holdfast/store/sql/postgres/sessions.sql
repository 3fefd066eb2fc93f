-- Statements of the sessions slice's records, PostgreSQL. The SQLite file has the same names, parameters and columns.

-- name: raw_events.accept(org, event_id, capture_id, source, provider, fingerprint, group_key, captured_at, received_at, access_key_id, caller, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, response, response_storage, response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, harness_id, harness_session_id)
-- columns: seq
-- No row: the capture id is known, or the session was deleted.
INSERT INTO session_raw_events (org, event_id, capture_id, source, provider, fingerprint, group_key, captured_at, received_at, access_key_id,
       caller, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, response, response_storage,
       response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, derive_state, derive_version, attempts, error)
SELECT $1::bytea, $2::bytea, $3::text, $4::text, $5::text, $6::bytea, $7::bytea, $8::bigint, $9::bigint, $10::text, $11::bytea, $12::bytea,
       $13::bytea, $14::text, $15::text, $16::text, $17::bytea, $18::bigint, $19::bytea, $20::text, $21::text, $22::text, $23::bytea, $24::bigint,
       $25::text, $26::text,
       'pending', 0, 0, ''
WHERE NOT EXISTS (SELECT 1 FROM session_tombstones t
                  WHERE t.org = $1::bytea AND t.harness_id = $27::text AND t.harness_session_id = $28::text)
ON CONFLICT (org, capture_id) DO NOTHING
RETURNING seq

-- name: raw_events.known(org, capture_id)
-- columns: seq, event_id, fingerprint, derive_state, error, turn_id, session_id
SELECT r.seq, r.event_id, r.fingerprint, r.derive_state, r.error, e.turn_id, t.session_id
FROM session_raw_events r
LEFT JOIN session_turn_evidence e ON e.org = r.org AND e.event_id = r.event_id
LEFT JOIN session_turns t ON t.org = e.org AND t.turn_id = e.turn_id
WHERE r.org = $1::bytea AND r.capture_id = $2::text
ORDER BY e.evidence_key LIMIT 1

-- name: raw_events.state(org, event_id)
-- columns: seq, event_id, fingerprint, derive_state, error, turn_id, session_id
SELECT r.seq, r.event_id, r.fingerprint, r.derive_state, r.error, e.turn_id, t.session_id
FROM session_raw_events r
LEFT JOIN session_turn_evidence e ON e.org = r.org AND e.event_id = r.event_id
LEFT JOIN session_turns t ON t.org = e.org AND t.turn_id = e.turn_id
WHERE r.org = $1::bytea AND r.event_id = $2::bytea
ORDER BY e.evidence_key LIMIT 1

-- name: raw_events.pending(after, now, latest, limit)
-- columns: seq, org, event_id, group_key, attempts, size, received_at
-- Of all orgs: for the loop that derives. Who is to wait beyond the latest time was told so by a clock that has stepped back.
SELECT seq, org, event_id, group_key, attempts, request_bytes + response_bytes AS size, received_at
FROM session_raw_events
WHERE derive_state = 'pending' AND seq > $1::bigint AND (retry_at IS NULL OR retry_at <= $2::bigint OR retry_at > $3::bigint)
ORDER BY seq LIMIT $4::bigint

-- name: raw_events.load(org, event_id)
-- columns: seq, event_id, capture_id, provider, source, fingerprint, group_key, caller, captured_at, received_at, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, base_event, base_request, base_storage, response, response_storage, response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, derive_state, attempts, error
SELECT r.seq, r.event_id, r.capture_id, r.provider, r.source, r.fingerprint, r.group_key, r.caller, r.captured_at, r.received_at, r.envelope,
       r.request, r.request_storage, r.request_encoding, r.request_type, r.request_sha256, r.request_bytes, r.base_event,
       CASE WHEN r.request_storage = 'delta' THEN b.request END AS base_request, b.request_storage AS base_storage, r.response, r.response_storage,
       r.response_encoding, r.response_type, r.response_sha256, r.response_bytes, r.fidelity, r.flags, r.derive_state, r.attempts, r.error
FROM session_raw_events r LEFT JOIN session_raw_events b ON b.org = r.org AND b.event_id = r.base_event
WHERE r.org = $1::bytea AND r.event_id = $2::bytea

-- name: raw_events.derived(derive_state, derive_version, error, org, event_id, was, stamp)
-- columns: seq
-- The fence: no row means that somebody else has derived it, or has attributed something meanwhile.
UPDATE session_raw_events SET derive_state = $1::text, derive_version = $2::bigint, error = $3::text, retry_at = NULL
WHERE org = $4::bytea AND event_id = $5::bytea AND derive_state = $6::text
  AND (SELECT count(*) + count(a.undone_at) FROM session_attributions a WHERE a.org = $4::bytea) = $7::bigint
RETURNING seq

-- name: raw_events.refuse(org, event_id, was, stamp)
-- columns: seq
UPDATE session_raw_events SET derive_state = 'refused', error = 'session_deleted', retry_at = NULL, envelope = '{}'::bytea,
       request = NULL, request_sha256 = NULL, response = NULL, response_sha256 = NULL, base_event = NULL
WHERE org = $1::bytea AND event_id = $2::bytea AND derive_state = $3::text
  AND (SELECT count(*) + count(a.undone_at) FROM session_attributions a WHERE a.org = $1::bytea) = $4::bigint
RETURNING seq

-- name: raw_events.fail(derive_state, attempts, retry_at, error, org, event_id)
-- columns: seq
UPDATE session_raw_events SET derive_state = $1::text, attempts = $2::bigint, retry_at = $3::bigint, error = $4::text
WHERE org = $5::bytea AND event_id = $6::bytea AND derive_state = 'pending'
RETURNING seq

-- name: raw_events.again(org, event_id)
-- Refused ones have no bodies any more.
UPDATE session_raw_events SET derive_state = 'pending', attempts = 0, retry_at = NULL, error = ''
WHERE (org, event_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[])) AND derive_state <> 'refused'

-- name: raw_events.states(org)
-- columns: derive_state, count, oldest
SELECT derive_state, count(*) AS count, min(received_at) AS oldest
FROM session_raw_events WHERE derive_state <> 'derived' AND ($1::bytea IS NULL OR org = $1::bytea)
GROUP BY derive_state ORDER BY derive_state

-- name: raw_events.list(derive_state, org, after, limit)
-- columns: seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state, attempts, retry_at, error
SELECT seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state,
       attempts, retry_at, error
FROM session_raw_events
WHERE ($1::text IS NULL OR derive_state = $1::text) AND org = $2::bytea AND seq > $3::bigint
ORDER BY seq LIMIT $4::bigint

-- name: raw_events.left(derive_state, org, version, after, limit)
-- columns: seq, org, event_id
SELECT seq, org, event_id
FROM session_raw_events
WHERE derive_state <> 'derived' AND derive_state = $1::text AND ($2::bytea IS NULL OR org = $2::bytea)
  AND ($3::bigint IS NULL OR derive_version <> $3::bigint) AND seq > $4::bigint
ORDER BY seq LIMIT $5::bigint

-- name: raw_events.of_group(org, group_key, after, limit)
-- columns: seq, event_id, derive_state
SELECT seq, event_id, derive_state
FROM session_raw_events WHERE org = $1::bytea AND group_key = $2::bytea AND seq > $3::bigint ORDER BY seq LIMIT $4::bigint

-- name: raw_events.request(org, event_id)
-- columns: request, request_storage, request_encoding, request_type, request_sha256, request_bytes, base_event, base_request, base_storage
SELECT r.request, r.request_storage, r.request_encoding, r.request_type, r.request_sha256, r.request_bytes, r.base_event,
       CASE WHEN r.request_storage = 'delta' THEN b.request END AS base_request, b.request_storage AS base_storage
FROM session_raw_events r LEFT JOIN session_raw_events b ON b.org = r.org AND b.event_id = r.base_event
WHERE r.org = $1::bytea AND r.event_id = $2::bytea

-- name: raw_events.unpacked(before, after, org, limit)
-- columns: seq, org, event_id, group_key, size
SELECT seq, org, event_id, group_key, request_bytes AS size
FROM session_raw_events
WHERE base_event IS NULL AND request IS NOT NULL AND received_at < $1::bigint AND seq > $2::bigint
  AND ($3::bytea IS NULL OR org = $3::bytea)
ORDER BY seq LIMIT $4::bigint

-- name: raw_events.count_unpacked(before, org)
-- columns: count, size
SELECT count(*) AS count, coalesce(sum(length(request)), 0)::bigint AS size
FROM session_raw_events
WHERE base_event IS NULL AND request IS NOT NULL AND received_at < $1::bigint AND ($2::bytea IS NULL OR org = $2::bytea)

-- name: raw_events.bases(org, group_key, recent, limit)
-- columns: base_event, taken
-- Those that the last events of the group were packed against, with how many there are.
SELECT u.base_event, (SELECT count(*) FROM session_raw_events d
                      WHERE d.org = $1::bytea AND d.base_event = u.base_event AND d.base_event <> d.event_id) AS taken
FROM (SELECT w.base_event, max(w.seq) AS used
      FROM (SELECT base_event, seq FROM session_raw_events
            WHERE org = $1::bytea AND group_key = $2::bytea AND base_event IS NOT NULL
            ORDER BY seq DESC LIMIT $3::bigint) w
      GROUP BY w.base_event) u
ORDER BY u.used DESC LIMIT $4::bigint

-- name: raw_events.hold_base(org, event_id)
-- columns: seq
-- A base that nobody takes away before the transaction ends.
SELECT seq FROM session_raw_events
WHERE org = $1::bytea AND event_id = $2::bytea AND base_event = event_id AND request IS NOT NULL
FOR SHARE SKIP LOCKED

-- name: raw_events.keep(org, event_id)
-- columns: seq
-- It stays as it is, and others may be packed against it.
UPDATE session_raw_events SET base_event = event_id
WHERE org = $1::bytea AND event_id = $2::bytea AND base_event IS NULL AND request IS NOT NULL
  AND seq IN (SELECT seq FROM session_raw_events WHERE org = $1::bytea AND event_id = $2::bytea FOR UPDATE SKIP LOCKED)
RETURNING seq

-- name: raw_events.pack(request, base_event, org, event_id)
-- columns: seq
UPDATE session_raw_events SET request = $1::bytea, request_storage = 'delta', base_event = $2::bytea
WHERE org = $3::bytea AND event_id = $4::bytea AND base_event IS NULL AND request IS NOT NULL
  AND seq IN (SELECT seq FROM session_raw_events WHERE org = $3::bytea AND event_id = $4::bytea FOR UPDATE SKIP LOCKED)
RETURNING seq

-- name: raw_events.hold(org, ids)
-- columns: event_id
-- Nobody packs against them before the transaction ends.
SELECT event_id FROM session_raw_events
WHERE org = $1::bytea AND event_id IN (SELECT decode(w.value, 'hex') FROM jsonb_array_elements_text($2::jsonb) AS w (value))
ORDER BY seq FOR UPDATE

-- name: raw_events.deltas(ids, org)
-- columns: event_id
-- Others that are packed against them.
SELECT d.event_id
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_raw_events d
WHERE d.org = $2::bytea AND d.base_event = decode(w.value, 'hex') AND d.base_event <> d.event_id
ORDER BY d.seq

-- name: raw_events.unpack(request, request_storage, org, event_id)
-- columns: seq
-- Packed anew later.
UPDATE session_raw_events SET request = $1::bytea, request_storage = $2::text, base_event = NULL
WHERE org = $3::bytea AND event_id = $4::bytea AND base_event IS NOT NULL AND request IS NOT NULL
RETURNING seq

-- name: raw_events.drop(org, event_id)
DELETE FROM session_raw_events WHERE (org, event_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: turns.hold(shared, keys)
-- columns: held
-- Until the transaction ends; what is shared first. On SQLite a transaction that writes is alone anyway.
SELECT pg_advisory_xact_lock_shared(w.value::bigint)::text AS held FROM jsonb_array_elements_text($1::jsonb) AS w (value)
UNION ALL
SELECT pg_advisory_xact_lock(w.value::bigint)::text FROM jsonb_array_elements_text($2::jsonb) AS w (value)

-- name: turn_evidence.put(org, event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts)
INSERT INTO session_turn_evidence (org, event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key,
       caller, facts)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::bigint[], $5::bytea[], $6::bigint[], $7::text[], $8::bytea[], $9::text[],
       $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bytea[])
ON CONFLICT (org, event_id, evidence_key) DO UPDATE SET
    seq = excluded.seq, turn_id = excluded.turn_id, rank = excluded.rank, source = excluded.source, mark = excluded.mark,
    provider = excluded.provider, message_id = excluded.message_id, request_id = excluded.request_id,
    join_key = excluded.join_key, caller = excluded.caller, facts = excluded.facts

-- name: turn_evidence.named(org, provider, message_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence
WHERE org = $1::bytea AND provider = $2::text AND message_id = $3::text AND message_id <> ''

-- name: turn_evidence.joined(org, join_key)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = $1::bytea AND join_key = $2::text

-- name: turn_evidence.of_event(org, event_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = $1::bytea AND event_id = $2::bytea

-- name: turn_evidence.of_turn(org, turn_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = $1::bytea AND turn_id = $2::bytea

-- name: turn_evidence.of_session(org, session_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM session_turns t
CROSS JOIN session_turn_evidence e
WHERE t.org = $1::bytea AND t.session_id = $2::bytea AND e.org = t.org AND e.turn_id = t.turn_id

-- name: turn_evidence.of_turns(ids, org)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_turn_evidence e
WHERE e.org = $2::bytea AND e.turn_id = decode(w.value, 'hex')

-- name: turn_evidence.drop(org, event_id, evidence_key)
DELETE FROM session_turn_evidence WHERE (org, event_id, evidence_key) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[]))

-- name: turns.put(org, turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash)
INSERT INTO session_turns (org, turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller,
       response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio,
       usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[],
       $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[],
       $20::bigint[], $21::bigint[], $22::bigint[], $23::bigint[], $24::text[], $25::bytea[], $26::text[], $27::bigint[], $28::bigint[],
       $29::text[], $30::text[], $31::text[], $32::bytea[])
ON CONFLICT (org, turn_id) DO UPDATE SET
    session_id = excluded.session_id, thread_id = excluded.thread_id, provider = excluded.provider, model = excluded.model,
       agent_name = excluded.agent_name, status = excluded.status, stop_reason = excluded.stop_reason, captured_at = excluded.captured_at,
       mark = excluded.mark, caller = excluded.caller, response_hash = excluded.response_hash, continues_hash = excluded.continues_hash,
       input = excluded.input, cache_read = excluded.cache_read, cache_write = excluded.cache_write, cache_write_5m = excluded.cache_write_5m,
       cache_write_1h = excluded.cache_write_1h, output = excluded.output, reasoning = excluded.reasoning, input_audio = excluded.input_audio,
       output_audio = excluded.output_audio, usage_state = excluded.usage_state, usage_event = excluded.usage_event,
       usage_key = excluded.usage_key, cost_pusd = excluded.cost_pusd, computed_pusd = excluded.computed_pusd, cost_state = excluded.cost_state,
       price_version = excluded.price_version, tags = excluded.tags, row_hash = excluded.row_hash

-- name: turns.get(org, turn_id)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.turn_id = $2::bytea

-- name: turns.of_session(org, session_id)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.session_id = $2::bytea

-- name: turns.page(org, session_id, after_at, after_id, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.session_id = $2::bytea AND (t.captured_at, t.turn_id) > ($3::bigint, $4::bytea)
ORDER BY t.captured_at, t.turn_id LIMIT $5::bigint

-- name: turns.before(org, caller, response_hash, floor, mark, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
-- Turns without a session id whose answer another may go on from, the latest first.
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.caller = $2::bytea AND t.caller IS NOT NULL AND t.response_hash = $3::bytea AND t.mark >= $4::bytea AND t.mark < $5::bytea
ORDER BY t.mark DESC LIMIT $6::bigint

-- name: turns.following(org, caller, continues_hash, mark)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.caller = $2::bytea AND t.caller IS NOT NULL AND t.continues_hash = $3::bytea AND t.mark > $4::bytea
ORDER BY t.mark

-- name: turns.drop(org, turn_id)
DELETE FROM session_turns WHERE (org, turn_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: turns.session_of(org, turn_id)
-- columns: session_id
SELECT session_id FROM session_turns WHERE org = $1::bytea AND turn_id = $2::bytea

-- name: nodes.put(org, hash_version, hash, parent_hash, role, content, mark)
INSERT INTO session_nodes (org, hash_version, hash, parent_hash, role, content, mark)
SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bytea[], $5::text[], $6::bytea[], $7::bytea[])
ON CONFLICT (org, hash_version, hash) DO UPDATE SET content = excluded.content, mark = excluded.mark
WHERE excluded.mark <= session_nodes.mark

-- name: nodes.marks(hashes, session_id, org, hash_version)
-- columns: hash, node_mark, link_mark
SELECT n.hash, n.mark AS node_mark, l.mark AS link_mark
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_nodes n
LEFT JOIN session_node_links l
       ON l.org = n.org AND l.hash_version = n.hash_version AND l.hash = n.hash AND l.session_id = $2::bytea
WHERE n.org = $3::bytea AND n.hash_version = $4::bigint AND n.hash = decode(w.value, 'hex')

-- name: nodes.get(org, hash_version, hash)
-- columns: hash, parent_hash, role, content, mark
SELECT hash, parent_hash, role, content, mark
FROM session_nodes WHERE org = $1::bytea AND hash_version = $2::bigint AND hash = $3::bytea

-- name: nodes.contents(hashes, org, hash_version)
-- columns: hash, content
SELECT n.hash, n.content
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_nodes n
WHERE n.org = $2::bytea AND n.hash_version = $3::bigint AND n.hash = decode(w.value, 'hex')

-- name: nodes.ancestry(org, hash_version, leaf, depth)
-- columns: hash, parent_hash, role, content, mark, depth
-- From a node to its root, in any order: sorting would copy the contents.
WITH RECURSIVE chain (hash, parent_hash, depth) AS (
    SELECT n.hash, n.parent_hash, 0 FROM session_nodes n
    WHERE n.org = $1::bytea AND n.hash_version = $2::bigint AND n.hash = $3::bytea
    UNION ALL
    SELECT n.hash, n.parent_hash, c.depth + 1 FROM chain c CROSS JOIN session_nodes n
    WHERE n.org = $1::bytea AND n.hash_version = $2::bigint AND n.hash = c.parent_hash AND c.depth < $4::bigint)
SELECT n.hash, n.parent_hash, n.role, n.content, n.mark, c.depth
FROM chain c CROSS JOIN session_nodes n
WHERE n.org = $1::bytea AND n.hash_version = $2::bigint AND n.hash = c.hash

-- name: nodes.of_session(org, session_id, limit)
-- columns: hash_version, hash, parent_hash, role, mark
SELECT n.hash_version, n.hash, n.parent_hash, n.role, l.mark
FROM session_node_links l CROSS JOIN session_nodes n
WHERE l.org = $1::bytea AND l.session_id = $2::bytea AND n.org = l.org AND n.hash_version = l.hash_version AND n.hash = l.hash
ORDER BY l.mark, n.hash LIMIT $3::bigint

-- name: node_links.put(org, session_id, hash_version, hash, mark)
INSERT INTO session_node_links (org, session_id, hash_version, hash, mark)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bytea[])
ON CONFLICT (org, session_id, hash_version, hash) DO UPDATE SET mark = excluded.mark
WHERE excluded.mark < session_node_links.mark

-- name: node_links.chain(org, hash_version, leaf, depth)
-- columns: hash
WITH RECURSIVE chain (hash, parent_hash, depth) AS (
    SELECT n.hash, n.parent_hash, 0 FROM session_nodes n
    WHERE n.org = $1::bytea AND n.hash_version = $2::bigint AND n.hash = $3::bytea
    UNION ALL
    SELECT n.hash, n.parent_hash, c.depth + 1 FROM chain c CROSS JOIN session_nodes n
    WHERE n.org = $1::bytea AND n.hash_version = $2::bigint AND n.hash = c.parent_hash AND c.depth < $4::bigint)
SELECT hash FROM chain

-- name: node_links.of_session(org, session_id)
-- columns: hash_version, hash, mark
SELECT hash_version, hash, mark
FROM session_node_links WHERE org = $1::bytea AND session_id = $2::bytea

-- name: node_links.of_node(org, hash_version, hash, limit)
-- columns: session_id, mark
SELECT session_id, mark
FROM session_node_links WHERE org = $1::bytea AND hash_version = $2::bigint AND hash = $3::bytea
ORDER BY mark, session_id LIMIT $4::bigint

-- name: node_links.clear(org, session_id)
DELETE FROM session_node_links WHERE (org, session_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: nodes.sweep(org, hash_version, hash)
-- Those that no session holds any more.
DELETE FROM session_nodes n USING unnest($1::bytea[], $2::bigint[], $3::bytea[]) AS w (org, hash_version, hash)
WHERE n.org = w.org AND n.hash_version = w.hash_version AND n.hash = w.hash
  AND NOT EXISTS (SELECT 1 FROM session_node_links l
                  WHERE l.org = n.org AND l.hash_version = n.hash_version AND l.hash = n.hash)

-- name: nodes.mend(content, mark, org, hash_version, hash)
UPDATE session_nodes n SET content = w.content, mark = w.mark
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[]) AS w (content, mark, org, hash_version, hash)
WHERE n.org = w.org AND n.hash_version = w.hash_version AND n.hash = w.hash

-- name: parts.put(org, hash, content)
INSERT INTO session_parts (org, hash, content)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[])
ON CONFLICT (org, hash) DO NOTHING

-- name: part_links.add(org, session_id, hash)
INSERT INTO session_part_links (org, session_id, hash)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[])
ON CONFLICT (org, session_id, hash) DO NOTHING

-- name: part_links.has(org, session_id, hash)
-- columns: hash
SELECT hash FROM session_part_links WHERE org = $1::bytea AND session_id = $2::bytea AND hash = $3::bytea

-- name: parts.get(org, hash)
-- columns: content
SELECT content FROM session_parts WHERE org = $1::bytea AND hash = $2::bytea

-- name: part_links.of_session(org, session_id)
-- columns: hash
SELECT hash FROM session_part_links WHERE org = $1::bytea AND session_id = $2::bytea

-- name: part_links.clear(org, session_id)
DELETE FROM session_part_links WHERE (org, session_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: parts.sweep(org, hash)
DELETE FROM session_parts p USING unnest($1::bytea[], $2::bytea[]) AS w (org, hash)
WHERE p.org = w.org AND p.hash = w.hash
  AND NOT EXISTS (SELECT 1 FROM session_part_links l WHERE l.org = p.org AND l.hash = p.hash)

-- name: cost_ledger.last(org, event_id, evidence_key)
-- columns: n, state, cost_pusd, price_version, lines
SELECT n, state, cost_pusd, price_version, lines
FROM session_cost_ledger WHERE org = $1::bytea AND event_id = $2::bytea AND evidence_key = $3::text
ORDER BY n DESC LIMIT 1

-- name: cost_ledger.append(org, event_id, evidence_key, n, at, reason, state, cost_pusd, price_version, lines, actor, note)
INSERT INTO session_cost_ledger (org, event_id, evidence_key, n, at, reason, state, cost_pusd, price_version, lines, actor, note)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::text[],
       $10::bytea[], $11::text[], $12::text[])

-- name: cost_ledger.drop(org, event_id)
DELETE FROM session_cost_ledger WHERE (org, event_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: ids.get(org, harness_id, harness_session_id)
-- columns: session_id
SELECT session_id FROM session_ids WHERE org = $1::bytea AND harness_id = $2::text AND harness_session_id = $3::text

-- name: ids.add(org, harness_id, harness_session_id, session_id, minted_at)
INSERT INTO session_ids (org, harness_id, harness_session_id, session_id, minted_at)
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[], $5::bigint[])
ON CONFLICT (org, harness_session_id, harness_id) DO NOTHING

-- name: sessions.put(org, session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash)
INSERT INTO session_sessions (org, session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at,
       last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark,
       display_name, fold, row_hash)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[],
       $10::bigint[], $11::bigint[], $12::bigint[], $13::bytea[], $14::text[], $15::text[], $16::text[], $17::text[], $18::bytea[], $19::text[],
       $20::bytea[], $21::bytea[])
ON CONFLICT (org, session_id) DO UPDATE SET
    harness_id = excluded.harness_id, harness_session_id = excluded.harness_session_id, is_placeholder = excluded.is_placeholder,
       is_synthetic = excluded.is_synthetic, auth_subject = excluded.auth_subject, started_at = excluded.started_at,
       last_seen_at = excluded.last_seen_at, turn_count = excluded.turn_count, tokens_sum = excluded.tokens_sum, cost_pusd = excluded.cost_pusd,
       parent_session_id = excluded.parent_session_id, parent_state = excluded.parent_state, parent_flag = excluded.parent_flag,
       hint_harness = excluded.hint_harness, hint_key = excluded.hint_key, hint_mark = excluded.hint_mark, display_name = excluded.display_name,
       fold = excluded.fold, row_hash = excluded.row_hash

-- name: sessions.load(org, session_id)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = $1::bytea AND session_id = $2::bytea

-- name: sessions.find(org, harness_id, harness_session_id)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = $1::bytea AND harness_id = $2::text AND harness_session_id = $3::text

-- name: sessions.named(org, harness_session_id)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = $1::bytea AND harness_session_id = $2::text

-- name: sessions.hinting(org, hint_key)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = $1::bytea AND hint_key = $2::text

-- name: sessions.hinted(org, hint_key)
-- columns: session_id
SELECT session_id FROM session_sessions WHERE org = $1::bytea AND hint_key = $2::text LIMIT 1

-- name: sessions.above(org, session_id, depth)
-- columns: count
-- How many links there are above a session.
WITH RECURSIVE up (id, depth) AS (
    SELECT s.parent_session_id, 1 FROM session_sessions s
    WHERE s.org = $1::bytea AND s.session_id = $2::bytea AND s.parent_session_id IS NOT NULL
    UNION ALL
    SELECT s.parent_session_id, u.depth + 1 FROM up u CROSS JOIN session_sessions s
    WHERE s.org = $1::bytea AND s.session_id = u.id AND s.parent_session_id IS NOT NULL AND u.depth < $3::bigint)
SELECT count(*) AS count FROM up

-- name: sessions.children(org, parent_session_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = $1::bytea AND parent_session_id = $2::bytea
ORDER BY started_at, session_id LIMIT $3::bigint

-- name: sessions.drop(org, session_id)
DELETE FROM session_sessions WHERE (org, session_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: sessions.page_last_seen_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (last_seen_at, session_id) > ($15::bigint, $16::bytea)
ORDER BY last_seen_at, session_id LIMIT $17::bigint

-- name: sessions.page_last_seen_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (last_seen_at, session_id) < ($15::bigint, $16::bytea)
ORDER BY last_seen_at DESC, session_id DESC LIMIT $17::bigint

-- name: sessions.page_started_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (started_at, session_id) > ($15::bigint, $16::bytea)
ORDER BY started_at, session_id LIMIT $17::bigint

-- name: sessions.page_started_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (started_at, session_id) < ($15::bigint, $16::bytea)
ORDER BY started_at DESC, session_id DESC LIMIT $17::bigint

-- name: sessions.page_turns_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (turn_count, session_id) > ($15::bigint, $16::bytea)
ORDER BY turn_count, session_id LIMIT $17::bigint

-- name: sessions.page_turns_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (turn_count, session_id) < ($15::bigint, $16::bytea)
ORDER BY turn_count DESC, session_id DESC LIMIT $17::bigint

-- name: sessions.page_cost_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (cost_pusd, session_id) > ($15::bigint, $16::bytea)
ORDER BY cost_pusd, session_id LIMIT $17::bigint

-- name: sessions.page_cost_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (cost_pusd, session_id) < ($15::bigint, $16::bytea)
ORDER BY cost_pusd DESC, session_id DESC LIMIT $17::bigint

-- name: sessions.page_tokens_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (tokens_sum, session_id) > ($15::bigint, $16::bytea)
ORDER BY tokens_sum, session_id LIMIT $17::bigint

-- name: sessions.page_tokens_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = $1::bytea AND ($2::bigint = 1 OR is_placeholder = 0)
  AND ($3::text IS NULL OR harness_id = $3::text)
  AND ($4::text IS NULL OR harness_session_id = $4::text)
  AND ($5::text IS NULL OR auth_subject = $5::text)
  AND ($6::text IS NULL OR parent_state = $6::text)
  AND ($7::bigint IS NULL OR last_seen_at >= $7::bigint) AND ($8::bigint IS NULL OR started_at < $8::bigint)
  AND ($9::bigint IS NULL OR cost_pusd >= $9::bigint)
  AND ($10::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = $10::text))
  AND ($11::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = $11::text))
  AND ($12::text IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = $12::text))
  AND ($13::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = $13::text))
  AND ($14::text IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       jsonb_array_elements_text(t.tags::jsonb) AS w (value) WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = $14::text))
  AND (tokens_sum, session_id) < ($15::bigint, $16::bytea)
ORDER BY tokens_sum DESC, session_id DESC LIMIT $17::bigint

-- name: edits.last(org, session_id)
-- columns: n, display_name
SELECT n, display_name
FROM session_edits WHERE org = $1::bytea AND session_id = $2::bytea
ORDER BY n DESC LIMIT 1

-- name: edits.append(org, session_id, n, display_name, actor, at)
INSERT INTO session_edits (org, session_id, n, display_name, actor, at)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::text[], $5::text[], $6::bigint[])

-- name: edits.drop(org, session_id)
DELETE FROM session_edits WHERE (org, session_id) IN (SELECT * FROM unnest($1::bytea[], $2::bytea[]))

-- name: tombstones.get(org, harness_id, harness_session_id)
-- columns: session_id, deleted_at, actor, reason
SELECT session_id, deleted_at, actor, reason
FROM session_tombstones WHERE org = $1::bytea AND harness_id = $2::text AND harness_session_id = $3::text

-- name: tombstones.named(org, harness_session_id)
-- columns: harness_id
SELECT harness_id
FROM session_tombstones WHERE org = $1::bytea AND harness_session_id = $2::text

-- name: tombstones.put(org, harness_id, harness_session_id, session_id, deleted_at, actor, reason)
INSERT INTO session_tombstones (org, harness_id, harness_session_id, session_id, deleted_at, actor, reason)
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::text[], $7::text[])
ON CONFLICT (org, harness_session_id, harness_id) DO NOTHING

-- name: tombstones.drop(org, harness_id, harness_session_id)
-- columns: session_id
DELETE FROM session_tombstones WHERE org = $1::bytea AND harness_id = $2::text AND harness_session_id = $3::text
RETURNING session_id

-- name: changes.put(org, kind, id, row_hash, deleted)
-- What is as it was keeps its place in the feed.
INSERT INTO session_changes (org, kind, id, row_hash, deleted)
SELECT * FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::bytea[], $5::bigint[])
ON CONFLICT (org, kind, id) DO UPDATE SET row_hash = excluded.row_hash, deleted = excluded.deleted, feed_seq = NULL
WHERE excluded.row_hash <> session_changes.row_hash OR excluded.deleted <> session_changes.deleted

-- name: turns.by_day(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.captured_at / 86400000000 AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000)::bigint AS cost_high, sum(t.cost_pusd % 1000000000)::bigint AS cost_low,
       sum(t.input)::bigint AS input, sum(t.cache_read)::bigint AS cache_read, sum(t.cache_write)::bigint AS cache_write,
       sum(t.cache_write_5m)::bigint AS cache_write_5m, sum(t.cache_write_1h)::bigint AS cache_write_1h, sum(t.output)::bigint AS output,
       sum(t.reasoning)::bigint AS reasoning, sum(t.input_audio)::bigint AS input_audio, sum(t.output_audio)::bigint AS output_audio
FROM session_turns t
WHERE t.org = $1::bytea AND ($2::bigint IS NULL OR t.captured_at >= $2::bigint) AND ($3::bigint IS NULL OR t.captured_at < $3::bigint)
GROUP BY t.captured_at / 86400000000 ORDER BY t.captured_at / 86400000000

-- name: turns.by_model(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.model AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000)::bigint AS cost_high, sum(t.cost_pusd % 1000000000)::bigint AS cost_low,
       sum(t.input)::bigint AS input, sum(t.cache_read)::bigint AS cache_read, sum(t.cache_write)::bigint AS cache_write,
       sum(t.cache_write_5m)::bigint AS cache_write_5m, sum(t.cache_write_1h)::bigint AS cache_write_1h, sum(t.output)::bigint AS output,
       sum(t.reasoning)::bigint AS reasoning, sum(t.input_audio)::bigint AS input_audio, sum(t.output_audio)::bigint AS output_audio
FROM session_turns t
WHERE t.org = $1::bytea AND ($2::bigint IS NULL OR t.captured_at >= $2::bigint) AND ($3::bigint IS NULL OR t.captured_at < $3::bigint)
GROUP BY t.model ORDER BY t.model

-- name: turns.by_harness(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT s.harness_id AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000)::bigint AS cost_high, sum(t.cost_pusd % 1000000000)::bigint AS cost_low,
       sum(t.input)::bigint AS input, sum(t.cache_read)::bigint AS cache_read, sum(t.cache_write)::bigint AS cache_write,
       sum(t.cache_write_5m)::bigint AS cache_write_5m, sum(t.cache_write_1h)::bigint AS cache_write_1h, sum(t.output)::bigint AS output,
       sum(t.reasoning)::bigint AS reasoning, sum(t.input_audio)::bigint AS input_audio, sum(t.output_audio)::bigint AS output_audio
FROM session_turns t
JOIN session_sessions s ON s.org = t.org AND s.session_id = t.session_id
WHERE t.org = $1::bytea AND ($2::bigint IS NULL OR t.captured_at >= $2::bigint) AND ($3::bigint IS NULL OR t.captured_at < $3::bigint)
GROUP BY s.harness_id ORDER BY s.harness_id

-- name: turns.by_subject(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT s.auth_subject AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000)::bigint AS cost_high, sum(t.cost_pusd % 1000000000)::bigint AS cost_low,
       sum(t.input)::bigint AS input, sum(t.cache_read)::bigint AS cache_read, sum(t.cache_write)::bigint AS cache_write,
       sum(t.cache_write_5m)::bigint AS cache_write_5m, sum(t.cache_write_1h)::bigint AS cache_write_1h, sum(t.output)::bigint AS output,
       sum(t.reasoning)::bigint AS reasoning, sum(t.input_audio)::bigint AS input_audio, sum(t.output_audio)::bigint AS output_audio
FROM session_turns t
JOIN session_sessions s ON s.org = t.org AND s.session_id = t.session_id
WHERE t.org = $1::bytea AND ($2::bigint IS NULL OR t.captured_at >= $2::bigint) AND ($3::bigint IS NULL OR t.captured_at < $3::bigint)
GROUP BY s.auth_subject ORDER BY s.auth_subject

-- name: turns.by_session(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.session_id AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000)::bigint AS cost_high, sum(t.cost_pusd % 1000000000)::bigint AS cost_low,
       sum(t.input)::bigint AS input, sum(t.cache_read)::bigint AS cache_read, sum(t.cache_write)::bigint AS cache_write,
       sum(t.cache_write_5m)::bigint AS cache_write_5m, sum(t.cache_write_1h)::bigint AS cache_write_1h, sum(t.output)::bigint AS output,
       sum(t.reasoning)::bigint AS reasoning, sum(t.input_audio)::bigint AS input_audio, sum(t.output_audio)::bigint AS output_audio
FROM session_turns t
WHERE t.org = $1::bytea AND ($2::bigint IS NULL OR t.captured_at >= $2::bigint) AND ($3::bigint IS NULL OR t.captured_at < $3::bigint)
GROUP BY t.session_id ORDER BY t.session_id

-- name: raw_events.orgs()
-- columns: org
SELECT org FROM session_raw_events UNION SELECT org FROM session_sessions UNION SELECT org FROM session_nodes
UNION SELECT org FROM session_turns ORDER BY org

-- name: raw_events.scan(org, after_seq, limit)
-- columns: seq, event_id, capture_id, provider, source, fingerprint, group_key, caller, captured_at, received_at, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, base_event, base_request, base_storage, response, response_storage, response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, derive_state, attempts, error
SELECT r.seq, r.event_id, r.capture_id, r.provider, r.source, r.fingerprint, r.group_key, r.caller, r.captured_at, r.received_at, r.envelope,
       r.request, r.request_storage, r.request_encoding, r.request_type, r.request_sha256, r.request_bytes, r.base_event,
       CASE WHEN r.request_storage = 'delta' THEN b.request END AS base_request, b.request_storage AS base_storage, r.response, r.response_storage,
       r.response_encoding, r.response_type, r.response_sha256, r.response_bytes, r.fidelity, r.flags, r.derive_state, r.attempts, r.error
FROM session_raw_events r LEFT JOIN session_raw_events b ON b.org = r.org AND b.event_id = r.base_event
WHERE r.org = $1::bytea AND r.seq > $2::bigint
ORDER BY r.seq LIMIT $3::bigint

-- name: turn_evidence.scan(org, after_event_id, after_evidence_key, limit)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence
WHERE org = $1::bytea AND (event_id, evidence_key) > ($2::bytea, $3::text)
ORDER BY event_id, evidence_key LIMIT $4::bigint

-- name: turns.scan(org, after_turn_id, limit)
-- columns: turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash
SELECT turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash,
       input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event,
       usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash
FROM session_turns
WHERE org = $1::bytea AND turn_id > $2::bytea
ORDER BY turn_id LIMIT $3::bigint

-- name: nodes.scan(org, after_hash_version, after_hash, limit)
-- columns: hash_version, hash, parent_hash, role, content, mark
SELECT hash_version, hash, parent_hash, role, content, mark
FROM session_nodes
WHERE org = $1::bytea AND (hash_version, hash) > ($2::bigint, $3::bytea)
ORDER BY hash_version, hash LIMIT $4::bigint

-- name: node_links.scan(org, after_session_id, after_hash_version, after_hash, limit)
-- columns: session_id, hash_version, hash, mark
SELECT session_id, hash_version, hash, mark
FROM session_node_links
WHERE org = $1::bytea AND (session_id, hash_version, hash) > ($2::bytea, $3::bigint, $4::bytea)
ORDER BY session_id, hash_version, hash LIMIT $5::bigint

-- name: parts.scan(org, after_hash, limit)
-- columns: hash, content
SELECT hash, content
FROM session_parts
WHERE org = $1::bytea AND hash > $2::bytea
ORDER BY hash LIMIT $3::bigint

-- name: part_links.scan(org, after_session_id, after_hash, limit)
-- columns: session_id, hash
SELECT session_id, hash
FROM session_part_links
WHERE org = $1::bytea AND (session_id, hash) > ($2::bytea, $3::bytea)
ORDER BY session_id, hash LIMIT $4::bigint

-- name: sessions.scan(org, after_session_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions
WHERE org = $1::bytea AND session_id > $2::bytea
ORDER BY session_id LIMIT $3::bigint

-- name: changes.scan(org, after_kind, after_id, limit)
-- columns: kind, id, row_hash, deleted, feed_seq
SELECT kind, id, row_hash, deleted, feed_seq
FROM session_changes
WHERE org = $1::bytea AND (kind, id) > ($2::text, $3::bytea)
ORDER BY kind, id LIMIT $4::bigint

-- name: ids.scan(org, after_id, limit)
-- columns: session_id, harness_id, harness_session_id
SELECT session_id, harness_id, harness_session_id
FROM session_ids WHERE org = $1::bytea AND session_id > $2::bytea ORDER BY session_id LIMIT $3::bigint

-- name: tombstones.scan(org)
-- columns: harness_id, harness_session_id
SELECT harness_id, harness_session_id
FROM session_tombstones WHERE org = $1::bytea ORDER BY harness_session_id, harness_id

-- name: turns.last_main(ids, org)
-- columns: session_id, status, stop_reason
-- Of each session, the last turn of the main thread.
SELECT t.session_id, t.status, t.stop_reason
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_turns t
WHERE t.org = $2::bytea AND t.turn_id = (SELECT l.turn_id FROM session_turns l
                                    WHERE l.org = $2::bytea AND l.session_id = decode(w.value, 'hex') AND l.thread_id = ''
                                    ORDER BY l.captured_at DESC, l.turn_id DESC LIMIT 1)

-- name: turns.threads(org, session_id)
-- columns: thread_id, turns, failed, first_at, last_at
SELECT thread_id, count(*) AS turns, sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
       min(captured_at) AS first_at, max(captured_at) AS last_at
FROM session_turns WHERE org = $1::bytea AND session_id = $2::bytea
GROUP BY thread_id ORDER BY first_at, thread_id

-- name: nodes.kept(org, session_id)
-- columns: hash_version, hash, mark
SELECT n.hash_version, n.hash, n.mark
FROM session_node_links l CROSS JOIN session_nodes n
WHERE l.org = $1::bytea AND l.session_id = $2::bytea AND n.org = l.org AND n.hash_version = l.hash_version AND n.hash = l.hash

-- name: raw_events.page(org, after, limit)
-- columns: seq, event_id, derive_state
SELECT seq, event_id, derive_state
FROM session_raw_events WHERE org = $1::bytea AND seq > $2::bigint ORDER BY seq LIMIT $3::bigint

-- name: turn_evidence.about(org, harness_id, harness_session_id, event_id, evidence_key, provider, message_id, request_id, join_key)
-- columns: gone, known, priced, mixed, joined
SELECT EXISTS (SELECT 1 FROM session_tombstones
               WHERE org = $1::bytea AND harness_id = $2::text AND harness_session_id = $3::text) AS gone,
       EXISTS (SELECT 1 FROM session_turn_evidence WHERE org = $1::bytea AND event_id = $4::bytea) AS known,
       EXISTS (SELECT 1 FROM session_cost_ledger WHERE org = $1::bytea AND event_id = $4::bytea AND evidence_key = $5::text) AS priced,
       EXISTS (SELECT 1 FROM session_turn_evidence
               WHERE org = $1::bytea AND provider = $6::text AND message_id = $7::text AND message_id <> '' AND rank > 0)
       OR EXISTS (SELECT 1 FROM session_turn_evidence
                  WHERE org = $1::bytea AND provider = $6::text AND message_id = $7::text AND message_id <> '' AND rank = 0
                    AND request_id = $8::text AND request_id <> '' AND event_id <> $4::bytea) AS mixed,
       EXISTS (SELECT 1 FROM session_turn_evidence
               WHERE org = $1::bytea AND join_key = $9::text AND rank > 0 AND message_id = '') AS joined

-- name: turn_evidence.mixed(org, provider, message_id, request_id, event_id)
-- columns: found
SELECT 1 AS found
WHERE EXISTS (SELECT 1 FROM session_turn_evidence
              WHERE org = $1::bytea AND provider = $2::text AND message_id = $3::text AND message_id <> '' AND rank > 0)
   OR EXISTS (SELECT 1 FROM session_turn_evidence
              WHERE org = $1::bytea AND provider = $2::text AND message_id = $3::text AND message_id <> '' AND rank = 0
                AND request_id = $4::text AND request_id <> '' AND event_id <> $5::bytea)

-- name: turn_evidence.loose(org, join_key)
-- columns: found
SELECT 1 AS found
FROM session_turn_evidence WHERE org = $1::bytea AND join_key = $2::text AND rank > 0 AND message_id = '' LIMIT 1

-- name: turn_evidence.of_events(ids, org)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_turn_evidence e
WHERE e.org = $2::bytea AND e.event_id = decode(w.value, 'hex')

-- name: raw_events.told(ids, org)
-- columns: seq, event_id, capture_id, captured_at, flags, envelope
SELECT r.seq, r.event_id, r.capture_id, r.captured_at, r.flags, r.envelope
FROM jsonb_array_elements_text($1::jsonb) AS w (value) CROSS JOIN session_raw_events r
WHERE r.org = $2::bytea AND r.event_id = decode(w.value, 'hex') AND r.derive_state <> 'refused'

-- name: turns.used(org, after_id, session_id, model, since, until, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
-- Those whose usage is known to some extent, of a session, a model, a time.
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = $1::bytea AND t.turn_id > $2::bytea AND t.usage_state NOT IN ('missing', 'none')
  AND ($3::bytea IS NULL OR t.session_id = $3::bytea) AND ($4::text IS NULL OR t.model = $4::text)
  AND ($5::bigint IS NULL OR t.captured_at >= $5::bigint) AND ($6::bigint IS NULL OR t.captured_at < $6::bigint)
ORDER BY t.turn_id LIMIT $7::bigint

-- name: attributions.list(org)
-- columns: n, attribution_id, selector, change, reason, actor, created_at, undone_at
SELECT n, attribution_id, selector, change, reason, actor, created_at, undone_at
FROM session_attributions WHERE org = $1::bytea ORDER BY n

-- name: attributions.put(org, attribution_id, n, selector, change, reason, actor, created_at)
INSERT INTO session_attributions (org, attribution_id, n, selector, change, reason, actor, created_at)
SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bytea[], $6::text[], $7::text[], $8::bigint[])

-- name: attributions.undo(undone_at, org, attribution_id)
-- columns: n
UPDATE session_attributions SET undone_at = $1::bigint
WHERE org = $2::bytea AND attribution_id = $3::bytea AND undone_at IS NULL
RETURNING n

-- name: rebuilds.get(org)
-- columns: after_seq, until_seq
SELECT after_seq, until_seq FROM session_rebuilds WHERE org = $1::bytea

-- name: rebuilds.begin(org, started_at)
-- One that was broken off goes on.
INSERT INTO session_rebuilds (org, after_seq, until_seq, started_at)
SELECT w.org, 0, coalesce((SELECT max(seq) FROM session_raw_events r WHERE r.org = w.org), 0), w.started_at
FROM unnest($1::bytea[], $2::bigint[]) AS w (org, started_at)
ON CONFLICT (org) DO NOTHING

-- name: rebuilds.advance(after_seq, org)
UPDATE session_rebuilds b SET after_seq = w.after_seq
FROM unnest($1::bigint[], $2::bytea[]) AS w (after_seq, org)
WHERE b.org = w.org AND b.after_seq < w.after_seq

-- name: rebuilds.finish(org)
DELETE FROM session_rebuilds WHERE org = ANY ($1::bytea[])

-- name: rebuilds.left(org)
-- columns: count
SELECT count(*) AS count
FROM session_raw_events r LEFT JOIN session_rebuilds b ON b.org = r.org
WHERE r.org = $1::bytea AND r.derive_state <> 'refused' AND (b.org IS NULL OR (r.seq > b.after_seq AND r.seq <= b.until_seq))

-- name: raw_events.count_keys(mark)
-- columns: item, head, count
-- The mark of a sealed value and the number of its key, of every value that is sealed; what is not sealed is null.
SELECT item, CASE WHEN substr(head, 1, 4) = $1::bytea THEN head END AS head, sum(count)::bigint AS count
FROM (SELECT 'session_raw_events' AS item, substring(envelope FROM 1 FOR 5) AS head, count(*) AS count FROM session_raw_events WHERE envelope IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_raw_events' AS item, substring(request FROM 1 FOR 5) AS head, count(*) AS count FROM session_raw_events WHERE request IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_raw_events' AS item, substring(response FROM 1 FOR 5) AS head, count(*) AS count FROM session_raw_events WHERE response IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_turn_evidence' AS item, substring(facts FROM 1 FOR 5) AS head, count(*) AS count FROM session_turn_evidence WHERE facts IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_nodes' AS item, substring(content FROM 1 FOR 5) AS head, count(*) AS count FROM session_nodes WHERE content IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_parts' AS item, substring(content FROM 1 FOR 5) AS head, count(*) AS count FROM session_parts WHERE content IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_sessions' AS item, substring(fold FROM 1 FOR 5) AS head, count(*) AS count FROM session_sessions WHERE fold IS NOT NULL GROUP BY 1, 2) w
GROUP BY 1, 2 ORDER BY 1, 2

-- name: raw_events.reseal(envelope, request, response, org, event_id, was_envelope, was_request, was_response)
-- columns: org
UPDATE session_raw_events SET envelope = $1::bytea, request = $2::bytea, response = $3::bytea
WHERE org = $4::bytea AND event_id = $5::bytea AND envelope = $6::bytea
  AND request IS NOT DISTINCT FROM $7::bytea AND response IS NOT DISTINCT FROM $8::bytea
RETURNING org

-- name: turn_evidence.reseal(facts, org, event_id, evidence_key, was)
-- columns: org
UPDATE session_turn_evidence SET facts = $1::bytea
WHERE org = $2::bytea AND event_id = $3::bytea AND evidence_key = $4::text AND facts = $5::bytea
RETURNING org

-- name: nodes.reseal(content, org, hash_version, hash, was)
-- columns: org
UPDATE session_nodes SET content = $1::bytea
WHERE org = $2::bytea AND hash_version = $3::bigint AND hash = $4::bytea AND content = $5::bytea
RETURNING org

-- name: parts.reseal(content, org, hash, was)
-- columns: org
UPDATE session_parts SET content = $1::bytea
WHERE org = $2::bytea AND hash = $3::bytea AND content = $4::bytea
RETURNING org

-- name: sessions.reseal(fold, org, session_id, was)
-- columns: org
UPDATE session_sessions SET fold = $1::bytea
WHERE org = $2::bytea AND session_id = $3::bytea AND fold = $4::bytea
RETURNING org

-- name: raw_events.get(org, event_id)
-- columns: seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state, attempts, retry_at, error
SELECT seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state,
       attempts, retry_at, error
FROM session_raw_events WHERE org = $1::bytea AND event_id = $2::bytea
