package main

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v4/pgxpool"
)

const (
	schema = `CREATE TABLE IF NOT EXISTS readings (
		id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		device text NOT NULL, metric text NOT NULL, ts bigint NOT NULL, value jsonb NOT NULL,
		UNIQUE (device, metric, ts))`
	insert = `WITH stored AS (
			INSERT INTO readings (device, metric, ts, value)
			SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::text[]::jsonb[])
			ON CONFLICT DO NOTHING RETURNING id)
		SELECT count(*), coalesce(max(id), 0) FROM stored`
	insertOne = `WITH stored AS (
			INSERT INTO readings (device, metric, ts, value) VALUES ($1, $2, $3, $4::text::jsonb)
			ON CONFLICT DO NOTHING RETURNING id)
		SELECT count(*), coalesce(max(id), 0) FROM stored`
	latestRows = `SELECT DISTINCT ON (metric) metric, ts, id, value::text FROM readings
		WHERE device = $1 ORDER BY metric, ts DESC`
	pageUp = `SELECT id, ts, value::text FROM readings
		WHERE device = $1 AND metric = $2 AND ts >= $3 AND ts < $4 ORDER BY ts LIMIT $5`
	pageDown = `SELECT id, ts, value::text FROM readings
		WHERE device = $1 AND metric = $2 AND ts >= $3 AND ts < $4 ORDER BY ts DESC LIMIT $5`
)

type written struct {
	Accepted      int         `json:"accepted"`
	Duplicates    int         `json:"duplicates"`
	RejectedCount int         `json:"rejected_count"`
	Rejected      []rejection `json:"rejected"`
	Position      string      `json:"position"`
}

type metricValue struct {
	TS     string          `json:"ts"`
	Value  json.RawMessage `json:"value"`
	Offset int64           `json:"offset"`
}

type latestValues struct {
	Device   string                 `json:"device"`
	Metrics  map[string]metricValue `json:"metrics"`
	Position string                 `json:"position"`
}

type pageItem struct {
	Offset int64           `json:"offset"`
	Metric string          `json:"metric"`
	TS     string          `json:"ts"`
	Value  json.RawMessage `json:"value"`
}

type page struct {
	Items []pageItem `json:"items"`
	Next  *string    `json:"next"`
}

// store keeps readings in PostgreSQL, and the latest of them in memory.
type store struct {
	pool   *pgxpool.Pool
	lock   sync.Mutex
	latest map[string]*latestValues
	writes map[string]int
}

func open(ctx context.Context, url string) (*store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.MinConns = 10, 10
	pool, err := pgxpool.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	_, err = pool.Exec(ctx, schema)
	return &store{pool: pool, latest: map[string]*latestValues{}, writes: map[string]int{}}, err
}

func (s *store) add(ctx context.Context, device string, rows *columns) (*written, error) {
	var count int
	var last int64
	var err error
	if len(rows.metrics) == 1 {
		err = s.pool.QueryRow(ctx, insertOne, device, rows.metrics[0], rows.times[0], rows.values[0]).Scan(&count, &last)
	} else {
		err = s.pool.QueryRow(ctx, insert, device, rows.metrics, rows.times, rows.values).Scan(&count, &last)
	}
	if err != nil {
		return nil, err
	}
	s.lock.Lock()
	s.writes[device]++
	delete(s.latest, device)
	s.lock.Unlock()
	rejected := rows.rejected
	if len(rejected) > 100 {
		rejected = rejected[:100]
	}
	return &written{count, len(rows.metrics) - count, len(rows.rejected), rejected, strconv.FormatInt(last, 10)}, nil
}

func (s *store) latestOf(ctx context.Context, device string) (*latestValues, error) {
	s.lock.Lock()
	known, writes := s.latest[device], s.writes[device]
	s.lock.Unlock()
	if known != nil {
		return known, nil
	}
	rows, err := s.pool.Query(ctx, latestRows, device)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found, position := &latestValues{Device: device, Metrics: map[string]metricValue{}}, int64(0)
	for rows.Next() {
		var metric, value string
		var ts, id int64
		if err := rows.Scan(&metric, &ts, &id, &value); err != nil {
			return nil, err
		}
		found.Metrics[metric] = metricValue{rfc3339(ts), json.RawMessage(value), id}
		if id > position {
			position = id
		}
	}
	found.Position = strconv.FormatInt(position, 10)
	s.lock.Lock()
	// What was read before another write is not kept.
	if s.writes[device] == writes {
		s.latest[device] = found
	}
	s.lock.Unlock()
	return found, rows.Err()
}

func (s *store) page(ctx context.Context, device string, asked *query) (*page, error) {
	statement, low, high := pageUp, asked.low, asked.high
	if asked.descending {
		statement = pageDown
	}
	if asked.cursor >= 0 && asked.descending {
		high = asked.cursor + 1
	} else if asked.cursor >= 0 {
		low = asked.cursor
	}
	rows, err := s.pool.Query(ctx, statement, device, asked.metric, low, high, asked.limit+1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := &page{Items: make([]pageItem, 0, asked.limit)}
	for rows.Next() {
		var id, ts int64
		var value string
		if err := rows.Scan(&id, &ts, &value); err != nil {
			return nil, err
		}
		if len(found.Items) == asked.limit {
			next := strconv.FormatInt(ts, 10)
			found.Next = &next
			break
		}
		found.Items = append(found.Items, pageItem{id, asked.metric, rfc3339(ts), json.RawMessage(value)})
	}
	rows.Close()
	return found, rows.Err()
}

func rfc3339(microseconds int64) string {
	return time.UnixMicro(microseconds).UTC().Format("2006-01-02T15:04:05.000000Z")
}
