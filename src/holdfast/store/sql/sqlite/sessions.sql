-- Statements of the sessions slice's records, SQLite. The PostgreSQL file has the same names, parameters and columns.

-- name: raw_events.accept(org, event_id, capture_id, source, provider, fingerprint, group_key, captured_at, received_at, access_key_id, caller, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, response, response_storage, response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, harness_id, harness_session_id)
-- columns: seq
-- No row: the capture id is known, or the session was deleted. A SELECT with RETURNING would copy the bodies once more.
INSERT OR IGNORE INTO session_raw_events (org, event_id, capture_id, source, provider, fingerprint, group_key, captured_at, received_at, access_key_id,
       caller, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, response, response_storage,
       response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, derive_state, derive_version, attempts, error)
VALUES (:org, :event_id, :capture_id, :source, :provider, :fingerprint, :group_key, :captured_at, :received_at, :access_key_id, :caller, :envelope,
       :request, :request_storage, :request_encoding, :request_type, :request_sha256, :request_bytes, :response, :response_storage,
       :response_encoding, :response_type, :response_sha256, :response_bytes, :fidelity, :flags,
       CASE WHEN EXISTS (SELECT 1 FROM session_tombstones t
                         WHERE t.org = :org AND t.harness_id = :harness_id AND t.harness_session_id = :harness_session_id)
            THEN NULL ELSE 'pending' END, 0, 0, '')
RETURNING seq

-- name: raw_events.known(org, capture_id)
-- columns: seq, event_id, fingerprint, derive_state, error, turn_id, session_id
SELECT r.seq, r.event_id, r.fingerprint, r.derive_state, r.error, e.turn_id, t.session_id
FROM session_raw_events r
LEFT JOIN session_turn_evidence e ON e.org = r.org AND e.event_id = r.event_id
LEFT JOIN session_turns t ON t.org = e.org AND t.turn_id = e.turn_id
WHERE r.org = :org AND r.capture_id = :capture_id
ORDER BY e.evidence_key LIMIT 1

-- name: raw_events.state(org, event_id)
-- columns: seq, event_id, fingerprint, derive_state, error, turn_id, session_id
SELECT r.seq, r.event_id, r.fingerprint, r.derive_state, r.error, e.turn_id, t.session_id
FROM session_raw_events r
LEFT JOIN session_turn_evidence e ON e.org = r.org AND e.event_id = r.event_id
LEFT JOIN session_turns t ON t.org = e.org AND t.turn_id = e.turn_id
WHERE r.org = :org AND r.event_id = :event_id
ORDER BY e.evidence_key LIMIT 1

-- name: raw_events.pending(after, now, latest, limit)
-- columns: seq, org, event_id, group_key, attempts, size, received_at
-- Of all orgs: for the loop that derives. Who is to wait beyond the latest time was told so by a clock that has stepped back.
SELECT seq, org, event_id, group_key, attempts, request_bytes + response_bytes AS size, received_at
FROM session_raw_events
WHERE derive_state = 'pending' AND seq > :after AND (retry_at IS NULL OR retry_at <= :now OR retry_at > :latest)
ORDER BY seq LIMIT :limit

-- name: raw_events.load(org, event_id)
-- columns: seq, event_id, capture_id, provider, source, fingerprint, group_key, caller, captured_at, received_at, envelope, request, request_storage, request_encoding, request_type, request_sha256, request_bytes, base_event, base_request, base_storage, response, response_storage, response_encoding, response_type, response_sha256, response_bytes, fidelity, flags, derive_state, attempts, error
SELECT r.seq, r.event_id, r.capture_id, r.provider, r.source, r.fingerprint, r.group_key, r.caller, r.captured_at, r.received_at, r.envelope,
       r.request, r.request_storage, r.request_encoding, r.request_type, r.request_sha256, r.request_bytes, r.base_event,
       CASE WHEN r.request_storage = 'delta' THEN b.request END AS base_request, b.request_storage AS base_storage, r.response, r.response_storage,
       r.response_encoding, r.response_type, r.response_sha256, r.response_bytes, r.fidelity, r.flags, r.derive_state, r.attempts, r.error
FROM session_raw_events r LEFT JOIN session_raw_events b ON b.org = r.org AND b.event_id = r.base_event
WHERE r.org = :org AND r.event_id = :event_id

-- name: raw_events.derived(derive_state, derive_version, error, org, event_id, was, stamp)
-- columns: seq
-- The fence: no row means that somebody else has derived it, or has attributed something meanwhile.
UPDATE session_raw_events SET derive_state = :derive_state, derive_version = :derive_version, error = :error, retry_at = NULL
WHERE org = :org AND event_id = :event_id AND derive_state = :was
  AND (SELECT count(*) + count(a.undone_at) FROM session_attributions a WHERE a.org = :org) = :stamp
RETURNING seq

-- name: raw_events.refuse(org, event_id, was, stamp)
-- columns: seq
UPDATE session_raw_events SET derive_state = 'refused', error = 'session_deleted', retry_at = NULL, envelope = CAST('{}' AS BLOB),
       request = NULL, request_sha256 = NULL, response = NULL, response_sha256 = NULL, base_event = NULL
WHERE org = :org AND event_id = :event_id AND derive_state = :was
  AND (SELECT count(*) + count(a.undone_at) FROM session_attributions a WHERE a.org = :org) = :stamp
RETURNING seq

-- name: raw_events.fail(derive_state, attempts, retry_at, error, org, event_id)
-- columns: seq
UPDATE session_raw_events SET derive_state = :derive_state, attempts = :attempts, retry_at = :retry_at, error = :error
WHERE org = :org AND event_id = :event_id AND derive_state = 'pending'
RETURNING seq

-- name: raw_events.again(org, event_id)
-- Refused ones have no bodies any more.
UPDATE session_raw_events SET derive_state = 'pending', attempts = 0, retry_at = NULL, error = ''
WHERE org = :org AND event_id = :event_id AND derive_state <> 'refused'

