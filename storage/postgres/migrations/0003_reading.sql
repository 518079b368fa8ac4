-- At most `most` rows of the log with low < log_offset <= high, in order. Both bounds, because only then
-- BRIN can say which pages need not be read; and whatever the planner thinks of a table without statistics.
CREATE FUNCTION tidegate.read_log(low bigint, high bigint, most integer)
RETURNS TABLE (
    log_offset bigint, series integer, ts bigint, num double precision, kind smallint, txt text
) LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT r.log_offset, r.series, r.ts, r.num, r.kind, r.txt FROM tidegate.readings r
    WHERE r.log_offset > low AND r.log_offset <= high ORDER BY r.log_offset LIMIT most;
END
$$;

-- At most `most` readings of one series with low <= ts < high and an offset up to `until`, that follow the
-- place (ts, offset) in their order. A page costs a page: no plan may read all to sort it.
CREATE FUNCTION tidegate.read_series(
    sid integer, low bigint, high bigint, after_ts bigint, after_offset bigint, until bigint, most integer,
    descending boolean
) RETURNS TABLE (ts bigint, log_offset bigint, num double precision, kind smallint, txt text)
LANGUAGE plpgsql STABLE ROWS 100
SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF descending THEN
        RETURN QUERY
        SELECT r.ts, r.log_offset, r.num, r.kind, r.txt FROM tidegate.readings r
        WHERE r.series = sid AND r.ts >= low AND r.ts < high AND (r.ts, r.log_offset) < (after_ts, after_offset)
              AND r.log_offset <= until ORDER BY r.ts DESC LIMIT most;
    ELSE
        RETURN QUERY
        SELECT r.ts, r.log_offset, r.num, r.kind, r.txt FROM tidegate.readings r
        WHERE r.series = sid AND r.ts >= low AND r.ts < high AND (r.ts, r.log_offset) > (after_ts, after_offset)
              AND r.log_offset <= until ORDER BY r.ts LIMIT most;
    END IF;
END
$$;

-- The newest reading of each series of some devices; a row of NULLs for a device that has none.
CREATE FUNCTION tidegate.read_latest(wanted text[])
RETURNS TABLE (
    device text, last_offset bigint, metric text,
    ts bigint, num double precision, kind smallint, txt text, log_offset bigint
) LANGUAGE plpgsql STABLE ROWS 100
SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT d.device, d.last_offset, s.metric, r.ts, r.num, r.kind, r.txt, r.log_offset
    FROM unnest(wanted) u(device) JOIN tidegate.devices d ON d.device = u.device
    LEFT JOIN tidegate.series s ON s.device = d.device
    LEFT JOIN LATERAL (
        SELECT q.ts, q.num, q.kind, q.txt, q.log_offset FROM tidegate.readings q
        WHERE q.series = s.id ORDER BY q.ts DESC LIMIT 1
    ) r ON true;
END
$$;

-- Figures of the numbers of one series, bucket by bucket, at most `most` of them: from one bucket that has
-- numbers to the next, so that empty stretches cost one look-up. The kinds say what is an integer.
CREATE FUNCTION tidegate.buckets(sid integer, low bigint, high bigint, every bigint, most integer)
RETURNS TABLE (
    bucket bigint, average double precision, total double precision, quantity bigint,
    smallest double precision, smallest_kind integer, largest double precision, largest_kind integer,
    earliest double precision, earliest_kind smallint, latest double precision, latest_kind smallint
) LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    at       bigint;
    from_ts  bigint;
    to_ts    bigint;
    exact    numeric;
    integers double precision;
    others   double precision;
    tops     double precision;
    peaks    double precision;
BEGIN
    FOR n IN 1 .. most LOOP
        SELECT r.ts INTO at FROM tidegate.readings r
        WHERE r.series = sid AND r.ts >= low AND r.ts < high AND r.kind < 2 ORDER BY r.ts LIMIT 1;
        EXIT WHEN NOT FOUND;
        bucket := at - at % every;
        from_ts := greatest(bucket, low);
        to_ts := least(bucket + every, high);
        BEGIN
            SELECT count(*), sum(r.num), avg(r.num),
                   min(r.num) FILTER (WHERE r.kind = 0), min(r.num) FILTER (WHERE r.kind = 1),
                   max(r.num) FILTER (WHERE r.kind = 0), max(r.num) FILTER (WHERE r.kind = 1)
            INTO quantity, total, average, integers, others, tops, peaks
            FROM tidegate.readings r
            WHERE r.series = sid AND r.ts >= from_ts AND r.ts < to_ts AND r.kind < 2;
        EXCEPTION WHEN numeric_value_out_of_range THEN
            SELECT count(*), sum(r.num::numeric),
                   min(r.num) FILTER (WHERE r.kind = 0), min(r.num) FILTER (WHERE r.kind = 1),
                   max(r.num) FILTER (WHERE r.kind = 0), max(r.num) FILTER (WHERE r.kind = 1)
            INTO quantity, exact, integers, others, tops, peaks
            FROM tidegate.readings r
            WHERE r.series = sid AND r.ts >= from_ts AND r.ts < to_ts AND r.kind < 2;
            average := exact / quantity;
            total := CASE WHEN abs(exact) > 1.7976931348623157e308 THEN sign(exact) * 'Infinity'::numeric
                     ELSE exact END;
        END;
        smallest := least(integers, others);
        smallest_kind := CASE WHEN integers <= others OR others IS NULL THEN 0 ELSE 1 END;
        largest := greatest(tops, peaks);
        largest_kind := CASE WHEN tops >= peaks OR peaks IS NULL THEN 0 ELSE 1 END;
        SELECT r.num, r.kind INTO earliest, earliest_kind FROM tidegate.readings r
        WHERE r.series = sid AND r.ts >= from_ts AND r.ts < to_ts AND r.kind < 2 ORDER BY r.ts LIMIT 1;
        SELECT r.num, r.kind INTO latest, latest_kind FROM tidegate.readings r
        WHERE r.series = sid AND r.ts >= from_ts AND r.ts < to_ts AND r.kind < 2 ORDER BY r.ts DESC LIMIT 1;
        RETURN NEXT;
        low := bucket + every;
    END LOOP;
END
$$;
