-- Sessions: what was captured, and what is made of it.
-- Truth is what is not recomputed: events, ids, prices, tombstones, edits, attributions, keys. The rest follows from it.
-- A mark is captured_at (8 bytes, big-endian), the capture id, a zero byte, and the evidence key: bytes that sort.

CREATE TABLE session_raw_events (
    seq               INTEGER PRIMARY KEY,
    org               BLOB NOT NULL,     -- 16 bytes
    event_id          BLOB NOT NULL,     -- 16 bytes
    capture_id        TEXT NOT NULL,
    source            TEXT NOT NULL,     -- wire, sdk, transcript or otlp
    provider          TEXT NOT NULL,
    fingerprint       BLOB NOT NULL,     -- 32 bytes, keyed
    group_key         BLOB NOT NULL,     -- hash of the session's key, 16 bytes
    captured_at       INTEGER NOT NULL,  -- microseconds
    received_at       INTEGER NOT NULL,  -- microseconds
    access_key_id     TEXT NOT NULL,     -- empty: none
    caller            BLOB NOT NULL,     -- keyed hash of the credential, 8 bytes; empty: none
    envelope          BLOB NOT NULL,     -- JSON: what was told but the bodies; may be a zstd frame
    request           BLOB,
    request_storage   TEXT NOT NULL,     -- plain, zstd or delta
    request_encoding  TEXT NOT NULL,     -- content coding, as it was sent
    request_type      TEXT NOT NULL,
    request_sha256    BLOB,              -- of the body before it was stored, 32 bytes
    request_bytes     INTEGER NOT NULL,
    response          BLOB,
    response_storage  TEXT NOT NULL,
    response_encoding TEXT NOT NULL,
    response_type     TEXT NOT NULL,
    response_sha256   BLOB,
    response_bytes    INTEGER NOT NULL,
    base_event        BLOB,              -- the event that the request is a delta against; the event itself: a base; null: not packed yet
    fidelity          TEXT NOT NULL,     -- raw, reduced or metadata
    flags             TEXT NOT NULL,     -- words, sorted, one blank between
    derive_state      TEXT NOT NULL,     -- pending, derived, unparsed, refused or dead
    derive_version    INTEGER NOT NULL,  -- 0: it was not derived yet
    attempts          INTEGER NOT NULL,
    retry_at          INTEGER,           -- microseconds
    error             TEXT NOT NULL      -- why it is unparsed, or failed last
);
CREATE UNIQUE INDEX session_raw_events_capture ON session_raw_events (org, capture_id);
CREATE UNIQUE INDEX session_raw_events_event ON session_raw_events (event_id);
CREATE INDEX session_raw_events_group ON session_raw_events (org, group_key, seq);
CREATE INDEX session_raw_events_state ON session_raw_events (derive_state, seq) WHERE derive_state <> 'derived';
CREATE INDEX session_raw_events_unpacked ON session_raw_events (seq) WHERE base_event IS NULL AND request IS NOT NULL;
CREATE INDEX session_raw_events_deltas ON session_raw_events (org, base_event) WHERE base_event <> event_id;

CREATE TABLE session_ids (
    org                BLOB NOT NULL,
    harness_id         TEXT NOT NULL,
    harness_session_id TEXT NOT NULL,
    session_id         BLOB NOT NULL,     -- 16 bytes
    minted_at          INTEGER NOT NULL,  -- microseconds
    PRIMARY KEY (org, harness_session_id, harness_id)
);
CREATE UNIQUE INDEX session_ids_session ON session_ids (session_id);

CREATE TABLE session_cost_ledger (
    org           BLOB NOT NULL,
    event_id      BLOB NOT NULL,
    evidence_key  TEXT NOT NULL,
    n             INTEGER NOT NULL,  -- from 0; the greatest counts
    at            INTEGER NOT NULL,  -- microseconds
    reason        TEXT NOT NULL,     -- derive or reprice
    state         TEXT NOT NULL,     -- priced, partial or unpriced
    cost_pusd     INTEGER,           -- pico-dollars
    price_version TEXT NOT NULL,
    lines         BLOB NOT NULL,     -- JSON
    actor         TEXT NOT NULL,
    note          TEXT NOT NULL,  -- why, of one that was asked for again
    PRIMARY KEY (org, event_id, evidence_key, n)
);

CREATE TABLE session_attributions (
    org            BLOB NOT NULL,
    attribution_id BLOB NOT NULL,     -- 16 bytes
    n              INTEGER NOT NULL,  -- from 0: later ones count over earlier ones
    selector       BLOB NOT NULL,     -- JSON
    change         BLOB NOT NULL,     -- JSON
    reason         TEXT NOT NULL,
    actor          TEXT NOT NULL,
    created_at     INTEGER NOT NULL,  -- microseconds
    undone_at      INTEGER,           -- microseconds
    PRIMARY KEY (org, attribution_id)
);

