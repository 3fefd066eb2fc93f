-- Sessions: what was captured, and what is made of it.
-- Truth is what is not recomputed: events, ids, prices, tombstones, edits, attributions, keys. The rest follows from it.
-- A mark is captured_at (8 bytes, big-endian), the capture id, a zero byte, and the evidence key: bytes that sort.

CREATE TABLE session_raw_events (
    seq               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org               BYTEA NOT NULL,             -- 16 bytes
    event_id          BYTEA NOT NULL,             -- 16 bytes
    capture_id        TEXT COLLATE "C" NOT NULL,
    source            TEXT COLLATE "C" NOT NULL,  -- wire, sdk, transcript or otlp
    provider          TEXT COLLATE "C" NOT NULL,
    fingerprint       BYTEA NOT NULL,             -- 32 bytes, keyed
    group_key         BYTEA NOT NULL,             -- hash of the session's key, 16 bytes
    captured_at       BIGINT NOT NULL,            -- microseconds
    received_at       BIGINT NOT NULL,            -- microseconds
    access_key_id     TEXT COLLATE "C" NOT NULL,  -- empty: none
    caller            BYTEA NOT NULL,             -- keyed hash of the credential, 8 bytes; empty: none
    envelope          BYTEA NOT NULL,             -- JSON: what was told but the bodies; may be a zstd frame
    request           BYTEA,
    request_storage   TEXT COLLATE "C" NOT NULL,  -- plain, zstd or delta
    request_encoding  TEXT COLLATE "C" NOT NULL,  -- content coding, as it was sent
    request_type      TEXT COLLATE "C" NOT NULL,
    request_sha256    BYTEA,                      -- of the body before it was stored, 32 bytes
    request_bytes     BIGINT NOT NULL,
    response          BYTEA,
    response_storage  TEXT COLLATE "C" NOT NULL,
    response_encoding TEXT COLLATE "C" NOT NULL,
    response_type     TEXT COLLATE "C" NOT NULL,
    response_sha256   BYTEA,
    response_bytes    BIGINT NOT NULL,
    base_event        BYTEA,                      -- the event that the request is a delta against; the event itself: a base; null: not packed yet
    fidelity          TEXT COLLATE "C" NOT NULL,  -- raw, reduced or metadata
    flags             TEXT COLLATE "C" NOT NULL,  -- words, sorted, one blank between
    derive_state      TEXT COLLATE "C" NOT NULL,  -- pending, derived, unparsed, refused or dead
    derive_version    BIGINT NOT NULL,            -- 0: it was not derived yet
    attempts          BIGINT NOT NULL,
    retry_at          BIGINT,                     -- microseconds
    error             TEXT COLLATE "C" NOT NULL   -- why it is unparsed, or failed last
);
CREATE UNIQUE INDEX session_raw_events_capture ON session_raw_events (org, capture_id);
CREATE UNIQUE INDEX session_raw_events_event ON session_raw_events (event_id);
CREATE INDEX session_raw_events_group ON session_raw_events (org, group_key, seq);
CREATE INDEX session_raw_events_state ON session_raw_events (derive_state, seq) WHERE derive_state <> 'derived';
CREATE INDEX session_raw_events_unpacked ON session_raw_events (seq) WHERE base_event IS NULL AND request IS NOT NULL;
CREATE INDEX session_raw_events_deltas ON session_raw_events (org, base_event) WHERE base_event <> event_id;

CREATE TABLE session_ids (
    org                BYTEA NOT NULL,
    harness_id         TEXT COLLATE "C" NOT NULL,
    harness_session_id TEXT COLLATE "C" NOT NULL,
    session_id         BYTEA NOT NULL,   -- 16 bytes
    minted_at          BIGINT NOT NULL,  -- microseconds
    PRIMARY KEY (org, harness_session_id, harness_id)
);
CREATE UNIQUE INDEX session_ids_session ON session_ids (session_id);

CREATE TABLE session_cost_ledger (
    org           BYTEA NOT NULL,
    event_id      BYTEA NOT NULL,
    evidence_key  TEXT COLLATE "C" NOT NULL,
    n             BIGINT NOT NULL,            -- from 0; the greatest counts
    at            BIGINT NOT NULL,            -- microseconds
    reason        TEXT COLLATE "C" NOT NULL,  -- derive or reprice
    state         TEXT COLLATE "C" NOT NULL,  -- priced, partial or unpriced
    cost_pusd     BIGINT,                     -- pico-dollars
    price_version TEXT COLLATE "C" NOT NULL,
    lines         BYTEA NOT NULL,             -- JSON
    actor         TEXT COLLATE "C" NOT NULL,
    note          TEXT COLLATE "C" NOT NULL,  -- why, of one that was asked for again
    PRIMARY KEY (org, event_id, evidence_key, n)
);

