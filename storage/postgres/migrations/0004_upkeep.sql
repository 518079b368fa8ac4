-- Forget a device, with_readings also its series, whose rows are swept later; false if there is none.
CREATE FUNCTION tidegate.forget_device(named text, with_readings boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM tidegate.head WHERE id = 1 FOR UPDATE;
    DELETE FROM tidegate.devices WHERE device = named;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE tidegate.head SET generation = generation + 1 WHERE id = 1;
    IF with_readings THEN
        WITH gone AS (DELETE FROM tidegate.series WHERE device = named RETURNING id)
        INSERT INTO tidegate.doomed SELECT id FROM gone;
    END IF;
    RETURN true;
END
$$;

-- Remove at most `most` readings of one deleted series; whether there may be more to do.
-- No sort: every partition gives its rows in order.
CREATE FUNCTION tidegate.sweep_doomed(most integer)
RETURNS boolean LANGUAGE plpgsql SET enable_sort = off SET enable_seqscan = off AS $$
DECLARE
    sid  integer;
    upto bigint;
BEGIN
    SELECT d.series INTO sid FROM tidegate.doomed d ORDER BY d.series LIMIT 1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT r.ts INTO upto FROM tidegate.readings r
    WHERE r.series = sid ORDER BY r.ts OFFSET most - 1 LIMIT 1;
    IF FOUND THEN
        DELETE FROM tidegate.readings r WHERE r.series = sid AND r.ts <= upto;
    ELSE
        DELETE FROM tidegate.readings r WHERE r.series = sid;
        DELETE FROM tidegate.doomed d WHERE d.series = sid;
    END IF;
    RETURN true;
END
$$;

-- Remove at most `most` readings with a ts before `oldest`, of at most most_series series after the id
-- after_series, and raise the floor above them. continue_after: 0 when all series were looked at.
CREATE FUNCTION tidegate.expire(
    oldest bigint, after_series integer, most_series integer, most integer,
    OUT removed integer, OUT continue_after integer
) LANGUAGE plpgsql SET enable_sort = off SET enable_seqscan = off AS $$
DECLARE
    sid     integer;
    upto    bigint;
    count   integer;
    newest  bigint;
    highest bigint := 0;
    looked  integer := 0;
BEGIN
    removed := 0;
    continue_after := after_series;
    FOR sid IN SELECT s.id FROM tidegate.series s WHERE s.id > after_series ORDER BY s.id LIMIT most_series LOOP
        SELECT r.ts INTO upto FROM tidegate.readings r
        WHERE r.series = sid AND r.ts < oldest ORDER BY r.ts OFFSET most - removed - 1 LIMIT 1;
        IF NOT FOUND THEN
            upto := oldest - 1;
            PERFORM FROM tidegate.readings r WHERE r.series = sid AND r.ts <= upto LIMIT 1;
        END IF;
        IF FOUND THEN
            -- What is removed may be written again at this moment: first what a commit takes first.
            PERFORM FROM tidegate.head WHERE id = 1 FOR UPDATE;
        END IF;
        WITH gone AS (
            DELETE FROM tidegate.readings r WHERE r.series = sid AND r.ts <= upto RETURNING r.log_offset
        ) SELECT count(*), max(log_offset) INTO count, newest FROM gone;
        removed := removed + count;
        highest := greatest(highest, newest);
        -- This one may have more: the next step begins with it.
        EXIT WHEN removed >= most;
        continue_after := sid;
        looked := looked + 1;
    END LOOP;
    IF removed < most AND looked < most_series THEN
        continue_after := 0;
    END IF;
    IF removed > 0 THEN
        UPDATE tidegate.head SET floor = greatest(floor, highest) WHERE id = 1;
    END IF;
END
$$;

-- A partition for low <= ts < high, or for the end of it that none takes yet; whether one was made.
-- What is there already in the one for the rest moves. Short, or not at all: all commits wait for it.
CREATE FUNCTION tidegate.add_partition(named text, low bigint, high bigint)
RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '500ms' AS $$
BEGIN
    -- First what a commit takes first, else each might wait for the other.
    PERFORM FROM tidegate.head WHERE id = 1 FOR UPDATE;
    low := coalesce((SELECT max(p.upper) FROM tidegate.partitions p WHERE p.lower < high AND p.upper > low), low);
    IF low >= high OR EXISTS (SELECT FROM tidegate.partitions p WHERE p.name = named) THEN
        RETURN false;
    END IF;
    LOCK TABLE tidegate.readings_rest IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE tidegate.%I (LIKE tidegate.readings INCLUDING CONSTRAINTS)', named);
    EXECUTE format('WITH gone AS (DELETE FROM tidegate.readings_rest WHERE ts >= $1 AND ts < $2 RETURNING *) '
                   'INSERT INTO tidegate.%I SELECT * FROM gone ORDER BY log_offset', named) USING low, high;
    EXECUTE format('ALTER TABLE tidegate.readings ATTACH PARTITION tidegate.%I FOR VALUES FROM (%s) TO (%s)',
                   named, low, high);
    INSERT INTO tidegate.partitions VALUES (named, low, high);
    RETURN true;
END
$$;

-- The highest offset of a partition, 0 if it is empty. By halves: each question is one that BRIN answers.
CREATE FUNCTION tidegate.highest_offset(named text)
RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    low   bigint := 0;
    high  bigint;
    half  bigint;
    found boolean;
BEGIN
    SELECT head INTO high FROM tidegate.head WHERE id = 1;
    WHILE low < high LOOP
        half := (low + high) / 2;
        EXECUTE format('SELECT EXISTS (SELECT FROM tidegate.%I WHERE log_offset > $1 AND log_offset <= $2)',
                       named) INTO found USING half, high;
        IF found THEN
            low := half + 1;
        ELSE
            high := half;
        END IF;
    END LOOP;
    RETURN low;
END
$$;

-- Drop a partition that holds nothing from `oldest` on, and raise the floor; false if there is none.
CREATE FUNCTION tidegate.drop_partition(oldest bigint)
RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '500ms' AS $$
DECLARE
    named   text;
    highest bigint;
BEGIN
    PERFORM FROM tidegate.partitions p WHERE p.upper <= oldest;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM tidegate.head WHERE id = 1 FOR UPDATE;
    SELECT p.name INTO named FROM tidegate.partitions p WHERE p.upper <= oldest ORDER BY p.lower LIMIT 1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    highest := tidegate.highest_offset(named);
    EXECUTE format('DROP TABLE tidegate.%I', named);
    DELETE FROM tidegate.partitions p WHERE p.name = named;
    UPDATE tidegate.head SET floor = greatest(floor, highest) WHERE id = 1;
    RETURN true;
END
$$;

-- Tell BRIN of the pages that were filled since: of what it knows nothing it must read all.
CREATE FUNCTION tidegate.summarize()
RETURNS bigint LANGUAGE sql AS $$
    SELECT sum(brin_summarize_new_values(i.indexrelid))
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    JOIN pg_inherits h ON h.inhrelid = i.indrelid
    WHERE a.amname = 'brin' AND h.inhparent = 'tidegate.readings'::regclass
$$;

-- Drop what has had its time, at most `most` of a kind: idempotency keys, revocations, what processes that
-- are gone have committed last. Whether there may be more.
CREATE FUNCTION tidegate.forget_expired(keys_before bigint, now_seconds bigint, most integer)
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    keys  integer;
    ended integer;
BEGIN
    DELETE FROM tidegate.idempotency WHERE ctid = ANY (ARRAY(
        SELECT i.ctid FROM tidegate.idempotency i WHERE i.created < keys_before ORDER BY i.created LIMIT most));
    GET DIAGNOSTICS keys = ROW_COUNT;
    DELETE FROM tidegate.revocations WHERE ctid = ANY (ARRAY(
        SELECT r.ctid FROM tidegate.revocations r WHERE r.expires < now_seconds ORDER BY r.expires LIMIT most));
    GET DIAGNOSTICS ended = ROW_COUNT;
    DELETE FROM tidegate.writers WHERE seen < now() - interval '7 days';
    RETURN keys = most OR ended = most;
END
$$;
