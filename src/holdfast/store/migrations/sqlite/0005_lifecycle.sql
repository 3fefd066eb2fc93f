-- Lifecycle: receipts in hash-linked chains, and the durable notes that a client is being called.
-- Receipts are appended and never changed, so a row lands at the end of the file.

CREATE TABLE lifecycle_chains (
    chain_id      TEXT PRIMARY KEY,            -- JSON: ["run", run] or ["loose", client, adapter]
    run_id        TEXT UNIQUE,                 -- of a run's chain
    last_sequence INTEGER NOT NULL DEFAULT 0,  -- the newest number of the run
    head_index    INTEGER NOT NULL DEFAULT 0,  -- of the newest receipt; 0: there was none
    head_hash     BLOB,                        -- its hash; null: there was none
    base_index    INTEGER NOT NULL DEFAULT 0,  -- of the newest receipt that was pruned
    base_hash     BLOB,                        -- its hash
    pruned_at     INTEGER,                     -- microseconds
    updated_at    INTEGER NOT NULL             -- microseconds
);

CREATE TABLE lifecycle_receipts (
    id              INTEGER PRIMARY KEY,
    chain_id        TEXT NOT NULL,
    chain_index     INTEGER NOT NULL,  -- from 1
    receipt_id      TEXT NOT NULL,
    client_id       TEXT NOT NULL,
    adapter_id      TEXT NOT NULL,
    idempotency_key TEXT,
    run_id          TEXT,
    session_id      TEXT,
    sequence        INTEGER,
    event           TEXT NOT NULL,
    status          TEXT NOT NULL,
    failure_class   TEXT,
    label           TEXT NOT NULL,
    at_epoch_s      INTEGER NOT NULL,  -- from receipt_id to here: what the body says
    body            BLOB NOT NULL,     -- the receipt, as linked
    annotations     BLOB NOT NULL,     -- JSON, as linked
    full_digest     BLOB NOT NULL,     -- 32 bytes
    semantic_digest BLOB NOT NULL,     -- 32 bytes
    request_digest  BLOB,              -- of what the client was asked, 32 bytes
    response        BLOB,              -- what the client answered
    origin          TEXT NOT NULL,     -- emit, hook, replay or recovery
    recorded_at     INTEGER NOT NULL,  -- microseconds
    prev_hash       BLOB NOT NULL,     -- 32 bytes
    hash            BLOB NOT NULL      -- 32 bytes
);
CREATE UNIQUE INDEX lifecycle_receipts_keyed ON lifecycle_receipts (client_id, adapter_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX lifecycle_receipts_unkeyed ON lifecycle_receipts (client_id, adapter_id, receipt_id)
    WHERE idempotency_key IS NULL;
CREATE UNIQUE INDEX lifecycle_receipts_sequence ON lifecycle_receipts (run_id, sequence) WHERE run_id IS NOT NULL;
CREATE UNIQUE INDEX lifecycle_receipts_chain ON lifecycle_receipts (chain_id, chain_index);
CREATE INDEX lifecycle_receipts_named ON lifecycle_receipts (receipt_id);
CREATE INDEX lifecycle_receipts_session ON lifecycle_receipts (session_id, recorded_at) WHERE session_id IS NOT NULL;

CREATE TABLE lifecycle_intents (
    id             TEXT PRIMARY KEY,  -- hash of client, adapter and claim key
    client_id      TEXT NOT NULL,
    adapter_id     TEXT NOT NULL,
    claim_key      TEXT NOT NULL,     -- k:<idempotency key> or r:<receipt id>
    request        BLOB NOT NULL,     -- what the client is asked
    context        BLOB NOT NULL,     -- ids and clock of the receipt to come
    negotiated     BLOB NOT NULL,     -- the plan
    request_digest BLOB NOT NULL,     -- 32 bytes
    owner          TEXT NOT NULL,     -- who calls the client
    fence          INTEGER NOT NULL,  -- from 1, a new one with every claim
    lease_until    INTEGER NOT NULL,  -- microseconds
    attempts       INTEGER NOT NULL,  -- how often the client was called
    state          TEXT NOT NULL,     -- pending, settled or closed
    receipt_row    INTEGER,           -- its receipt, once it has ended
    late           BLOB,              -- JSON: status and digest of an answer that came too late
    created_at     INTEGER NOT NULL,  -- microseconds
    settled_at     INTEGER            -- microseconds
);
CREATE UNIQUE INDEX lifecycle_intents_claim ON lifecycle_intents (client_id, adapter_id, claim_key);
CREATE INDEX lifecycle_intents_state ON lifecycle_intents (state, lease_until);
CREATE INDEX lifecycle_intents_receipt ON lifecycle_intents (receipt_row) WHERE receipt_row IS NOT NULL;
