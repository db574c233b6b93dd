-- How many clones of an image and size are to be ready before anybody asks for them.
CREATE TABLE pools (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    image      TEXT NOT NULL,
    cpus       INTEGER NOT NULL,
    memory     INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (image, cpus, memory)
) STRICT;

-- The pool whose member a row is, until a sandbox claims it (NULL: it is a sandbox). A member has all
-- that a sandbox has, slot and disk included, so that none of it can be anybody else's.
ALTER TABLE sandboxes ADD COLUMN pool TEXT;
