-- One row per sandbox. `spec`, `info` and `machine` are JSON; what must be unique or is searched for
-- has a column of its own, which goes first where both say it.
CREATE TABLE sandboxes (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL UNIQUE,
    slot       INTEGER NOT NULL UNIQUE,
    state      TEXT NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0,
    spec       TEXT NOT NULL,
    info       TEXT NOT NULL,
    machine    TEXT
) STRICT;
