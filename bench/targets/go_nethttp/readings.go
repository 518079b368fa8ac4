package main

import (
	"bytes"
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	readingsMax = 10_000
	timeEnd     = 253402300800000
)

var (
	metricForm = regexp.MustCompile(`^[A-Za-z0-9_.:/%-]{1,64}$`)
	lastTime   int64
	timeLock   sync.Mutex
)

// item is one reading, or several of one time in Values.
type item struct {
	Metric *string                    `json:"metric"`
	Value  json.RawMessage            `json:"value"`
	TS     *int64                     `json:"ts"`
	Values map[string]json.RawMessage `json:"values"`
}

type rejection struct {
	Pointer string `json:"pointer"`
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// columns are those of the rows to store; what is wrong with the other items.
type columns struct {
	metrics  []string
	times    []int64
	values   []string
	rejected []rejection
}

// parse gives the readings of a body: 400 if it is no JSON, 422 if nothing in it is good, 413 if too much.
func parse(body []byte) (*columns, *refused) {
	found := &columns{rejected: []rejection{}}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if !json.Valid(body) {
		return nil, &refused{400, "malformed", nil}
	}
	if trimmed[0] != '[' {
		if found.add(body) != "" {
			return nil, &refused{422, "invalid", nil}
		}
		return found, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(body, &items); err != nil {
		return nil, &refused{400, "malformed", nil}
	}
	if len(items) > readingsMax {
		return nil, &refused{413, "too_large", nil}
	}
	for number, raw := range items {
		if detail := found.add(raw); detail != "" {
			found.rejected = append(found.rejected, rejection{"/" + strconv.Itoa(number), "invalid", detail})
		}
	}
	if len(found.metrics) == 0 {
		return nil, &refused{422, "invalid", nil}
	}
	return found, nil
}

// add takes the rows of an item; what is wrong with it, or "".
func (c *columns) add(raw []byte) string {
	var given item
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&given); err != nil {
		return err.Error()
	}
	single := given.Metric != nil && given.Value != nil
	if single == (len(given.Values) > 0) || (given.Metric == nil) != (given.Value == nil) {
		return "expected metric and value, or values"
	}
	var ts int64
	if given.TS == nil {
		ts = uniqueTime()
	} else if *given.TS < 0 || *given.TS >= timeEnd {
		return "expected a time of 1970 to 9999"
	} else {
		ts = *given.TS * 1000
	}
	values := given.Values
	if single {
		values = map[string]json.RawMessage{*given.Metric: given.Value}
	}
	for metric, value := range values {
		if !metricForm.MatchString(metric) || !isValue(value) {
			return "expected a metric and a boolean, a number or a text"
		}
	}
	for metric, value := range values {
		c.metrics = append(c.metrics, metric)
		c.times = append(c.times, ts)
		c.values = append(c.values, string(value))
	}
	return ""
}

func isValue(raw json.RawMessage) bool {
	switch raw[0] {
	case 't', 'f':
		return true
	case '"':
		var text string
		return json.Unmarshal(raw, &text) == nil && utf8.RuneCountInString(text) <= 1024
	case '[', '{', 'n':
		return false
	}
	number, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return false
	}
	return strings.ContainsAny(string(raw), ".eE") || math.Abs(number) <= 1<<53
}

// uniqueTime gives microseconds since 1970, never the same twice.
func uniqueTime() int64 {
	timeLock.Lock()
	defer timeLock.Unlock()
	now := time.Now().UnixMicro()
	if now <= lastTime {
		now = lastTime + 1
	}
	lastTime = now
	return now
}
