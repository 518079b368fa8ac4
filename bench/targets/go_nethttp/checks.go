package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt"
)

// Requests per minute of a principal: GCRA with a burst of a tenth.
var (
	limitNumber, _ = strconv.Atoi(os.Getenv("BENCH_LIMIT"))
	interval       = 60 / float64(limitNumber)
	depth          = float64(atLeast(1, limitNumber/10)) * interval
	policy         = fmt.Sprintf(`"requests";q=%d;w=60`, limitNumber)
	secret         = []byte(os.Getenv("BENCH_SECRET"))
	parser         = jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}))
	started        = time.Now()
	arrivals       = map[string]float64{}
	arrivalsLock   sync.Mutex
)

type claims struct {
	jwt.RegisteredClaims
	Scope   string   `json:"scope"`
	Devices []string `json:"devices"`
}

// refused is an answer that is an error.
type refused struct {
	status  int
	code    string
	headers map[string]string
}

func (r *refused) Error() string { return r.code }

// admit gives nil if the token is good for the scope and the device, and under its limit; it sets the headers.
func admit(header http.Header, answer http.Header, scope, device string) *refused {
	kind, token, _ := strings.Cut(header.Get("Authorization"), " ")
	if kind != "Bearer" {
		return &refused{401, "unauthorized", map[string]string{"WWW-Authenticate": "Bearer"}}
	}
	var found claims
	_, err := parser.ParseWithClaims(token, &found, func(*jwt.Token) (interface{}, error) { return secret, nil })
	if err != nil || !found.VerifyIssuer("tidegate", true) || !found.VerifyAudience("tidegate", true) ||
		found.ExpiresAt == nil || found.IssuedAt == nil || found.Subject == "" {
		return &refused{401, "unauthorized", map[string]string{"WWW-Authenticate": `Bearer error="invalid_token"`}}
	}
	answer.Set("X-Request-ID", knownID(header.Get("X-Request-ID")))
	if err := limit(answer, found.Subject); err != nil {
		return err
	}
	scoped := false
	for _, each := range strings.Fields(found.Scope) {
		scoped = scoped || each == scope
	}
	if !scoped {
		return &refused{403, "forbidden", nil}
	}
	for _, pattern := range found.Devices {
		if granted(pattern, device) {
			return nil
		}
	}
	if strings.HasSuffix(scope, ":write") {
		return &refused{403, "forbidden", nil}
	}
	return &refused{404, "not_found", nil}
}

func limit(answer http.Header, principal string) *refused {
	now := time.Since(started).Seconds()
	arrivalsLock.Lock()
	arrival := arrivals[principal]
	if arrival < now {
		arrival = now
	}
	arrival += interval
	fill := arrival - now
	good := fill <= depth
	if good {
		arrivals[principal] = arrival
	}
	arrivalsLock.Unlock()
	answer.Set("RateLimit-Policy", policy)
	answer.Set("RateLimit", fmt.Sprintf(`"requests";r=%d;t=%d`, atLeast(0, int((depth-fill)/interval)), int(fill)+1))
	if good {
		return nil
	}
	wait := strconv.Itoa(int(fill-depth) + 1)
	return &refused{429, "rate_limited", map[string]string{"Retry-After": wait}}
}

func granted(pattern, device string) bool {
	wanted, tokens := strings.Split(pattern, "."), strings.Split(device, ".")
	for place, each := range wanted {
		if each == ">" {
			return place == len(wanted)-1 && len(tokens) > place
		}
		if place >= len(tokens) || (each != "*" && each != tokens[place]) {
			return false
		}
	}
	return len(tokens) == len(wanted)
}

func knownID(given string) string {
	sane := len(given) > 0 && len(given) <= 128
	for place := 0; sane && place < len(given); place++ {
		sane = given[place] >= ' ' && given[place] <= '~'
	}
	if sane {
		return given
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err)
	}
	return hex.EncodeToString(id)
}

func atLeast(least, value int) int {
	if value < least {
		return least
	}
	return value
}