-- name: raw_events.states(org)
-- columns: derive_state, count, oldest
SELECT derive_state, count(*) AS count, min(received_at) AS oldest
FROM session_raw_events WHERE derive_state <> 'derived' AND (:org IS NULL OR org = :org)
GROUP BY derive_state ORDER BY derive_state

-- name: raw_events.list(derive_state, org, after, limit)
-- columns: seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state, attempts, retry_at, error
SELECT seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state,
       attempts, retry_at, error
FROM session_raw_events
WHERE (:derive_state IS NULL OR derive_state = :derive_state) AND org = :org AND seq > :after
ORDER BY seq LIMIT :limit

-- name: raw_events.left(derive_state, org, version, after, limit)
-- columns: seq, org, event_id
SELECT seq, org, event_id
FROM session_raw_events
WHERE derive_state <> 'derived' AND derive_state = :derive_state AND (:org IS NULL OR org = :org)
  AND (:version IS NULL OR derive_version <> :version) AND seq > :after
ORDER BY seq LIMIT :limit

-- name: raw_events.of_group(org, group_key, after, limit)
-- columns: seq, event_id, derive_state
SELECT seq, event_id, derive_state
FROM session_raw_events WHERE org = :org AND group_key = :group_key AND seq > :after ORDER BY seq LIMIT :limit

-- name: raw_events.request(org, event_id)
-- columns: request, request_storage, request_encoding, request_type, request_sha256, request_bytes, base_event, base_request, base_storage
SELECT r.request, r.request_storage, r.request_encoding, r.request_type, r.request_sha256, r.request_bytes, r.base_event,
       CASE WHEN r.request_storage = 'delta' THEN b.request END AS base_request, b.request_storage AS base_storage
FROM session_raw_events r LEFT JOIN session_raw_events b ON b.org = r.org AND b.event_id = r.base_event
WHERE r.org = :org AND r.event_id = :event_id

-- name: raw_events.unpacked(before, after, org, limit)
-- columns: seq, org, event_id, group_key, size
SELECT seq, org, event_id, group_key, request_bytes AS size
FROM session_raw_events
WHERE base_event IS NULL AND request IS NOT NULL AND received_at < :before AND seq > :after
  AND (:org IS NULL OR org = :org)
ORDER BY seq LIMIT :limit

-- name: raw_events.count_unpacked(before, org)
-- columns: count, size
SELECT count(*) AS count, coalesce(sum(length(request)), 0) AS size
FROM session_raw_events
WHERE base_event IS NULL AND request IS NOT NULL AND received_at < :before AND (:org IS NULL OR org = :org)

-- name: raw_events.bases(org, group_key, recent, limit)
-- columns: base_event, taken
-- Those that the last events of the group were packed against, with how many there are.
SELECT u.base_event, (SELECT count(*) FROM session_raw_events d
                      WHERE d.org = :org AND d.base_event = u.base_event AND d.base_event <> d.event_id) AS taken
FROM (SELECT w.base_event, max(w.seq) AS used
      FROM (SELECT base_event, seq FROM session_raw_events
            WHERE org = :org AND group_key = :group_key AND base_event IS NOT NULL
            ORDER BY seq DESC LIMIT :recent) w
      GROUP BY w.base_event) u
ORDER BY u.used DESC LIMIT :limit

-- name: raw_events.hold_base(org, event_id)
-- columns: seq
-- A base that nobody takes away before the transaction ends.
SELECT seq FROM session_raw_events
WHERE org = :org AND event_id = :event_id AND base_event = event_id AND request IS NOT NULL

-- name: raw_events.keep(org, event_id)
-- columns: seq
-- It stays as it is, and others may be packed against it.
UPDATE session_raw_events SET base_event = event_id
WHERE org = :org AND event_id = :event_id AND base_event IS NULL AND request IS NOT NULL
RETURNING seq

-- name: raw_events.pack(request, base_event, org, event_id)
-- columns: seq
UPDATE session_raw_events SET request = :request, request_storage = 'delta', base_event = :base_event
WHERE org = :org AND event_id = :event_id AND base_event IS NULL AND request IS NOT NULL
RETURNING seq

-- name: raw_events.hold(org, ids)
-- columns: event_id
-- Nobody packs against them before the transaction ends.
SELECT event_id FROM session_raw_events
WHERE org = :org AND event_id IN (SELECT unhex(w.value) FROM json_each(:ids) AS w)

-- name: raw_events.deltas(ids, org)
-- columns: event_id
-- Others that are packed against them.
SELECT d.event_id
FROM json_each(:ids) AS w CROSS JOIN session_raw_events d
WHERE d.org = :org AND d.base_event = unhex(w.value) AND d.base_event <> d.event_id
ORDER BY d.seq

-- name: raw_events.unpack(request, request_storage, org, event_id)
-- columns: seq
-- Packed anew later.
UPDATE session_raw_events SET request = :request, request_storage = :request_storage, base_event = NULL
WHERE org = :org AND event_id = :event_id AND base_event IS NOT NULL AND request IS NOT NULL
RETURNING seq

-- name: raw_events.drop(org, event_id)
DELETE FROM session_raw_events WHERE org = :org AND event_id = :event_id

-- name: turns.hold(shared, keys)
-- columns: held
-- Until the transaction ends. On SQLite a transaction that writes is alone anyway.
SELECT NULL AS held WHERE 0 AND :shared = :keys

-- name: turn_evidence.put(org, event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts)
INSERT INTO session_turn_evidence (org, event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key,
       caller, facts)
VALUES (:org, :event_id, :evidence_key, :seq, :turn_id, :rank, :source, :mark, :provider, :message_id, :request_id, :join_key, :caller, :facts)
ON CONFLICT (org, event_id, evidence_key) DO UPDATE SET
    seq = excluded.seq, turn_id = excluded.turn_id, rank = excluded.rank, source = excluded.source, mark = excluded.mark,
    provider = excluded.provider, message_id = excluded.message_id, request_id = excluded.request_id,
    join_key = excluded.join_key, caller = excluded.caller, facts = excluded.facts