CREATE TABLE session_rebuilds (
    org        BLOB NOT NULL PRIMARY KEY,  -- whose events are being derived anew
    after_seq  INTEGER NOT NULL,           -- those up to here are
    until_seq  INTEGER NOT NULL,           -- and this is the last one
    started_at INTEGER NOT NULL            -- microseconds
);

CREATE TABLE session_edits (
    org          BLOB NOT NULL,
    session_id   BLOB NOT NULL,
    n            INTEGER NOT NULL,  -- from 0; the greatest counts
    display_name TEXT,
    actor        TEXT NOT NULL,
    at           INTEGER NOT NULL,  -- microseconds
    PRIMARY KEY (org, session_id, n)
);

CREATE TABLE session_tombstones (
    org                BLOB NOT NULL,
    harness_id         TEXT NOT NULL,
    harness_session_id TEXT NOT NULL,
    session_id         BLOB NOT NULL,
    deleted_at         INTEGER NOT NULL,  -- microseconds
    actor              TEXT NOT NULL,
    reason             TEXT NOT NULL,
    PRIMARY KEY (org, harness_session_id, harness_id)
);

CREATE TABLE session_access_keys (
    org          BLOB NOT NULL,
    key_id       TEXT NOT NULL PRIMARY KEY,  -- 12 characters; looked up before the org is known
    secret_hash  BLOB NOT NULL,              -- BLAKE3, 32 bytes
    scopes       TEXT NOT NULL,              -- words, sorted, one blank between
    label        TEXT NOT NULL,
    created_at   INTEGER NOT NULL,           -- microseconds
    expires_at   INTEGER,                    -- microseconds
    revoked_at   INTEGER,                    -- microseconds
    last_used_at INTEGER                     -- microseconds
);

CREATE TABLE session_turn_evidence (
    org          BLOB NOT NULL,
    event_id     BLOB NOT NULL,
    evidence_key TEXT NOT NULL,
    seq          INTEGER NOT NULL,  -- of the event
    turn_id      BLOB NOT NULL,     -- the turn it is of now
    rank         INTEGER NOT NULL,
    source       TEXT NOT NULL,
    mark         BLOB NOT NULL,
    provider     TEXT NOT NULL,
    message_id   TEXT NOT NULL,
    request_id   TEXT NOT NULL,
    join_key     TEXT,
    caller       BLOB NOT NULL,     -- the event's
    facts        BLOB NOT NULL,     -- JSON; may be a zstd frame
    PRIMARY KEY (org, event_id, evidence_key)
);
CREATE INDEX session_turn_evidence_message ON session_turn_evidence (org, provider, message_id, rank, request_id)
    WHERE message_id <> '';
CREATE INDEX session_turn_evidence_join ON session_turn_evidence (org, join_key, rank) WHERE join_key IS NOT NULL;
CREATE INDEX session_turn_evidence_turn ON session_turn_evidence (org, turn_id);

CREATE TABLE session_turns (
    org            BLOB NOT NULL,
    turn_id        BLOB NOT NULL,     -- 16 bytes
    session_id     BLOB NOT NULL,
    thread_id      TEXT NOT NULL,     -- empty: the main thread
    provider       TEXT NOT NULL,
    model          TEXT NOT NULL,
    agent_name     TEXT NOT NULL,
    status         TEXT NOT NULL,     -- ok, incomplete, aborted or failed
    stop_reason    TEXT NOT NULL,
    captured_at    INTEGER NOT NULL,  -- microseconds
    mark           BLOB NOT NULL,
    caller         BLOB,              -- who called, of a turn without a session id; else null
    response_hash  BLOB,              -- the node of its answer, 32 bytes
    continues_hash BLOB,              -- the last node of the assistant in its request
    input          INTEGER,           -- tokens, here and below; null: not measured
    cache_read     INTEGER,
    cache_write    INTEGER,
    cache_write_5m INTEGER,
    cache_write_1h INTEGER,
    output         INTEGER,
    reasoning      INTEGER,
    input_audio    INTEGER,
    output_audio   INTEGER,
    usage_state    TEXT NOT NULL,     -- measured, partial, missing, provided or none
    usage_event    BLOB NOT NULL,     -- the evidence that its usage is of
    usage_key      TEXT NOT NULL,
    cost_pusd      INTEGER,           -- pico-dollars
    computed_pusd  INTEGER,           -- pico-dollars
    cost_state     TEXT NOT NULL,     -- priced, partial, unpriced, provided or unbilled
    price_version  TEXT NOT NULL,
    tags           TEXT NOT NULL,     -- JSON: a sorted list
    row_hash       BLOB NOT NULL,     -- 16 bytes
    PRIMARY KEY (org, turn_id)
);
CREATE INDEX session_turns_session ON session_turns (org, session_id, captured_at, turn_id);
CREATE INDEX session_turns_time ON session_turns (org, captured_at);
CREATE INDEX session_turns_answers ON session_turns (org, caller, response_hash, mark) WHERE caller IS NOT NULL;
CREATE INDEX session_turns_continues ON session_turns (org, caller, continues_hash, mark) WHERE caller IS NOT NULL;

