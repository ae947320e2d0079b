-- The role of analysts of one run: they read its rows, also through views, and no others.
-- Parsed by this project's tests, not run by them, as analyst.sql.
-- Give it to a user: CREATE USER ada IDENTIFIED BY '…' DEFAULT ROLE `claw_run_RUN` SETTINGS PROFILE 'claw_analyst';

CREATE ROLE IF NOT EXISTS `claw_run_${run}`;

GRANT claw_analyst, claw_one_run TO `claw_run_${run}`;

CREATE ROW POLICY IF NOT EXISTS `claw_run_${run}` ON ${tables} FOR SELECT USING run_id = '${run}' TO `claw_run_${run}`;
