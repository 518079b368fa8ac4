-- Lock the head and say where the log stands. A new epoch where it may be another log than the one that
-- positions were given out for: on another server or timeline (unless `synchronous` says that a failover
-- loses nothing), restored from a dump, or behind the head that this process knows of this epoch.
CREATE FUNCTION tidegate.hold_head(synchronous boolean, known_epoch text, known_head bigint)
RETURNS tidegate.head LANGUAGE plpgsql AS $$
DECLARE
    h         tidegate.head;
    found_oid oid;
    identity  bigint;
    line      text;
BEGIN
    SELECT * INTO STRICT h FROM tidegate.head WHERE id = 1 FOR UPDATE;
    found_oid := 'tidegate.head'::regclass;
    IF h.started = pg_postmaster_start_time() AND h.relation = found_oid
       AND NOT (h.epoch = known_epoch AND h.head < known_head) THEN
        RETURN h;
    END IF;
    SELECT system_identifier INTO identity FROM pg_control_system();
    line := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
    IF h.system <> identity OR h.relation <> found_oid
       OR (h.timeline <> line AND NOT synchronous)
       OR (h.epoch = known_epoch AND h.head < known_head) THEN
        h.epoch := left(md5(gen_random_uuid()::text), 8);
    END IF;
    UPDATE tidegate.head
    SET epoch = h.epoch, system = identity, timeline = line, relation = found_oid,
        started = pg_postmaster_start_time()
    WHERE id = 1 RETURNING * INTO h;
    RETURN h;
END
$$;

