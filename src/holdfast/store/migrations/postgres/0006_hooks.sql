-- Lifecycle: hook calls as they arrived, what is known of harness sessions, and blobs that clients leave for later.

CREATE TABLE lifecycle_hooks (
    id          TEXT COLLATE "C" PRIMARY KEY,  -- random
    harness     TEXT COLLATE "C" NOT NULL,
    event_hint  TEXT COLLATE "C" NOT NULL,     -- the hook, as the handler names it; empty: it names none
    body        BYTEA,                         -- what the harness wrote; null once it is blanked
    body_bytes  BIGINT NOT NULL,               -- its size
    body_digest BYTEA,                         -- BLAKE3 of it, 32 bytes; null before it is derived
    received_at BIGINT NOT NULL,               -- microseconds
    cwd         TEXT COLLATE "C",              -- where the hook was called
    lease_until BIGINT NOT NULL,               -- microseconds: until then its own call sees to it
    state       TEXT COLLATE "C" NOT NULL,     -- pending, done or refused
    error       TEXT COLLATE "C",              -- why it was refused
    session_id  TEXT COLLATE "C",
    material    BYTEA,                         -- what tells it from other deliveries, 32 bytes
    occurrence  BIGINT,                        -- how often that came before; from 0
    decided     BYTEA,                         -- JSON: its session before it; null: nothing was made of it
    reply       BYTEA,                         -- JSON: what the harness was answered
    derived_at  BIGINT                         -- microseconds
);
CREATE INDEX lifecycle_hooks_state ON lifecycle_hooks (state, received_at);
CREATE INDEX lifecycle_hooks_material ON lifecycle_hooks (material, received_at);
CREATE INDEX lifecycle_hooks_kept ON lifecycle_hooks (derived_at) WHERE body IS NOT NULL;

CREATE TABLE lifecycle_sessions (
    harness       TEXT COLLATE "C" NOT NULL,
    session_id    TEXT COLLATE "C" NOT NULL,
    frame_ordinal BIGINT NOT NULL,            -- how many frames were opened
    turn_id       TEXT COLLATE "C",           -- of the newest frame, where the harness gives one
    ended_turn_id TEXT COLLATE "C",           -- of the newest frame that has ended
    compacted_by  TEXT COLLATE "C",           -- the hook that told of the newest compaction
    compacted_at  BIGINT,                     -- microseconds
    pressure      BYTEA,                      -- the newest PressureObservation
    ended_at      BIGINT,                     -- microseconds
    PRIMARY KEY (harness, session_id)
);

CREATE TABLE lifecycle_continuations (
    thread     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    body       BYTEA NOT NULL,
    byte_size  BIGINT NOT NULL,
    digest     BYTEA NOT NULL,             -- BLAKE3 of the body, 32 bytes
    version    BIGINT NOT NULL,            -- from 1, one more with every put
    created_at BIGINT NOT NULL,            -- microseconds: of this body
    expires_at BIGINT NOT NULL,            -- microseconds
    PRIMARY KEY (thread, name)
);
CREATE INDEX lifecycle_continuations_expiry ON lifecycle_continuations (expires_at);
