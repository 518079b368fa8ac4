"""Readings in PostgreSQL: their table and what is asked of it, for every driver."""

import re
from typing import NamedTuple

SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text NOT NULL,
    metric text NOT NULL,
    ts bigint NOT NULL,
    value jsonb NOT NULL,
    UNIQUE (device, metric, ts)
)
"""
_ONE = "INSERT INTO readings (device, metric, ts, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id"
_MANY = """
WITH stored AS (
    INSERT INTO readings (device, metric, ts, value)
    SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::jsonb[])
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT count(*), coalesce(max(id), 0) FROM stored
"""
_LATEST = """
SELECT DISTINCT ON (metric) metric, ts, id, {value} FROM readings
WHERE device = $1 ORDER BY metric, ts DESC
"""
_PAGE = """
SELECT id, ts, {value} FROM readings
WHERE device = $1 AND metric = $2 AND ts >= $3 AND ts < $4 ORDER BY ts {order} LIMIT $5
"""


class Statements(NamedTuple):
    """One reading, many from arrays, the latest values, and a page in both directions.

    Arguments stand in the order of `device`, `metric`, `ts`, `value`, or of a range and its limit.
    """

    one: str
    many: str
    latest: str
    ascending: str
    descending: str


def _statements(value: str) -> Statements:
    pages = (_PAGE.format(value=value, order=order) for order in ("ASC", "DESC"))
    return Statements(_ONE, _MANY, _LATEST.format(value=value), *pages)


def _as_format(statements: Statements) -> Statements:
    """With %s for each argument (PEP 249, "format")."""
    return Statements(*(re.sub(r"\$[0-9]", "%s", each) for each in statements))


# With $1, $2 ...; with %s; and with %s where values are to come as text, whatever the driver makes of jsonb.
NUMBERED = _statements("value")
FORMAT = _as_format(NUMBERED)
FORMAT_TEXT = _as_format(_statements("value::text"))
