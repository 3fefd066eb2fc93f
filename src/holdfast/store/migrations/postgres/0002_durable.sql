-- Durable execution. The journal is append-only under an identity column: a row lands at the end of
-- the heap, whatever execution it belongs to. One unique index serves identity ("an entry once"), "one outcome
-- per position" (an outcome's attempt counts as 0) and the forward read of replay.

CREATE TABLE durable_executions (
    pk           BIGINT PRIMARY KEY,
    id           TEXT COLLATE "C" NOT NULL UNIQUE,
    uid          BYTEA NOT NULL UNIQUE,
    kind         TEXT NOT NULL,
    status       TEXT NOT NULL,
    waiting_on   TEXT,
    reason       TEXT,
    generation   INTEGER NOT NULL,
    chapter      INTEGER NOT NULL,
    queue        TEXT,
    queue_key    TEXT,
    dedup_id     TEXT,
    priority     INTEGER NOT NULL DEFAULT 0,
    available_at BIGINT NOT NULL,
    input        BYTEA,
    input_hash   BYTEA NOT NULL,
    seed         BYTEA NOT NULL,
    output       BYTEA,
    failure      BYTEA,
    parent_pk    BIGINT,
    parent_key   BYTEA,
    detached     BOOLEAN NOT NULL DEFAULT FALSE,
    owner_id     TEXT,
    fence        BIGINT NOT NULL,
    request      TEXT,
    request_at   BIGINT,
    deadline_at  BIGINT,
    code_version TEXT,
    degraded     BOOLEAN NOT NULL DEFAULT FALSE,
    recoveries   INTEGER NOT NULL DEFAULT 0,
    bytes        BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    claimed_at   BIGINT,
    finished_at  BIGINT
);
-- Indexes are partial, so that an execution that is created, run and completed touches few of them.
CREATE UNIQUE INDEX durable_executions_dedup ON durable_executions (queue, dedup_id)
    WHERE dedup_id IS NOT NULL AND finished_at IS NULL;
CREATE INDEX durable_executions_open ON durable_executions (status, available_at) WHERE finished_at IS NULL;
CREATE INDEX durable_executions_queue ON durable_executions (queue, status, priority, available_at)
    WHERE queue IS NOT NULL;
CREATE INDEX durable_executions_parent ON durable_executions (parent_pk) WHERE parent_pk IS NOT NULL;
CREATE INDEX durable_executions_ended ON durable_executions (status, finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE durable_generations (
    execution_pk BIGINT NOT NULL,
    generation   INTEGER NOT NULL,
    chapter      INTEGER NOT NULL,
    cause        TEXT NOT NULL,
    input        BYTEA,
    code_version TEXT,
    opened_at    BIGINT NOT NULL,
    closed_at    BIGINT,
    closed_as    TEXT,
    report       TEXT,
    PRIMARY KEY (execution_pk, generation)
);

CREATE TABLE durable_trail (
    seq          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_pk BIGINT NOT NULL,
    generation   INTEGER NOT NULL,
    status       TEXT NOT NULL,
    reason       TEXT,
    owner_id     TEXT,
    fence        BIGINT NOT NULL,
    at           BIGINT NOT NULL
);
CREATE INDEX durable_trail_execution ON durable_trail (execution_pk);

CREATE TABLE durable_journal (
    seq          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_pk BIGINT NOT NULL,
    generation   INTEGER NOT NULL,
    scope        BYTEA NOT NULL,
    idx          BIGINT NOT NULL,
    part         SMALLINT NOT NULL,
    attempt      INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    name         TEXT NOT NULL,
    effect       TEXT,
    effect_kind  TEXT,
    policy       TEXT,
    shape        BYTEA NOT NULL,
    key          BYTEA,
    outcome      TEXT,
    payload      BYTEA,
    key_id       SMALLINT NOT NULL DEFAULT 0,
    digest       BYTEA,
    carried_from BIGINT,
    due_at       BIGINT,
    folded       BOOLEAN NOT NULL DEFAULT FALSE,
    fence        BIGINT NOT NULL,
    created_at   BIGINT NOT NULL
);
CREATE UNIQUE INDEX durable_journal_entry ON durable_journal
    (execution_pk, generation, scope, idx, part, (CASE part WHEN 2 THEN 0 ELSE attempt END));

CREATE TABLE durable_decisions (
    execution_pk BIGINT NOT NULL,
    generation   INTEGER NOT NULL,
    position     TEXT NOT NULL,
    reason       TEXT NOT NULL,
    key          BYTEA NOT NULL,
    opened_at    BIGINT NOT NULL,
    decision     TEXT,
    decided_by   TEXT,
    note         TEXT,
    decided_at   BIGINT
);
CREATE INDEX durable_decisions_execution ON durable_decisions (execution_pk);
CREATE UNIQUE INDEX durable_decisions_open ON durable_decisions (execution_pk, generation, position)
    WHERE decided_at IS NULL;

CREATE TABLE durable_blobs (
    blob_pk      BIGINT NOT NULL,
    execution_pk BIGINT NOT NULL,
    part         SMALLINT NOT NULL,
    bytes        BYTEA NOT NULL,
    PRIMARY KEY (blob_pk, part)
);
CREATE INDEX durable_blobs_execution ON durable_blobs (execution_pk);

CREATE TABLE durable_audit (
    seq          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id TEXT NOT NULL,
    at           BIGINT NOT NULL,
    generation   INTEGER NOT NULL,
    position     TEXT,
    event        TEXT NOT NULL,
    effect       TEXT,
    key_prefix   TEXT,
    policy       TEXT,
    actor        TEXT,
    detail       TEXT
);
CREATE INDEX durable_audit_execution ON durable_audit (execution_id, seq);

-- Executions are numbered by the process that creates them, from blocks of 256.
CREATE SEQUENCE durable_execution_pk INCREMENT BY 256;