CREATE TABLE session_attributions (
    org            BYTEA NOT NULL,
    attribution_id BYTEA NOT NULL,   -- 16 bytes
    n              BIGINT NOT NULL,  -- from 0: later ones count over earlier ones
    selector       BYTEA NOT NULL,   -- JSON
    change         BYTEA NOT NULL,   -- JSON
    reason         TEXT COLLATE "C" NOT NULL,
    actor          TEXT COLLATE "C" NOT NULL,
    created_at     BIGINT NOT NULL,  -- microseconds
    undone_at      BIGINT,           -- microseconds
    PRIMARY KEY (org, attribution_id)
);

CREATE TABLE session_rebuilds (
    org        BYTEA NOT NULL PRIMARY KEY,  -- whose events are being derived anew
    after_seq  BIGINT NOT NULL,           -- those up to here are
    until_seq  BIGINT NOT NULL,           -- and this is the last one
    started_at BIGINT NOT NULL            -- microseconds
);

CREATE TABLE session_edits (
    org          BYTEA NOT NULL,
    session_id   BYTEA NOT NULL,
    n            BIGINT NOT NULL,  -- from 0; the greatest counts
    display_name TEXT COLLATE "C",
    actor        TEXT COLLATE "C" NOT NULL,
    at           BIGINT NOT NULL,  -- microseconds
    PRIMARY KEY (org, session_id, n)
);

CREATE TABLE session_tombstones (
    org                BYTEA NOT NULL,
    harness_id         TEXT COLLATE "C" NOT NULL,
    harness_session_id TEXT COLLATE "C" NOT NULL,
    session_id         BYTEA NOT NULL,
    deleted_at         BIGINT NOT NULL,  -- microseconds
    actor              TEXT COLLATE "C" NOT NULL,
    reason             TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (org, harness_session_id, harness_id)
);

CREATE TABLE session_access_keys (
    org          BYTEA NOT NULL,
    key_id       TEXT COLLATE "C" NOT NULL PRIMARY KEY,  -- 12 characters; looked up before the org is known
    secret_hash  BYTEA NOT NULL,                         -- BLAKE3, 32 bytes
    scopes       TEXT COLLATE "C" NOT NULL,              -- words, sorted, one blank between
    label        TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL,                        -- microseconds
    expires_at   BIGINT,                                 -- microseconds
    revoked_at   BIGINT,                                 -- microseconds
    last_used_at BIGINT                                  -- microseconds
);

CREATE TABLE session_turn_evidence (
    org          BYTEA NOT NULL,
    event_id     BYTEA NOT NULL,
    evidence_key TEXT COLLATE "C" NOT NULL,
    seq          BIGINT NOT NULL,  -- of the event
    turn_id      BYTEA NOT NULL,   -- the turn it is of now
    rank         BIGINT NOT NULL,
    source       TEXT COLLATE "C" NOT NULL,
    mark         BYTEA NOT NULL,
    provider     TEXT COLLATE "C" NOT NULL,
    message_id   TEXT COLLATE "C" NOT NULL,
    request_id   TEXT COLLATE "C" NOT NULL,
    join_key     TEXT COLLATE "C",
    caller       BYTEA NOT NULL,   -- the event's
    facts        BYTEA NOT NULL,   -- JSON; may be a zstd frame
    PRIMARY KEY (org, event_id, evidence_key)
);
CREATE INDEX session_turn_evidence_message ON session_turn_evidence (org, provider, message_id, rank, request_id)
    WHERE message_id <> '';
CREATE INDEX session_turn_evidence_join ON session_turn_evidence (org, join_key, rank) WHERE join_key IS NOT NULL;
CREATE INDEX session_turn_evidence_turn ON session_turn_evidence (org, turn_id);

CREATE TABLE session_turns (
    org            BYTEA NOT NULL,
    turn_id        BYTEA NOT NULL,             -- 16 bytes
    session_id     BYTEA NOT NULL,
    thread_id      TEXT COLLATE "C" NOT NULL,  -- empty: the main thread
    provider       TEXT COLLATE "C" NOT NULL,
    model          TEXT COLLATE "C" NOT NULL,
    agent_name     TEXT COLLATE "C" NOT NULL,
    status         TEXT COLLATE "C" NOT NULL,  -- ok, incomplete, aborted or failed
    stop_reason    TEXT COLLATE "C" NOT NULL,
    captured_at    BIGINT NOT NULL,            -- microseconds
    mark           BYTEA NOT NULL,
    caller         BYTEA,                      -- who called, of a turn without a session id; else null
    response_hash  BYTEA,                      -- the node of its answer, 32 bytes
    continues_hash BYTEA,                      -- the last node of the assistant in its request
    input          BIGINT,                     -- tokens, here and below; null: not measured
    cache_read     BIGINT,
    cache_write    BIGINT,
    cache_write_5m BIGINT,
    cache_write_1h BIGINT,
    output         BIGINT,
    reasoning      BIGINT,
    input_audio    BIGINT,
    output_audio   BIGINT,
    usage_state    TEXT COLLATE "C" NOT NULL,  -- measured, partial, missing, provided or none
    usage_event    BYTEA NOT NULL,             -- the evidence that its usage is of
    usage_key      TEXT COLLATE "C" NOT NULL,
    cost_pusd      BIGINT,                     -- pico-dollars
    computed_pusd  BIGINT,                     -- pico-dollars
    cost_state     TEXT COLLATE "C" NOT NULL,  -- priced, partial, unpriced, provided or unbilled
    price_version  TEXT COLLATE "C" NOT NULL,
    tags           TEXT COLLATE "C" NOT NULL,  -- JSON: a sorted list
    row_hash       BYTEA NOT NULL,             -- 16 bytes
    PRIMARY KEY (org, turn_id)
);
CREATE INDEX session_turns_session ON session_turns (org, session_id, captured_at, turn_id);
CREATE INDEX session_turns_time ON session_turns (org, captured_at);
CREATE INDEX session_turns_answers ON session_turns (org, caller, response_hash, mark) WHERE caller IS NOT NULL;
CREATE INDEX session_turns_continues ON session_turns (org, caller, continues_hash, mark) WHERE caller IS NOT NULL;

