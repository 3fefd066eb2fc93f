-- A slice that only tests have: runs with a fence, and notes on them.

-- name: runs.create(run, fence)
INSERT INTO test_runs (run, fence, open) VALUES (:run, :fence, 1) ON CONFLICT (run) DO NOTHING

-- name: runs.guard(run, fence)
-- columns: run, fence
SELECT run, fence FROM test_runs WHERE run = :run AND fence = :fence AND open = 1

-- name: runs.finish(run)
UPDATE test_runs SET open = 0 WHERE run = :run

-- name: notes.add(run, idx, body, fence)
INSERT INTO test_notes (run, idx, body, fence) VALUES (:run, :idx, :body, :fence)

-- name: notes.add.recorded(run, idx, fence)
-- columns: run, fence
SELECT run, fence FROM test_notes WHERE run = :run AND idx = :idx AND fence = :fence

-- name: notes.list(run)
-- columns: seq, idx, body
SELECT seq, idx, body FROM test_notes WHERE run = :run ORDER BY seq

-- name: notes.count()
-- columns: amount
SELECT count(*) AS amount FROM test_notes
