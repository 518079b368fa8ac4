-- At most `most` readings of some series of a device (NULL: all), of each what `read_series` finds, in their
-- order. A device without series, or without readings in the range, is a row of NULLs; an unknown one is none.
-- A plan is made once, not for each call.
CREATE FUNCTION tidegate.read_range(
    named text, wanted text[], low bigint, high bigint, after_ts bigint, after_offset bigint, until bigint,
    most integer, descending boolean
) RETURNS TABLE (metric text, ts bigint, log_offset bigint, num double precision, kind smallint, txt text)
LANGUAGE plpgsql STABLE ROWS 100 SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    IF descending THEN
        RETURN QUERY
        SELECT s.metric, r.ts, r.log_offset, r.num, r.kind, r.txt
        FROM tidegate.devices d
        LEFT JOIN tidegate.series s ON s.device = d.device AND (wanted IS NULL OR s.metric = ANY (wanted))
        LEFT JOIN LATERAL tidegate.read_series(s.id, low, high, after_ts, after_offset, until, most, true) r
            ON true
        WHERE d.device = named ORDER BY r.ts DESC NULLS LAST, r.log_offset DESC LIMIT most;
    ELSE
        RETURN QUERY
        SELECT s.metric, r.ts, r.log_offset, r.num, r.kind, r.txt
        FROM tidegate.devices d
        LEFT JOIN tidegate.series s ON s.device = d.device AND (wanted IS NULL OR s.metric = ANY (wanted))
        LEFT JOIN LATERAL tidegate.read_series(s.id, low, high, after_ts, after_offset, until, most, false) r
            ON true
        WHERE d.device = named ORDER BY r.ts NULLS LAST, r.log_offset LIMIT most;
    END IF;
END
$$;
