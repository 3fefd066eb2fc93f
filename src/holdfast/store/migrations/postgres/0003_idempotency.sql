-- HTTP idempotency: one row per key, its audit trail, the events of handlers, and the secrets that write keys.
-- The row lands at the end of the heap; one narrow unique index finds it. Most other indexes are partial, so that
-- claiming and settling a key touches few of them.

CREATE TABLE idem_keys (
    key_id        BYTEA PRIMARY KEY,        -- HMAC of principal and key, 16 bytes: the only way in
    scope_id      BYTEA NOT NULL,           -- HMAC of the principal, 16 bytes; empty for a pointer row
    alias_of      BYTEA,                    -- the key_id of the record that a pointer row leads to
    record_id     BYTEA NOT NULL,           -- names the operation, 16 bytes; kept over attempts
    state         INTEGER NOT NULL,         -- 0 alias, 1 reserved, 2 completed, 3 tombstone, 4 unknown, 5 released
    fingerprint   BYTEA NOT NULL,           -- what a retry must not differ in, 32 bytes
    fp_version    INTEGER NOT NULL,         -- the rules the fingerprint was made by
    method        TEXT NOT NULL,            -- the request's method, or CALL
    route         TEXT NOT NULL,            -- the rule's path, else the endpoint's, else *
    fence         BIGINT NOT NULL,          -- names the newest claim or forced action; issued in rising order
    claim_id      BYTEA NOT NULL,           -- the newest claim's own id, 16 bytes
    attempt       INTEGER NOT NULL,         -- 1 for the first run of the operation
    owner         TEXT NOT NULL,            -- the process that claimed it; empty after a forced action
    lease_until   BIGINT NOT NULL,          -- when the claim lapses, microseconds
    mode          TEXT NOT NULL,            -- transaction, separate or execution
    on_lapse      TEXT NOT NULL,            -- ambiguous or rerun
    irreversible  INTEGER NOT NULL,         -- 1: the attempt's effect cannot be taken back
    status        INTEGER,                  -- of the response
    headers       BYTEA,                    -- its header block, as sealed
    body          BYTEA,                    -- its body, as sealed; null for a tombstone
    body_bytes    BIGINT,                   -- size of the body as it was sent, if known
    body_digest   BYTEA,                    -- SHA-256 of the body, if it was whole and nothing hides it
    block_sum     BYTEA,                    -- over status, header block and body as they are here, 16 bytes
    codec         INTEGER NOT NULL,         -- of the body: 0 plain, 1 zlib
    cipher_key    BIGINT,                   -- number of the key that sealed headers and body
    reason        TEXT,                     -- of a tombstone or an unknown outcome
    execution_id  TEXT,                     -- mode execution
    created_at    BIGINT NOT NULL,          -- when the key was new
    claimed_at    BIGINT NOT NULL,          -- when the newest claim was made
    settled_at    BIGINT,                   -- when the outcome was written
    expires_at    BIGINT,                   -- when the key is new again; null while unknown, and for a pointer row
    first_sent_at BIGINT,                   -- what the client said about its first sending
    format        INTEGER NOT NULL          -- of the record: 1
);
CREATE INDEX idem_keys_alias ON idem_keys (alias_of) WHERE alias_of IS NOT NULL;
CREATE INDEX idem_keys_expiry ON idem_keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX idem_keys_live ON idem_keys (scope_id, lease_until) WHERE state = 1;
-- What a principal has made and stored is counted in the index alone, but for the few rows under way.
CREATE INDEX idem_keys_scope ON idem_keys (scope_id, created_at, body_bytes) WHERE state <> 1;
CREATE INDEX idem_keys_unknown ON idem_keys (state) WHERE state = 4;

-- Fences come from here; it outlives every key and knows no rollback.
CREATE SEQUENCE idem_fence;

-- What operators and reconcilers did, append only.
CREATE TABLE idem_audit (
    id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           BIGINT NOT NULL,           -- microseconds
    actor        TEXT NOT NULL,             -- who
    action       TEXT NOT NULL,             -- release, expire, rerun, result, tombstone or show
    key_ref      TEXT NOT NULL,             -- the first 12 hex digits of the key_id
    record_id    BYTEA NOT NULL,            -- the operation
    fence        BIGINT NOT NULL,           -- what the action left the record with
    state_before TEXT NOT NULL,             -- the name of a state
    state_after  TEXT NOT NULL,             -- the same, or expired
    reason       TEXT NOT NULL              -- why, in the actor's words
);
CREATE INDEX idem_audit_record ON idem_audit (record_id, fence);

-- Events that handlers emit in their own transaction. A transaction's number is the order token of all its events, and
-- a reader sees tokens below the oldest transaction still under way only: so none can appear behind one it has seen.
CREATE TABLE idem_outbox (
    id          BIGINT GENERATED ALWAYS AS IDENTITY,
    order_token BIGINT NOT NULL,            -- the number of the transaction
    topic       TEXT NOT NULL,
    payload     BYTEA NOT NULL,
    created_at  BIGINT NOT NULL,            -- microseconds
    PRIMARY KEY (order_token, id)
);

-- Which secrets write keys, so that none is dropped while its records live.
CREATE TABLE idem_secrets (
    secret_ref    TEXT COLLATE "C" PRIMARY KEY, -- names a secret without telling it
    first_used_at BIGINT NOT NULL,
    last_used_at  BIGINT NOT NULL,
    ttl_max       BIGINT NOT NULL           -- the longest retention it wrote under, microseconds
);