-- Say that this commit is the token-th of a process; false if it was overtaken by `settle`, or is unknown.
CREATE FUNCTION tidegate.sign(writer text, number bigint, from_offset bigint, to_offset bigint, told text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- An acknowledged commit is on disk, whatever the default of this server.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    UPDATE tidegate.writers
    SET token = number, first = from_offset, last = to_offset, answer = told, seen = now()
    WHERE id = writer AND token = number - 1;
    RETURN FOUND;
END
$$;

-- Append readings that are all new, in one go; verdict: 'done', or why nothing was done:
-- 'stale' (the generation has changed), 'taken' (an identity is stored: `append_exactly` tells which),
-- 'fenced' (see `sign`).
--
-- A reading of a negative series belongs to the -n-th of new_devices and new_metrics. slots (NULL: no
-- times are to be given): n > 0 says that the reading gets a time, at least its ts and at least `step`
-- more than the newest given one of the n-th of given_series; given_steps and given_least say the same
-- of the last reading of each. devices: those that wrote, when, and their newest reading in this batch.
CREATE FUNCTION tidegate.append(
    synchronous boolean, known_epoch text, known_head bigint, known_generation bigint,
    writer text, number bigint,
    series integer[], ts bigint[], num double precision[], kind smallint[], txt text[],
    slots integer[], steps integer[],
    given_series integer[], given_steps integer[], given_least bigint[],
    new_devices text[], new_metrics text[],
    devices text[], seen bigint[], newest integer[],
    OUT verdict text, OUT epoch text, OUT head bigint, OUT floor bigint, OUT generation bigint,
    OUT ids integer[], OUT given bigint[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    h     tidegate.head;
    count integer := cardinality(ts);
BEGIN
    h := tidegate.hold_head(synchronous, known_epoch, known_head);
    epoch := h.epoch;
    head := h.head;
    floor := h.floor;
    generation := h.generation;
    IF h.generation <> known_generation THEN
        verdict := 'stale';
        RETURN;
    END IF;
    BEGIN
        IF NOT tidegate.sign(writer, number, h.head + 1, h.head + count, NULL) THEN
            verdict := 'fenced';
            RETURN;
        END IF;
        IF new_devices IS NOT NULL THEN
            ids := tidegate.register(new_devices, new_metrics);
            series := ARRAY(SELECT CASE WHEN s < 0 THEN ids[-s] ELSE s END
                            FROM unnest(series) WITH ORDINALITY u(s, place) ORDER BY place);
            given_series := ARRAY(SELECT CASE WHEN s < 0 THEN ids[-s] ELSE s END
                                  FROM unnest(given_series) WITH ORDINALITY u(s, place) ORDER BY place);
        END IF;
        IF slots IS NULL THEN
            INSERT INTO tidegate.readings (log_offset, ts, num, series, kind, txt)
            SELECT h.head + place, u.ts, u.num, u.series, u.kind, u.txt
            FROM unnest(series, ts, num, kind, txt) WITH ORDINALITY u(series, ts, num, kind, txt, place);
        ELSE
            given := ARRAY(SELECT s.given FROM unnest(given_series) WITH ORDINALITY u(id, place)
                           JOIN tidegate.series s ON s.id = u.id ORDER BY place);
            INSERT INTO tidegate.readings (log_offset, ts, num, series, kind, txt)
            SELECT h.head + place,
                   CASE WHEN slot > 0 THEN greatest(u.ts, given[slot] + step) ELSE u.ts END,
                   u.num, u.series, u.kind, u.txt
            FROM unnest(series, ts, num, kind, txt, slots, steps) WITH ORDINALITY
                 u(series, ts, num, kind, txt, slot, step, place);
            UPDATE tidegate.series s SET given = greatest(u.least, s.given + u.step)
            FROM unnest(given_series, given_steps, given_least) u(id, step, least) WHERE s.id = u.id;
        END IF;
        INSERT INTO tidegate.devices AS d (device, name, labels, created_at, last_seen, last_offset)
        SELECT u.device, '', '{}', u.seen, u.seen, h.head + u.newest
        FROM unnest(devices, seen, newest) u(device, seen, newest)
        ON CONFLICT (device) DO UPDATE
        SET last_seen = excluded.last_seen, last_offset = excluded.last_offset;
        UPDATE tidegate.head SET head = h.head + count WHERE id = 1;
        verdict := 'done';
    EXCEPTION WHEN unique_violation THEN
        verdict := 'taken';
    END;
END
$$;

-- The ids of series, made where there are none. The head is locked.
CREATE FUNCTION tidegate.register(devices text[], metrics text[])
RETURNS integer[] LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tidegate.series (device, metric)
    SELECT u.device, u.metric FROM unnest(devices, metrics) u(device, metric)
    WHERE NOT EXISTS (SELECT FROM tidegate.series s WHERE s.device = u.device AND s.metric = u.metric);
    RETURN ARRAY(SELECT s.id FROM unnest(devices, metrics) WITH ORDINALITY u(device, metric, place)
                 JOIN tidegate.series s ON s.device = u.device AND s.metric = u.metric ORDER BY place);
END
$$;

-- Append write by write, reading by reading: whatever they hold, each gets its own verdict. The answer is
-- a JSON object: verdict, epoch, head, floor and generation as they were before; ids of the names (null:
-- not needed); of each write [verdict, accepted, duplicates, conflicts, offset], where the verdict is
-- 'done', 'known' or 'reused' by its idempotency key, 'refused' if it was strict and had conflicts, or
-- 'wrong' if the database does not take some of it; of each stored reading its place in the columns, and its time. Of verdict 'fenced': nothing was done.
--
-- Readings name their series by place in names_device and names_metric, and have no ts if the gate is to
-- give them one. sizes: the number of readings of each write; digests: NULL without an idempotency key.
CREATE FUNCTION tidegate.append_exactly(
    synchronous boolean, known_epoch text, known_head bigint, writer text, number bigint,
    names_device text[], names_metric text[],
    names integer[], instants bigint[], numbers double precision[], kinds smallint[], texts text[],
    sizes integer[], moments bigint[], stricts boolean[], principals text[], keys text[], digests text[]
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    h       tidegate.head;
    ids     integer[];
    before  integer[];
    nth     integer;
    following integer := 1;
    sid     integer;
    at      bigint;
    taken   bigint;
    last    bigint;
    start   bigint;
    kept    integer;
    again   integer;
    against integer[];
    touched text[];
    known   tidegate.idempotency;
    stored  record;
    places  integer[] := '{}';
    times   bigint[] := '{}';
    results json[] := '{}';
    answer  text;
BEGIN
    h := tidegate.hold_head(synchronous, known_epoch, known_head);
    IF NOT EXISTS (SELECT FROM tidegate.writers w WHERE w.id = writer AND w.token = number - 1) THEN
        RETURN '{"verdict": "fenced"}';
    END IF;
    last := h.head;
    ids := ARRAY(SELECT s.id FROM unnest(names_device, names_metric) WITH ORDINALITY u(device, metric, nth)
                 LEFT JOIN tidegate.series s ON s.device = u.device AND s.metric = u.metric ORDER BY u.nth);
    FOR w IN 1 .. cardinality(sizes) LOOP
        nth := following;
        following := nth + sizes[w];
        IF digests[w] IS NOT NULL THEN
            SELECT * INTO known FROM tidegate.idempotency i
            WHERE i.principal = principals[w] AND i.key = keys[w];
            IF FOUND THEN
                results := results || json_build_array(
                    CASE WHEN known.digest = digests[w] THEN 'known' ELSE 'reused' END,
                    known.accepted, known.duplicates, known.conflicts, known.log_offset);
                CONTINUE;
            END IF;
        END IF;
        start := last;
        kept := cardinality(places);
        before := ids;
        again := 0;
        against := '{}';
        touched := '{}';
        BEGIN
            FOR n IN nth .. following - 1 LOOP
                sid := ids[names[n]];
                IF sid IS NULL THEN
                    INSERT INTO tidegate.series (device, metric)
                    VALUES (names_device[names[n]], names_metric[names[n]]) RETURNING id INTO sid;
                    ids[names[n]] := sid;
                END IF;
                at := instants[n];
                IF at IS NULL THEN
                    SELECT greatest(moments[w], s.given + 1) INTO at FROM tidegate.series s WHERE s.id = sid;
                    FOR taken IN SELECT r.ts FROM tidegate.readings r
                                 WHERE r.series = sid AND r.ts >= at ORDER BY r.ts LOOP
                        EXIT WHEN taken > at;
                        at := at + 1;
                    END LOOP;
                    UPDATE tidegate.series SET given = at WHERE id = sid;
                ELSE
                    SELECT r.num, r.kind, r.txt INTO stored FROM tidegate.readings r
                    WHERE r.series = sid AND r.ts = at;
                    IF FOUND THEN
                        -- 1 and 1.0 are one value, 1 and true are two.
                        IF greatest(stored.kind, 1) = greatest(kinds[n], 1)
                           AND stored.num IS NOT DISTINCT FROM numbers[n]
                           AND stored.txt IS NOT DISTINCT FROM texts[n] THEN
                            again := again + 1;
                        ELSE
                            against := against || (n - nth);
                        END IF;
                        CONTINUE;
                    END IF;
                END IF;
                last := last + 1;
                INSERT INTO tidegate.readings (log_offset, ts, num, series, kind, txt)
                VALUES (last, at, numbers[n], sid, kinds[n], texts[n]);
                places := places || n;
                times := times || at;
                touched := touched || names_device[names[n]];
            END LOOP;
            IF stricts[w] AND cardinality(against) > 0 THEN
                RAISE EXCEPTION USING ERRCODE = 'TG001';
            END IF;
            INSERT INTO tidegate.devices AS d (device, name, labels, created_at, last_seen, last_offset)
            SELECT DISTINCT u.device, '', '{}', moments[w], moments[w], last FROM unnest(touched) u(device)
            ON CONFLICT (device) DO UPDATE
            SET last_seen = excluded.last_seen, last_offset = excluded.last_offset;
            IF digests[w] IS NOT NULL THEN
                INSERT INTO tidegate.idempotency VALUES (principals[w], keys[w], digests[w],
                    (last - start)::integer, again, against, last, moments[w]);
            END IF;
            results := results || json_build_array('done', last - start, again, against, last);
        EXCEPTION WHEN SQLSTATE 'TG001' THEN
            -- The rows are gone; what stands in variables is taken back here.
            last := start;
            ids := before;
            places := places[:kept];
            times := times[:kept];
            results := results || json_build_array('refused', 0, again, against, last);
        WHEN data_exception OR integrity_constraint_violation THEN
            last := start;
            ids := before;
            places := places[:kept];
            times := times[:kept];
            results := results || json_build_array('wrong', 0, 0, '{}'::integer[], last);
        END;
    END LOOP;
    answer := json_build_object(
        'verdict', 'done', 'epoch', h.epoch, 'head', h.head, 'floor', h.floor, 'generation', h.generation,
        'ids', ids, 'results', results, 'places', places, 'times', times);
    PERFORM tidegate.sign(writer, number, h.head + 1, last, answer);
    UPDATE tidegate.head SET head = last WHERE id = 1;
    RETURN answer;
END
$$;

-- How the commit with this token ended, for a process that lost its connection meanwhile. Also its last
-- chance: if it has not happened by now it never will. first and last are NULL if nothing was committed; so
-- says every later call with this token too.
CREATE FUNCTION tidegate.settle(
    synchronous boolean, known_epoch text, known_head bigint, writer text, number bigint,
    OUT epoch text, OUT head bigint, OUT floor bigint, OUT generation bigint,
    OUT first bigint, OUT last bigint, OUT answer text
) LANGUAGE plpgsql AS $$
DECLARE
    h tidegate.head;
BEGIN
    -- Whoever commits holds this lock until the end.
    h := tidegate.hold_head(synchronous, known_epoch, known_head);
    epoch := h.epoch;
    head := h.head;
    floor := h.floor;
    generation := h.generation;
    SELECT w.first, w.last, w.answer INTO first, last, answer
    FROM tidegate.writers w WHERE w.id = writer AND w.token = number AND (w.last >= w.first OR w.answer IS NOT NULL);
    IF FOUND THEN
        RETURN;
    END IF;
    INSERT INTO tidegate.writers AS w VALUES (writer, number, 1, 0, NULL, now())
    ON CONFLICT (id) DO UPDATE SET token = number, first = 1, last = 0, answer = NULL, seen = now();
END
$$;
