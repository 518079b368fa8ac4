-- One row: where the log stands. Whoever appends locks it, so offsets are given in commit order over
-- all processes. generation: raised when a device is forgotten, so that what others remember of series
-- is known to be old. system, timeline, relation and started say which server and which table this
-- is: where they differ the log may have been replaced, and the epoch with it.
CREATE TABLE tidegate.head (
    id         integer     PRIMARY KEY CHECK (id = 1),
    epoch      text        NOT NULL,
    head       bigint      NOT NULL,
    floor      bigint      NOT NULL,
    generation bigint      NOT NULL,
    system     bigint      NOT NULL,
    timeline   text        NOT NULL,
    relation   oid         NOT NULL,
    started    timestamptz NOT NULL
) WITH (fillfactor = 10);
INSERT INTO tidegate.head VALUES (1, '', 0, 0, 0, 0, '', 0, '-infinity');

-- kind: 0 integer, 1 other number, 2 boolean (0 or 1), all in num; 3 text.
-- Columns from wide to narrow, so that none is padded.
CREATE TABLE tidegate.readings (
    log_offset bigint           NOT NULL,
    ts         bigint           NOT NULL,
    num        double precision,
    series     integer          NOT NULL,
    kind       smallint         NOT NULL CHECK ((kind = 3) = (num IS NULL) AND (kind = 3) = (txt IS NOT NULL)),
    txt        text
) PARTITION BY RANGE (ts);
CREATE UNIQUE INDEX readings_identity ON tidegate.readings (series, ts);
CREATE INDEX readings_log ON tidegate.readings USING brin (log_offset) WITH (autosummarize = on);

-- What no other partition takes: clocks that were never set, and periods that nobody has expected.
CREATE TABLE tidegate.readings_rest PARTITION OF tidegate.readings DEFAULT;

-- The others, each with lower <= ts < upper.
CREATE TABLE tidegate.partitions (
    name  text   PRIMARY KEY,
    lower bigint NOT NULL,
    upper bigint NOT NULL
);

-- given: the newest time that the gate gave a reading itself.
CREATE TABLE tidegate.series (
    id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text   COLLATE "C" NOT NULL,
    metric text   COLLATE "C" NOT NULL,
    given  bigint NOT NULL DEFAULT -1,
    UNIQUE (device, metric)
) WITH (fillfactor = 70);

-- Series whose device was deleted with its readings: invisible at once, removed bit by bit.
CREATE TABLE tidegate.doomed (
    series integer PRIMARY KEY
);

CREATE TABLE tidegate.devices (
    device      text   COLLATE "C" PRIMARY KEY,
    name        text   NOT NULL,
    labels      text   NOT NULL,
    created_at  bigint NOT NULL,
    last_seen   bigint NOT NULL,
    last_offset bigint NOT NULL
) WITH (fillfactor = 50);

-- What each process has committed last, so that one whose connection broke at a commit can ask.
-- answer: what cannot be told from the readings themselves.
CREATE TABLE tidegate.writers (
    id      text        PRIMARY KEY,
    token   bigint      NOT NULL,
    first   bigint      NOT NULL,
    last    bigint      NOT NULL,
    answer  text,
    seen    timestamptz NOT NULL
) WITH (fillfactor = 20);

CREATE TABLE tidegate.idempotency (
    principal  text      COLLATE "C" NOT NULL,
    key        text      COLLATE "C" NOT NULL,
    digest     text      NOT NULL,
    accepted   integer   NOT NULL,
    duplicates integer   NOT NULL,
    conflicts  integer[] NOT NULL,
    log_offset bigint    NOT NULL,
    created    bigint    NOT NULL,
    PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_created ON tidegate.idempotency (created);

CREATE TABLE tidegate.clients (
    id          text   COLLATE "C" PRIMARY KEY,
    secret_hash bytea  NOT NULL,
    scopes      text   NOT NULL,
    devices     text   NOT NULL,
    ttl         bigint NOT NULL,
    created_at  bigint NOT NULL
);

CREATE TABLE tidegate.revocations (
    kind    text   COLLATE "C" NOT NULL,
    id      text   COLLATE "C" NOT NULL,
    cutoff  bigint NOT NULL,
    expires bigint NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX revocations_expires ON tidegate.revocations (expires);
