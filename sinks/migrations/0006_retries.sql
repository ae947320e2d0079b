-- What callers said of calls that they sent again.

ALTER TABLE ${database}.steps
    ADD COLUMN IF NOT EXISTS repeats Bool DEFAULT false COMMENT 'The caller had sent the call before; which step it repeats is not known' AFTER retry_of;