CREATE TABLE session_nodes (
    org          BYTEA NOT NULL,
    hash_version BIGINT NOT NULL,
    hash         BYTEA NOT NULL,  -- 32 bytes
    parent_hash  BYTEA,           -- null: a root
    role         TEXT COLLATE "C" NOT NULL,
    content      BYTEA NOT NULL,  -- JSON: the blocks as the model saw them; may be a zstd frame
    mark         BYTEA NOT NULL,  -- the smallest, of the evidence that the content is of
    PRIMARY KEY (org, hash_version, hash)
);
CREATE INDEX session_nodes_parent ON session_nodes (org, hash_version, parent_hash) WHERE parent_hash IS NOT NULL;

CREATE TABLE session_node_links (
    org          BYTEA NOT NULL,
    session_id   BYTEA NOT NULL,
    hash_version BIGINT NOT NULL,
    hash         BYTEA NOT NULL,
    mark         BYTEA NOT NULL,  -- the smallest of the session's evidences that hold the node
    PRIMARY KEY (org, session_id, hash_version, hash)
);
CREATE INDEX session_node_links_node ON session_node_links (org, hash_version, hash);

CREATE TABLE session_parts (
    org     BYTEA NOT NULL,
    hash    BYTEA NOT NULL,  -- BLAKE3 of the content, 32 bytes
    content BYTEA NOT NULL,  -- JSON: a large member of requests' parameters; may be a zstd frame
    PRIMARY KEY (org, hash)
);

CREATE TABLE session_part_links (
    org        BYTEA NOT NULL,
    session_id BYTEA NOT NULL,
    hash       BYTEA NOT NULL,
    PRIMARY KEY (org, session_id, hash)
);
CREATE INDEX session_part_links_part ON session_part_links (org, hash);

CREATE TABLE session_sessions (
    org                BYTEA NOT NULL,
    session_id         BYTEA NOT NULL,             -- 16 bytes
    harness_id         TEXT COLLATE "C" NOT NULL,
    harness_session_id TEXT COLLATE "C" NOT NULL,
    is_placeholder     BIGINT NOT NULL,            -- 1: nobody has seen it; it is only a parent
    is_synthetic       BIGINT NOT NULL,
    auth_subject       TEXT COLLATE "C" NOT NULL,
    started_at         BIGINT NOT NULL,            -- microseconds; 0 of a placeholder
    last_seen_at       BIGINT NOT NULL,            -- microseconds; 0 of a placeholder
    turn_count         BIGINT NOT NULL,
    tokens_sum         BIGINT NOT NULL,            -- input and output, as far as measured; to sort by
    cost_pusd          BIGINT NOT NULL,            -- pico-dollars, as far as known; to sort by
    parent_session_id  BYTEA,
    parent_state       TEXT COLLATE "C" NOT NULL,  -- none, resolved, pending, ambiguous, deleted, rejected_self, rejected_cycle
    parent_flag        TEXT COLLATE "C" NOT NULL,  -- harness_assumed, depth or empty
    hint_harness       TEXT COLLATE "C" NOT NULL,  -- empty: not said
    hint_key           TEXT COLLATE "C",           -- the parent's session id, as it was said; null: there is no hint
    hint_mark          BYTEA,
    display_name       TEXT COLLATE "C",
    fold               BYTEA,                      -- JSON: what its turns make of it; null of a placeholder
    row_hash           BYTEA NOT NULL,             -- 16 bytes
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
    org      BYTEA NOT NULL,
    kind     TEXT COLLATE "C" NOT NULL,  -- session or turn
    id       BYTEA NOT NULL,
    row_hash BYTEA NOT NULL,             -- 16 bytes
    deleted  BIGINT NOT NULL,
    feed_seq BIGINT,                     -- null: it has no place in the feed yet
    PRIMARY KEY (org, kind, id)
);
CREATE UNIQUE INDEX session_changes_feed ON session_changes (org, feed_seq) WHERE feed_seq IS NOT NULL;
