-- Durable execution. The journal is an append-only rowid table: a row lands at the end of the file,
-- whatever execution it belongs to. One unique index serves identity ("an entry once"), "one outcome
-- per position" (an outcome's attempt counts as 0) and the forward read of replay.

CREATE TABLE durable_executions (
    pk           INTEGER PRIMARY KEY,
    id           TEXT NOT NULL UNIQUE,
    uid          BLOB NOT NULL UNIQUE,
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
    available_at INTEGER NOT NULL,
    input        BLOB,
    input_hash   BLOB NOT NULL,
    seed         BLOB NOT NULL,
    output       BLOB,
    failure      BLOB,
    parent_pk    INTEGER,
    parent_key   BLOB,
    detached     INTEGER NOT NULL DEFAULT 0,
    owner_id     TEXT,
    fence        INTEGER NOT NULL,
    request      TEXT,
    request_at   INTEGER,
    deadline_at  INTEGER,
    code_version TEXT,
    degraded     INTEGER NOT NULL DEFAULT 0,
    recoveries   INTEGER NOT NULL DEFAULT 0,
    bytes        INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    claimed_at   INTEGER,
    finished_at  INTEGER
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
    execution_pk INTEGER NOT NULL,
    generation   INTEGER NOT NULL,
    chapter      INTEGER NOT NULL,
    cause        TEXT NOT NULL,
    input        BLOB,
    code_version TEXT,
    opened_at    INTEGER NOT NULL,
    closed_at    INTEGER,
    closed_as    TEXT,
    report       TEXT,
    PRIMARY KEY (execution_pk, generation)
) WITHOUT ROWID;

CREATE TABLE durable_trail (
    seq          INTEGER PRIMARY KEY,
    execution_pk INTEGER NOT NULL,
    generation   INTEGER NOT NULL,
    status       TEXT NOT NULL,
    reason       TEXT,
    owner_id     TEXT,
    fence        INTEGER NOT NULL,
    at           INTEGER NOT NULL
);
CREATE INDEX durable_trail_execution ON durable_trail (execution_pk);

CREATE TABLE durable_journal (
    seq          INTEGER PRIMARY KEY,
    execution_pk INTEGER NOT NULL,
    generation   INTEGER NOT NULL,
    scope        BLOB NOT NULL,
    idx          INTEGER NOT NULL,
    part         INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    name         TEXT NOT NULL,
    effect       TEXT,
    effect_kind  TEXT,
    policy       TEXT,
    shape        BLOB NOT NULL,
    key          BLOB,
    outcome      TEXT,
    payload      BLOB,
    key_id       INTEGER NOT NULL DEFAULT 0,
    digest       BLOB,
    carried_from INTEGER,
    due_at       INTEGER,
    folded       INTEGER NOT NULL DEFAULT 0,
    fence        INTEGER NOT NULL,
    created_at   INTEGER NOT NULL
);
CREATE UNIQUE INDEX durable_journal_entry ON durable_journal
    (execution_pk, generation, scope, idx, part, (CASE part WHEN 2 THEN 0 ELSE attempt END));

CREATE TABLE durable_decisions (
    execution_pk INTEGER NOT NULL,
    generation   INTEGER NOT NULL,
    position     TEXT NOT NULL,
    reason       TEXT NOT NULL,
    key          BLOB NOT NULL,
    opened_at    INTEGER NOT NULL,
    decision     TEXT,
    decided_by   TEXT,
    note         TEXT,
    decided_at   INTEGER
);
CREATE INDEX durable_decisions_execution ON durable_decisions (execution_pk);
CREATE UNIQUE INDEX durable_decisions_open ON durable_decisions (execution_pk, generation, position)
    WHERE decided_at IS NULL;

CREATE TABLE durable_blobs (
    blob_pk      INTEGER NOT NULL,
    execution_pk INTEGER NOT NULL,
    part         INTEGER NOT NULL,
    bytes        BLOB NOT NULL,
    PRIMARY KEY (blob_pk, part)
) WITHOUT ROWID;
CREATE INDEX durable_blobs_execution ON durable_blobs (execution_pk);

CREATE TABLE durable_audit (
    seq          INTEGER PRIMARY KEY,
    execution_id TEXT NOT NULL,
    at           INTEGER NOT NULL,
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
INSERT INTO holdfast_ledger (name, value) VALUES ('durable_execution_pk', 1);
