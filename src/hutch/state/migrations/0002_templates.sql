-- The template whose disk is behind the sandbox's own (NULL: the empty base). An older Hutch, which would
-- boot such a sandbox with the wrong base, must refuse these records: hence a schema of its own.
ALTER TABLE sandboxes ADD COLUMN template TEXT;
