-- What an analyst of a real ClickHouse server may: read the pool, within limits, and nothing else.
-- Parsed by this project's tests, not run by them: the engine of the local stack has no users (there claw_r1.local guards analysts).
-- Give it to a user: CREATE USER ada IDENTIFIED BY '…' DEFAULT ROLE claw_analyst SETTINGS PROFILE 'claw_analyst';

CREATE SETTINGS PROFILE IF NOT EXISTS claw_analyst SETTINGS
    readonly = 1,
    max_execution_time = 60,
    timeout_overflow_mode = 'throw',
    max_memory_usage = 2147483648,
    max_memory_usage_for_user = 8589934592,
    max_concurrent_queries_for_user = 8,
    max_result_rows = 1000000,
    max_result_bytes = 268435456,
    result_overflow_mode = 'throw',
    max_threads = 4,
    max_temporary_data_on_disk_size_for_query = 4294967296,
    allow_introspection_functions = 0,
    allow_ddl = 0;

CREATE ROLE IF NOT EXISTS claw_analyst SETTINGS PROFILE 'claw_analyst';

GRANT SELECT, SHOW TABLES, SHOW COLUMNS ON ${database}.* TO claw_analyst;

REVOKE SELECT ON ${database}.migrations FROM claw_analyst;

REVOKE SELECT ON ${database}.expired FROM claw_analyst;

-- Snapshots may hold several runs.
REVOKE SELECT ON ${database}.snapshots FROM claw_analyst;

REVOKE SELECT ON ${database}.snapshot_members FROM claw_analyst;

-- Everybody reads all rows but those who have a role of one run (run.sql makes these).
CREATE ROLE IF NOT EXISTS claw_one_run;

CREATE ROW POLICY IF NOT EXISTS claw_every_run ON ${tables} FOR SELECT USING 1 TO ALL EXCEPT claw_one_run;