CREATE TABLE session_nodes (
    org          BLOB NOT NULL,
    hash_version INTEGER NOT NULL,
    hash         BLOB NOT NULL,  -- 32 bytes
    parent_hash  BLOB,           -- null: a root
    role         TEXT NOT NULL,
    content      BLOB NOT NULL,  -- JSON: the blocks as the model saw them; may be a zstd frame
    mark         BLOB NOT NULL,  -- the smallest, of the evidence that the content is of
    PRIMARY KEY (org, hash_version, hash)
);
CREATE INDEX session_nodes_parent ON session_nodes (org, hash_version, parent_hash) WHERE parent_hash IS NOT NULL;

CREATE TABLE session_node_links (
    org          BLOB NOT NULL,
    session_id   BLOB NOT NULL,
    hash_version INTEGER NOT NULL,
    hash         BLOB NOT NULL,
    mark         BLOB NOT NULL,  -- the smallest of the session's evidences that hold the node
    PRIMARY KEY (org, session_id, hash_version, hash)
) WITHOUT ROWID;
CREATE INDEX session_node_links_node ON session_node_links (org, hash_version, hash);

CREATE TABLE session_parts (
    org     BLOB NOT NULL,
    hash    BLOB NOT NULL,  -- BLAKE3 of the content, 32 bytes
    content BLOB NOT NULL,  -- JSON: a large member of requests' parameters; may be a zstd frame
    PRIMARY KEY (org, hash)
);

CREATE TABLE session_part_links (
    org        BLOB NOT NULL,
    session_id BLOB NOT NULL,
    hash       BLOB NOT NULL,
    PRIMARY KEY (org, session_id, hash)
) WITHOUT ROWID;
CREATE INDEX session_part_links_part ON session_part_links (org, hash);

CREATE TABLE session_sessions (
    org                BLOB NOT NULL,
    session_id         BLOB NOT NULL,     -- 16 bytes
    harness_id         TEXT NOT NULL,
    harness_session_id TEXT NOT NULL,
    is_placeholder     INTEGER NOT NULL,  -- 1: nobody has seen it; it is only a parent
    is_synthetic       INTEGER NOT NULL,
    auth_subject       TEXT NOT NULL,
    started_at         INTEGER NOT NULL,  -- microseconds; 0 of a placeholder
    last_seen_at       INTEGER NOT NULL,  -- microseconds; 0 of a placeholder
    turn_count         INTEGER NOT NULL,
    tokens_sum         INTEGER NOT NULL,  -- input and output, as far as measured; to sort by
    cost_pusd          INTEGER NOT NULL,  -- pico-dollars, as far as known; to sort by
    parent_session_id  BLOB,
    parent_state       TEXT NOT NULL,     -- none, resolved, pending, ambiguous, deleted, rejected_self, rejected_cycle
    parent_flag        TEXT NOT NULL,     -- harness_assumed, depth or empty
    hint_harness       TEXT NOT NULL,     -- empty: not said
    hint_key           TEXT,              -- the parent's session id, as it was said; null: there is no hint
    hint_mark          BLOB,
    display_name       TEXT,
    fold               BLOB,              -- JSON: what its turns make of it; null of a placeholder
    row_hash           BLOB NOT NULL,     -- 16 bytes
    PRIMARY KEY (org, session_id)
);
CREATE UNIQUE INDEX session_sessions_named ON session_sessions (org, harness_session_id, harness_id);
CREATE INDEX session_sessions_hint ON session_sessions (org, hint_key) WHERE hint_key IS NOT NULL;
CREATE INDEX session_sessions_parent ON session_sessions (org, parent_session_id) WHERE parent_session_id IS NOT NULL;
CREATE INDEX session_sessions_last_seen ON session_sessions (org, last_seen_at, session_id);
CREATE INDEX session_sessions_started ON session_sessions (org, started_at, session_id);
CREATE INDEX session_sessions_turns ON session_sessions (org, turn_count, session_id);
CREATE INDEX session_sessions_cost ON session_sessions (org, cost_pusd, session_id);
CREATE INDEX session_sessions_tokens ON session_sessions (org, tokens_sum, session_id);

CREATE TABLE session_changes (
    org      BLOB NOT NULL,
    kind     TEXT NOT NULL,  -- session or turn
    id       BLOB NOT NULL,
    row_hash BLOB NOT NULL,  -- 16 bytes
    deleted  INTEGER NOT NULL,
    feed_seq INTEGER,        -- null: it has no place in the feed yet
    PRIMARY KEY (org, kind, id)
);
CREATE UNIQUE INDEX session_changes_feed ON session_changes (org, feed_seq) WHERE feed_seq IS NOT NULL;
