// Go's net/http with pgx, golang-jwt and gorilla/websocket, of the sources that Debian packages; one process.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/gorilla/websocket"
)

const bodyMax = 8 << 20

// query is what a page is asked by; times in microseconds, no cursor is -1.
type query struct {
	metric     string
	low, high  int64
	descending bool
	limit      int
	cursor     int64
}

type server struct {
	store    *store
	upgrader websocket.Upgrader
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	store, err := open(ctx, os.Getenv("BENCH_DATABASE"))
	if err != nil {
		log.Fatal(err)
	}
	serving := &server{store: store}
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", hello)
	mux.HandleFunc("/echo", serving.echo)
	mux.HandleFunc("/v1/devices/", serving.device)
	listening := &http.Server{Addr: "127.0.0.1:" + os.Args[1], Handler: mux}
	go func() {
		<-ctx.Done()
		_ = listening.Close()
	}()
	if err := listening.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}

func answer(w http.ResponseWriter, status int, body interface{}) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

func refuse(w http.ResponseWriter, why *refused) {
	for name, value := range why.headers {
		w.Header().Set(name, value)
	}
	answer(w, why.status, map[string]interface{}{"type": "/problems/" + why.code, "status": why.status, "code": why.code})
}

func hello(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, map[string]bool{"ok": true})
}

func (s *server) device(w http.ResponseWriter, r *http.Request) {
	device, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/devices/"), "/")
	switch r.Method + " " + what {
	case "POST readings":
		s.write(w, r, device)
	case "GET readings":
		s.page(w, r, device)
	case "GET latest":
		s.latest(w, r, device)
	default:
		refuse(w, &refused{404, "not_found", nil})
	}
}

func (s *server) write(w http.ResponseWriter, r *http.Request, device string) {
	if why := admit(r.Header, w.Header(), "readings:write", device); why != nil {
		refuse(w, why)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		refuse(w, &refused{413, "too_large", nil})
		return
	}
	rows, why := parse(body)
	if why != nil {
		refuse(w, why)
		return
	}
	stored, err := s.store.add(r.Context(), device, rows)
	if err != nil {
		refuse(w, &refused{503, "unavailable", nil})
		return
	}
	answer(w, http.StatusOK, stored)
}

func (s *server) latest(w http.ResponseWriter, r *http.Request, device string) {
	if why := admit(r.Header, w.Header(), "readings:read", device); why != nil {
		refuse(w, why)
		return
	}
	body, err := s.store.latestOf(r.Context(), device)
	if err != nil {
		refuse(w, &refused{503, "unavailable", nil})
		return
	}
	etag := `W/"` + body.Position + `"`
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "private, no-cache")
	w.Header().Set("Vary", "Accept, Authorization")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	answer(w, http.StatusOK, body)
}

func (s *server) page(w http.ResponseWriter, r *http.Request, device string) {
	if why := admit(r.Header, w.Header(), "readings:read", device); why != nil {
		refuse(w, why)
		return
	}
	asked, why := pageQuery(r.URL.Query())
	if why != nil {
		refuse(w, why)
		return
	}
	body, err := s.store.page(r.Context(), device, asked)
	if err != nil {
		refuse(w, &refused{503, "unavailable", nil})
		return
	}
	if body.Next != nil {
		next := *r.URL
		values := next.Query()
		values.Set("cursor", *body.Next)
		next.RawQuery = values.Encode()
		w.Header().Set("Link", "<"+next.String()+`>; rel="next"`)
	}
	answer(w, http.StatusOK, body)
}

func pageQuery(given url.Values) (*query, *refused) {
	number := func(name string, otherwise, least, most int64) (int64, bool) {
		if !given.Has(name) {
			return otherwise, true
		}
		found, err := strconv.ParseInt(given.Get(name), 10, 64)
		return found, err == nil && found >= least && found <= most
	}
	low, good1 := number("from", 0, 0, timeEnd)
	high, good2 := number("to", timeEnd-1, 0, timeEnd)
	limit, good3 := number("limit", 100, 1, 1000)
	cursor, good4 := number("cursor", -1, 0, timeEnd*1000)
	order := given.Get("order")
	known := order == "" || order == "asc" || order == "desc"
	if !(good1 && good2 && good3 && good4 && known && metricForm.MatchString(given.Get("metric"))) {
		return nil, &refused{422, "invalid", nil}
	}
	return &query{given.Get("metric"), low * 1000, high * 1000, order == "desc", int(limit), cursor}, nil
}

func (s *server) echo(w http.ResponseWriter, r *http.Request) {
	connection, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer connection.Close()
	for {
		kind, data, err := connection.ReadMessage()
		if err != nil || connection.WriteMessage(kind, data) != nil {
			return
		}
	}
}
