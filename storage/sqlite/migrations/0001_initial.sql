-- One row: where the log stands. The head is a row of its own, never max(offset), because the
-- newest reading may have been deleted.
CREATE TABLE head (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    epoch   TEXT    NOT NULL,
    head    INTEGER NOT NULL,
    floor   INTEGER NOT NULL
) STRICT;

-- value: INTEGER and REAL are numbers, TEXT is text, a BLOB of one byte is a boolean.
CREATE TABLE readings (
    offset  INTEGER PRIMARY KEY,
    series  INTEGER NOT NULL,
    ts      INTEGER NOT NULL,
    value   ANY     NOT NULL
) STRICT;
CREATE UNIQUE INDEX readings_identity ON readings (series, ts);

CREATE TABLE series (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    device  TEXT    NOT NULL,
    metric  TEXT    NOT NULL,
    UNIQUE (device, metric)
) STRICT;

-- Series whose device was deleted with its readings: invisible at once, removed bit by bit.
CREATE TABLE doomed (
    series  INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE devices (
    device      TEXT    PRIMARY KEY,
    name        TEXT    NOT NULL,
    labels      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    last_seen   INTEGER NOT NULL,
    last_offset INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    principal TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    digest    BLOB    NOT NULL,
    outcome   BLOB    NOT NULL,
    created   INTEGER NOT NULL,
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_created ON idempotency (created);

CREATE TABLE clients (
    id          TEXT    PRIMARY KEY,
    secret_hash BLOB    NOT NULL,
    scopes      TEXT    NOT NULL,
    devices     TEXT    NOT NULL,
    ttl         INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE revocations (
    kind    TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    cutoff  INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX revocations_expires ON revocations (expires);