-- name: turn_evidence.named(org, provider, message_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence
WHERE org = :org AND provider = :provider AND message_id = :message_id AND message_id <> ''

-- name: turn_evidence.joined(org, join_key)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = :org AND join_key = :join_key

-- name: turn_evidence.of_event(org, event_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = :org AND event_id = :event_id

-- name: turn_evidence.of_turn(org, turn_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence WHERE org = :org AND turn_id = :turn_id

-- name: turn_evidence.of_session(org, session_id)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM session_turns t
CROSS JOIN session_turn_evidence e
WHERE t.org = :org AND t.session_id = :session_id AND e.org = t.org AND e.turn_id = t.turn_id

-- name: turn_evidence.of_turns(ids, org)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM json_each(:ids) AS w CROSS JOIN session_turn_evidence e
WHERE e.org = :org AND e.turn_id = unhex(w.value)

-- name: turn_evidence.drop(org, event_id, evidence_key)
DELETE FROM session_turn_evidence WHERE org = :org AND event_id = :event_id AND evidence_key = :evidence_key

-- name: turns.put(org, turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash)
INSERT INTO session_turns (org, turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller,
       response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio,
       usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash)
VALUES (:org, :turn_id, :session_id, :thread_id, :provider, :model, :agent_name, :status, :stop_reason, :captured_at, :mark, :caller,
       :response_hash, :continues_hash, :input, :cache_read, :cache_write, :cache_write_5m, :cache_write_1h, :output, :reasoning, :input_audio,
       :output_audio, :usage_state, :usage_event, :usage_key, :cost_pusd, :computed_pusd, :cost_state, :price_version, :tags, :row_hash)
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
WHERE t.org = :org AND t.turn_id = :turn_id

-- name: turns.of_session(org, session_id)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = :org AND t.session_id = :session_id

-- name: turns.page(org, session_id, after_at, after_id, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = :org AND t.session_id = :session_id AND (t.captured_at, t.turn_id) > (:after_at, :after_id)
ORDER BY t.captured_at, t.turn_id LIMIT :limit

-- name: turns.before(org, caller, response_hash, floor, mark, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
-- Turns without a session id whose answer another may go on from, the latest first.
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = :org AND t.caller = :caller AND t.caller IS NOT NULL AND t.response_hash = :response_hash AND t.mark >= :floor AND t.mark < :mark
ORDER BY t.mark DESC LIMIT :limit

-- name: turns.following(org, caller, continues_hash, mark)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = :org AND t.caller = :caller AND t.caller IS NOT NULL AND t.continues_hash = :continues_hash AND t.mark > :mark
ORDER BY t.mark

-- name: turns.drop(org, turn_id)
DELETE FROM session_turns WHERE org = :org AND turn_id = :turn_id

-- name: turns.session_of(org, turn_id)
-- columns: session_id
SELECT session_id FROM session_turns WHERE org = :org AND turn_id = :turn_id

-- name: nodes.put(org, hash_version, hash, parent_hash, role, content, mark)
INSERT INTO session_nodes (org, hash_version, hash, parent_hash, role, content, mark)
VALUES (:org, :hash_version, :hash, :parent_hash, :role, :content, :mark)
ON CONFLICT (org, hash_version, hash) DO UPDATE SET content = excluded.content, mark = excluded.mark
WHERE excluded.mark <= session_nodes.mark

-- name: nodes.marks(hashes, session_id, org, hash_version)
-- columns: hash, node_mark, link_mark
SELECT n.hash, n.mark AS node_mark, l.mark AS link_mark
FROM json_each(:hashes) AS w CROSS JOIN session_nodes n
LEFT JOIN session_node_links l
       ON l.org = n.org AND l.hash_version = n.hash_version AND l.hash = n.hash AND l.session_id = :session_id
WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = unhex(w.value)

-- name: nodes.get(org, hash_version, hash)
-- columns: hash, parent_hash, role, content, mark
SELECT hash, parent_hash, role, content, mark
FROM session_nodes WHERE org = :org AND hash_version = :hash_version AND hash = :hash

-- name: nodes.contents(hashes, org, hash_version)
-- columns: hash, content
SELECT n.hash, n.content
FROM json_each(:hashes) AS w CROSS JOIN session_nodes n
WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = unhex(w.value)

-- name: nodes.ancestry(org, hash_version, leaf, depth)
-- columns: hash, parent_hash, role, content, mark, depth
-- From a node to its root, in any order: sorting would copy the contents.
WITH RECURSIVE chain (hash, parent_hash, depth) AS (
    SELECT n.hash, n.parent_hash, 0 FROM session_nodes n
    WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = :leaf
    UNION ALL
    SELECT n.hash, n.parent_hash, c.depth + 1 FROM chain c CROSS JOIN session_nodes n
    WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = c.parent_hash AND c.depth < :depth)
SELECT n.hash, n.parent_hash, n.role, n.content, n.mark, c.depth
FROM chain c CROSS JOIN session_nodes n
WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = c.hash

-- name: nodes.of_session(org, session_id, limit)
-- columns: hash_version, hash, parent_hash, role, mark
SELECT n.hash_version, n.hash, n.parent_hash, n.role, l.mark
FROM session_node_links l CROSS JOIN session_nodes n
WHERE l.org = :org AND l.session_id = :session_id AND n.org = l.org AND n.hash_version = l.hash_version AND n.hash = l.hash
ORDER BY l.mark, n.hash LIMIT :limit

-- name: node_links.put(org, session_id, hash_version, hash, mark)
INSERT INTO session_node_links (org, session_id, hash_version, hash, mark)
VALUES (:org, :session_id, :hash_version, :hash, :mark)
ON CONFLICT (org, session_id, hash_version, hash) DO UPDATE SET mark = excluded.mark
WHERE excluded.mark < session_node_links.mark

-- name: node_links.chain(org, hash_version, leaf, depth)
-- columns: hash
WITH RECURSIVE chain (hash, parent_hash, depth) AS (
    SELECT n.hash, n.parent_hash, 0 FROM session_nodes n
    WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = :leaf
    UNION ALL
    SELECT n.hash, n.parent_hash, c.depth + 1 FROM chain c CROSS JOIN session_nodes n
    WHERE n.org = :org AND n.hash_version = :hash_version AND n.hash = c.parent_hash AND c.depth < :depth)
SELECT hash FROM chain

-- name: node_links.of_session(org, session_id)
-- columns: hash_version, hash, mark
SELECT hash_version, hash, mark
FROM session_node_links WHERE org = :org AND session_id = :session_id

-- name: node_links.of_node(org, hash_version, hash, limit)
-- columns: session_id, mark
SELECT session_id, mark
FROM session_node_links WHERE org = :org AND hash_version = :hash_version AND hash = :hash
ORDER BY mark, session_id LIMIT :limit

-- name: node_links.clear(org, session_id)
DELETE FROM session_node_links WHERE org = :org AND session_id = :session_id

-- name: nodes.sweep(org, hash_version, hash)
-- Those that no session holds any more.
DELETE FROM session_nodes
WHERE org = :org AND hash_version = :hash_version AND hash = :hash
  AND NOT EXISTS (SELECT 1 FROM session_node_links l
                  WHERE l.org = session_nodes.org AND l.hash_version = session_nodes.hash_version AND l.hash = session_nodes.hash)

-- name: nodes.mend(content, mark, org, hash_version, hash)
UPDATE session_nodes SET content = :content, mark = :mark
WHERE org = :org AND hash_version = :hash_version AND hash = :hash

-- name: parts.put(org, hash, content)
INSERT INTO session_parts (org, hash, content)
VALUES (:org, :hash, :content)
ON CONFLICT (org, hash) DO NOTHING

-- name: part_links.add(org, session_id, hash)
INSERT INTO session_part_links (org, session_id, hash)
VALUES (:org, :session_id, :hash)
ON CONFLICT (org, session_id, hash) DO NOTHING

-- name: part_links.has(org, session_id, hash)
-- columns: hash
SELECT hash FROM session_part_links WHERE org = :org AND session_id = :session_id AND hash = :hash

-- name: parts.get(org, hash)
-- columns: content
SELECT content FROM session_parts WHERE org = :org AND hash = :hash

-- name: part_links.of_session(org, session_id)
-- columns: hash
SELECT hash FROM session_part_links WHERE org = :org AND session_id = :session_id

-- name: part_links.clear(org, session_id)
DELETE FROM session_part_links WHERE org = :org AND session_id = :session_id

-- name: parts.sweep(org, hash)
DELETE FROM session_parts
WHERE org = :org AND hash = :hash
  AND NOT EXISTS (SELECT 1 FROM session_part_links l WHERE l.org = session_parts.org AND l.hash = session_parts.hash)

-- name: cost_ledger.last(org, event_id, evidence_key)
-- columns: n, state, cost_pusd, price_version, lines
SELECT n, state, cost_pusd, price_version, lines
FROM session_cost_ledger WHERE org = :org AND event_id = :event_id AND evidence_key = :evidence_key
ORDER BY n DESC LIMIT 1

-- name: cost_ledger.append(org, event_id, evidence_key, n, at, reason, state, cost_pusd, price_version, lines, actor, note)
INSERT INTO session_cost_ledger (org, event_id, evidence_key, n, at, reason, state, cost_pusd, price_version, lines, actor, note)
VALUES (:org, :event_id, :evidence_key, :n, :at, :reason, :state, :cost_pusd, :price_version, :lines, :actor, :note)

-- name: cost_ledger.drop(org, event_id)
DELETE FROM session_cost_ledger WHERE org = :org AND event_id = :event_id

-- name: ids.get(org, harness_id, harness_session_id)
-- columns: session_id
SELECT session_id FROM session_ids WHERE org = :org AND harness_id = :harness_id AND harness_session_id = :harness_session_id

-- name: ids.add(org, harness_id, harness_session_id, session_id, minted_at)
INSERT INTO session_ids (org, harness_id, harness_session_id, session_id, minted_at)
VALUES (:org, :harness_id, :harness_session_id, :session_id, :minted_at)
ON CONFLICT (org, harness_session_id, harness_id) DO NOTHING

-- name: sessions.put(org, session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash)
INSERT INTO session_sessions (org, session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at,
       last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark,
       display_name, fold, row_hash)
VALUES (:org, :session_id, :harness_id, :harness_session_id, :is_placeholder, :is_synthetic, :auth_subject, :started_at, :last_seen_at,
       :turn_count, :tokens_sum, :cost_pusd, :parent_session_id, :parent_state, :parent_flag, :hint_harness, :hint_key, :hint_mark, :display_name,
       :fold, :row_hash)
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
FROM session_sessions WHERE org = :org AND session_id = :session_id

-- name: sessions.find(org, harness_id, harness_session_id)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = :org AND harness_id = :harness_id AND harness_session_id = :harness_session_id

-- name: sessions.named(org, harness_session_id)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = :org AND harness_session_id = :harness_session_id

-- name: sessions.hinting(org, hint_key)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = :org AND hint_key = :hint_key

-- name: sessions.hinted(org, hint_key)
-- columns: session_id
SELECT session_id FROM session_sessions WHERE org = :org AND hint_key = :hint_key LIMIT 1

-- name: sessions.above(org, session_id, depth)
-- columns: count
-- How many links there are above a session.
WITH RECURSIVE up (id, depth) AS (
    SELECT s.parent_session_id, 1 FROM session_sessions s
    WHERE s.org = :org AND s.session_id = :session_id AND s.parent_session_id IS NOT NULL
    UNION ALL
    SELECT s.parent_session_id, u.depth + 1 FROM up u CROSS JOIN session_sessions s
    WHERE s.org = :org AND s.session_id = u.id AND s.parent_session_id IS NOT NULL AND u.depth < :depth)
SELECT count(*) AS count FROM up

-- name: sessions.children(org, parent_session_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions WHERE org = :org AND parent_session_id = :parent_session_id
ORDER BY started_at, session_id LIMIT :limit

-- name: sessions.drop(org, session_id)
DELETE FROM session_sessions WHERE org = :org AND session_id = :session_id

-- name: sessions.page_last_seen_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (last_seen_at, session_id) > (:value, :after_id)
ORDER BY last_seen_at, session_id LIMIT :limit

-- name: sessions.page_last_seen_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (last_seen_at, session_id) < (:value, :after_id)
ORDER BY last_seen_at DESC, session_id DESC LIMIT :limit

-- name: sessions.page_started_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (started_at, session_id) > (:value, :after_id)
ORDER BY started_at, session_id LIMIT :limit

-- name: sessions.page_started_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (started_at, session_id) < (:value, :after_id)
ORDER BY started_at DESC, session_id DESC LIMIT :limit

-- name: sessions.page_turns_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (turn_count, session_id) > (:value, :after_id)
ORDER BY turn_count, session_id LIMIT :limit

-- name: sessions.page_turns_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (turn_count, session_id) < (:value, :after_id)
ORDER BY turn_count DESC, session_id DESC LIMIT :limit

-- name: sessions.page_cost_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (cost_pusd, session_id) > (:value, :after_id)
ORDER BY cost_pusd, session_id LIMIT :limit

-- name: sessions.page_cost_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (cost_pusd, session_id) < (:value, :after_id)
ORDER BY cost_pusd DESC, session_id DESC LIMIT :limit

-- name: sessions.page_tokens_up(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (tokens_sum, session_id) > (:value, :after_id)
ORDER BY tokens_sum, session_id LIMIT :limit

-- name: sessions.page_tokens_down(org, placeholders, harness_id, harness_session_id, auth_subject, parent_state, since, until, min_cost, model, provider, agent_name, thread, tag, value, after_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions s
WHERE s.org = :org AND (:placeholders = 1 OR is_placeholder = 0)
  AND (:harness_id IS NULL OR harness_id = :harness_id)
  AND (:harness_session_id IS NULL OR harness_session_id = :harness_session_id)
  AND (:auth_subject IS NULL OR auth_subject = :auth_subject)
  AND (:parent_state IS NULL OR parent_state = :parent_state)
  AND (:since IS NULL OR last_seen_at >= :since) AND (:until IS NULL OR started_at < :until)
  AND (:min_cost IS NULL OR cost_pusd >= :min_cost)
  AND (:model IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.model = :model))
  AND (:provider IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.provider = :provider))
  AND (:agent_name IS NULL
       OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.agent_name = :agent_name))
  AND (:thread IS NULL OR EXISTS (SELECT 1 FROM session_turns t WHERE t.org = s.org AND t.session_id = s.session_id AND t.thread_id = :thread))
  AND (:tag IS NULL OR EXISTS (SELECT 1 FROM session_turns t,
       json_each(t.tags) w WHERE t.org = s.org AND t.session_id = s.session_id AND w.value = :tag))
  AND (tokens_sum, session_id) < (:value, :after_id)
ORDER BY tokens_sum DESC, session_id DESC LIMIT :limit

-- name: edits.last(org, session_id)
-- columns: n, display_name
SELECT n, display_name
FROM session_edits WHERE org = :org AND session_id = :session_id
ORDER BY n DESC LIMIT 1

-- name: edits.append(org, session_id, n, display_name, actor, at)
INSERT INTO session_edits (org, session_id, n, display_name, actor, at)
VALUES (:org, :session_id, :n, :display_name, :actor, :at)

-- name: edits.drop(org, session_id)
DELETE FROM session_edits WHERE org = :org AND session_id = :session_id

-- name: tombstones.get(org, harness_id, harness_session_id)
-- columns: session_id, deleted_at, actor, reason
SELECT session_id, deleted_at, actor, reason
FROM session_tombstones WHERE org = :org AND harness_id = :harness_id AND harness_session_id = :harness_session_id

-- name: tombstones.named(org, harness_session_id)
-- columns: harness_id
SELECT harness_id
FROM session_tombstones WHERE org = :org AND harness_session_id = :harness_session_id

-- name: tombstones.put(org, harness_id, harness_session_id, session_id, deleted_at, actor, reason)
INSERT INTO session_tombstones (org, harness_id, harness_session_id, session_id, deleted_at, actor, reason)
VALUES (:org, :harness_id, :harness_session_id, :session_id, :deleted_at, :actor, :reason)
ON CONFLICT (org, harness_session_id, harness_id) DO NOTHING

-- name: tombstones.drop(org, harness_id, harness_session_id)
-- columns: session_id
DELETE FROM session_tombstones WHERE org = :org AND harness_id = :harness_id AND harness_session_id = :harness_session_id
RETURNING session_id

-- name: changes.put(org, kind, id, row_hash, deleted)
-- What is as it was keeps its place in the feed.
INSERT INTO session_changes (org, kind, id, row_hash, deleted)
VALUES (:org, :kind, :id, :row_hash, :deleted)
ON CONFLICT (org, kind, id) DO UPDATE SET row_hash = excluded.row_hash, deleted = excluded.deleted, feed_seq = NULL
WHERE excluded.row_hash <> session_changes.row_hash OR excluded.deleted <> session_changes.deleted

-- name: turns.by_day(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.captured_at / 86400000000 AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000) AS cost_high, sum(t.cost_pusd % 1000000000) AS cost_low,
       sum(t.input) AS input, sum(t.cache_read) AS cache_read, sum(t.cache_write) AS cache_write, sum(t.cache_write_5m) AS cache_write_5m,
       sum(t.cache_write_1h) AS cache_write_1h, sum(t.output) AS output, sum(t.reasoning) AS reasoning, sum(t.input_audio) AS input_audio,
       sum(t.output_audio) AS output_audio
FROM session_turns t
WHERE t.org = :org AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
GROUP BY t.captured_at / 86400000000 ORDER BY t.captured_at / 86400000000

-- name: turns.by_model(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.model AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000) AS cost_high, sum(t.cost_pusd % 1000000000) AS cost_low,
       sum(t.input) AS input, sum(t.cache_read) AS cache_read, sum(t.cache_write) AS cache_write, sum(t.cache_write_5m) AS cache_write_5m,
       sum(t.cache_write_1h) AS cache_write_1h, sum(t.output) AS output, sum(t.reasoning) AS reasoning, sum(t.input_audio) AS input_audio,
       sum(t.output_audio) AS output_audio
FROM session_turns t
WHERE t.org = :org AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
GROUP BY t.model ORDER BY t.model

-- name: turns.by_harness(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT s.harness_id AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000) AS cost_high, sum(t.cost_pusd % 1000000000) AS cost_low,
       sum(t.input) AS input, sum(t.cache_read) AS cache_read, sum(t.cache_write) AS cache_write, sum(t.cache_write_5m) AS cache_write_5m,
       sum(t.cache_write_1h) AS cache_write_1h, sum(t.output) AS output, sum(t.reasoning) AS reasoning, sum(t.input_audio) AS input_audio,
       sum(t.output_audio) AS output_audio
FROM session_turns t
JOIN session_sessions s ON s.org = t.org AND s.session_id = t.session_id
WHERE t.org = :org AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
GROUP BY s.harness_id ORDER BY s.harness_id

-- name: turns.by_subject(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT s.auth_subject AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000) AS cost_high, sum(t.cost_pusd % 1000000000) AS cost_low,
       sum(t.input) AS input, sum(t.cache_read) AS cache_read, sum(t.cache_write) AS cache_write, sum(t.cache_write_5m) AS cache_write_5m,
       sum(t.cache_write_1h) AS cache_write_1h, sum(t.output) AS output, sum(t.reasoning) AS reasoning, sum(t.input_audio) AS input_audio,
       sum(t.output_audio) AS output_audio
FROM session_turns t
JOIN session_sessions s ON s.org = t.org AND s.session_id = t.session_id
WHERE t.org = :org AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
GROUP BY s.auth_subject ORDER BY s.auth_subject

-- name: turns.by_session(org, since, until)
-- columns: item, turns, failed, unmeasured, unpriced, partial, provided, cost_high, cost_low, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio
SELECT t.session_id AS item, count(*) AS turns, sum(CASE WHEN t.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       sum(CASE WHEN t.usage_state IN ('missing', 'partial') THEN 1 ELSE 0 END) AS unmeasured,
       sum(CASE WHEN t.cost_state = 'unpriced' THEN 1 ELSE 0 END) AS unpriced, sum(CASE WHEN t.cost_state = 'partial' THEN 1 ELSE 0 END) AS partial,
       sum(CASE WHEN t.cost_state = 'provided' THEN 1 ELSE 0 END) AS provided,
       sum(t.cost_pusd / 1000000000) AS cost_high, sum(t.cost_pusd % 1000000000) AS cost_low,
       sum(t.input) AS input, sum(t.cache_read) AS cache_read, sum(t.cache_write) AS cache_write, sum(t.cache_write_5m) AS cache_write_5m,
       sum(t.cache_write_1h) AS cache_write_1h, sum(t.output) AS output, sum(t.reasoning) AS reasoning, sum(t.input_audio) AS input_audio,
       sum(t.output_audio) AS output_audio
FROM session_turns t
WHERE t.org = :org AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
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
WHERE r.org = :org AND r.seq > :after_seq
ORDER BY r.seq LIMIT :limit

-- name: turn_evidence.scan(org, after_event_id, after_evidence_key, limit)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
FROM session_turn_evidence
WHERE org = :org AND (event_id, evidence_key) > (:after_event_id, :after_evidence_key)
ORDER BY event_id, evidence_key LIMIT :limit

-- name: turns.scan(org, after_turn_id, limit)
-- columns: turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash, input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event, usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash
SELECT turn_id, session_id, thread_id, provider, model, agent_name, status, stop_reason, captured_at, mark, caller, response_hash, continues_hash,
       input, cache_read, cache_write, cache_write_5m, cache_write_1h, output, reasoning, input_audio, output_audio, usage_state, usage_event,
       usage_key, cost_pusd, computed_pusd, cost_state, price_version, tags, row_hash
FROM session_turns
WHERE org = :org AND turn_id > :after_turn_id
ORDER BY turn_id LIMIT :limit

-- name: nodes.scan(org, after_hash_version, after_hash, limit)
-- columns: hash_version, hash, parent_hash, role, content, mark
SELECT hash_version, hash, parent_hash, role, content, mark
FROM session_nodes
WHERE org = :org AND (hash_version, hash) > (:after_hash_version, :after_hash)
ORDER BY hash_version, hash LIMIT :limit

-- name: node_links.scan(org, after_session_id, after_hash_version, after_hash, limit)
-- columns: session_id, hash_version, hash, mark
SELECT session_id, hash_version, hash, mark
FROM session_node_links
WHERE org = :org AND (session_id, hash_version, hash) > (:after_session_id, :after_hash_version, :after_hash)
ORDER BY session_id, hash_version, hash LIMIT :limit

-- name: parts.scan(org, after_hash, limit)
-- columns: hash, content
SELECT hash, content
FROM session_parts
WHERE org = :org AND hash > :after_hash
ORDER BY hash LIMIT :limit

-- name: part_links.scan(org, after_session_id, after_hash, limit)
-- columns: session_id, hash
SELECT session_id, hash
FROM session_part_links
WHERE org = :org AND (session_id, hash) > (:after_session_id, :after_hash)
ORDER BY session_id, hash LIMIT :limit

-- name: sessions.scan(org, after_session_id, limit)
-- columns: session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum, cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
SELECT session_id, harness_id, harness_session_id, is_placeholder, is_synthetic, auth_subject, started_at, last_seen_at, turn_count, tokens_sum,
       cost_pusd, parent_session_id, parent_state, parent_flag, hint_harness, hint_key, hint_mark, display_name, fold, row_hash
FROM session_sessions
WHERE org = :org AND session_id > :after_session_id
ORDER BY session_id LIMIT :limit

-- name: changes.scan(org, after_kind, after_id, limit)
-- columns: kind, id, row_hash, deleted, feed_seq
SELECT kind, id, row_hash, deleted, feed_seq
FROM session_changes
WHERE org = :org AND (kind, id) > (:after_kind, :after_id)
ORDER BY kind, id LIMIT :limit

-- name: ids.scan(org, after_id, limit)
-- columns: session_id, harness_id, harness_session_id
SELECT session_id, harness_id, harness_session_id
FROM session_ids WHERE org = :org AND session_id > :after_id ORDER BY session_id LIMIT :limit

-- name: tombstones.scan(org)
-- columns: harness_id, harness_session_id
SELECT harness_id, harness_session_id
FROM session_tombstones WHERE org = :org ORDER BY harness_session_id, harness_id

-- name: turns.last_main(ids, org)
-- columns: session_id, status, stop_reason
-- Of each session, the last turn of the main thread.
SELECT t.session_id, t.status, t.stop_reason
FROM json_each(:ids) AS w CROSS JOIN session_turns t
WHERE t.org = :org AND t.turn_id = (SELECT l.turn_id FROM session_turns l
                                    WHERE l.org = :org AND l.session_id = unhex(w.value) AND l.thread_id = ''
                                    ORDER BY l.captured_at DESC, l.turn_id DESC LIMIT 1)

-- name: turns.threads(org, session_id)
-- columns: thread_id, turns, failed, first_at, last_at
SELECT thread_id, count(*) AS turns, sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS failed,
       min(captured_at) AS first_at, max(captured_at) AS last_at
FROM session_turns WHERE org = :org AND session_id = :session_id
GROUP BY thread_id ORDER BY first_at, thread_id

-- name: nodes.kept(org, session_id)
-- columns: hash_version, hash, mark
SELECT n.hash_version, n.hash, n.mark
FROM session_node_links l CROSS JOIN session_nodes n
WHERE l.org = :org AND l.session_id = :session_id AND n.org = l.org AND n.hash_version = l.hash_version AND n.hash = l.hash

-- name: raw_events.page(org, after, limit)
-- columns: seq, event_id, derive_state
SELECT seq, event_id, derive_state
FROM session_raw_events WHERE org = :org AND seq > :after ORDER BY seq LIMIT :limit

-- name: turn_evidence.about(org, harness_id, harness_session_id, event_id, evidence_key, provider, message_id, request_id, join_key)
-- columns: gone, known, priced, mixed, joined
SELECT EXISTS (SELECT 1 FROM session_tombstones
               WHERE org = :org AND harness_id = :harness_id AND harness_session_id = :harness_session_id) AS gone,
       EXISTS (SELECT 1 FROM session_turn_evidence WHERE org = :org AND event_id = :event_id) AS known,
       EXISTS (SELECT 1 FROM session_cost_ledger WHERE org = :org AND event_id = :event_id AND evidence_key = :evidence_key) AS priced,
       EXISTS (SELECT 1 FROM session_turn_evidence
               WHERE org = :org AND provider = :provider AND message_id = :message_id AND message_id <> '' AND rank > 0)
       OR EXISTS (SELECT 1 FROM session_turn_evidence
                  WHERE org = :org AND provider = :provider AND message_id = :message_id AND message_id <> '' AND rank = 0
                    AND request_id = :request_id AND request_id <> '' AND event_id <> :event_id) AS mixed,
       EXISTS (SELECT 1 FROM session_turn_evidence
               WHERE org = :org AND join_key = :join_key AND rank > 0 AND message_id = '') AS joined

-- name: turn_evidence.mixed(org, provider, message_id, request_id, event_id)
-- columns: found
SELECT 1 AS found
WHERE EXISTS (SELECT 1 FROM session_turn_evidence
              WHERE org = :org AND provider = :provider AND message_id = :message_id AND message_id <> '' AND rank > 0)
   OR EXISTS (SELECT 1 FROM session_turn_evidence
              WHERE org = :org AND provider = :provider AND message_id = :message_id AND message_id <> '' AND rank = 0
                AND request_id = :request_id AND request_id <> '' AND event_id <> :event_id)

-- name: turn_evidence.loose(org, join_key)
-- columns: found
SELECT 1 AS found
FROM session_turn_evidence WHERE org = :org AND join_key = :join_key AND rank > 0 AND message_id = '' LIMIT 1

-- name: turn_evidence.of_events(ids, org)
-- columns: event_id, evidence_key, seq, turn_id, rank, source, mark, provider, message_id, request_id, join_key, caller, facts
SELECT e.event_id, e.evidence_key, e.seq, e.turn_id, e.rank, e.source, e.mark, e.provider, e.message_id, e.request_id, e.join_key, e.caller, e.facts
FROM json_each(:ids) AS w CROSS JOIN session_turn_evidence e
WHERE e.org = :org AND e.event_id = unhex(w.value)

-- name: raw_events.told(ids, org)
-- columns: seq, event_id, capture_id, captured_at, flags, envelope
SELECT r.seq, r.event_id, r.capture_id, r.captured_at, r.flags, r.envelope
FROM json_each(:ids) AS w CROSS JOIN session_raw_events r
WHERE r.org = :org AND r.event_id = unhex(w.value) AND r.derive_state <> 'refused'

-- name: turns.used(org, after_id, session_id, model, since, until, limit)
-- columns: turn_id, session_id, captured_at, mark, caller, response_hash, continues_hash, cost_pusd, computed_pusd, cost_state, price_version, usage_event, usage_key, row_hash, harness_id, harness_session_id
-- Those whose usage is known to some extent, of a session, a model, a time.
SELECT t.turn_id, t.session_id, t.captured_at, t.mark, t.caller, t.response_hash, t.continues_hash, t.cost_pusd, t.computed_pusd, t.cost_state,
       t.price_version, t.usage_event, t.usage_key, t.row_hash, i.harness_id, i.harness_session_id
FROM session_turns t
JOIN session_ids i ON i.session_id = t.session_id AND i.org = t.org
WHERE t.org = :org AND t.turn_id > :after_id AND t.usage_state NOT IN ('missing', 'none')
  AND (:session_id IS NULL OR t.session_id = :session_id) AND (:model IS NULL OR t.model = :model)
  AND (:since IS NULL OR t.captured_at >= :since) AND (:until IS NULL OR t.captured_at < :until)
ORDER BY t.turn_id LIMIT :limit

-- name: attributions.list(org)
-- columns: n, attribution_id, selector, change, reason, actor, created_at, undone_at
SELECT n, attribution_id, selector, change, reason, actor, created_at, undone_at
FROM session_attributions WHERE org = :org ORDER BY n

-- name: attributions.put(org, attribution_id, n, selector, change, reason, actor, created_at)
INSERT INTO session_attributions (org, attribution_id, n, selector, change, reason, actor, created_at)
VALUES (:org, :attribution_id, :n, :selector, :change, :reason, :actor, :created_at)

-- name: attributions.undo(undone_at, org, attribution_id)
-- columns: n
UPDATE session_attributions SET undone_at = :undone_at
WHERE org = :org AND attribution_id = :attribution_id AND undone_at IS NULL
RETURNING n

-- name: rebuilds.get(org)
-- columns: after_seq, until_seq
SELECT after_seq, until_seq FROM session_rebuilds WHERE org = :org

-- name: rebuilds.begin(org, started_at)
-- One that was broken off goes on.
INSERT INTO session_rebuilds (org, after_seq, until_seq, started_at)
SELECT :org, 0, coalesce(max(seq), 0), :started_at FROM session_raw_events WHERE org = :org
ON CONFLICT (org) DO NOTHING

-- name: rebuilds.advance(after_seq, org)
UPDATE session_rebuilds SET after_seq = :after_seq WHERE org = :org AND after_seq < :after_seq

-- name: rebuilds.finish(org)
DELETE FROM session_rebuilds WHERE org = :org

-- name: rebuilds.left(org)
-- columns: count
SELECT count(*) AS count
FROM session_raw_events r LEFT JOIN session_rebuilds b ON b.org = r.org
WHERE r.org = :org AND r.derive_state <> 'refused' AND (b.org IS NULL OR (r.seq > b.after_seq AND r.seq <= b.until_seq))

-- name: raw_events.count_keys(mark)
-- columns: item, head, count
-- The mark of a sealed value and the number of its key, of every value that is sealed; what is not sealed is null.
SELECT item, CASE WHEN substr(head, 1, 4) = :mark THEN head END AS head, sum(count) AS count
FROM (SELECT 'session_raw_events' AS item, substr(envelope, 1, 5) AS head, count(*) AS count FROM session_raw_events WHERE envelope IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_raw_events' AS item, substr(request, 1, 5) AS head, count(*) AS count FROM session_raw_events WHERE request IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_raw_events' AS item, substr(response, 1, 5) AS head, count(*) AS count FROM session_raw_events WHERE response IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_turn_evidence' AS item, substr(facts, 1, 5) AS head, count(*) AS count FROM session_turn_evidence WHERE facts IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_nodes' AS item, substr(content, 1, 5) AS head, count(*) AS count FROM session_nodes WHERE content IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_parts' AS item, substr(content, 1, 5) AS head, count(*) AS count FROM session_parts WHERE content IS NOT NULL GROUP BY 1, 2
UNION ALL SELECT 'session_sessions' AS item, substr(fold, 1, 5) AS head, count(*) AS count FROM session_sessions WHERE fold IS NOT NULL GROUP BY 1, 2) w
GROUP BY 1, 2 ORDER BY 1, 2

-- name: raw_events.reseal(envelope, request, response, org, event_id, was_envelope, was_request, was_response)
-- columns: org
UPDATE session_raw_events SET envelope = :envelope, request = :request, response = :response
WHERE org = :org AND event_id = :event_id AND envelope = :was_envelope
  AND request IS :was_request AND response IS :was_response
RETURNING org

-- name: turn_evidence.reseal(facts, org, event_id, evidence_key, was)
-- columns: org
UPDATE session_turn_evidence SET facts = :facts
WHERE org = :org AND event_id = :event_id AND evidence_key = :evidence_key AND facts = :was
RETURNING org

-- name: nodes.reseal(content, org, hash_version, hash, was)
-- columns: org
UPDATE session_nodes SET content = :content
WHERE org = :org AND hash_version = :hash_version AND hash = :hash AND content = :was
RETURNING org

-- name: parts.reseal(content, org, hash, was)
-- columns: org
UPDATE session_parts SET content = :content
WHERE org = :org AND hash = :hash AND content = :was
RETURNING org

-- name: sessions.reseal(fold, org, session_id, was)
-- columns: org
UPDATE session_sessions SET fold = :fold
WHERE org = :org AND session_id = :session_id AND fold = :was
RETURNING org

-- name: raw_events.get(org, event_id)
-- columns: seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state, attempts, retry_at, error
SELECT seq, org, event_id, capture_id, source, provider, captured_at, received_at, request_bytes, response_bytes, flags, derive_state,
       attempts, retry_at, error
FROM session_raw_events WHERE org = :org AND event_id = :event_id
