-- What only PostgreSQL needs: the state of a session, wake-ups between processes, and locks.

-- name: ledger.session(names, settings)
-- columns: version, encoding, flushes, standby, now, pid, started, since
-- Makes a session what it should be, and says what server it is on.
SELECT current_setting('server_version_num')::integer AS version, current_setting('server_encoding') AS encoding,
       current_setting('fsync') = 'on' AS flushes, pg_is_in_recovery() AS standby,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
       pg_backend_pid() AS pid, a.backend_start::text AS started, NULL::text AS since
FROM (SELECT count(set_config(s.name, s.setting, false)) FROM unnest($1::text[], $2::text[]) AS s (name, setting)) AS done,
     pg_stat_activity AS a
WHERE a.pid = pg_backend_pid()

-- name: ledger.notify(channel, hints)
SELECT count(pg_notify($1::text, h.hint)) FROM unnest($2::text[]) AS h (hint)

-- name: ledger.lock(number)
-- Held until the transaction ends: one opener at a time looks at the schema and changes it.
SELECT pg_advisory_xact_lock($1::bigint)

-- name: ledger.transaction()
-- columns: pid, started, since
-- Which transaction this is, where a session is no mark of it.
SELECT a.pid, a.backend_start::text AS started, a.xact_start::text AS since
FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid()

-- name: ledger.evict(pid, started, since)
-- columns: gone
-- Ends a session whose connection was lost, and waits until it can commit nothing more. No row: it is gone. With a
-- time, only as long as it is in the transaction that began then.
SELECT pg_terminate_backend(a.pid, 5000) AS gone
FROM pg_stat_activity AS a
WHERE a.pid = $1::integer AND a.backend_start::text = $2::text AND ($3::text IS NULL OR a.xact_start::text = $3::text)
