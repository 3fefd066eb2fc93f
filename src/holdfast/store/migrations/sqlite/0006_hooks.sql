-- Lifecycle: hook calls as they arrived, what is known of harness sessions, and blobs that clients leave for later.

CREATE TABLE lifecycle_hooks (
    id          TEXT PRIMARY KEY,  -- random
    harness     TEXT NOT NULL,
    event_hint  TEXT NOT NULL,     -- the hook, as the handler names it; empty: it names none
    body        BLOB,              -- what the harness wrote; null once it is blanked
    body_bytes  INTEGER NOT NULL,  -- its size
    body_digest BLOB,              -- BLAKE3 of it, 32 bytes; null before it is derived
    received_at INTEGER NOT NULL,  -- microseconds
    cwd         TEXT,              -- where the hook was called
    lease_until INTEGER NOT NULL,  -- microseconds: until then its own call sees to it
    state       TEXT NOT NULL,     -- pending, done or refused
    error       TEXT,              -- why it was refused
    session_id  TEXT,
    material    BLOB,              -- what tells it from other deliveries, 32 bytes
    occurrence  INTEGER,           -- how often that came before; from 0
    decided     BLOB,              -- JSON: its session before it; null: nothing was made of it
    reply       BLOB,              -- JSON: what the harness was answered
    derived_at  INTEGER            -- microseconds
);
CREATE INDEX lifecycle_hooks_state ON lifecycle_hooks (state, received_at);
CREATE INDEX lifecycle_hooks_material ON lifecycle_hooks (material, received_at);
CREATE INDEX lifecycle_hooks_kept ON lifecycle_hooks (derived_at) WHERE body IS NOT NULL;

CREATE TABLE lifecycle_sessions (
    harness       TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    frame_ordinal INTEGER NOT NULL,  -- how many frames were opened
    turn_id       TEXT,              -- of the newest frame, where the harness gives one
    ended_turn_id TEXT,              -- of the newest frame that has ended
    compacted_by  TEXT,              -- the hook that told of the newest compaction
    compacted_at  INTEGER,           -- microseconds
    pressure      BLOB,              -- the newest PressureObservation
    ended_at      INTEGER,           -- microseconds
    PRIMARY KEY (harness, session_id)
);

CREATE TABLE lifecycle_continuations (
    thread     TEXT NOT NULL,
    name       TEXT NOT NULL,
    body       BLOB NOT NULL,
    byte_size  INTEGER NOT NULL,
    digest     BLOB NOT NULL,     -- BLAKE3 of the body, 32 bytes
    version    INTEGER NOT NULL,  -- from 1, one more with every put
    created_at INTEGER NOT NULL,  -- microseconds: of this body
    expires_at INTEGER NOT NULL,  -- microseconds
    PRIMARY KEY (thread, name)
);
CREATE INDEX lifecycle_continuations_expiry ON lifecycle_continuations (expires_at);
