-- Writable disks are chains of layers, which sandboxes and snapshots share. `parent` is the layer behind
-- one, `template` the template behind the last of a chain (NULL: the empty base).
CREATE TABLE layers (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    parent     TEXT,
    template   TEXT,
    created_at TEXT NOT NULL
) STRICT;

-- The uppermost layer of a sandbox's disk. One that has been started already has one in its own
-- directory, which the daemon moves to its place.
ALTER TABLE sandboxes ADD COLUMN layer TEXT;
INSERT INTO layers (id, parent, template, created_at)
    SELECT 'ly_' || substr(id, 4), NULL, template, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    FROM sandboxes ORDER BY number;
UPDATE sandboxes SET layer = 'ly_' || substr(id, 4);

-- A snapshot that is not `ready` is half made. `layer` is the uppermost one of its disk.
CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id     TEXT NOT NULL UNIQUE,
    name   TEXT NOT NULL UNIQUE,
    ready  INTEGER NOT NULL,
    layer  TEXT,
    info   TEXT NOT NULL
) STRICT;
