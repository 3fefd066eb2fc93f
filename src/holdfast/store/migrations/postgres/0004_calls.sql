-- The journal of a client: calls that were begun and have no outcome yet. A row goes with its outcome.

CREATE TABLE idem_calls (
    call_id       BYTEA NOT NULL UNIQUE,    -- hash of the name, 16 bytes
    name          TEXT NOT NULL,            -- what the program calls it
    claim_id      BYTEA NOT NULL,           -- who wrote the row, 16 bytes
    shared        INTEGER NOT NULL DEFAULT 0, -- 1: others have come to the row since
    key           TEXT NOT NULL,            -- the value of its header
    method        TEXT NOT NULL,
    url           TEXT NOT NULL,            -- without credentials
    headers       BYTEA NOT NULL,           -- header block of what is kept, as sealed
    body          BYTEA NOT NULL,           -- as sealed
    cipher_key    BIGINT,                   -- number of the key that sealed headers and body
    first_sent_at BIGINT NOT NULL,          -- microseconds
    expires_at    BIGINT NOT NULL,          -- from then on the server may have forgotten the key
    format        INTEGER NOT NULL          -- of the row: 1
);
