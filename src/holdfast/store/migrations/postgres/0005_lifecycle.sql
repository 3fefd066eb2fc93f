-- Lifecycle: receipts in hash-linked chains, and the durable notes that a client is being called.
-- Receipts are appended and never changed, so a row lands at the end of the heap.

CREATE TABLE lifecycle_chains (
    chain_id      TEXT COLLATE "C" PRIMARY KEY,  -- JSON: ["run", run] or ["loose", client, adapter]
    run_id        TEXT COLLATE "C" UNIQUE,       -- of a run's chain
    last_sequence BIGINT NOT NULL DEFAULT 0,     -- the newest number of the run
    head_index    BIGINT NOT NULL DEFAULT 0,     -- of the newest receipt; 0: there was none
    head_hash     BYTEA,                         -- its hash; null: there was none
    base_index    BIGINT NOT NULL DEFAULT 0,     -- of the newest receipt that was pruned
    base_hash     BYTEA,                         -- its hash
    pruned_at     BIGINT,                        -- microseconds
    updated_at    BIGINT NOT NULL                -- microseconds
);

CREATE TABLE lifecycle_receipts (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id        TEXT COLLATE "C" NOT NULL,
    chain_index     BIGINT NOT NULL,            -- from 1
    receipt_id      TEXT COLLATE "C" NOT NULL,
    client_id       TEXT COLLATE "C" NOT NULL,
    adapter_id      TEXT COLLATE "C" NOT NULL,
    idempotency_key TEXT COLLATE "C",
    run_id          TEXT COLLATE "C",
    session_id      TEXT COLLATE "C",
    sequence        BIGINT,
    event           TEXT COLLATE "C" NOT NULL,
    status          TEXT COLLATE "C" NOT NULL,
    failure_class   TEXT COLLATE "C",
    label           TEXT COLLATE "C" NOT NULL,
    at_epoch_s      BIGINT NOT NULL,            -- from receipt_id to here: what the body says
    body            BYTEA NOT NULL,             -- the receipt, as linked
    annotations     BYTEA NOT NULL,             -- JSON, as linked
    full_digest     BYTEA NOT NULL,             -- 32 bytes
    semantic_digest BYTEA NOT NULL,             -- 32 bytes
    request_digest  BYTEA,                      -- of what the client was asked, 32 bytes
    response        BYTEA,                      -- what the client answered
    origin          TEXT COLLATE "C" NOT NULL,  -- emit, hook, replay or recovery
    recorded_at     BIGINT NOT NULL,            -- microseconds
    prev_hash       BYTEA NOT NULL,             -- 32 bytes
    hash            BYTEA NOT NULL              -- 32 bytes
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
    id             TEXT COLLATE "C" PRIMARY KEY,  -- hash of client, adapter and claim key
    client_id      TEXT COLLATE "C" NOT NULL,
    adapter_id     TEXT COLLATE "C" NOT NULL,
    claim_key      TEXT COLLATE "C" NOT NULL,     -- k:<idempotency key> or r:<receipt id>
    request        BYTEA NOT NULL,                -- what the client is asked
    context        BYTEA NOT NULL,                -- ids and clock of the receipt to come
    negotiated     BYTEA NOT NULL,                -- the plan
    request_digest BYTEA NOT NULL,                -- 32 bytes
    owner          TEXT COLLATE "C" NOT NULL,     -- who calls the client
    fence          BIGINT NOT NULL,               -- from 1, a new one with every claim
    lease_until    BIGINT NOT NULL,               -- microseconds
    attempts       BIGINT NOT NULL,               -- how often the client was called
    state          TEXT COLLATE "C" NOT NULL,     -- pending, settled or closed
    receipt_row    BIGINT,                        -- its receipt, once it has ended
    late           BYTEA,                         -- JSON: status and digest of an answer that came too late
    created_at     BIGINT NOT NULL,               -- microseconds
    settled_at     BIGINT                         -- microseconds
);
CREATE UNIQUE INDEX lifecycle_intents_claim ON lifecycle_intents (client_id, adapter_id, claim_key);
CREATE INDEX lifecycle_intents_state ON lifecycle_intents (state, lease_until);
CREATE INDEX lifecycle_intents_receipt ON lifecycle_intents (receipt_row) WHERE receipt_row IS NOT NULL;
